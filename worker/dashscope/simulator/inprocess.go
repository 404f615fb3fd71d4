package simulator

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// DialContext connects to the simulator in the process, without a socket: an
// [http.Transport] with this dialer uses HTTP/1.1, also inside a testing/synctest
// bubble. Every host name and port is accepted; there is no TLS, so base URLs must be
// http. It starts an HTTP server, which [Simulator.Close] ends. After Close it fails
// with [net.ErrClosed].
func (s *Simulator) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := s.Load(); err != nil {
		return nil, err
	}
	listener, err := s.inner.start(s, s.log)
	if err != nil {
		return nil, err
	}
	client, server := net.Pipe()
	select {
	case listener.conns <- server:
		return client, nil
	case <-listener.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// inProcess is the server behind DialContext.
type inProcess struct {
	mu       sync.Mutex
	closed   bool
	server   *http.Server
	listener *pipeListener

	running sync.WaitGroup // the server and its connections
}

// start starts the server unless it is running.
func (p *inProcess) start(handler http.Handler, logger *slog.Logger) (*pipeListener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, net.ErrClosed
	}
	if p.listener != nil {
		return p.listener, nil
	}
	p.listener = &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	p.server = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				p.running.Add(1)
			case http.StateClosed, http.StateHijacked:
				p.running.Done()
			case http.StateActive, http.StateIdle:
			}
		},
	}
	p.running.Go(func() { _ = p.server.Serve(p.listener) }) // ends with ErrServerClosed
	return p.listener, nil
}

// close ends the server and waits for its goroutines.
func (p *inProcess) close() error {
	p.mu.Lock()
	p.closed = true
	server := p.server
	p.mu.Unlock()
	if server == nil {
		return nil
	}
	err := server.Close()
	p.running.Wait()
	return err
}

// pipeListener accepts the server ends of in-process connections.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "simulator", Net: "pipe"} }
