package gateway

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hostConn is a connection from a host that records its end.
type hostConn struct {
	net.Conn
	host   string
	closed bool
}

func (c *hostConn) Close() error         { c.closed = true; return nil }
func (c *hostConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.host), Port: 1} }

// queuedListener accepts the connections in its queue.
type queuedListener struct {
	net.Listener
	queue []net.Conn
}

func (l *queuedListener) Accept() (net.Conn, error) {
	if len(l.queue) == 0 {
		return nil, net.ErrClosed
	}
	next := l.queue[0]
	l.queue = l.queue[1:]
	return next, nil
}

// A listener that is full closes a connection of the host with the most idle ones, oldest
// first, and none whose request is being answered.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	var conns []*hostConn
	queue := &queuedListener{}
	for _, host := range []string{"192.0.2.9", "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.9", "192.0.2.9"} {
		conns = append(conns, &hostConn{host: host})
		queue.queue = append(queue.queue, conns[len(conns)-1])
	}
	l := &boundedListener{Listener: queue, limit: 4}
	var accepted []net.Conn
	for range 4 {
		c, err := l.Accept()
		require.NoError(t, err)
		accepted = append(accepted, c)
	}
	use := func(i int) (release func()) {
		r := httptest.NewRequestWithContext(ConnContext(context.Background(), accepted[i]), http.MethodGet, "/", nil)
		return useConn(r)
	}
	closed := func() (is []bool) {
		for _, c := range conns {
			is = append(is, c.closed)
		}
		return is
	}
	release := use(1)
	_, err := l.Accept()
	require.NoError(t, err)
	assert.Equal(t, []bool{false, false, true, false, false, false, false}, closed(), "the first one of .1 that is idle")
	use(0)
	use(3)
	_, err = l.Accept()
	require.NoError(t, err)
	assert.Equal(t, []bool{false, false, true, false, true, false, false}, closed(), "the only idle one")
	l.open[3].used.Store(true)
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	assert.True(t, conns[6].closed, "all others are in use")
	release()
	require.NoError(t, accepted[1].Close())
	require.NoError(t, accepted[1].Close())
	assert.Len(t, l.open, 3)
	assert.GreaterOrEqual(t, connLimit(), minConns)
	assert.LessOrEqual(t, connLimit(), max(minConns, descriptors()/4))
}
