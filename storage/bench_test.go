package storage_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkPutImage stores images of 2 MB in the embedded bucket and reports the
// ratio to the time of a durable write of the same file to the same disk, which is
// the minimum for any store. Both are measured alternately in the same run.
func BenchmarkPutImage(b *testing.B) {
	server := openEmbedded(b)
	bucket := newBucket(b, embeddedConfig(server, "http://bucket.invalid", server.HTTPClient()))
	file := verifiedFile(b, pngOf(2<<20, 1))
	copyTo := filepath.Join(b.TempDir(), "copy")
	require.NoError(b, bucket.PutImage(b.Context(), "warm.png", file, nil))
	b.SetBytes(file.Bytes)
	var least time.Duration
	for b.Loop() {
		require.NoError(b, bucket.PutImage(b.Context(), "bench.png", file, nil))
		b.StopTimer()
		start := time.Now()
		copyDurably(b, file.Path, copyTo)
		least += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(b.Elapsed().Seconds()/least.Seconds(), "times-a-copy")
}

// BenchmarkFetch measures the same for a download into the spool.
func BenchmarkFetch(b *testing.B) {
	content := pngOf(2<<20, 1)
	spool, err := newSpool(b, whole{content})
	require.NoError(b, err)
	file := verifiedFile(b, content)
	copyTo := filepath.Join(b.TempDir(), "copy")
	b.SetBytes(file.Bytes)
	var least time.Duration
	for b.Loop() {
		_, err := spool.Fetch(b.Context(), "bench", "http://simulator/a.png")
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, spool.Remove("bench"))
		start := time.Now()
		copyDurably(b, file.Path, copyTo)
		least += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(b.Elapsed().Seconds()/least.Seconds(), "times-a-copy")
}

func copyDurably(b *testing.B, from, to string) {
	b.Helper()
	in, err := os.Open(from)
	require.NoError(b, err)
	out, err := os.Create(to)
	require.NoError(b, err)
	_, err = io.Copy(struct{ io.Writer }{out}, in) // without copy_file_range
	require.NoError(b, err)
	require.NoError(b, out.Sync())
	require.NoError(b, out.Close())
	require.NoError(b, in.Close())
}
