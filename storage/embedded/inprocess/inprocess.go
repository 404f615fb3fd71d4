// Package inprocess serves HTTP in the process, without a socket.
package inprocess

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Server is an HTTP server behind a dialer. The zero value is ready for use. It starts
// with the first connection.
type Server struct {
	mu       sync.Mutex
	closed   bool
	server   *http.Server
	listener *pipeListener

	running sync.WaitGroup // the server and its connections
}

// Dial connects to the handler: an [http.Transport] with this dialer uses HTTP/1.1, also
// inside a testing/synctest bubble. The handler and the logger of the first call are used.
// After Close it fails with [net.ErrClosed].
func (s *Server) Dial(ctx context.Context, handler http.Handler, logger *slog.Logger) (net.Conn, error) {
	listener, err := s.start(handler, logger)
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

// start starts the server unless it is running.
func (s *Server) start(handler http.Handler, logger *slog.Logger) (*pipeListener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	if s.listener != nil {
		return s.listener, nil
	}
	s.listener = &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	s.server = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.running.Add(1)
			case http.StateClosed, http.StateHijacked:
				s.running.Done()
			case http.StateActive, http.StateIdle:
			}
		},
	}
	s.running.Go(func() { _ = s.server.Serve(s.listener) }) // ends with ErrServerClosed
	return s.listener, nil
}

// Close ends the server and waits for its goroutines.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	server := s.server
	s.mu.Unlock()
	if server == nil {
		return nil
	}
	err := server.Close()
	s.running.Wait()
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

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "in-process", Net: "pipe"} }
