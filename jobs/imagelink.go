package jobs

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// Bucket is a bucket of images, as *storage.Bucket implements it.
type Bucket interface {
	Name() string
	// Link returns a URL of an object, "" if there is none, and when it expires; zero means
	// never.
	Link(ctx context.Context, key string) (link string, expiresAt time.Time, err error)
}

// SetLocation sets where the job's images are: [Job.Bucket], and each [Image.Link], see
// [Job.PermanentLink].
func (j *Job) SetLocation(ctx context.Context, bucket Bucket, serveURL string) {
	j.Images = slices.Clone(j.Images)
	for i, image := range j.Images {
		if image.Key != "" {
			j.Bucket = bucket.Name()
			j.Images[i].Link, _ = j.PermanentLink(ctx, image, bucket, serveURL)
		}
	}
}

// PermanentLink returns the URL of an image in a public bucket, or below serveURL, the base
// URL of a danqing serve; "" if there is neither.
func (j *Job) PermanentLink(ctx context.Context, image Image, bucket Bucket, serveURL string) (string, error) {
	link, expiresAt, err := bucket.Link(ctx, image.Key)
	if err != nil || link != "" && expiresAt.IsZero() {
		return link, err
	}
	if path := j.ImagePath(image); serveURL != "" && path != "" {
		return serveURL + path, nil
	}
	return "", nil
}

const (
	// linkPurpose separates a link's signature from any other use of an image's hash.
	linkPurpose = "danqing/link/1\n"
	// linkDigits is how many hex digits of the signature a link has: 128 bits.
	linkDigits = 32
)

// ImagePath is the path at which danqing serve serves an image of the job, permanently:
// /images/JOB_ID-N.png?s=SIGNATURE, below the server's base URL, with the extension of the
// image's format. It is "" for an image that is not in the bucket or whose hash is not known.
//
// The signature is an HMAC with the image's own SHA-256 as the key. Only a program that has
// the image can compute it, and it gains nothing. So there is no secret to lose, leak or
// rotate, and a stored link is valid as long as the image exists.
func (j *Job) ImagePath(image Image) string {
	signature := j.imageSignature(image)
	if signature == "" {
		return ""
	}
	return "/images/" + url.PathEscape(imageName(j.ID, image.N)) + image.Extension() + "?s=" + signature
}

// ImageBySignature returns the job's image with a number if the signature is that of
// [Job.ImagePath]. It takes the same time for every wrong signature.
func (j *Job) ImageBySignature(n int, signature string) (Image, bool) {
	for _, image := range j.Images {
		if image.N != n {
			continue
		}
		want := j.imageSignature(image)
		return image, want != "" && hmac.Equal([]byte(want), []byte(signature))
	}
	return Image{}, false
}

// imageSignature is "" for an image without a link.
func (j *Job) imageSignature(image Image) string {
	key, err := hex.DecodeString(image.SHA256)
	if err != nil || len(key) != sha256.Size || image.Key == "" {
		return ""
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(linkPurpose + imageName(j.ID, image.N)))
	return hex.EncodeToString(mac.Sum(nil))[:linkDigits]
}

func imageName(jobID string, n int) string { return jobID + "-" + strconv.Itoa(n) }
