package storage

import (
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

// referenceExtensions maps the content types that DashScope accepts for a reference
// image to the file name extensions that its upload requires.
func referenceExtensions() map[string]string {
	return map[string]string{"image/jpeg": ".jpg", "image/png": ".png", "image/bmp": ".bmp", "image/tiff": ".tiff", "image/webp": ".webp"}
}

// Extension returns the file name extension for a reference image's content type,
// with its dot, or "" for any other content type.
func Extension(contentType string) string { return referenceExtensions()[contentType] }

var sha256Pattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Reference is a local reference image that DashScope accepts.
type Reference struct {
	Path        string
	SHA256      string // hex; its name once staged
	Bytes       int64
	Width       int // pixels
	Height      int
	ContentType string
}

// InspectReference checks whether DashScope accepts the file at path as a
// reference image: JPEG, PNG, BMP, TIFF or WEBP by its content (the file name
// does not matter), at most 10 MiB, 256×256 to 4096×4096 pixels. It decodes only
// the image's header, and reads the file once for its hash. The error says what is
// wrong and what is allowed.
func InspectReference(path string) (*Reference, error) {
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
	ref, err := inspect(f)
	if err != nil {
		return nil, fmt.Errorf("reference image %s: %w", path, err)
	}
	return ref, nil
}

// inspect checks an open file. Its errors do not contain the file name.
func inspect(f *os.File) (*Reference, error) {
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if stat.Size() > maxReferenceBytes {
		return nil, fmt.Errorf("has %d bytes, at most %d (10 MiB) are allowed", stat.Size(), maxReferenceBytes)
	}
	dims, format, err := image.DecodeConfig(f)
	// Another package may have registered further formats, such as GIF.
	contentType := "image/" + format
	if errors.Is(err, image.ErrFormat) || err == nil && Extension(contentType) == "" {
		return nil, errors.New("not an image in an accepted format, allowed are JPEG, PNG, BMP, TIFF and WEBP")
	}
	if err != nil {
		return nil, fmt.Errorf("broken: %w", err)
	}
	if min(dims.Width, dims.Height) < minReferenceSide || max(dims.Width, dims.Height) > maxReferenceSide {
		return nil, fmt.Errorf("is %d×%d, allowed are 256×256 to 4096×4096", dims.Width, dims.Height)
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

// StageReference stores a reference image under its hash, unless the bucket has
// it already. It fails if the file has changed since it was inspected.
func (b *Bucket) StageReference(ctx context.Context, ref *Reference) error {
	key := b.prefix + referenceFolder + ref.SHA256
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

// OpenReference opens a staged reference image by its hash, or returns
// [ErrNotExist]. The caller must close the reader.
func (b *Bucket) OpenReference(ctx context.Context, sha256Hex string) (io.ReadCloser, Info, error) {
	if !sha256Pattern.MatchString(sha256Hex) {
		return nil, Info{}, fmt.Errorf("reference %q: must be a SHA-256 in lower-case hex", sha256Hex)
	}
	return b.Get(ctx, b.prefix+referenceFolder+sha256Hex)
}
