package main

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestGalleryURLs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ folder, to, want string }{
		{"spring", "spring/A-1.png", "./A-1.png"},
		{"a/春", "a/春/茶 #1%.png", "./%E8%8C%B6%20%231%25.png"},
		{"a/b", "a/c/1.png", "../c/1.png"},
		{"a/b", "ab/1.png", "../../ab/1.png"},
		{".", "x:y.png", "./x:y.png"},
	} {
		assert.Equal(t, c.want, relativeURL(c.folder, c.to), "%s from %s", c.to, c.folder)
	}
	dir := t.TempDir()
	assert.Equal(t, "./data/b/1.png", fileURL(dir, filepath.Join(dir, "data", "b", "1.png")))
	assert.Equal(t, "../1%3F.png", fileURL(filepath.Join(dir, "x"), filepath.Join(dir, "1?.png")))
	assert.Equal(t, "春.simulated.gallery.html", galleryPath("春.simulated.results.jsonl"))
	assert.Equal(t, "x/out.gallery.html", galleryPath("x/out.jsonl"))
}
