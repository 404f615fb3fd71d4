package storage_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

func realImage(tb testing.TB, name string) []byte {
	tb.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", "images", name))
	require.NoError(tb, err)
	return content
}

// The format is that of the bytes, whatever the URL and the Content-Type say, and a bucket
// stores the object as that.
func TestFormatIsThatOfTheBytes(t *testing.T) {
	t.Parallel()
	server := openEmbedded(t)
	b := newBucket(t, embeddedConfig(server, "http://bucket.invalid", server.HTTPClient()))
	for name, want := range map[string]string{"progressive.jpg": "image/jpeg", "lossy.webp": "image/webp"} {
		content := realImage(t, name)
		for i, claimed := range []string{"image/png", "text/html", "image/jpeg", "image/webp", "application/octet-stream"} {
			spool, url := source(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", claimed)
				serve(content)(w, r)
			})
			file, err := spool.Fetch(t.Context(), "a", url+"/a.png"+secretQuery)
			require.NoError(t, err)
			assert.Equal(t, want, file.ContentType, "claimed %s", claimed)
			assert.Equal(t, []int{33, 17}, []int{file.Width, file.Height})
			key := name + strconv.Itoa(i)
			require.NoError(t, b.PutImage(t.Context(), key, file, nil))
			info, err := b.Head(t.Context(), key)
			require.NoError(t, err)
			assert.Equal(t, want, info.ContentType)
		}
	}
}

// An image of any format of which bytes are missing is never verified: it is downloaded again
// where only the end of the connection says that it is over, and else kept for an operator.
func TestTruncatedImagesAreNotVerified(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"baseline.jpg", "progressive-restart.jpg", "alpha.webp", "lossless.webp"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := realImage(t, name)
			short := content[:len(content)-1]
			spool, url := source(t, serve(short))
			_, err := spool.Fetch(t.Context(), "a", url)
			requireUnverified(t, err, short, "the image ends before its last part")

			spool, url = source(t, raw("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"+string(short)))
			_, err = spool.Fetch(t.Context(), "a", url)
			var failed *storage.FetchError
			require.ErrorAs(t, err, &failed)
			assert.Equal(t, storage.FetchTemporary, failed.Kind)
		})
	}
}

// A file that was damaged on the disk between two runs is downloaded again, also if its format
// has no checksum. It stays for an operator if the URL is dead.
func TestDamagedSpoolFileIsNeverUsed(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{"a.png": pngOf(1000, 1), "a.jpg": realImage(t, "baseline.jpg"), "a.webp": realImage(t, "lossy.webp")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var dead atomic.Bool
			spool, url := source(t, func(w http.ResponseWriter, r *http.Request) {
				if dead.Load() {
					w.WriteHeader(http.StatusForbidden)
					return
				}
				serve(content)(w, r)
			})
			file, err := spool.Fetch(t.Context(), name, url)
			require.NoError(t, err)
			damaged := bytes.Clone(content)
			damaged[len(content)-10] ^= 1 // within compressed data
			for _, change := range []func() error{
				func() error { return os.WriteFile(file.Path, damaged, 0o600) },
				func() error { return os.WriteFile(file.Path, content[:len(content)-10], 0o600) },
			} {
				require.NoError(t, change())
				again, err := spool.Fetch(t.Context(), name, url)
				require.NoError(t, err)
				require.Equal(t, file.SHA256, again.SHA256)
			}
			require.NoError(t, os.WriteFile(file.Path, damaged, 0o600))
			dead.Store(true)
			_, err = spool.Fetch(t.Context(), name, url)
			var failed *storage.FetchError
			require.ErrorAs(t, err, &failed)
			assert.Equal(t, storage.FetchGone, failed.Kind)
			kept, err := os.ReadFile(failed.Path)
			require.NoError(t, err)
			assert.Equal(t, damaged, kept)

			require.NoError(t, spool.Remove(name))
			left, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(failed.Path)), "*", name))
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}
