package dashscope

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
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
)

// wire is a TCP server whose answers are written byte by byte. It counts requests.
type wire struct {
	addr            string
	conns, requests atomic.Int32
}

// listen runs script for every complete request; the connection is closed when script
// returns false.
func listen(t *testing.T, script func(conn *net.TCPConn, nth int32, r *http.Request) bool) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	require.NoError(t, err)
	w := &wire{addr: l.Addr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go w.serve(conn.(*net.TCPConn), w.conns.Add(1), script)
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return w
}

func (w *wire) serve(conn *net.TCPConn, nth int32, script func(*net.TCPConn, int32, *http.Request) bool) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.requests.Add(1)
		if !script(conn, nth, r) {
			return
		}
	}
}

func newClient(t *testing.T, addr string) *Client {
	t.Helper()
	c, err := New(Config{BaseURL: "http://" + addr + "/api/v1", APIKey: testKey})
	require.NoError(t, err)
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// say writes an answer verbatim and closes.
func say(text string) func(*net.TCPConn, int32, *http.Request) bool {
	return func(conn *net.TCPConn, _ int32, _ *http.Request) bool {
		_, _ = io.WriteString(conn, text)
		return false
	}
}

// A create is sent exactly once, whatever happens to it. Without a task_id or a certain
// refusal it is ambiguous.
func TestRule2CreateIsSentOnce(t *testing.T) {
	t.Parallel()
	const jsonHead = "Content-Type: application/json\r\nConnection: close\r\n\r\n"
	for name, tc := range map[string]struct {
		script func(*net.TCPConn, int32, *http.Request) bool
		want   Kind
	}{
		"closed without an answer": {say(""), KindAmbiguous},
		"reset after the request": {func(c *net.TCPConn, _ int32, _ *http.Request) bool {
			_ = c.SetLinger(0)
			return false
		}, KindAmbiguous},
		"reset inside the answer": {func(c *net.TCPConn, _ int32, _ *http.Request) bool {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"output\":{")
			_ = c.SetLinger(0)
			return false
		}, KindAmbiguous},
		"garbage":          {say("\x00\x16hello\r\n\r\n"), KindAmbiguous},
		"headers cut":      {say("HTTP/1.1 200 OK\r\nContent-Le"), KindAmbiguous},
		"body cut":         {say("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}"), KindAmbiguous},
		"refusal cut":      {say("HTTP/1.1 400 Bad Request\r\nContent-Length: 99\r\n\r\n" + `{"code":"InvalidParameter"}`), KindAmbiguous},
		"endless body":     {say("HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat(" ", maxBodyBytes+1)), KindAmbiguous},
		"endless refusal":  {say("HTTP/1.1 400 No\r\n\r\n" + `{"code":"InvalidParameter"}` + strings.Repeat(" ", maxBodyBytes)), KindAmbiguous},
		"endless header":   {say("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 128<<10) + "\r\n\r\n{}"), KindAmbiguous},
		"no task":          {say("HTTP/1.1 200 OK\r\n" + jsonHead + `{"request_id":"r","output":{"task_status":"PENDING"}}`), KindAmbiguous},
		"task_id no ID":    {say("HTTP/1.1 200 OK\r\n" + jsonHead + `{"output":{"task_id":"../x"}}`), KindAmbiguous},
		"refused with 200": {say("HTTP/1.1 200 OK\r\n" + jsonHead + `{"code":"InvalidApiKey","message":"m"}`), KindAmbiguous},
		"HTML 400":         {say("HTTP/1.1 400 No\r\nContent-Type: text/html\r\n\r\n<html>"), KindAmbiguous},
		"HTML 429":         {say("HTTP/1.1 429 No\r\nContent-Type: text/html\r\n\r\n<html>"), KindAmbiguous},
		"foreign JSON 403": {say("HTTP/1.1 403 No\r\n" + jsonHead + `{"error":"denied"}`), KindAmbiguous},
		"408":              {say("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"), KindAmbiguous},
		"408 with JSON":    {say("HTTP/1.1 408 Request Timeout\r\n" + jsonHead + `{"code":"RequestTimeOut","message":"m"}`), KindAmbiguous},
		"500 with JSON":    {say("HTTP/1.1 500 No\r\n" + jsonHead + `{"code":"InternalError","message":"m"}`), KindAmbiguous},
		"500 capacity":     {say("HTTP/1.1 500 No\r\n" + jsonHead + `{"code":"ModelServingError","message":"m"}`), KindAmbiguous},
		"502":              {say("HTTP/1.1 502 Bad Gateway\r\n\r\n<html>"), KindAmbiguous},
		"503":              {say("HTTP/1.1 503 No\r\n\r\nbusy"), KindAmbiguous},
		"503 with JSON":    {say("HTTP/1.1 503 No\r\n" + jsonHead + `{"code":"ServiceUnavailableError","message":"m"}`), KindAmbiguous},
		"503 capacity":     {say("HTTP/1.1 503 No\r\n" + jsonHead + `{"code":"ModelServingError","message":"m"}`), KindRefused},
		"503 unavailable":  {say("HTTP/1.1 503 No\r\n" + jsonHead + `{"code":"ModelUnavailable","message":"m"}`), KindRefused},
		"307 to itself":    {say("HTTP/1.1 307 No\r\nLocation: /api/v1" + PathText2Image + "\r\nConnection: close\r\n\r\n"), KindAmbiguous},
		"302 to itself":    {say("HTTP/1.1 302 No\r\nLocation: /api/v1" + PathText2Image + "\r\n" + jsonHead + `{"code":"X"}`), KindAmbiguous},
		"429 with JSON":    {say("HTTP/1.1 429 No\r\n" + jsonHead + `{"code":"Throttling.RateQuota","message":"m"}`), KindThrottled},
		"401 with JSON":    {say("HTTP/1.1 401 No\r\n" + jsonHead + `{"code":"InvalidApiKey","message":"m"}`), KindAccount},
		"401 OpenAI style": {say("HTTP/1.1 401 No\r\n" + jsonHead + `{"error":{"code":"invalid_api_key","message":"m"}}`), KindAccount},
		"400 with JSON":    {say("HTTP/1.1 400 No\r\n" + jsonHead + `{"code":"InvalidParameter","message":"m"}`), KindTerminal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := listen(t, tc.script)
			got, err := newClient(t, w.addr).Create(t.Context(), CreateRequest{Model: "wanx-v1"})
			e := typed(t, err, tc.want)
			assert.Nil(t, got)
			assert.Equal(t, opCreate, e.Op)
			assert.EqualValues(t, 1, w.requests.Load(), "requests on the wire")
			assert.EqualValues(t, 1, w.conns.Load(), "connections")
		})
	}
}

// A connection that is reset right after it is established may already carry the
// request.
func TestCreateOnAConnectionThatDiesAtOnceIsAmbiguous(t *testing.T) {
	t.Parallel()
	m := serve(t, nil)
	c, err := New(Config{BaseURL: testBase, APIKey: testKey, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := m.DialContext(ctx, network, addr)
		if err == nil {
			_ = conn.Close()
		}
		return conn, err
	}})
	require.NoError(t, err)
	_, err = c.Create(t.Context(), CreateRequest{Model: "wanx-v1"})
	requireKind(t, err, KindAmbiguous)
	assert.Equal(t, 1, m.dials)
}

// A create never uses a query's connection, which may be stale, and no two creates
// share one.
func TestCreateUsesAConnectionOfItsOwn(t *testing.T) {
	t.Parallel()
	var onFirst atomic.Int32
	w := listen(t, func(conn *net.TCPConn, nth int32, r *http.Request) bool {
		if r.Method == http.MethodPost && nth == 1 {
			onFirst.Add(1)
			return false
		}
		const body = `{"output":{"task_id":"t1","task_status":"PENDING"}}`
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 51\r\n\r\n"+body)
		return true
	})
	c := newClient(t, w.addr)
	for range 2 {
		_, err := c.Query(t.Context(), "t1")
		require.NoError(t, err)
		_, err = c.Create(t.Context(), CreateRequest{Model: "wanx-v1"})
		require.NoError(t, err)
	}
	assert.Zero(t, onFirst.Load(), "creates on the queries' connection")
	assert.EqualValues(t, 4, w.requests.Load())
	assert.EqualValues(t, 3, w.conns.Load(), "one for the queries, one per create")
}

// Without an established connection nothing was sent: that is not ambiguous.
func TestCreateIsRefusedIfNeverConnected(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(reply(200, "{}"))
	t.Cleanup(plain.Close)
	untrusted := httptest.NewUnstartedServer(reply(200, "{}"))
	untrusted.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	untrusted.StartTLS()
	t.Cleanup(untrusted.Close)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		base string
		ctx  context.Context //nolint:containedctx // a row of a table
		dial func(context.Context, string, string) (net.Conn, error)
	}{
		"port closed":           {base: "http://127.0.0.1:1"}, // a port just closed may be another test's by now
		"no such host":          {base: "http://dashscope.invalid", dial: func(context.Context, string, string) (net.Conn, error) { return nil, &net.DNSError{IsNotFound: true} }},
		"TLS to a plain server": {base: strings.Replace(plain.URL, "http", "https", 1)},
		"unknown certificate":   {base: untrusted.URL},
		"canceled before":       {base: plain.URL, ctx: gone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := New(Config{BaseURL: tc.base + "/api/v1", APIKey: testKey, DialContext: tc.dial})
			require.NoError(t, err)
			ctx := tc.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			_, err = c.Create(ctx, CreateRequest{Model: "wanx-v1"})
			e := typed(t, err, KindRefused)
			assert.NotEmpty(t, e.Hint())
			assert.NotContains(t, err.Error(), PathText2Image, "no URL in the text")
		})
	}
}

