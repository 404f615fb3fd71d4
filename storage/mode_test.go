package storage_test

import (
	"cmp"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

// requireRefused requires that nothing can be read or written.
func requireRefused(t *testing.T, b *storage.Bucket, target any) {
	t.Helper()
	_, err := b.Sidecar(t.Context(), "job")
	require.ErrorAs(t, err, target)
	_, err = b.Head(t.Context(), "job/job-1.png")
	require.ErrorAs(t, err, target)
	require.ErrorAs(t, b.PutSidecar(t.Context(), &storage.Sidecar{JobID: "job"}), target)
	require.ErrorAs(t, b.PutImage(t.Context(), "job/job-1.png", verifiedFile(t, pngOf(10, 1)), nil), target)
	_, err = b.Quarantine(t.Context(), "task", "1.png", writeFile(t, "1.png", []byte("x")))
	require.ErrorAs(t, err, target)
}

// A prefix has its first mode for good: one with another reads and writes nothing there.
func testMode(t *testing.T, cfg storage.Config) {
	t.Helper()
	cfg.Prefix += "/mode"
	open := func() *storage.Bucket {
		b, err := storage.New(cfg)
		require.NoError(t, err)
		return b
	}
	first, other := open(), open()
	mode, err := first.Mode(t.Context())
	require.NoError(t, err)
	assert.Empty(t, mode)
	require.NoError(t, first.Bind(t.Context(), "simulated"))
	require.NoError(t, first.PutSidecar(t.Context(), &storage.Sidecar{JobID: "job", Simulated: true}))
	var wrong *storage.ModeError
	require.ErrorAs(t, other.Bind(t.Context(), "real"), &wrong)
	assert.Equal(t, "simulated", wrong.Mode)
	requireRefused(t, other, &wrong)
	mode, err = open().Mode(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "simulated", mode)
	require.NoError(t, open().Bind(t.Context(), "simulated"))
}

// Of two that bind other modes at once, one wins.
func TestBindRace(t *testing.T) {
	t.Parallel()
	cfg := inProcess(t)
	errs := make([]error, 16)
	var group sync.WaitGroup
	for i := range errs {
		group.Go(func() {
			b, err := storage.New(cfg)
			if err == nil {
				err = b.Bind(t.Context(), []string{"real", "simulated"}[i%2])
			}
			errs[i] = err
		})
	}
	group.Wait()
	won := map[int]bool{}
	for i, err := range errs {
		if err == nil {
			won[i%2] = true
		} else {
			require.ErrorAs(t, err, new(*storage.ModeError))
		}
	}
	assert.Len(t, won, 1)
}

// A bucket that is away at the start is bound before the first read or write; a store
// without conditional writes gets a plain one; a damaged object is not overwritten.
func TestBindLater(t *testing.T) {
	t.Parallel()
	cfg := inProcess(t)
	var away atomic.Bool
	var puts, gets atomic.Int64
	store := cfg.HTTPClient
	cfg.HTTPClient = counting(counting(clientFunc(func(r *http.Request) (*http.Response, error) {
		if away.Load() {
			return nil, errors.New("away")
		}
		if r.Header.Get("If-None-Match") != "" {
			return &http.Response{StatusCode: http.StatusNotImplemented, Body: http.NoBody, Request: r}, nil
		}
		return store.Do(r)
	}), http.MethodPut, &puts), http.MethodGet, &gets)
	b, err := storage.New(cfg)
	require.NoError(t, err)
	away.Store(true)
	require.ErrorContains(t, b.Bind(t.Context(), "real"), "away")
	require.ErrorContains(t, b.PutSidecar(t.Context(), &storage.Sidecar{JobID: "job"}), "away")
	away.Store(false)
	require.NoError(t, b.PutSidecar(t.Context(), &storage.Sidecar{JobID: "job"}))
	mode, err := b.Mode(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "real", mode)
	gets.Store(0)
	_, err = b.Sidecar(t.Context(), "job")
	require.NoError(t, err)
	assert.Equal(t, int64(1), gets.Load(), "the mode is read once")

	putForeign(t, cfg, cfg.Prefix+"/_mode.json")
	_, err = b.Mode(t.Context())
	require.ErrorContains(t, err, "it is damaged")
}

// putForeign stores an object as another program does.
func putForeign(t *testing.T, cfg storage.Config, key string) {
	t.Helper()
	client := s3.New(s3.Options{
		Region: cmp.Or(cfg.Region, "us-east-1"), UsePathStyle: cfg.Addressing != storage.AddressingVirtual, BaseEndpoint: &cfg.Endpoint, HTTPClient: cfg.HTTPClient,
		Credentials: credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, ""),
	})
	_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &cfg.Bucket, Key: &key, Body: strings.NewReader("x")})
	require.NoError(t, err)
}

// A purge deletes what this package has stored below the prefix, but no object of others, and
// no other prefix. A prefix with a job that was paid for stays as it is.
func testPurge(t *testing.T, cfg storage.Config) {
	t.Helper()
	cfg.Prefix += "/purge"
	prefix := strings.TrimPrefix(cfg.Prefix+"/", "/")
	b := newBucket(t, cfg)
	cfg.Prefix += "/shop/real"
	genuine := newBucket(t, cfg)
	require.NoError(t, b.Bind(t.Context(), "simulated"))
	require.NoError(t, genuine.Bind(t.Context(), "real"))
	require.NoError(t, genuine.PutSidecar(t.Context(), &storage.Sidecar{JobID: "job", CostMicroYuan: 160_000}))
	require.NoError(t, b.PutSidecar(t.Context(), &storage.Sidecar{JobID: "job", Simulated: true, CostMicroYuan: 160_000}))
	require.NoError(t, b.PutImage(t.Context(), prefix+"job/job-1.png", verifiedFile(t, pngOf(10, 1)), nil))
	_, err := b.Quarantine(t.Context(), "task", "1.png", writeFile(t, "1.png", []byte("x")))
	require.NoError(t, err)
	putForeign(t, cfg, prefix+"_jobs/notes.txt")

	keys, others, err := b.SimulatedKeys(t.Context())
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{prefix + "_jobs/job.json", prefix + "job/job-1.png", prefix + "_held/task/1.png"}, keys)
	assert.Equal(t, 1, others)
	require.NoError(t, b.Purge(t.Context(), keys))
	mode, err := b.Mode(t.Context())
	require.NoError(t, err)
	assert.Empty(t, mode)
	keys, others, err = b.SimulatedKeys(t.Context())
	require.NoError(t, err)
	assert.Empty(t, keys)
	assert.Equal(t, 1, others, "the object of another program")
	mode, err = genuine.Mode(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "real", mode)
	_, _, err = genuine.SimulatedKeys(t.Context())
	require.ErrorIs(t, err, storage.ErrRealJob)
	require.ErrorContains(t, err, prefix+"shop/real/_jobs/job.json: ")
}
