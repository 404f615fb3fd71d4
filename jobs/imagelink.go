package jobs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
)

const (
	// linkPurpose keeps a link's signature apart from whatever else may ever be made of
	// an image's hash.
	linkPurpose = "danqing/link/1\n"
	// linkDigits is how many hex digits of the signature a link has: 128 bits.
	linkDigits = 32
	linkExt    = ".png"
)

// ImagePath is where `danqing serve` gives an image of the job, as often as it is asked
// for: /images/JOB_ID-N.png?s=SIGNATURE, below the server's base URL. It is "" for an
// image that is not in the bucket, or whose hash is not known.
//
// The signature is an HMAC under the image's own SHA-256. Who does not know the image
// cannot make it, and who does has nothing to gain by it. So there is no secret that
// could be lost, leak or be rotated, and a link that somebody has stored lives as long
// as the image.
func (r *Record) ImagePath(image Image) string {
	signature := r.imageSignature(image)
	if signature == "" {
		return ""
	}
	return "/images/" + imageName(r.ID, image.N) + linkExt + "?s=" + signature
}

// ImageBySignature returns the job's image of that number if the signature is its own,
// as [Record.ImagePath] has it. It takes the same time whatever a wrong one looks like.
func (r *Record) ImageBySignature(n int, signature string) (Image, bool) {
	for _, image := range r.Images {
		if image.N != n {
			continue
		}
		want := r.imageSignature(image)
		return image, want != "" && hmac.Equal([]byte(want), []byte(signature))
	}
	return Image{}, false
}

// imageSignature is "" for an image that there is no link to.
func (r *Record) imageSignature(image Image) string {
	key, err := hex.DecodeString(image.SHA256)
	if err != nil || len(key) != sha256.Size || image.Key == "" {
		return ""
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(linkPurpose + imageName(r.ID, image.N)))
	return hex.EncodeToString(mac.Sum(nil))[:linkDigits]
}

func imageName(jobID string, n int) string { return jobID + "-" + strconv.Itoa(n) }
