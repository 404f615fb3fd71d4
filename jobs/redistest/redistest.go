// Package redistest opens Redis servers for tests.
package redistest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/embedded"
)

// Both runs a test on the embedded Redis and on a redis-server, in parallel.
func Both(t *testing.T, test func(t *testing.T, rdb redis.UniversalClient)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, Embedded(t))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, Start(t).Client(t))
	})
}

// Embedded opens an embedded Redis in memory, and closes it when the test ends.
func Embedded(tb testing.TB) redis.UniversalClient {
	tb.Helper()
	queue := embedded.Open()
	tb.Cleanup(func() { require.NoError(tb, queue.Close()) })
	return queue.Client()
}

// Listen starts a redis-server on a free port of 127.0.0.1, where a replica reaches it. It
// may not accept connections yet. It ends with the test.
func Listen(tb testing.TB, args ...string) (port string, process *os.Process) {
	tb.Helper()
	port = freePort(tb)
	return port, run(tb, append([]string{"--port", port}, serverArgs(tb, args)...))
}

// ListenTLS is [Listen] with TLS. The arguments name the certificates.
func ListenTLS(tb testing.TB, args ...string) (port string, process *os.Process) {
	tb.Helper()
	port = freePort(tb)
	return port, run(tb, append([]string{"--port", "0", "--tls-port", port}, serverArgs(tb, args)...))
}

// Sentinel starts a Sentinel that monitors the primary on a port of 127.0.0.1 under a name.
// It may not accept connections yet. It ends with the test.
func Sentinel(tb testing.TB, name, primaryPort string) (port string) {
	tb.Helper()
	port = freePort(tb)
	file := filepath.Join(tb.TempDir(), "sentinel.conf")
	text := "bind 127.0.0.1\nport " + port + "\nsentinel monitor " + name + " 127.0.0.1 " + primaryPort + " 1\n"
	require.NoError(tb, os.WriteFile(file, []byte(text), 0o600))
	run(tb, []string{file, "--sentinel"})
	return port
}

func freePort(tb testing.TB) string {
	tb.Helper()
	free, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	_, port, err := net.SplitHostPort(free.Addr().String())
	require.NoError(tb, err)
	require.NoError(tb, free.Close())
	return port
}

func serverArgs(tb testing.TB, more []string) []string {
	tb.Helper()
	return append([]string{"--bind", "127.0.0.1", "--dir", tb.TempDir(), "--save", "", "--repl-diskless-sync-delay", "0"}, more...)
}

// run runs a redis-server until the test ends.
func run(tb testing.TB, args []string) *os.Process {
	tb.Helper()
	server := exec.CommandContext(context.WithoutCancel(tb.Context()), Binary(tb), args...) //nolint:gosec // a test's own server
	require.NoError(tb, server.Start())
	tb.Cleanup(func() {
		require.NoError(tb, server.Process.Kill())
		_ = server.Wait() // killed
	})
	return server.Process
}

// Binary finds redis-server, or skips the test; where CI is set to true, it fails it.
func Binary(tb testing.TB) string {
	tb.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal("redis-server is not installed: apt-get install redis-server")
		}
		tb.Skip("redis-server is not installed: apt-get install redis-server would run this")
	}
	return binary
}

// Server is a redis-server that ends with its test.
type Server struct {
	// Dir is its working directory, Socket the Unix socket that it listens on.
	Dir, Socket string
	// Process is the running server.
	Process *os.Process

	tb   testing.TB
	args []string
	cmd  *exec.Cmd
}

// Start starts a redis-server on a Unix socket, without snapshots, with further
// arguments.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	dir, err := os.MkdirTemp("", "redis-*") //nolint:usetesting // a socket's path is limited to 107 bytes
	require.NoError(tb, err)
	s := &Server{Dir: dir, Socket: filepath.Join(dir, "socket"), tb: tb}
	s.args = append([]string{"--port", "0", "--unixsocket", s.Socket, "--dir", dir, "--save", ""}, args...)
	tb.Cleanup(func() {
		s.Kill()
		require.NoError(tb, os.RemoveAll(dir))
	})
	s.Run()
	return s
}

// Run starts the server again after [Server.Kill].
func (s *Server) Run() {
	s.tb.Helper()
	// The test's context ends before its clients are closed.
	s.cmd = exec.CommandContext(context.WithoutCancel(s.tb.Context()), Binary(s.tb), s.args...) //nolint:gosec // a test's own server
	require.NoError(s.tb, s.cmd.Start())
	s.Process = s.cmd.Process
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: s.Socket})
	defer client.Close() //nolint:errcheck // it has served its purpose
	require.Eventually(s.tb, func() bool { return client.Ping(s.tb.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
}

// Kill ends the server with SIGKILL, if it runs.
func (s *Server) Kill() {
	if s.cmd == nil || s.cmd.ProcessState != nil {
		return
	}
	_ = s.Process.Kill()
	_ = s.cmd.Wait() // killed
}

// Client returns a client that is closed when the test ends.
func (s *Server) Client(tb testing.TB) redis.UniversalClient {
	tb.Helper()
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: s.Socket, MaxRetries: 20})
	tb.Cleanup(func() { require.NoError(tb, client.Close()) })
	return client
}
