package storage_test

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

// storedJob stores a job with two images, and returns its sidecar.
func storedJob(t *testing.T, b *storage.Bucket) *storage.Sidecar {
	t.Helper()
	s := fullSidecar()
	s.Images = nil
	for n, key := range []string{"秋/spring-1-1.png", "秋/spring-1-2.png"} {
		file := verifiedFile(t, pngOf(100, uint64(n)))
		require.NoError(t, b.PutImage(t.Context(), key, file, nil))
		s.Images = append(s.Images, storage.SidecarImage{N: n + 1, State: storage.ImageStored, Key: key, Bytes: file.Bytes, SHA256: file.SHA256})
	}
	s.Images = append(s.Images, storage.SidecarImage{N: 3, State: storage.ImageFailed, Code: "DataInspectionFailed"})
	require.NoError(t, b.PutSidecar(t.Context(), s))
	return s
}

// denied is the answer of a bucket that allows nothing.
func denied() *http.Response {
	return &http.Response{StatusCode: http.StatusForbidden, Body: io.NopCloser(strings.NewReader("<Error><Code>AccessDenied</Code></Error>"))}
}

// Images that are missing, damaged or replaced are found; images that cannot be read are no
// finding.
func TestVerifyImages(t *testing.T) {
	t.Parallel()
	server := openEmbedded(t)
	refuse := false
	client := clientFunc(func(r *http.Request) (*http.Response, error) {
		if refuse {
			return denied(), nil
		}
		return server.HTTPClient().Do(r)
	})
	cfg := embeddedConfig(server, "http://bucket.invalid", client)
	cfg.Prefix = ""
	b := newBucket(t, cfg)
	s := storedJob(t, b)
	intact, problems, err := b.VerifyImages(t.Context(), s)
	require.NoError(t, err)
	assert.Equal(t, 2, intact)
	assert.Empty(t, problems)

	require.NoError(t, os.Remove(server.Path(s.Images[0].Key)))
	require.NoError(t, os.WriteFile(server.Path(s.Images[1].Key), pngOf(100, 7), 0o600))
	intact, problems, err = b.VerifyImages(t.Context(), s)
	require.NoError(t, err)
	assert.Zero(t, intact)
	require.Len(t, problems, 2)
	assert.Equal(t, storage.ImageProblem{Key: s.Images[0].Key, Missing: true, Text: "it is not in the bucket"}, problems[0])
	assert.False(t, problems[1].Missing)

	refuse = true
	_, problems, err = b.VerifyImages(t.Context(), s)
	require.Error(t, err)
	assert.Empty(t, problems)
}

// The sidecar says that images were deleted only once all are, and then stays.
func TestPruneImages(t *testing.T) {
	t.Parallel()
	server := openEmbedded(t)
	var refused string
	client := clientFunc(func(r *http.Request) (*http.Response, error) {
		if r.Method == refused {
			return denied(), nil
		}
		return server.HTTPClient().Do(r)
	})
	cfg := embeddedConfig(server, "http://bucket.invalid", client)
	cfg.Prefix = ""
	b := newBucket(t, cfg)
	s := storedJob(t, b)
	for _, method := range []string{http.MethodDelete, http.MethodPut} {
		refused = method
		require.Error(t, b.PruneImages(t.Context(), s, time.Now()))
		kept, err := b.Sidecar(t.Context(), s.JobID)
		require.NoError(t, err)
		assert.True(t, kept.PrunedAt.IsZero(), method)
	}
	refused = ""
	at := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	require.NoError(t, b.PruneImages(t.Context(), s, at))
	kept, err := b.Sidecar(t.Context(), s.JobID)
	require.NoError(t, err)
	assert.Equal(t, at, kept.PrunedAt)
	assert.Equal(t, s.Images, kept.Images)
	for _, image := range s.Images[:2] {
		assert.NoFileExists(t, server.Path(image.Key))
	}
	intact, problems, err := b.VerifyImages(t.Context(), kept)
	require.NoError(t, err)
	assert.Zero(t, intact)
	assert.Empty(t, problems)

	again := *s // a retry has ended since s was read
	again.FinishedAt = at
	require.NoError(t, b.PutSidecar(t.Context(), &again))
	require.NoError(t, b.PruneImages(t.Context(), s, at))
	kept, err = b.Sidecar(t.Context(), s.JobID)
	require.NoError(t, err)
	assert.Zero(t, kept.PrunedAt)

	cfg.Prefix = "other/"
	other := newBucket(t, cfg)
	require.NoError(t, other.PutSidecar(t.Context(), s))
	require.ErrorContains(t, other.PruneImages(t.Context(), s, at), "is not below the prefix")
}
