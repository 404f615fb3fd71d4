package dashscope

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Creates use the connections that KeepWarm has opened, TLS or not, each once. A connection that the
// service has closed meanwhile is not used: the create succeeds on another one.
func TestKeepWarm(t *testing.T) {
	t.Parallel()
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var opened atomic.Int32
			accepted := make(chan net.Conn, 10)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				assert.Equal(t, "HTTP/1.1", r.Proto)
				_, _ = w.Write([]byte(`{"output":{"task_id":"t1","task_status":"PENDING"}}`))
			}))
			srv.EnableHTTP2 = true
			srv.Config.ConnState = func(conn net.Conn, state http.ConnState) {
				if state == http.StateNew {
					opened.Add(1)
					accepted <- conn
				}
			}
			if secure {
				srv.StartTLS()
			} else {
				srv.Start()
			}
			t.Cleanup(srv.Close)
			c, err := New(Config{BaseURL: srv.URL + "/api/v1", APIKey: "k"})
			require.NoError(t, err)
			t.Cleanup(c.CloseIdleConnections)
			if secure {
				c.oneShotTransport.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
			}
			c.warm.expect(2 * warmMost)
			for range 2 * warmMost {
				c.warm.fill(t.Context())
			}
			conns := []net.Conn{<-accepted, <-accepted, <-accepted}
			require.Equal(t, warmMost, c.warm.kept())
			_, err = c.Create(t.Context(), CreateRequest{})
			require.NoError(t, err)
			_, err = c.Create(t.Context(), CreateRequest{})
			require.NoError(t, err)
			assert.EqualValues(t, warmMost, opened.Load())
			for _, conn := range conns {
				_ = conn.Close() // with close_notify; the server has closed those that were used
			}
			ended := c.warm.open[0].ended
			require.Eventually(t, func() bool { return len(ended) > 0 }, time.Minute, time.Millisecond)
			_, err = c.Create(t.Context(), CreateRequest{})
			require.NoError(t, err)
			assert.EqualValues(t, warmMost+1, opened.Load())
			c.warm.expect(-2 * warmMost)

			ctx, stop := context.WithCancel(t.Context())
			var warming sync.WaitGroup
			warming.Go(func() { c.KeepWarm(ctx) })
			require.Eventually(t, func() bool { return c.warm.kept() == 1 }, time.Minute, time.Millisecond)
			stop()
			warming.Wait()
			assert.Zero(t, c.warm.kept(), "no create is expected any more")
		})
	}
}

// kept returns the number of open connections.
func (w *warmPool) kept() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.open)
}
