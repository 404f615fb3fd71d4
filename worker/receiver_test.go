package worker_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

const (
	callbackSecret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
	otherSecret    = "whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4"
	shopURL        = "https://danqing.example.com"
	callbackURL    = "http://shop.example/done?token=hush"
)

// delivery is a received callback with a valid signature.
type delivery struct {
	at    time.Time
	id    string
	body  string
	event jobs.Event
}

// receiver is a producer's HTTP server within the process.
type receiver struct {
	t      *testing.T
	server http.Server
	conns  chan net.Conn
	closed chan struct{}
	served chan error

	mu  sync.Mutex
	got []delivery
	// answer is the response to the next callbacks; nil is 204.
	answer http.HandlerFunc
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{t: t, conns: make(chan net.Conn), closed: make(chan struct{}), served: make(chan error, 1)}
	r.server.Handler = http.HandlerFunc(r.handle)
	go func() { r.served <- r.server.Serve(r) }()
	return r
}

// Accept, Close and Addr make it a listener.
func (r *receiver) Accept() (net.Conn, error) {
	select {
	case conn := <-r.conns:
		return conn, nil
	case <-r.closed:
		return nil, net.ErrClosed
	}
}

func (r *receiver) Close() error   { close(r.closed); return nil }
func (r *receiver) Addr() net.Addr { return &net.TCPAddr{} }

func (r *receiver) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case r.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *receiver) end() {
	assert.NoError(r.t, r.server.Close())
	assert.ErrorIs(r.t, <-r.served, http.ErrServerClosed)
}

func (r *receiver) handle(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	assert.NoError(r.t, err)
	signer, err := webhooks.NewWebhook(callbackSecret)
	assert.NoError(r.t, err)
	assert.NoError(r.t, signer.Verify(body, req.Header))
	assert.Equal(r.t, []string{"POST", "application/json", "danqing", "token=hush"},
		[]string{req.Method, req.Header.Get("Content-Type"), req.Header.Get("User-Agent"), req.URL.RawQuery})
	d := delivery{at: time.Now(), id: req.Header.Get("webhook-id"), body: string(body)}
	assert.NoError(r.t, json.Unmarshal(body, &d.event))
	r.mu.Lock()
	r.got = append(r.got, d)
	answer := r.answer
	r.mu.Unlock()
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	answer(w, req)
}

// answers sets the response to the next callbacks.
func (r *receiver) answers(answer http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

// deliveries waits for n callbacks and returns them.
func (r *receiver) deliveries(n int) []delivery {
	r.t.Helper()
	for range 20 * 60 {
		r.mu.Lock()
		got := r.got
		r.mu.Unlock()
		if len(got) >= n {
			return got
		}
		<-time.After(time.Second)
	}
	require.Fail(r.t, "not delivered in time", "%d of %d", len(r.got), n)
	return nil
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// notifyBubble is bubble with a worker that signs callbacks and sends all of them to the
// receiver.
func notifyBubble(t *testing.T, sim *simulator.Simulator, test func(*testing.T, *stack, *receiver)) {
	t.Helper()
	notifyBubbleWith(t, sim, func(*worker.Config) {}, test)
}

func notifyBubbleWith(t *testing.T, sim *simulator.Simulator, configure func(*worker.Config), test func(*testing.T, *stack, *receiver)) {
	t.Helper()
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		s, r := newStack(t, dir, sim), newReceiver(t)
		s.configure = func(cfg *worker.Config) {
			cfg.CallbackSecrets, cfg.DialCallback, cfg.ServeURL = []string{callbackSecret}, r.dial, shopURL
			configure(cfg)
		}
		defer r.end()
		defer s.close()
		s.start()
		test(t, s, r)
	})
}
