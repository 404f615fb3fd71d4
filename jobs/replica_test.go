//go:build unix

package jobs_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// redisAt starts a redis-server of its own that listens on a free port of loopback,
// as a replica must find it.
func redisAt(t *testing.T, options ...string) (port string, process *os.Process) {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not installed: apt-get install redis-server")
		}
		t.Skip("redis-server is not installed: apt-get install redis-server would run this")
	}
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err = net.SplitHostPort(free.Addr().String())
	require.NoError(t, err)
	require.NoError(t, free.Close())
	args := append([]string{"--bind", "127.0.0.1", "--port", port, "--dir", t.TempDir(), "--save", "", "--repl-diskless-sync-delay", "0"}, options...)
	server := exec.CommandContext(context.WithoutCancel(t.Context()), binary, args...)
	require.NoError(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGCONT)
		require.NoError(t, server.Process.Kill())
		_ = server.Wait()
	})
	return port, server.Process
}

// What a primary has written counts as kept once each replica has it, whoever wrote
// it; and a short read timeout does not cut the wait.
func TestWaitDurableByAReplica(t *testing.T) {
	t.Parallel()
	port, _ := redisAt(t, "--appendonly", "yes")
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port, ReadTimeout: 300 * time.Millisecond, MaxRetries: -1})
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	require.Eventually(t, func() bool { return rdb.Ping(t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
	client := jobs.NewClient(rdb)
	alone, err := client.Durability(t.Context())
	require.NoError(t, err)
	assert.True(t, alone.AOF)
	assert.Equal(t, "everysec", alone.Fsync)
	assert.Equal(t, "noeviction", alone.EvictionPolicy)
	assert.Zero(t, alone.Replicas)
	assert.Empty(t, alone.Snapshots)
	assert.NotZero(t, alone.UsedBytes)

	replicaPort, replica := redisAt(t, "--replicaof", "127.0.0.1 "+port)
	var both jobs.Durability
	require.Eventually(t, func() bool {
		both, err = client.Durability(t.Context())
		return err == nil && both.Replicas == 1
	}, 30*time.Second, 20*time.Millisecond)
	require.NoError(t, client.WaitDurable(t.Context(), both))

	// The replica stands still: what another connection writes is not kept.
	require.NoError(t, replica.Signal(syscall.SIGSTOP))
	other := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port})
	t.Cleanup(func() { assert.NoError(t, other.Close()) })
	require.NoError(t, other.Set(t.Context(), "written", "by another", 0).Err())
	begun := time.Now()
	err = client.WaitDurable(t.Context(), both)
	require.ErrorIs(t, err, jobs.ErrNotAcknowledged)
	require.ErrorContains(t, err, "by 0 of 1 replicas")
	assert.GreaterOrEqual(t, time.Since(begun), 1900*time.Millisecond)

	require.NoError(t, replica.Signal(syscall.SIGCONT))
	require.NoError(t, client.WaitDurable(t.Context(), both))
	second := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + replicaPort})
	t.Cleanup(func() { assert.NoError(t, second.Close()) })
	kept, err := second.Get(t.Context(), "written").Result()
	require.NoError(t, err)
	assert.Equal(t, "by another", kept)

	of, err := jobs.NewClient(second).Durability(t.Context())
	require.NoError(t, err)
	assert.True(t, of.Replica)
	assert.Contains(t, texts(of.Findings()), "set REDIS_URL to its primary")
}
