package dashscope

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// warmFresh is the age up to which an open connection is not replaced, warmLifetime the
	// age up to which it is used. Load balancers close connections that are silent for
	// longer: Alibaba's after 15 s by default.
	warmFresh    = 5 * time.Second
	warmLifetime = 10 * time.Second
)

// warmConnection is a connection to the service that is opened ahead of the request that will
// use it. Nothing was ever sent on it, so that it is as good as a new one.
type warmConnection struct {
	addr string // host and port
	// dial opens a connection, including TLS.
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	opening sync.Mutex // one at a time

	mu     sync.Mutex
	conn   net.Conn // nil for none
	opened time.Time
}

// newWarmConnection returns the warm connection of a transport's requests to a host.
func newWarmConnection(transport *http.Transport, addr string, secure bool) *warmConnection {
	w := &warmConnection{addr: addr, dial: transport.DialContext}
	dial := transport.DialContext
	if !secure {
		transport.DialContext = w.dialOr(dial)
		return w
	}
	w.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return handshake(ctx, transport.TLSClientConfig, conn, addr)
	}
	transport.DialTLSContext = w.dialOr(w.dial) // not called for a connection through a proxy
	return w
}

// handshake makes a connection a TLS connection for HTTP/1.1.
func handshake(ctx context.Context, cfg *tls.Config, conn net.Conn, addr string) (net.Conn, error) {
	if cfg = cfg.Clone(); cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	host, _, err := net.SplitHostPort(addr)
	if err == nil {
		cfg.ServerName, cfg.NextProtos = host, []string{"http/1.1"}
		ctx, cancel := withTimeout(ctx, dialTimeout)
		defer cancel()
		secure := tls.Client(conn, cfg)
		if err = secure.HandshakeContext(ctx); err == nil {
			return secure, nil
		}
	}
	_ = conn.Close()
	return nil, err
}

// dialOr returns a function that returns the warm connection, if there is one, or else dials.
func (w *warmConnection) dialOr(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == w.addr {
			if conn := w.take(); conn != nil {
				return conn, nil
			}
		}
		return dial(ctx, network, addr)
	}
}

// take returns the connection if it can still be used, else nil.
func (w *warmConnection) take() net.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	conn := w.conn
	w.conn = nil
	if conn != nil && (time.Since(w.opened) > warmLifetime || isClosed(conn)) {
		_ = conn.Close()
		return nil
	}
	return conn
}

// put keeps a connection in place of the one before; nil only closes that one.
func (w *warmConnection) put(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		_ = w.conn.Close()
	}
	w.conn, w.opened = conn, time.Now()
}

// fresh reports whether there is a connection that need not be replaced.
func (w *warmConnection) fresh() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conn != nil && time.Since(w.opened) < warmFresh
}

// Warm opens the connection of the next create, unless one was opened within the last 5 s: the
// create then need not wait for TCP and TLS. A connection is used for 10 s, so call Warm every
// few seconds while a create is expected. It does nothing if the service is behind a proxy.
// An error does no harm: the create opens its own connection.
func (c *Client) Warm(ctx context.Context) {
	if c.warm.fresh() || !c.warm.opening.TryLock() {
		return
	}
	defer c.warm.opening.Unlock()
	if proxy := c.oneShotTransport.Proxy; proxy != nil {
		if via, err := proxy(&http.Request{URL: c.BaseURL()}); via != nil || err != nil {
			return
		}
	}
	ctx, cancel := withTimeout(ctx, 2*dialTimeout)
	defer cancel()
	if conn, err := c.warm.dial(ctx, "tcp", c.warm.addr); err == nil {
		c.warm.put(conn)
	}
}
