package dashscope

import (
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A create uses the connection that Warm has opened, TLS or not, once. A connection that the
// service has closed meanwhile is not used: the create succeeds on another one.
func TestWarm(t *testing.T) {
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
			c.Warm(t.Context())
			c.Warm(t.Context()) // fresh: nothing more is opened
			<-accepted
			_, err = c.Create(t.Context(), CreateRequest{})
			require.NoError(t, err)
			assert.EqualValues(t, 1, opened.Load())
			_, err = c.Create(t.Context(), CreateRequest{})
			require.NoError(t, err)
			<-accepted
			assert.EqualValues(t, 2, opened.Load())

			c.Warm(t.Context())
			require.NoError(t, (<-accepted).Close())
			conn := c.warm.conn
			require.Eventually(t, func() bool { return isClosed(conn) }, time.Minute, time.Millisecond)
			_, err = c.Create(t.Context(), CreateRequest{})
			require.NoError(t, err)
			assert.EqualValues(t, 4, opened.Load())
		})
	}
}
