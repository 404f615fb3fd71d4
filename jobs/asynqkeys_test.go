package jobs

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/redistest"
)

// asynq may change its private keys with every version: asynqkeys.go, and what
// worker/internal/watch recognizes, must be compared with its sources before asynqVersion is
// raised.
func TestAsynqVersion(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("../go.mod")
	require.NoError(t, err)
	required := regexp.MustCompile(`(?m)^\s*github\.com/hibiken/asynq (v\S+)`).FindSubmatch(mod)
	require.NotNil(t, required)
	assert.Equal(t, asynqVersion, string(required[1]),
		"compare jobs/asynqkeys.go and worker/internal/watch/client.go with internal/base/base.go and internal/rdb/rdb.go of this version of asynq")
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

// A job's message is byte for byte the one that asynq itself writes, at once or for later.
func TestMessageAsOfAsynq(t *testing.T) {
	t.Parallel()
	for name, req := range map[string]Request{
		"pending":   {ID: "cat", Prompt: "一只猫 <&>"},
		"scheduled": {ID: "cat", Prompt: strings.Repeat("a cat ", 100), Model: "wan2.2-t2i-flash", Priority: PriorityBulk, NotBefore: time.Now().Add(time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own, theirs := redistest.Embedded(t), redistest.Embedded(t)
			job, err := NewClient(own).Enqueue(t.Context(), req)
			require.NoError(t, err)
			normal, _, err := req.Normalize()
			require.NoError(t, err)
			require.NoError(t, NewStore(theirs).EnqueueGenerate(t.Context(), &Record{Job: *job}, normal))
			queue := Queue(job.Model, job.Priority)
			message, want := own.HGetAll(t.Context(), asynqMessage(queue, "cat")).Val(), theirs.HGetAll(t.Context(), asynqMessage(queue, "cat")).Val()
			if name == "pending" {
				assert.Len(t, message["pending_since"], len(want["pending_since"]))
				want["pending_since"] = message["pending_since"]
			}
			assert.Equal(t, want, message)
			assert.Equal(t, theirs.ZRangeWithScores(t.Context(), asynqScheduled(queue), 0, -1).Val(), own.ZRangeWithScores(t.Context(), asynqScheduled(queue), 0, -1).Val())
			assert.Equal(t, theirs.LRange(t.Context(), asynqPending(queue), 0, -1).Val(), own.LRange(t.Context(), asynqPending(queue), 0, -1).Val())
			assert.Equal(t, []string{queue}, own.SMembers(t.Context(), asynqQueues).Val())
		})
	}
}

// A group has at most a hundred jobs, and ends with the one that fills its megabyte.
func TestGroups(t *testing.T) {
	t.Parallel()
	small, large := checkedRequest{req: Request{Prompt: "a cat"}}, checkedRequest{req: Request{Prompt: strings.Repeat("a", 400_000)}}
	for want, reqs := range map[int][]checkedRequest{
		1: {small}, 2: {small, small}, groupJobs: slices.Repeat([]checkedRequest{small}, groupJobs+1), 3: slices.Repeat([]checkedRequest{large}, 5),
	} {
		group, rest, err := NewStore(nil).newGroup(reqs, Limits{})
		require.NoError(t, err)
		assert.Len(t, group.writes, want)
		assert.Len(t, rest, len(reqs)-want)
	}
}
