package jobs

import (
	"context"
	"os"
	"regexp"
	"testing"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/redistest"
)

// asynq may change its private keys with every version: asynqkeys.go must be compared
// with its sources before asynqVersion is raised.
func TestAsynqVersion(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("../go.mod")
	require.NoError(t, err)
	required := regexp.MustCompile(`(?m)^\s*github\.com/hibiken/asynq (v\S+)`).FindSubmatch(mod)
	require.NotNil(t, required)
	assert.Equal(t, asynqVersion, string(required[1]),
		"compare jobs/asynqkeys.go with internal/base/base.go and internal/rdb/rdb.go of this version of asynq")
}

// asynq writes a message at these keys.
func TestAsynqKeys(t *testing.T) {
	t.Parallel()
	rdb := redistest.Embedded(t)
	client := NewClient(rdb)
	_, err := client.Enqueue(t.Context(), Request{ID: "cat", Prompt: "a cat"})
	require.NoError(t, err)
	queue := Queue(DefaultModel, PriorityDefault)
	assert.Equal(t, "pending", rdb.HGet(t.Context(), asynqMessage(queue, "cat"), "state").Val())
	assert.Equal(t, []string{"cat"}, rdb.LRange(t.Context(), asynqPending(queue), 0, -1).Val())
	assert.True(t, rdb.SIsMember(t.Context(), asynqQueues, queue).Val())

	require.NoError(t, asynq.NewInspectorFromRedisClient(rdb).ArchiveTask(queue, "cat"))
	assert.Equal(t, int64(1), rdb.ZCard(t.Context(), asynqArchived(queue)).Val())

	taken := make(chan struct{})
	release := make(chan struct{})
	server := asynq.NewServerFromRedisClient(rdb, asynq.Config{Concurrency: 1, Queues: map[string]int{queue: 1}, LogLevel: asynq.FatalLevel})
	require.NoError(t, server.Start(asynq.HandlerFunc(func(_ context.Context, _ *asynq.Task) error {
		close(taken)
		<-release
		return nil
	})))
	defer server.Shutdown()
	require.NoError(t, asynq.NewInspectorFromRedisClient(rdb).RunTask(queue, "cat"))
	<-taken
	assert.Equal(t, []string{"cat"}, rdb.LRange(t.Context(), asynqActive(queue), 0, -1).Val())
	assert.Equal(t, int64(1), rdb.ZCard(t.Context(), asynqLeases(queue)).Val())
	close(release)
}
