package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

// A repeated create uses the reference image that was staged for its job, because its
// source may be gone. The job is neither created twice nor refused.
func TestRepeatedCreateReusesStagedReference(t *testing.T) {
	t.Parallel()
	_, content := writePNG(t, "girl", 1)
	var gone atomic.Bool
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if gone.Load() {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write(content)
	}))
	t.Cleanup(source.Close)
	s := newService(t, func(api *gateway.API) {
		api.OpenAIWait = 10 * time.Millisecond
		api.Staging.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "images.example:80" {
				return nil, errors.New("no such host")
			}
			return (&net.Dialer{}).DialContext(ctx, network, source.Listener.Addr().String())
		}
	})
	body := `{"model":"wanx-v1","prompt":"a cat","ref_img":"http://images.example/a.png?Expires=1","stage":true}`
	for _, away := range []bool{false, true, false} {
		gone.Store(away)
		got := s.generateImages(t.Context(), body)
		assert.Equal(t, http.StatusGatewayTimeout, got.status, got.body)
	}
	assert.Len(t, s.redis.Keys(t.Context(), "danqing:job:*").Val(), 1)

	native := `{"model":"wanx-v1","input":{"prompt":"a dog","ref_img":"http://images.example/a.png"},"parameters":{"n":1},"stage":true}`
	id := s.create(native, "Idempotency-Key", "k")
	gone.Store(true)
	assert.Equal(t, id, s.create(native, "Idempotency-Key", "k"))
}

// A body that is announced and never sent times out, on every path.
func TestUnsentBodyTimesOut(t *testing.T) {
	tokens := func(api *gateway.API) { api.Tokens = []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}} }
	runInBubble(t, tokens, func(t *testing.T, s *service) {
		here := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		server := &http.Server{Handler: s.gateway, ReadHeaderTimeout: 20 * time.Second}
		served := make(chan error, 1)
		go func() { served <- server.Serve(here) }()
		for _, path := range []string{"POST /api/v1/tasks", "POST /v1/nothing", "GET /healthz", "POST /images/x", "POST /api/v1/uploads/form"} {
			client, end := net.Pipe()
			here.conns <- end
			began := time.Now()
			_, err := fmt.Fprintf(client, "%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", path)
			require.NoError(t, err)
			_, err = client.Read(make([]byte, 100))
			require.NoError(t, err, path)
			assert.LessOrEqual(t, time.Since(began), 2*time.Minute, path)
			require.NoError(t, client.Close())
		}
		require.NoError(t, server.Close())
		require.ErrorIs(t, <-served, http.ErrServerClosed)
		synctest.Wait()
	})
}

// pipeListener is a listener without a network.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipeListener) Close() error { close(p.closed); return nil }

func (*pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// A form that is too large before its policy is refused, for any long part.
func TestFormSizeBeforePolicy(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		body := &endless{}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/api/v1/uploads/form", body)
		r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
		w := httptest.NewRecorder()
		s.gateway.ServeHTTP(w, r)
		assert.Equal(t, http.StatusBadRequest, w.Code)
		assert.LessOrEqual(t, body.read.Load(), int64(600<<10))
	})
}

// Slow uploads of one token do not block those of another.
func TestSlowUploadsAreLimitedByToken(t *testing.T) {
	tokens := []gateway.Token{{Name: "slow", Secret: "slow-secret-0123456"}, {Name: "shop", Secret: "shop-secret-0123456"}}
	runInBubble(t, func(api *gateway.API) { api.Tokens = tokens }, func(t *testing.T, s *service) {
		ctx, hangUp := context.WithCancel(t.Context())
		p := s.policy("Authorization", "Bearer slow-secret-0123456")
		ended := make(chan struct{})
		const slow = 20
		for i := range slow {
			content, contentType := form(t, formParts(p, fmt.Sprintf("%s/%d.png", p.UploadDir, i)), "girl.png", make([]byte, 1000))
			go func() {
				defer func() { ended <- struct{}{} }()
				r := httptest.NewRequestWithContext(ctx, http.MethodPost, "http://127.0.0.1/api/v1/uploads/form", &stallingReader{content[:len(content)-500], ctx})
				r.Header.Set("Content-Type", contentType)
				s.gateway.ServeHTTP(httptest.NewRecorder(), r)
			}()
		}
		synctest.Wait()
		p = s.policy("Authorization", "Bearer shop-secret-0123456")
		_, content := writePNG(t, "girl", 1)
		assert.Equal(t, http.StatusOK, s.sendForm(p, formParts(p, p.UploadDir+"/a.png"), content).status)
		hangUp()
		for range slow {
			<-ended
		}
	})
}

// stallingReader gives some bytes, and then nothing until its context ends.
type stallingReader struct {
	left []byte
	ctx  context.Context //nolint:containedctx // Read has no context
}

func (s *stallingReader) Read(p []byte) (int, error) {
	if len(s.left) == 0 {
		<-s.ctx.Done()
		return 0, s.ctx.Err()
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

// A request with a million mistakes gets a short answer, and a long Host is refused.
func TestErrorLength(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		got := s.submit(`{"model":"wanx-v1","input":{` + strings.Repeat(`"q":0,`, 8000) + `"q":0}}`)
		got.requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Less(t, len(got.body), 20_000)
		assert.Equal(t, http.StatusBadRequest, s.request(http.MethodGet, "/healthz", "", "Host", strings.Repeat("a", 300)).status)
	})
}

// Requests through a proxy are refused without tokens.
func TestProxiesAreRefused(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		for _, name := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Real-IP"} {
			assert.Equal(t, http.StatusMisdirectedRequest, s.submit(oneCat, name, "192.0.2.1").status)
		}
		assertNothingQueued(t, s)
	})
}

// An image without a hash gets the bucket's link.
func TestImageWithoutHash(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		id := s.create(oneCat)
		s.update(id, func(rec *jobs.Record) {
			rec.State, rec.Images = jobs.StateSucceeded, []jobs.Image{{N: 1, Key: "2026/" + id + "-1.png"}}
		})
		assert.Contains(t, s.query(id).Output.Results[0].URL, "2026/"+id+"-1.png")
	})
}

// A query of a corrupt record does not wait.
func TestDamagedRecord(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		id := s.create(oneCat)
		require.NoError(t, s.redis.HSet(t.Context(), "danqing:job:"+id, "record", "{").Err())
		began := time.Now()
		task := s.query(id)
		assert.Equal(t, "FAILED", task.Output.TaskStatus)
		assert.Zero(t, time.Since(began))
	})
}
