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

// names are what was tried.
func names(trials []storage.Trial) []string {
	var all []string
	for _, trial := range trials {
		all = append(all, trial.Name)
	}
	return all
}

// failed is the one trial that failed.
func failed(t *testing.T, trials []storage.Trial) storage.Trial {
	t.Helper()
	var wrong []storage.Trial
	for _, trial := range trials {
		if trial.Err != nil {
			wrong = append(wrong, trial)
		}
	}
	require.Len(t, wrong, 1, "%v", trials)
	return wrong[0]
}

// keyKept notes the key that Examine writes.
type keyKept struct {
	mu  sync.Mutex
	key string
}

func (k *keyKept) watch(next storage.HTTPClient) storage.HTTPClient {
	return clientFunc(func(r *http.Request) (*http.Response, error) {
		if _, name, ours := strings.Cut(r.URL.Path, "/_doctor/"); ours && r.Method == http.MethodPut {
			k.mu.Lock()
			k.key = "_doctor/" + name
			k.mu.Unlock()
		}
		return next.Do(r)
	})
}

// requireGone fails unless the bucket holds nothing under the key.
func (k *keyKept) requireGone(t *testing.T, cfg storage.Config) {
	t.Helper()
	require.NotEmpty(t, k.key)
	_, err := newBucket(t, cfg).Head(t.Context(), cfg.Prefix+"/"+k.key)
	require.ErrorIs(t, err, storage.ErrNotExist)
}

// testExamine finds nothing wrong with a sound store, and leaves nothing there.
func testExamine(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	var kept keyKept
	watched := cfg
	watched.HTTPClient = kept.watch(cfg.HTTPClient)
	trials := newBucket(t, watched).Examine(t.Context())
	for _, trial := range trials {
		require.NoError(t, trial.Err, trial.Name)
		assert.Empty(t, trial.Remedy)
	}
	assert.Equal(t, []string{storage.TrialReach, storage.TrialWrite, storage.TrialRead, storage.TrialLink, storage.TrialDelete}, names(trials))
	kept.requireGone(t, cfg)
}

// answeringOthers replaces the answer to requests of a method for the object that Examine writes.
func answeringOthers(next storage.HTTPClient, method string, signed bool, answer func(*http.Response)) storage.HTTPClient {
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

// without drops user metadata from an answer.
func without(header http.Header, name string) {
	for have := range header {
		if strings.EqualFold(have, "x-amz-meta-"+name) {
			delete(header, have)
		}
	}
}

// Each thing that a store may do wrong is found, and the object is deleted all
// the same.
func TestExamineFinds(t *testing.T) {
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
		signed bool // by headers, as all but links
		answer func(*http.Response)
		trial  string
		text   string
		remedy string
	}{
		"other bytes": {http.MethodGet, true, damage, storage.TrialRead, "gives back other bytes (262144) than were sent (262144)", "s3:GetObject"},
		"no metadata": {http.MethodGet, true, func(r *http.Response) { without(r.Header, "source-name") }, storage.TrialRead, `the store has made "" of the metadata "水彩 1.png"`, "s3:GetObject"},
		"no checksum": {http.MethodHead, true, func(r *http.Response) { without(r.Header, "sha256") }, storage.TrialWrite, "the store has 262144 bytes with sha256 \"\"", "s3:PutObject"},
		"no reading":  {http.MethodGet, true, refusing, storage.TrialRead, "may not do this in bucket", ""},
		"no links":    {http.MethodGet, false, refusing, storage.TrialLink, "answers with HTTP status 403", "DANQING_S3_PUBLIC_ENDPOINT"},
		"bad links":   {http.MethodGet, false, damage, storage.TrialLink, "other bytes", "DANQING_S3_PUBLIC_ENDPOINT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := inProcess(t)
			var kept keyKept
			broken := cfg
			broken.HTTPClient = kept.watch(answeringOthers(cfg.HTTPClient, test.method, test.signed, test.answer))
			wrong := failed(t, newBucket(t, broken).Examine(t.Context()))
			assert.Equal(t, test.trial, wrong.Name)
			require.ErrorContains(t, wrong.Err, test.text)
			assert.Contains(t, wrong.Remedy, test.remedy)
			kept.requireGone(t, cfg)
		})
	}
}

// What may not be deleted is said, with its key; and what a stopped examination
// has written is deleted.
func TestExamineCleansUp(t *testing.T) {
	t.Parallel()
	cfg := inProcess(t)
	var kept keyKept
	broken := cfg
	broken.HTTPClient = kept.watch(clientFunc(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodDelete {
			r = r.Clone(r.Context())
			r.Method = http.MethodOptions // the server knows none: 405
		}
		return cfg.HTTPClient.Do(r)
	}))
	wrong := failed(t, newBucket(t, broken).Examine(t.Context()))
	assert.Equal(t, storage.TrialDelete, wrong.Name)
	assert.Contains(t, wrong.Remedy+wrong.Err.Error(), kept.key)

	ctx, cancel := context.WithCancelCause(t.Context())
	broken.HTTPClient = kept.watch(clientFunc(func(r *http.Request) (*http.Response, error) {
		resp, err := cfg.HTTPClient.Do(r)
		if r.Method == http.MethodPut {
			cancel(errors.New("stopped"))
		}
		return resp, err
	}))
	trials := newBucket(t, broken).Examine(ctx)
	require.ErrorContains(t, trials[1].Err, "stopped")
	kept.requireGone(t, cfg)
}

// A store that does not answer is given up within seconds, in a sentence.
func TestExamineSilentStore(t *testing.T) {
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
		trials := newBucket(t, cfg).Examine(t.Context())
		assert.Equal(t, []string{storage.TrialReach}, names(trials))
		require.EqualError(t, trials[0].Err, "reach: http://silent.invalid does not answer within 10s: look at the network between, or correct AWS_ENDPOINT_URL_S3")
		assert.Equal(t, 10*time.Second, time.Since(started))
	})
}

// Permanent links are tried as they are; the errors of links show no signature.
func TestExamineLinks(t *testing.T) {
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
	wrong := failed(t, newBucket(t, elsewhere).Examine(t.Context()))
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
	wrong = failed(t, newBucket(t, nowhere).Examine(t.Context()))
	require.ErrorContains(t, wrong.Err, "127.0.0.1:1 is not reached")
	assert.NotContains(t, wrong.Err.Error(), "X-Amz-Signature")
}
