package storage_test

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

// chunk returns a PNG chunk.
func chunk(kind string, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	b = append(append(b, kind...), data...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
}

// pngOf returns a PNG of 640×480 with dataBytes bytes of incompressible image data.
func pngOf(dataBytes int, seed uint64) []byte {
	data := make([]byte, dataBytes)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(data)
	b := []byte("\x89PNG\r\n\x1a\n")
	b = append(b, chunk("IHDR", []byte{0, 0, 2, 128, 0, 0, 1, 224, 8, 2, 0, 0, 0})...)
	b = append(b, chunk("IDAT", data)...)
	return append(b, chunk("IEND", nil)...)
}

// openSpool opens a spool that trusts sources too.
func openSpool(tb testing.TB, sources ...string) *storage.Spool {
	tb.Helper()
	spool, err := storage.OpenSpool(tb.TempDir(), storage.SpoolConfig{Sources: sources})
	require.NoError(tb, err)
	return spool
}

// newSpool opens a spool that downloads with transport.
func newSpool(tb testing.TB, transport http.RoundTripper) (*storage.Spool, error) {
	tb.Helper()
	return storage.OpenSpool(tb.TempDir(), storage.SpoolConfig{Sources: []string{"http://simulator"}, Transport: transport})
}

// verifiedFile returns content as a verified file.
func verifiedFile(tb testing.TB, content []byte) *storage.File {
	tb.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }))
	defer server.Close()
	file, err := openSpool(tb, server.URL).Fetch(tb.Context(), "image", server.URL+"/1d/86/a-1.png?Signature=s")
	require.NoError(tb, err)
	return file
}

// clientFunc implements HTTPClient.
type clientFunc func(*http.Request) (*http.Response, error)

func (f clientFunc) Do(r *http.Request) (*http.Response, error) { return f(r) }

// counting counts the requests of a method.
func counting(next storage.HTTPClient, method string, n *atomic.Int64) storage.HTTPClient {
	return clientFunc(func(r *http.Request) (*http.Response, error) {
		if r.Method == method {
			n.Add(1)
		}
		return next.Do(r)
	})
}

// flipping changes the last byte of every body that is sent.
func flipping(next storage.HTTPClient) storage.HTTPClient {
	return clientFunc(func(r *http.Request) (*http.Response, error) {
		if r.ContentLength > 0 {
			r = r.Clone(r.Context())
			r.Body = readCloser{&flipAt{r: r.Body, left: r.ContentLength}, r.Body}
		}
		return next.Do(r)
	})
}

type readCloser struct {
	io.Reader
	io.Closer
}

type flipAt struct {
	r    io.Reader
	left int64
}

func (f *flipAt) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if f.left -= int64(n); f.left == 0 && n > 0 {
		p[n-1] ^= 1
	}
	return n, err
}

func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

func readAll(t *testing.T, r io.ReadCloser) []byte {
	t.Helper()
	defer func() { require.NoError(t, r.Close()) }()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

// allocated returns how many bytes f allocates, including freed ones.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
