package gateway_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/storage"
)

// A reference image is staged before its job is queued, because its source may vanish. If
// it cannot be downloaded, nothing is queued.
func TestStage(t *testing.T) {
	t.Parallel()
	path, content := writePNG(t, "girl", 1)
	ref, err := storage.ReferenceLimits{}.Inspect(path)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/girl.png", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	mux.Handle("/moved.png", http.RedirectHandler("/girl.png", http.StatusFound))
	mux.Handle("/circle.png", http.RedirectHandler("/circle.png", http.StatusFound))
	mux.Handle("/file.png", http.RedirectHandler("file:///etc/passwd", http.StatusFound))
	mux.HandleFunc("/busy.png", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/text.png", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("no picture")) })
	mux.HandleFunc("/huge.png", func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	source := httptest.NewServer(mux)
	t.Cleanup(source.Close)
	s := newService(t, func(api *gateway.API) {
		api.Staging.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "images.example:80" {
				return nil, errors.New("no such host")
			}
			return (&net.Dialer{}).DialContext(ctx, network, source.Listener.Addr().String())
		}
	})
	body := func(ref string) string {
		return `{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"` + ref + `"},"parameters":{"n":1}}`
	}
	for _, name := range []string{"girl.png", "moved.png"} {
		id := s.create(body("http://images.example/"+name+"?Signature=hunter2"), "X-Danqing-Stage", "true")
		rec, err := s.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		req, err := s.jobs.RequestOf(t.Context(), rec)
		require.NoError(t, err)
		assert.Equal(t, "sha256:"+ref.SHA256, req.RefImg)
	}
	s.create(strings.Replace(body("http://images.example/girl.png"), "{", `{"stage":true,`, 1))
	before := s.redis.DBSize(t.Context()).Val()
	for name, says := range map[string]string{
		"gone.png": "HTTP status 404", "circle.png": "redirected more than 3 times", "file.png": "unsupported URL", "text.png": "not an image", "huge.png": "at most 10485760",
	} {
		message := s.submit(body("http://images.example/"+name+"?Signature=hunter2"), "X-Danqing-Stage", "true").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, says)
		assert.NotContains(t, message, "hunter2")
	}
	s.submit(body("http://images.example/busy.png"), "X-Danqing-Stage", "true").requireRefused(t, http.StatusServiceUnavailable, "ServiceUnavailable")
	s.submit(body("http://elsewhere.example/a.png"), "X-Danqing-Stage", "true").requireRefused(t, http.StatusServiceUnavailable, "ServiceUnavailable")
	assert.Equal(t, before, s.redis.DBSize(t.Context()).Val())
}

// A private address is not requested, under any host name.
func TestStagePublicAddressesOnly(t *testing.T) {
	t.Parallel()
	asked := false
	source := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	t.Cleanup(source.Close)
	s := newService(t, nil)
	_, port, err := net.SplitHostPort(source.Listener.Addr().String())
	require.NoError(t, err)
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		body := `{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"http://` + host + ":" + port + `/latest/meta-data"}}`
		message := s.submit(body, "X-Danqing-Stage", "true").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, "it has no public address")
	}
	assert.False(t, asked)
	assertNothingQueued(t, s)
}
