package dashscope

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// testKey must never appear in an error, a log or a request to another host.
const testKey = "sk-0123456789abcdef"

// testBase is a host that does not exist: the tests dial in memory.
const testBase = "http://dashscope.test/api/v1"

// memory is an in-memory network that works in a synctest bubble: every dial is a
// net.Pipe to an HTTP server. It records what clients write.
type memory struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu    sync.Mutex
	sent  map[string]*bytes.Buffer // by dialed address
	muted string                   // address whose bytes are not recorded
	dials int
}

func serve(t *testing.T, h http.Handler) *memory {
	t.Helper()
	m := &memory{conns: make(chan net.Conn), closed: make(chan struct{}), sent: map[string]*bytes.Buffer{}}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(m) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return m
}

func (m *memory) DialContext(_ context.Context, _, addr string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case m.conns <- server:
	case <-m.closed:
		return nil, net.ErrClosed
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dials++
	if m.sent[addr] == nil {
		m.sent[addr] = new(bytes.Buffer)
	}
	if addr == m.muted {
		return client, nil
	}
	return &recorded{Conn: client, m: m, to: m.sent[addr]}, nil
}

// text returns everything written to addr.
func (m *memory) text(addr string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sent[addr] == nil {
		return ""
	}
	return m.sent[addr].String()
}

func (m *memory) mute(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.muted = addr
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error   { m.once.Do(func() { close(m.closed) }); return nil }
func (m *memory) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "pipe"} }

type recorded struct {
	net.Conn
	m  *memory
	to *bytes.Buffer
}

func (r *recorded) Write(p []byte) (int, error) {
	r.m.mu.Lock()
	r.to.Write(p)
	r.m.mu.Unlock()
	return r.Conn.Write(p)
}

// connect returns a client of h with the given additional configuration.
func connect(t *testing.T, h http.Handler, cfg Config) (*Client, *memory) {
	t.Helper()
	m := serve(t, h)
	cfg.BaseURL, cfg.APIKey, cfg.DialContext = testBase, testKey, m.DialContext
	c, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(c.CloseIdleConnections)
	return c, m
}

// reply answers every request with a status and a JSON body.
func reply(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func requireKind(t *testing.T, err error, want Kind) {
	t.Helper()
	_ = typed(t, err, want)
}

// typed returns err as an *Error.
func typed(t *testing.T, err error, want Kind) *Error {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, want, e.Kind, "%v", err)
	require.NotContains(t, e.Error(), testKey)
	return e
}
