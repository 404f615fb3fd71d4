package storage_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

// names returns the names of checks.
func names(checks []storage.Check) []string {
	var all []string
	for _, check := range checks {
		all = append(all, check.Name)
	}
	return all
}

// failed returns the only check that failed.
func failed(t *testing.T, checks []storage.Check) storage.Check {
	t.Helper()
	var wrong []storage.Check
	for _, check := range checks {
		if check.Err != nil {
			wrong = append(wrong, check)
		}
	}
	require.Len(t, wrong, 1, "%v", checks)
	return wrong[0]
}

// keyRecorder records the key that SelfTest writes.
type keyRecorder struct {
	mu  sync.Mutex
	key string
}

func (k *keyRecorder) watch(next storage.HTTPClient) storage.HTTPClient {
	return clientFunc(func(r *http.Request) (*http.Response, error) {
		if _, name, found := strings.Cut(r.URL.Path, "/_doctor/"); found && r.Method == http.MethodPut {
			k.mu.Lock()
			k.key = "_doctor/" + name
			k.mu.Unlock()
		}
		return next.Do(r)
	})
}

// requireGone fails if the object exists.
func (k *keyRecorder) requireGone(t *testing.T, cfg storage.Config) {
	t.Helper()
	require.NotEmpty(t, k.key)
	_, err := newBucket(t, cfg).Head(t.Context(), cfg.Prefix+"/"+k.key)
	require.ErrorIs(t, err, storage.ErrNotExist)
}

// All checks pass for a working store, and the object is deleted.
func testSelfTest(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	var recorder keyRecorder
	watched := cfg
	watched.HTTPClient = recorder.watch(cfg.HTTPClient)
	checks := newBucket(t, watched).SelfTest(t.Context())
	for _, check := range checks {
		require.NoError(t, check.Err, check.Name)
		assert.Empty(t, check.Remedy)
	}
	assert.Equal(t, []string{storage.CheckReach, storage.CheckWrite, storage.CheckRead, storage.CheckLink, storage.CheckDelete}, names(checks))
	recorder.requireGone(t, cfg)
}

// replaceAnswer changes the answers to requests of one method for SelfTest's object.
func replaceAnswer(next storage.HTTPClient, method string, signed bool, answer func(*http.Response)) storage.HTTPClient {
	return clientFunc(func(r *http.Request) (*http.Response, error) {
		resp, err := next.Do(r)
		if err == nil && r.Method == method && strings.Contains(r.URL.Path, "/_doctor/") && (r.URL.Query().Get("X-Amz-Signature") == "") == signed {
			answer(resp)
		}
		return resp, err
	})
}

func refusing(resp *http.Response) {
	_ = resp.Body.Close()
	body := `<Error><Code>AccessDenied</Code><Message>no</Message></Error>`
	resp.StatusCode, resp.Body, resp.ContentLength = http.StatusForbidden, io.NopCloser(strings.NewReader(body)), int64(len(body))
	resp.Header.Set("Content-Length", "61")
}

// without deletes user metadata from an answer.
func without(header http.Header, name string) {
	for have := range header {
		if strings.EqualFold(have, "x-amz-meta-"+name) {
			delete(header, have)
		}
	}
}

// Each fault of a store is found, and the object is deleted nevertheless.
func TestSelfTestFindsFaults(t *testing.T) {
	t.Parallel()
	damage := func(resp *http.Response) {
		content, err := io.ReadAll(resp.Body)
		if err == nil {
			err = resp.Body.Close()
		}
		content[len(content)/2] ^= 1
		resp.Body = readCloser{bytes.NewReader(content), io.NopCloser(nil)}
		if err != nil {
			resp.StatusCode = http.StatusInternalServerError
		}
	}
	for name, test := range map[string]struct {
		method string
		signed bool // by headers, like all requests but links
		answer func(*http.Response)
		trial  string
		text   string
		remedy string
	}{
		"other bytes": {http.MethodGet, true, damage, storage.CheckRead, "returned other bytes (262144) than were sent (262144)", "s3:GetObject"},
		"no metadata": {http.MethodGet, true, func(r *http.Response) { without(r.Header, "source-name") }, storage.CheckRead, `the store changed the metadata "水彩 1.png" to ""`, "s3:GetObject"},
		"no checksum": {http.MethodHead, true, func(r *http.Response) { without(r.Header, "sha256") }, storage.CheckWrite, "the store has 262144 bytes with sha256 \"\"", "s3:PutObject"},
		"no reading":  {http.MethodGet, true, refusing, storage.CheckRead, "may not do this in bucket", ""},
		"no links":    {http.MethodGet, false, refusing, storage.CheckLink, "answers with HTTP status 403", "DANQING_S3_PUBLIC_ENDPOINT"},
		"bad links":   {http.MethodGet, false, damage, storage.CheckLink, "other bytes", "DANQING_S3_PUBLIC_ENDPOINT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := inProcess(t)
			var recorder keyRecorder
			broken := cfg
			broken.HTTPClient = recorder.watch(replaceAnswer(cfg.HTTPClient, test.method, test.signed, test.answer))
			wrong := failed(t, newBucket(t, broken).SelfTest(t.Context()))
			assert.Equal(t, test.trial, wrong.Name)
			require.ErrorContains(t, wrong.Err, test.text)
			assert.Contains(t, wrong.Remedy, test.remedy)
			recorder.requireGone(t, cfg)
		})
	}
}

