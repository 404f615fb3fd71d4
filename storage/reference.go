package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/jpeg" // formats that DashScope accepts
	_ "image/png"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	_ "golang.org/x/image/bmp" // formats that the standard library lacks
	_ "golang.org/x/image/tiff"
	_ "golang.org/x/image/webp"
)

// Limits of a reference image (DashScope's text-to-image API reference for
// wanx-v1, ref_img): 10 MB, 256×256 to 4096×4096.
const (
	maxReferenceBytes = 10 << 20
	minReferenceSide  = 256
	maxReferenceSide  = 4096
)

// ReferenceLimits are what a model allows of a reference image. A zero field is as for wanx-v1:
// sides of 256 to 4096 pixels, 10 MiB.
type ReferenceLimits struct {
	MinSide, MaxSide int   // pixels
	MaxBytes         int64 // of the file
}

// WithDefaults returns the limits with all fields set.
func (l ReferenceLimits) WithDefaults() ReferenceLimits {
	return ReferenceLimits{cmp.Or(l.MinSide, minReferenceSide), cmp.Or(l.MaxSide, maxReferenceSide), cmp.Or(l.MaxBytes, maxReferenceBytes)}
}

// Check checks an image of this many bytes by its header, which it reads. The error says what is
// wrong and what is allowed, without a name.
func (l ReferenceLimits) Check(header io.Reader, bytes int64) error {
	_, _, err := l.check(header, bytes)
	return err
}

func (l ReferenceLimits) check(header io.Reader, bytes int64) (dims image.Config, contentType string, err error) {
	if l = l.WithDefaults(); bytes > l.MaxBytes {
		return dims, "", l.tooLarge(bytes)
	}
	dims, format, err := image.DecodeConfig(header)
	// Another package may have registered further formats, such as GIF.
	contentType = "image/" + format
	if errors.Is(err, image.ErrFormat) || err == nil && Extension(contentType) == "" {
		return dims, "", errors.New("not an image in an accepted format, allowed are JPEG, PNG, BMP, TIFF and WEBP")
	}
	if err != nil {
		return dims, "", fmt.Errorf("broken: %w", err)
	}
	if min(dims.Width, dims.Height) < l.MinSide || max(dims.Width, dims.Height) > l.MaxSide {
		return dims, "", fmt.Errorf("is %d×%d, allowed are %[3]d×%[3]d to %[4]d×%[4]d", dims.Width, dims.Height, l.MinSide, l.MaxSide)
	}
	return dims, contentType, nil
}

func (l ReferenceLimits) tooLarge(bytes int64) error {
	return fmt.Errorf("has %d bytes, at most %d (%d MiB) are allowed", bytes, l.MaxBytes, l.MaxBytes>>20)
}

// referenceExtensions maps the content types that DashScope accepts for a reference
// image to the file name extensions that its upload requires.
func referenceExtensions() map[string]string {
	return map[string]string{jpegType: ".jpg", pngType: ".png", "image/bmp": ".bmp", "image/tiff": ".tiff", webpType: ".webp"}
}

// Extension returns the file name extension for the content type of a verified or a
// reference image, with its dot, or "" for any other content type.
func Extension(contentType string) string { return referenceExtensions()[contentType] }

var sha256Pattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Reference is a local reference image that DashScope accepts.
type Reference struct {
	// Owner is whose image it is once staged; "" is the operator. See [Owner].
	Owner       string
	Path        string
	SHA256      string // hex; its name once staged
	Bytes       int64
	Width       int // pixels
	Height      int
	ContentType string
}

// Inspect checks whether DashScope accepts the file at path as a reference image:
// JPEG, PNG, BMP, TIFF or WEBP by its content (the file name does not matter), within
// the limits. It decodes only the image's header, and reads the file once for its
// hash. The error says what is wrong and what is allowed.
func (l ReferenceLimits) Inspect(path string) (*Reference, error) {
	if stat, err := os.Stat(path); err == nil && !stat.Mode().IsRegular() { // opening a pipe could wait for ever
		return nil, fmt.Errorf("reference image %s: not a regular file", path)
	}
	f, err := os.Open(path)                                                                //nolint:gosec // the user's own file
	if name, _, query := strings.Cut(path, "?"); query && errors.Is(err, os.ErrNotExist) { // perhaps a signature
		return nil, fmt.Errorf("reference image %s?…: no such file; a URL begins with https://", name)
	}
	if err != nil {
		return nil, fmt.Errorf("reference image: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	ref, err := l.inspect(f)
	if err != nil {
		return nil, fmt.Errorf("reference image %s: %w", path, err)
	}
	return ref, nil
}

// inspect checks an open file. Its errors do not contain the file name.
func (l ReferenceLimits) inspect(f *os.File) (*Reference, error) {
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	dims, contentType, err := l.check(f, stat.Size())
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	d, err := computeDigests(f)
	if err != nil {
		return nil, err
	}
	return &Reference{
		Path: f.Name(), SHA256: d.sha256Hex(), Bytes: d.bytes,
		Width: dims.Width, Height: dims.Height, ContentType: contentType,
	}, nil
}

// Owner returns the owner of the images that a producer has staged over HTTP, where the
// producer is "" without tokens. No other producer can use them.
func Owner(producer string) string { return "@" + producer }

// referenceKey is the key of a staged reference image.
func (b *Bucket) referenceKey(owner, sha256Hex string) string {
	if owner != "" {
		owner += "/"
	}
	return b.prefix + referenceFolder + owner + sha256Hex
}

// StageReference stores a reference image under its owner and hash, unless the bucket has
// it already. It fails if the file has changed since it was inspected.
func (b *Bucket) StageReference(ctx context.Context, ref *Reference) error {
	key := b.referenceKey(ref.Owner, ref.SHA256)
	f, d, err := openWithDigests(ref.Path)
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	defer f.Close() //nolint:errcheck // read only
	if d.sha256Hex() != ref.SHA256 {
		return fmt.Errorf("put %s: %s has changed since it was inspected", key, ref.Path)
	}
	return b.putFileIfMissing(ctx, key, f, d)
}

// OpenReference opens a staged reference image by its hash: that of the first of these
// owners who has it. Without any it fails with [ErrNotExist]. The caller must close the
// reader.
func (b *Bucket) OpenReference(ctx context.Context, sha256Hex string, owners ...string) (body io.ReadCloser, info Info, err error) {
	if !sha256Pattern.MatchString(sha256Hex) {
		return nil, Info{}, fmt.Errorf("reference %q: must be a SHA-256 in lower-case hex", sha256Hex)
	}
	err = ErrNotExist
	for _, owner := range owners {
		if body, info, err = b.Get(ctx, b.referenceKey(owner, sha256Hex)); !errors.Is(err, ErrNotExist) {
			break
		}
	}
	return body, info, err
}

// DeleteReference deletes a staged reference image, if it exists.
func (b *Bucket) DeleteReference(ctx context.Context, owner, sha256Hex string) error {
	key := b.referenceKey(owner, sha256Hex)
	if _, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &key}); err != nil {
		return fmt.Errorf("delete %s: %w", key, b.explain(err))
	}
	return nil
}
