//go:build unix

package redishealth_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/jobs/redistest"
)

// A write of any client is durable once each replica has it. A short read timeout does not end
// the wait.
func TestWaitDurableByAReplica(t *testing.T) {
	t.Parallel()
	port, _ := redistest.Listen(t, "--appendonly", "yes")
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port, ReadTimeout: 300 * time.Millisecond, MaxRetries: -1})
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	require.Eventually(t, func() bool { return rdb.Ping(t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
	alone, err := redishealth.Probe(t.Context(), rdb)
	require.NoError(t, err)
	assert.True(t, alone.AOF)
	assert.Equal(t, "everysec", alone.Fsync)
	assert.Equal(t, "noeviction", alone.EvictionPolicy)
	assert.Zero(t, alone.Replicas)
	assert.Empty(t, alone.Snapshots)
	assert.NotZero(t, alone.UsedBytes)

	replicaPort, replica := redistest.Listen(t, "--replicaof", "127.0.0.1 "+port)
	var both redishealth.Durability
	require.Eventually(t, func() bool {
		both, err = redishealth.Probe(t.Context(), rdb)
		return err == nil && both.Replicas == 1
	}, 30*time.Second, 20*time.Millisecond)
	require.NoError(t, redishealth.WaitDurable(t.Context(), rdb, both))

	// The replica is stopped: a write of another connection is not durable.
	require.NoError(t, replica.Signal(syscall.SIGSTOP))
	other := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port})
	t.Cleanup(func() { assert.NoError(t, other.Close()) })
	require.NoError(t, other.Set(t.Context(), "written", "by another", 0).Err())
	begun := time.Now()
	err = redishealth.WaitDurable(t.Context(), rdb, both)
	require.ErrorIs(t, err, redishealth.ErrNotAcknowledged)
	require.ErrorContains(t, err, "by 0 of 1 replicas")
	assert.GreaterOrEqual(t, time.Since(begun), 1900*time.Millisecond)

	require.NoError(t, replica.Signal(syscall.SIGCONT))
	require.NoError(t, redishealth.WaitDurable(t.Context(), rdb, both))
	second := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + replicaPort})
	t.Cleanup(func() { assert.NoError(t, second.Close()) })
	kept, err := second.Get(t.Context(), "written").Result()
	require.NoError(t, err)
	assert.Equal(t, "by another", kept)

	of, err := redishealth.Probe(t.Context(), second)
	require.NoError(t, err)
	assert.True(t, of.Replica)
	assert.Contains(t, texts(of.Findings()), "set REDIS_URL to its primary")
}
