package dashscope

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	// warmFresh is the age up to which an open connection is not replaced, warmLifetime the
	// age up to which it is used. Load balancers close connections that are silent for
	// longer: Alibaba's after 15 s by default.
	warmFresh    = 5 * time.Second
	warmLifetime = 10 * time.Second
	// warmMost is how many fresh connections there are at most: rarely do more creates follow each
	// other within the time that it takes to open one.
	warmMost = 3
	// warmInterval is how often is looked for connections to replace.
	warmInterval = time.Second
)

// warmPool are connections to the service that are opened ahead of the requests that will use
// them. Nothing was ever sent on them, so that they are as good as new ones.
type warmPool struct {
	addr string // host and port
	// dial opens a connection, including TLS.
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	mu      sync.Mutex
	open    []warmConnection // oldest first
	opening int
	// expected is the number of creates that are expected.
	expected int
}

type warmConnection struct {
	net.Conn
	opened time.Time
	// ended receives the end of a read: the peer has closed the connection, or the read was
	// interrupted.
	ended chan error
}

func newWarmConnection(conn net.Conn) warmConnection {
	c := warmConnection{conn, time.Now(), make(chan error, 1)}
	go func() {
		_, err := conn.Read(make([]byte, 1)) // what belongs to TLS it keeps to itself
		c.ended <- err
	}()
	return c
}

// usable interrupts the read, and reports whether the connection is still as it was opened.
func (c warmConnection) usable() bool {
	err := c.SetReadDeadline(time.Now())
	return errors.Is(<-c.ended, os.ErrDeadlineExceeded) && err == nil && c.SetReadDeadline(time.Time{}) == nil
}

// newWarmPool returns the warm connections of a transport's requests to a host.
func newWarmPool(transport *http.Transport, addr string, secure bool) *warmPool {
	w := &warmPool{addr: addr, dial: transport.DialContext}
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

// dialOr returns a function that returns a warm connection, if there is one, or else dials.
func (w *warmPool) dialOr(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == w.addr {
			if conn := w.take(); conn != nil {
				return conn, nil
			}
		}
		return dial(ctx, network, addr)
	}
}

// take returns the oldest connection that can still be used, nil if there is none.
func (w *warmPool) take() net.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.open) > 0 {
		oldest := w.open[0]
		w.open = w.open[1:]
		if time.Since(oldest.opened) <= warmLifetime && oldest.usable() {
			return oldest.Conn
		}
		_ = oldest.Close()
	}
	return nil
}

// fill opens a connection, if there are less fresh ones than creates are expected.
func (w *warmPool) fill(ctx context.Context) {
	if !w.begin() {
		return
	}
	ctx, cancel := withTimeout(ctx, 2*dialTimeout)
	defer cancel()
	conn, err := w.dial(ctx, "tcp", w.addr)
	if err != nil {
		conn = nil
	}
	w.end(conn)
}

// begin reports whether a connection should be opened; the caller must then call end.
func (w *warmPool) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh := w.opening
	for _, conn := range w.open {
		if time.Since(conn.opened) < warmFresh && len(conn.ended) == 0 {
			fresh++
		}
	}
	if fresh >= w.wanted() {
		return false
	}
	w.opening++
	return true
}

// end keeps a connection that was opened, nil for none, in place of the oldest one if there are
// more than are expected.
func (w *warmPool) end(conn net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opening--
	if conn != nil {
		w.open = append(w.open, newWarmConnection(conn))
	}
	w.closeSurplus()
}

// closeSurplus closes the oldest connections of more than are wanted. w.mu must be held.
func (w *warmPool) closeSurplus() {
	for len(w.open) > w.wanted() {
		_ = w.open[0].Close()
		w.open = w.open[1:]
	}
}

// wanted returns how many connections should be open. w.mu must be held.
func (w *warmPool) wanted() int { return min(w.expected, warmMost) }

// expect changes the number of creates that are expected.
func (w *warmPool) expect(change int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expected += change
	w.closeSurplus()
}

// KeepWarm keeps a connection open for a create that may come at any time, so that it need not wait
// for TCP and TLS, until the context ends: end it after the create. It does nothing if the service
// is behind a proxy. An error does no harm: the create opens its own connection.
func (c *Client) KeepWarm(ctx context.Context) {
	if proxy := c.oneShotTransport.Proxy; proxy != nil {
		if via, err := proxy(&http.Request{URL: c.BaseURL()}); via != nil || err != nil {
			return
		}
	}
	c.warm.expect(1)
	defer c.warm.expect(-1)
	ticker := time.NewTicker(warmInterval)
	defer ticker.Stop()
	for {
		c.warm.fill(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}
