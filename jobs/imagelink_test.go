package jobs_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// Stored links stay valid: the signature must not change.
func TestImagePathIsPermanent(t *testing.T) {
	t.Parallel()
	image := jobs.Image{N: 2, Key: "tea/tea-2.png", SHA256: strings.Repeat("0123456789abcdef", 4)}
	rec := &jobs.Record{Job: jobs.Job{ID: "tea", Images: []jobs.Image{{N: 1, Code: "DataInspectionFailed"}, image}}}
	path := rec.ImagePath(image)
	require.Equal(t, "/images/tea-2.png?s=85bde2f24e5ec85cbfa105475d3d3c84", path)

	_, signature, _ := strings.Cut(path, "?s=")
	got, ok := rec.ImageBySignature(2, signature)
	require.True(t, ok)
	assert.Equal(t, image, got)

	image.ContentType = "image/jpeg"
	require.Equal(t, strings.Replace(path, ".png", ".jpg", 1), rec.ImagePath(image), "the format is not signed")

	rec.ID, image.ContentType = "春.1", "image/png"
	require.Equal(t, "/images/%E6%98%A5.1-2.png?s=", rec.ImagePath(image)[:len(rec.ImagePath(image))-32])
}

// A signature is valid for one image of one job. A missing image has none.
func TestImageBySignatureRefuses(t *testing.T) {
	t.Parallel()
	hash := strings.Repeat("0123456789abcdef", 4)
	one := jobs.Image{N: 1, Key: "a/a-1.png", SHA256: hash}
	rec := &jobs.Record{Job: jobs.Job{ID: "a", Images: []jobs.Image{
		one, {N: 2, Key: "a/a-2.png", SHA256: hash}, {N: 3, SHA256: hash}, {N: 4, Key: "a/a-4.png", SHA256: "ab"},
	}}}
	_, signature, _ := strings.Cut(rec.ImagePath(one), "?s=")
	_, ok := rec.ImageBySignature(1, signature)
	require.True(t, ok)

	other := &jobs.Record{Job: jobs.Job{ID: "b", Images: rec.Images}}
	_, ok = other.ImageBySignature(1, signature)
	assert.False(t, ok, "another job's")
	for n, s := range map[int]string{1: signature[:31], 2: signature, 3: "", 4: "", 5: signature, 0: ""} {
		_, ok = rec.ImageBySignature(n, s)
		assert.False(t, ok, "image %d by %q", n, s)
	}
	assert.Empty(t, rec.ImagePath(rec.Images[2]), "it is not in the bucket")
	assert.Empty(t, rec.ImagePath(rec.Images[3]), "its hash is invalid")
}

// linkBucket is a bucket whose links are below public, or presigned if that is "".
type linkBucket struct{ public string }

func (b linkBucket) Name() string { return "shop" }

func (b linkBucket) Link(_ context.Context, key string) (link string, expiresAt time.Time, err error) {
	if b.public == "" {
		return "https://s3.example.com/" + key + "?signature", time.Now().Add(time.Hour), nil
	}
	return b.public + "/" + key, time.Time{}, nil
}

// A job has its bucket, and a permanent link to each image if there is one.
func TestSetLocation(t *testing.T) {
	t.Parallel()
	image := jobs.Image{N: 1, Key: "tea/tea-1.png", SHA256: strings.Repeat("0123456789abcdef", 4)}
	images := []jobs.Image{image, {N: 2, Code: "DataInspectionFailed"}}
	signed := (&jobs.Job{ID: "tea"}).ImagePath(image)
	for name, test := range map[string]struct{ public, serveURL, want string }{
		"public bucket":            {"https://images.example.com", "", "https://images.example.com/tea/tea-1.png"},
		"public bucket and server": {"https://images.example.com", "https://danqing.example.com", "https://images.example.com/tea/tea-1.png"},
		"server":                   {"", "https://danqing.example.com", "https://danqing.example.com" + signed},
		"neither":                  {"", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job := jobs.Job{ID: "tea", Images: images}
			job.SetLocation(t.Context(), linkBucket{test.public}, test.serveURL)
			assert.Equal(t, "shop", job.Bucket)
			assert.Equal(t, test.want, job.Images[0].Link)
			assert.Equal(t, images[1], job.Images[1])
		})
	}
	assert.Empty(t, images[0].Link, "the caller's images are not changed")

	missing := jobs.Job{ID: "tea", Images: images[1:]}
	missing.SetLocation(t.Context(), linkBucket{}, "https://danqing.example.com")
	assert.Empty(t, missing.Bucket, "no image is in the bucket")
}
