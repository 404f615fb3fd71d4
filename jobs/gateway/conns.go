package gateway

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	// minConns and maxConns bound the connections of a server, which has a quarter of the
	// process's file descriptors: journal, spool, queue and bucket need the others. A
	// connection costs some 20 KB of memory. The values are our choice.
	minConns = 16
	maxConns = 8192
)

// connLimit returns the maximum number of a server's connections.
func connLimit() int { return max(minConns, min(descriptors()/4, maxConns)) }

// boundedListener limits a server's connections. Beyond the limit it closes one that is not
// in use: the oldest one from the host with the most of them.
type boundedListener struct {
	net.Listener
	limit int

	mu   sync.Mutex
	open []*boundedConn // oldest first
}

// boundedConn is a connection of a boundedListener.
type boundedConn struct {
	net.Conn
	listener *boundedListener
	host     string
	// used is set while a request with a valid credential is answered. What else a
	// connection does, such as sending a header slowly, does not keep it open.
	used atomic.Bool
}

// Accept waits for a connection, and makes room for it.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(accepted.RemoteAddr().String())
		if err != nil {
			host = ""
		}
		c := &boundedConn{Conn: accepted, listener: l, host: host}
		victim := l.add(c)
		if victim == nil {
			return c, nil
		}
		_ = victim.Conn.Close() // its server notices
		if victim != c {
			return c, nil
		}
	}
}

// add adds a connection, and returns the one that is to be closed for it, if any: itself
// if all others are in use.
func (l *boundedListener) add(c *boundedConn) (victim *boundedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= l.limit {
		if victim = l.leastNeeded(); victim == nil {
			return c
		}
		l.remove(victim)
	}
	l.open = append(l.open, c)
	return victim
}

func (l *boundedListener) leastNeeded() *boundedConn {
	unused := map[string]int{}
	for _, c := range l.open {
		if !c.used.Load() {
			unused[c.host]++
		}
	}
	var victim *boundedConn
	for _, c := range l.open {
		if !c.used.Load() && (victim == nil || unused[c.host] > unused[victim.host]) {
			victim = c
		}
	}
	return victim
}

func (l *boundedListener) remove(c *boundedConn) {
	l.open = slices.DeleteFunc(l.open, func(other *boundedConn) bool { return other == c })
}

// Close closes the connection.
func (c *boundedConn) Close() error {
	c.listener.mu.Lock()
	c.listener.remove(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

type connKey struct{}

// ConnContext is for [http.Server]: with it the connections of requests that are being
// answered stay open when the listener of [Listen] is full.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// useConn marks the request's connection as in use until release.
func useConn(r *http.Request) (release func()) {
	c, ok := r.Context().Value(connKey{}).(*boundedConn)
	if !ok {
		return func() {}
	}
	c.used.Store(true)
	return func() { c.used.Store(false) }
}
