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

// A body that is announced and does not come, or trickles, is cut on every path: soon where
// no credential was accepted.
func TestSlowBodyIsCut(t *testing.T) {
	tokens := func(api *gateway.API) { api.Tokens = []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}} }
	runInBubble(t, tokens, func(t *testing.T, s *service) {
		here := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		server := &http.Server{Handler: s.gateway, ReadHeaderTimeout: 20 * time.Second}
		served := make(chan error, 1)
		go func() { served <- server.Serve(here) }()
		const token = "Authorization: Bearer shop-secret-0123456\r\n"
		for head, most := range map[string]time.Duration{
			"POST /api/v1/tasks": 5 * time.Second, "POST /v1/nothing": 5 * time.Second, "GET /healthz": 5 * time.Second, "POST /images/x": 5 * time.Second,
			"POST /api/v1/uploads/form/x": 5 * time.Second, "POST /api/v1/tasks/x/cancel": 5 * time.Second,
			"POST " + strings.TrimPrefix(s.policy("Authorization", "Bearer shop-secret-0123456").UploadHost, "http://127.0.0.1:8765"): 2 * time.Minute,
			"POST /v1/images/generations HTTP/1.1\r\n" + token:                                                                        30 * time.Second,
			"POST /api/v1/tasks/x/cancel HTTP/1.1\r\n" + token:                                                                        30 * time.Second,
			"POST " + createPath + " HTTP/1.1\r\nX-DashScope-Async: enable\r\n" + token:                                               30 * time.Second,
		} {
			if !strings.HasSuffix(head, "\r\n") {
				head += " HTTP/1.1\r\n"
			}
			for _, trickle := range []bool{false, true} {
				client, end := net.Pipe()
				here.conns <- end
				began := time.Now()
				_, err := fmt.Fprintf(client, "%sHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 60000\r\n\r\n", head)
				require.NoError(t, err)
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					for err := error(nil); trickle && err == nil; <-time.After(4 * time.Second) {
						_, err = client.Write([]byte("{"))
					}
				}()
				_, err = client.Read(make([]byte, 100))
				require.NoError(t, err, head)
				assert.LessOrEqual(t, time.Since(began), most, head)
				_ = client.Close()
				<-sent
			}
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

// A form without a credential is not read. One with a credential is not held in memory for
// long before its file.
func TestFormBeforeItsFile(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		p := s.policy()
		for target, want := range map[string]struct {
			status int
			most   int64
		}{p.UploadHost: {http.StatusBadRequest, 600 << 10}, p.UploadHost + "x": {http.StatusForbidden, 0}} {
			body := &endless{}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, target, body)
			r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
			w := httptest.NewRecorder()
			s.gateway.ServeHTTP(w, r)
			assert.Equal(t, want.status, w.Code)
			assert.LessOrEqual(t, body.read.Load(), want.most)
		}
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
			content, contentType := form(t, formParts(p, fmt.Sprintf("%s/%d.png", p.UploadDir, i)), make([]byte, 1000))
			go func() {
				defer func() { ended <- struct{}{} }()
				r := httptest.NewRequestWithContext(ctx, http.MethodPost, p.UploadHost, &stallingReader{content[:len(content)-500], ctx})
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

// How long an answer takes does not tell a token whether another one has used an
// Idempotency-Key: the job's ID follows from the key and the token's name. The answers are
// equal in any case.
func TestJobsOfOthersTakeAsLongAsNone(t *testing.T) {
	tokens := []gateway.Token{{Name: "hostile", Secret: "host-secret-0123456"}, {Name: "shop", Secret: "shop-secret-0123456"}}
	inBucket := jobs.IdempotencyID("shop", "ended")
	slowBucket := func(api *gateway.API) {
		api.Tokens = tokens
		api.LoadSidecar = func(_ context.Context, id string) (*jobs.Job, error) {
			if id == inBucket {
				<-time.After(70 * time.Millisecond)
				return &jobs.Job{ID: id, Producer: "shop", State: jobs.StateSucceeded}, nil
			}
			<-time.After(30 * time.Millisecond)
			return nil, jobs.ErrNotFound
		}
	}
	runInBubble(t, slowBucket, func(t *testing.T, s *service) {
		hostile := []string{"Authorization", "Bearer host-secret-0123456"}
		inRedis := s.create(oneCat, "Authorization", "Bearer shop-secret-0123456", "Idempotency-Key", "order-17")
		require.Equal(t, jobs.IdempotencyID("shop", "order-17"), inRedis)
		for _, id := range []string{inRedis, inBucket, jobs.IdempotencyID("shop", "none")} {
			for _, ask := range []func() answer{
				func() answer { return s.request(http.MethodGet, tasksPath+id, "", hostile...) },
				func() answer { return s.post(tasksPath+id+"/cancel", "", hostile...) },
				func() answer { return s.request(http.MethodGet, "/api/v1/tasks?task_id="+id, "", hostile...) },
				func() answer { return s.request(http.MethodGet, "/images/"+id+"-1.png?s=0", "") },
			} {
				began := time.Now()
				got := ask()
				assert.Equal(t, 200*time.Millisecond, time.Since(began), "%s %s", id, got.body)
				assert.NotContains(t, got.body, `"PENDING"`)
			}
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
