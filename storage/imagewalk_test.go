package storage

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	_ "image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// walkImage returns the outcome of writing content in portions.
func walkImage(content []byte, portion int) (*imageWalk, *walk, error) {
	w := &imageWalk{}
	for len(content) > 0 {
		n := min(portion, len(content))
		_, _ = w.Write(content[:n])
		content = content[n:]
	}
	image, err := w.result()
	return w, image, err
}

// testImages returns images of 33×17 by their names: those of testdata, which libjpeg-turbo
// and libwebp have made, and a PNG.
func testImages(tb testing.TB) map[string][]byte {
	tb.Helper()
	files, err := filepath.Glob("testdata/images/*")
	require.NoError(tb, err)
	require.Len(tb, files, 9)
	all := map[string][]byte{}
	for _, file := range files {
		all[filepath.Base(file)], err = os.ReadFile(file)
		require.NoError(tb, err)
	}
	var made bytes.Buffer
	require.NoError(tb, png.Encode(&made, image.NewGray(image.Rect(0, 0, 33, 17))))
	all["gray.png"] = made.Bytes()
	return all
}

// Images of all formats are recognized by their bytes, without their last byte or with one
// more they are not whole, and nothing is kept in memory.
func TestWholeImagesAreAccepted(t *testing.T) {
	t.Parallel()
	types := map[string]string{".png": pngType, ".jpg": jpegType, ".webp": webpType}
	for name, content := range testImages(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name != "progressive-restart.jpg" { // libjpeg-turbo decodes it, Go 1.26 does not
				_, _, err := image.Decode(bytes.NewReader(content))
				require.NoError(t, err, "the test's own image")
			}
			for _, portion := range []int{1, 7, 1 << 20} {
				w, got, err := walkImage(content, portion)
				require.NoError(t, err, "portions of %d", portion)
				assert.Equal(t, []int{33, 17}, []int{got.width, got.height})
				assert.Equal(t, types[filepath.Ext(name)], got.contentType)
				assert.Equal(t, filepath.Ext(name), Extension(got.contentType))
				assert.LessOrEqual(t, cap(w.format.common().have), 64)
			}
			for n := range content {
				_, _, err := walkImage(content[:n], len(content))
				require.ErrorIs(t, err, errTruncated, "cut after %d bytes", n)
			}
			for _, more := range []string{"\x00", "\n", string(content)} {
				_, _, err := walkImage(append(bytes.Clone(content), more...), len(content))
				require.ErrorContains(t, err, "bytes after the", "with %q behind it", more)
			}
		})
	}
}

// Bytes that are taken out of the middle are missed, wherever lengths and markers show it: in
// a file without checksums all but those of compressed data and of skipped metadata.
func TestMissingBytesAreNoticed(t *testing.T) {
	t.Parallel()
	for name, content := range testImages(t) {
		noticed := 0
		for n := range content {
			_, _, err := walkImage(append(bytes.Clone(content[:n]), content[n+1:]...), len(content))
			if err != nil {
				noticed++
			}
		}
		if filepath.Ext(name) != ".jpg" {
			assert.Equal(t, len(content), noticed, name)
		}
		// In a JPEG: each byte of a segment, as the next one is then not where it should be.
		assert.Greater(t, noticed, len(content)/2, name)
	}
}

func TestUnknownFormats(t *testing.T) {
	t.Parallel()
	for _, content := range []string{
		"GIF89a", "<html>busy</html>", "BM6\x00\x00\x00", "\x00\x00\x00\x20ftypavif", "\x89PNG\n\x1a\n____", "\xff\x0a_", "\xff\xd9_", "RIFF\x24\x00\x00\x00WAVE", "RIFX\x24\x00\x00\x00WEBP",
	} {
		for _, portion := range []int{1, 100} {
			_, _, err := walkImage([]byte(content), portion)
			require.ErrorIs(t, err, errUnknownFormat, "%q", content)
		}
	}
	_, _, err := walkImage(nil, 1)
	require.ErrorIs(t, err, errTruncated)
}

// requireSteady checks what holds for every content: that the size of the writes does not
// matter, that little is kept in memory, and that no beginning of an accepted image is accepted.
// It returns the image, nil if it is not accepted.
func requireSteady(t *testing.T, content []byte, portion int) *walk {
	t.Helper()
	w, got, err := walkImage(content, len(content)+1)
	parts, _, partsErr := walkImage(content, portion)
	if fmt.Sprint(err) != fmt.Sprint(partsErr) {
		t.Fatalf("whole: %v, in portions of %d: %v", err, portion, partsErr)
	}
	if w.format != nil && max(cap(w.format.common().have), cap(parts.format.common().have)) > 64 {
		t.Fatalf("it keeps %d bytes", cap(parts.format.common().have))
	}
	if err != nil {
		return nil
	}
	if got.width < 1 || got.height < 1 {
		t.Fatalf("accepted with %d×%d", got.width, got.height)
	}
	for _, n := range []int{len(content) - 1, len(content) / 2} {
		if _, _, err := walkImage(content[:n], 1<<20); !errors.Is(err, errTruncated) {
			t.Fatalf("of its %d bytes the first %d are accepted: %v", len(content), n, err)
		}
	}
	return got
}
