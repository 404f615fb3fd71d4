// Package redistest starts redis-servers for tests.
package redistest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// Binary finds redis-server, or skips the test; where CI is set to true, it fails it.
func Binary(t testing.TB) string {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not installed: apt-get install redis-server")
		}
		t.Skip("redis-server is not installed: apt-get install redis-server would run this")
	}
	return binary
}

// Server is a redis-server that ends with its test.
type Server struct {
	// Dir is its working directory, Socket the Unix socket that it listens on.
	Dir, Socket string
	// Process is the running server.
	Process *os.Process

	t    testing.TB
	args []string
	cmd  *exec.Cmd
}

// Start starts a redis-server on a Unix socket, without snapshots, with further
// arguments.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "redis-*") //nolint:usetesting // a socket's path is limited to 107 bytes
	require.NoError(t, err)
	s := &Server{Dir: dir, Socket: filepath.Join(dir, "socket"), t: t}
	s.args = append([]string{"--port", "0", "--unixsocket", s.Socket, "--dir", dir, "--save", ""}, args...)
	t.Cleanup(func() {
		s.Kill()
		require.NoError(t, os.RemoveAll(dir))
	})
	s.Run()
	return s
}

// Run starts the server again after [Server.Kill].
func (s *Server) Run() {
	s.t.Helper()
	// The test's context ends before its clients are closed.
	s.cmd = exec.CommandContext(context.WithoutCancel(s.t.Context()), Binary(s.t), s.args...)
	require.NoError(s.t, s.cmd.Start())
	s.Process = s.cmd.Process
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: s.Socket})
	defer client.Close() //nolint:errcheck // it has served its purpose
	require.Eventually(s.t, func() bool { return client.Ping(s.t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
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
func (s *Server) Client(t testing.TB) redis.UniversalClient {
	t.Helper()
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: s.Socket, MaxRetries: 20})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}
