package storage_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/storage/storagetest"
)

// BenchmarkCopy copies 160 images of 2 MB, 16 at once, from a server through the spool into
// the bucket of another maker's store, as a worker does. In the same run it puts as many
// bodies of the same size from memory, without any check, by bare PutObject requests, and
// reports the ratio of the throughputs, and the peak of the resident memory while copying
// (with the source and the test itself; 0 where the system does not tell it).
func BenchmarkCopy(b *testing.B) {
	const images, atOnce = 160, 16
	store := storagetest.VersityGW(b)
	cfg := storeConfig(store, storage.AddressingPath)
	bucket := newBucket(b, cfg)
	content := pngOf(2<<20, 1)
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content))) // as OSS sends
		_, _ = w.Write(content)
	}))
	b.Cleanup(source.Close)
	spool := openSpool(b, source.URL)
	putBare := bareClient(cfg)
	all := func(images int, do func(name string) error) time.Duration {
		start := time.Now()
		var group errgroup.Group
		group.SetLimit(atOnce)
		for i := range images {
			group.Go(func() error { return do("image-" + strconv.Itoa(i)) })
		}
		require.NoError(b, group.Wait())
		return time.Since(start)
	}
	bare := func(name string) error { return putBare(b.Context(), "bare/"+name, content) }
	copied := func(name string) error {
		file, err := spool.Fetch(b.Context(), name, source.URL+"/"+name+".png")
		if err != nil {
			return err
		}
		if err := bucket.PutImage(b.Context(), "copied/"+name, file, nil); err != nil {
			return err
		}
		return spool.Remove(name)
	}
	all(atOnce, bare)
	all(atOnce, copied)
	b.SetBytes(images * int64(len(content)))
	var own, least time.Duration
	for b.Loop() {
		own += all(images, copied)
		b.StopTimer()
		least += all(images, bare)
		b.StartTimer()
	}
	b.ReportMetric(least.Seconds()/own.Seconds(), "x-bare-put")
	b.ReportMetric(peakMemory(b), "MB-peak")
}

// bareClient returns a function that puts an object with nothing but a signature: the payload
// is not hashed, and the stored object is not looked at.
func bareClient(cfg storage.Config) func(ctx context.Context, key string, content []byte) error {
	client := s3.New(s3.Options{
		Region: cfg.Region, BaseEndpoint: &cfg.Endpoint, UsePathStyle: true,
		Credentials:                credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, ""),
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		HTTPClient:                 &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	})
	return func(ctx context.Context, key string, content []byte) error {
		size := int64(len(content))
		_, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: &cfg.Bucket, Key: &key, Body: bytes.NewReader(content), ContentLength: &size},
			s3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware))
		return err
	}
}

// peakMemory returns the largest resident size of this process in MB, 0 if the system does
// not tell it.
func peakMemory(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		var kilobytes float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kilobytes); n == 1 {
			return kilobytes / 1000
		}
	}
	return 0
}

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