// If the object cannot be deleted, the result names its key. The object is also deleted
// when the context ends during the test.
func TestSelfTestCleansUp(t *testing.T) {
	t.Parallel()
	cfg := inProcess(t)
	var recorder keyRecorder
	broken := cfg
	broken.HTTPClient = recorder.watch(clientFunc(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodDelete {
			r = r.Clone(r.Context())
			r.Method = http.MethodOptions // not supported by the server: 405
		}
		return cfg.HTTPClient.Do(r)
	}))
	wrong := failed(t, newBucket(t, broken).SelfTest(t.Context()))
	assert.Equal(t, storage.CheckDelete, wrong.Name)
	assert.Contains(t, wrong.Remedy+wrong.Err.Error(), recorder.key)

	ctx, cancel := context.WithCancelCause(t.Context())
	broken.HTTPClient = recorder.watch(clientFunc(func(r *http.Request) (*http.Response, error) {
		resp, err := cfg.HTTPClient.Do(r)
		if r.Method == http.MethodPut {
			cancel(errors.New("stopped"))
		}
		return resp, err
	}))
	checks := newBucket(t, broken).SelfTest(ctx)
	require.ErrorContains(t, checks[1].Err, "stopped")
	recorder.requireGone(t, cfg)
}

// A store that does not answer is timed out within seconds.
func TestSelfTestSilentStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := storage.Config{
			Bucket: "images", Endpoint: "http://silent.invalid", AccessKeyID: "id", SecretAccessKey: "hush-secret",
			HTTPClient: clientFunc(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}),
		}
		started := time.Now()
		checks := newBucket(t, cfg).SelfTest(t.Context())
		assert.Equal(t, []string{storage.CheckReach}, names(checks))
		require.EqualError(t, checks[0].Err, "reach: http://silent.invalid does not answer within 10s: check the network between, or correct AWS_ENDPOINT_URL_S3")
		assert.Equal(t, 10*time.Second, time.Since(started))
	})
}

// Permanent links are requested unsigned, and errors contain no signature.
func TestSelfTestLinks(t *testing.T) {
	t.Parallel()
	cfg := inProcess(t)
	public := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(public.Close)
	elsewhere := cfg
	elsewhere.PublicURL = public.URL
	elsewhere.HTTPClient = clientFunc(func(r *http.Request) (*http.Response, error) {
		if strings.HasPrefix(public.URL, "http://"+r.URL.Host) {
			return public.Client().Do(r)
		}
		return cfg.HTTPClient.Do(r)
	})
	wrong := failed(t, newBucket(t, elsewhere).SelfTest(t.Context()))
	require.ErrorContains(t, wrong.Err, "answers with HTTP status 404")
	assert.Contains(t, wrong.Remedy, "DANQING_S3_PUBLIC_URL")

	nowhere := cfg
	nowhere.PublicEndpoint = "http://127.0.0.1:1"
	nowhere.HTTPClient = clientFunc(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host == "127.0.0.1:1" {
			return http.DefaultClient.Do(r)
		}
		return cfg.HTTPClient.Do(r)
	})
	wrong = failed(t, newBucket(t, nowhere).SelfTest(t.Context()))
	require.ErrorContains(t, wrong.Err, "127.0.0.1:1 cannot be reached")
	assert.NotContains(t, wrong.Err.Error(), "X-Amz-Signature")
}