type dialer func(context.Context, string, string) (net.Conn, error)

func TestCreateTimeouts(t *testing.T) {
	t.Parallel()
	var hang dialer = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	t.Run("while connecting: refused", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			c, err := New(Config{APIKey: testKey, DialContext: hang})
			require.NoError(t, err)
			start := time.Now()
			_, err = c.Create(t.Context(), CreateRequest{})
			requireKind(t, err, KindRefused)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
			assert.Equal(t, dialTimeout, time.Since(start))
		})
	})
	t.Run("while the answer is awaited: ambiguous", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			c, m := connect(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
			}), Config{CreateTimeout: 7 * time.Second})
			start := time.Now()
			_, err := c.Create(t.Context(), CreateRequest{})
			requireKind(t, err, KindAmbiguous)
			assert.ErrorContains(t, err, "no answer within 7s")
			assert.Equal(t, 7*time.Second, time.Since(start))
			assert.Equal(t, 1, m.dials)
		})
	})
	t.Run("canceled while the answer is awaited: ambiguous", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := errors.New("stopping")
			c, _ := connect(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				cancel(stop)
				<-r.Context().Done()
			}), Config{})
			_, err := c.Create(ctx, CreateRequest{})
			requireKind(t, err, KindAmbiguous)
			assert.ErrorIs(t, err, stop)
		})
	})
	t.Run("while the body is read: ambiguous", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			c, _ := connect(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, `{"output":{"task_id":"t1"`)
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}), Config{})
			_, err := c.Create(t.Context(), CreateRequest{})
			requireKind(t, err, KindAmbiguous)
		})
	})
}

// A server that supports HTTP/2 gets HTTP/1.1.
func TestHTTP1Only(t *testing.T) {
	t.Parallel()
	for _, keepAlive := range []bool{false, true} {
		tr := newTransport(nil, keepAlive)
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			assert.Equal(t, "HTTP/1.1", r.Proto)
		}))
		srv.EnableHTTP2 = true
		srv.StartTLS()
		t.Cleanup(srv.Close)
		tr.TLSClientConfig = &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, MinVersion: tls.VersionTLS12}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		tr.CloseIdleConnections()
	}
}
