// Package redistest starts Redis servers for tests. It skips a test where redis-server is
// not installed, and fails it there if CI is "true".
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
		test(t, Open(t))
	})
}

// Embedded opens an embedded Redis in memory, and closes it at the test's end.
func Embedded(t *testing.T) redis.UniversalClient {
	t.Helper()
	queue := embedded.Open()
	t.Cleanup(func() { require.NoError(t, queue.Close()) })
	return queue.Client()
}

// Open starts a redis-server on a socket in a temporary directory and connects to it. The
// options are its command line; without any it writes no file. Both end with the test.
func Open(t *testing.T, options ...string) *redis.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "redis-*") //nolint:usetesting // a socket's path may have 107 bytes
	require.NoError(t, err)
	socket := filepath.Join(dir, "socket")
	process := start(t, append([]string{"--port", "0", "--unixsocket", socket, "--dir", dir, "--save", ""}, options...))
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: socket})
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		require.NoError(t, process.Kill())
		_, _ = process.Wait()
		require.NoError(t, os.RemoveAll(dir))
	})
	require.Eventually(t, func() bool { return client.Ping(t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
	return client
}

// Listen starts a redis-server on a free port of 127.0.0.1, where a replica reaches it. It
// may not accept connections yet. The process ends with the test.
func Listen(t *testing.T, options ...string) (port string, process *os.Process) {
	t.Helper()
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err = net.SplitHostPort(free.Addr().String())
	require.NoError(t, err)
	require.NoError(t, free.Close())
	args := []string{"--bind", "127.0.0.1", "--port", port, "--dir", t.TempDir(), "--save", "", "--repl-diskless-sync-delay", "0"}
	process = start(t, append(args, options...))
	t.Cleanup(func() {
		require.NoError(t, process.Kill())
		_, _ = process.Wait()
	})
	return port, process
}

func start(t *testing.T, args []string) *os.Process {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not installed: apt-get install redis-server")
		}
		t.Skip("redis-server is not installed: apt-get install redis-server would run this")
	}
	server := exec.CommandContext(context.WithoutCancel(t.Context()), binary, args...)
	require.NoError(t, server.Start())
	return server.Process
}
