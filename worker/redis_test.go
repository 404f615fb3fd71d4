package worker_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// redisServer starts a redis-server of its own on a socket in a temporary folder.
func redisServer(t *testing.T) redis.UniversalClient {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not installed: apt-get install redis-server")
		}
		t.Skip("redis-server is not installed: apt-get install redis-server would run this")
	}
	dir, err := os.MkdirTemp("", "redis-*") //nolint:usetesting // a socket's path may have 107 bytes
	require.NoError(t, err)
	socket := filepath.Join(dir, "socket")
	server := exec.CommandContext(t.Context(), binary, "--port", "0", "--unixsocket", socket, "--dir", dir, "--appendonly", "yes", "--save", "")
	require.NoError(t, server.Start())
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: socket, MaxRetries: 20})
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		require.NoError(t, server.Process.Kill())
		_ = server.Wait()
		require.NoError(t, os.RemoveAll(dir))
	})
	require.Eventually(t, func() bool { return client.Ping(t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
	return client
}

// On a real Redis, three workers share the lane: one works at a time, whichever
// is stopped, and every job is made once.
func TestWorkersOnARealRedis(t *testing.T) {
	t.Parallel()
	rdb := redisServer(t)
	s := newStack(t, memoryDir(t), &simulator.Simulator{TaskTime: simulator.Between(20*time.Millisecond, 60*time.Millisecond)})
	s.queueInterval = 0
	s.redis = rdb
	client := jobs.NewClient(rdb)
	const total = 12
	for i := range total {
		_, err := client.Enqueue(t.Context(), jobs.Request{ID: fmt.Sprintf("job-%d", i), Prompt: fmt.Sprintf("prompt %d", i)})
		require.NoError(t, err)
	}
	changes, err := client.Subscribe(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, changes.Close()) })
	for round := range 3 {
		w, data := s.newWorker(fmt.Sprintf("data-%d", round))
		ended := make(chan error, 1)
		go func() { ended <- w.Run(context.Background()) }()
		for finished := 0; finished < total/3; {
			rec, err := client.Get(t.Context(), <-changes.IDs())
			require.NoError(t, err)
			if rec.State.Final() {
				finished++
			}
		}
		if round < 2 {
			w.Stop()
			require.NoError(t, <-ended)
			require.NoError(t, data.Close())
			continue
		}
		for i := range total {
			rec, err := client.Wait(t.Context(), fmt.Sprintf("job-%d", i))
			require.NoError(t, err)
			assert.Equal(t, jobs.StateSucceeded, rec.State)
		}
		w.Stop()
		require.NoError(t, <-ended)
		require.NoError(t, data.Close())
	}
	assert.Len(t, s.sim.Tasks(), total)
	assert.Equal(t, 1, s.sim.Stats().Lanes[0].MaxOpen)
	assert.Zero(t, s.sim.Stats().Throttled)
	s.requireChargedOnce()
	require.NoError(t, s.sim.Close())
	require.NoError(t, s.files.Close())
}
