package jobs_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// A job with a future time is scheduled in the record and in the queue, and can be canceled.
// A time in the past has no effect.
func TestNotBefore(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		later := time.Now().Add(time.Hour).Truncate(time.Second)
		for range 2 {
			rec, err := client.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat", NotBefore: later})
			require.NoError(t, err)
			assert.Equal(t, jobs.StateScheduled, rec.State)
		}
		info, err := asynq.NewInspectorFromRedisClient(rdb).GetTaskInfo(testQueue, "cat")
		require.NoError(t, err)
		assert.Equal(t, asynq.TaskStateScheduled, info.State)
		assert.True(t, info.NextProcessAt.Equal(later))
		rec, err := client.Cancel(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateCanceled, rec.State)
		rec, err = client.Retry(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateQueued, rec.State, "a retry is at once")
		assert.Equal(t, asynq.TaskStatePending, messages(t, rdb, testQueue)["cat"])

		rec, err = client.Enqueue(t.Context(), jobs.Request{ID: "dog", Prompt: "a dog", NotBefore: later.Add(-2 * time.Hour)})
		require.NoError(t, err)
		assert.Equal(t, jobs.StateQueued, rec.State)
		assert.Equal(t, asynq.TaskStatePending, messages(t, rdb, testQueue)["dog"])
	})
}

// A deadline in the past is an error, unless the job exists.
func TestDeadlineInThePast(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	req := jobs.Request{ID: "cat", Prompt: "a cat", Deadline: time.Now().Add(-time.Second)}
	_, err := client.Enqueue(t.Context(), req)
	var invalid *jobs.InvalidError
	require.ErrorAs(t, err, &invalid)
	assert.Equal(t, "deadline", invalid.Fields[0].Field)
	assert.Empty(t, rdb.Keys(t.Context(), "*").Val(), "nothing was queued")

	rec := jobs.NewRecord(jobs.Request{ID: "cat", Prompt: "a cat", Model: "wanx-v1", Priority: "default", Deadline: req.Deadline}, nil)
	require.NoError(t, client.Store.Update(t.Context(), nil, rec))
	assert.True(t, rec.Overdue(time.Now()))
	_, err = client.Enqueue(t.Context(), req)
	require.NoError(t, err)
}

// An overdue job fails, and has a message for its sidecar. A retry has no deadline.
func TestExpire(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		rec, err := client.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat", Deadline: time.Now().Add(time.Hour)})
		require.NoError(t, err)
		assert.False(t, rec.Overdue(time.Now()))
		assert.True(t, rec.Overdue(rec.Deadline))
		_, err = client.Store.Expire(t.Context(), rec)
		require.NoError(t, err)
		rec, err = client.Store.Get(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateFailed, rec.State)
		assert.Equal(t, jobs.CodeDeadlineExceeded, rec.Code)
		assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStateArchived}, messages(t, rdb, testQueue))
		assert.Len(t, messages(t, rdb, jobs.QueueStore), 1)

		rec, err = client.Retry(t.Context(), "cat")
		require.NoError(t, err)
		assert.False(t, rec.Overdue(time.Now().Add(2*time.Hour)))
		req, err := client.RequestOf(t.Context(), &rec.Job)
		require.NoError(t, err)
		assert.Zero(t, req.Deadline)
	})
}

// One call enqueues many jobs in order. If one is invalid, none is enqueued.
func TestEnqueueAll(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		reqs := make([]jobs.Request, 50)
		for i := range reqs {
			reqs[i] = jobs.Request{ID: fmt.Sprintf("cat-%02d", i), Prompt: "a cat"}
		}
		reqs[3].N, reqs[40].Size = 9, "1*1"
		_, err := client.EnqueueAll(t.Context(), reqs)
		var invalid *jobs.InvalidError
		require.ErrorAs(t, err, &invalid)
		require.Len(t, invalid.Fields, 2)
		assert.Equal(t, "[3].n", invalid.Fields[0].Field)
		assert.Equal(t, "[40].size", invalid.Fields[1].Field)
		assert.Empty(t, rdb.Keys(t.Context(), "*").Val(), "nothing was queued")

		late := slices.Clone(reqs[:3])
		late[2].Deadline = time.Now().Add(-time.Second)
		_, err = client.EnqueueAll(t.Context(), late)
		require.ErrorContains(t, err, "[2].deadline")
		assert.Empty(t, rdb.Keys(t.Context(), "*").Val(), "nothing was queued")

		reqs[3].N, reqs[40].Size = 0, ""
		records, err := client.EnqueueAll(t.Context(), reqs)
		require.NoError(t, err)
		for i, rec := range records {
			assert.Equal(t, reqs[i].ID, rec.ID)
		}
		assert.Len(t, messages(t, rdb, testQueue), 30, "one page")

		reqs[7].Prompt = "a dog"
		records, err = client.EnqueueAll(t.Context(), reqs)
		require.ErrorIs(t, err, jobs.ErrDigestConflict)
		require.ErrorContains(t, err, "request 7")
		assert.Nil(t, records[7])
		assert.Equal(t, "cat-49", records[49].ID, "it was in the same command")
	})
}

// A call of several commands keeps the order of the requests, also in the queue. A job that
// exists, or whose message an operator has deleted, or of which only a message is left, is
// enqueued beside the new ones, each once.
func TestEnqueueAllInOrder(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		reqs := make([]jobs.Request, 230)
		var ids []string
		for i := range reqs {
			reqs[i] = jobs.Request{ID: fmt.Sprintf("cat-%03d", i), Prompt: "a cat", Producer: "shop"}
			ids = append([]string{reqs[i].ID}, ids...) // the next one to run is the last
		}
		inspector := asynq.NewInspectorFromRedisClient(rdb)
		require.NoError(t, client.enqueueAll(t, reqs[:4]))
		require.NoError(t, inspector.DeleteTask(testQueue, "cat-001"))
		require.NoError(t, rdb.Del(t.Context(), "danqing:job:cat-002").Err())
		require.NoError(t, inspector.ArchiveTask(testQueue, "cat-003"))
		require.NoError(t, client.enqueueAll(t, reqs))
		require.NoError(t, client.enqueueAll(t, reqs), "again")
		pending, err := rdb.LRange(t.Context(), "asynq:{"+testQueue+"}:pending", 0, -1).Result()
		require.NoError(t, err)
		assert.ElementsMatch(t, ids, pending)
		assert.Equal(t, ids[:130], pending[:130])
		counts, err := client.Counts(t.Context())
		require.NoError(t, err)
		assert.Equal(t, int64(230), counts[jobs.StateQueued])
		limits := jobs.Limits{Waiting: 230}
		_, err = enqueueWithin(t, client, "dog", "shop", limits)
		requireLimit(t, err, jobs.LimitWaiting, 230)
	})
}

// Enqueue has no bucket and cannot stage a reference image.
func TestStageNeedsTheBucket(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	_, err := client.Enqueue(t.Context(), jobs.Request{Prompt: "a cat", RefImg: "https://example.com/cat.png", Stage: true})
	var invalid *jobs.InvalidError
	require.ErrorAs(t, err, &invalid)
	assert.Equal(t, "stage", invalid.Fields[0].Field)
	assert.Empty(t, rdb.Keys(t.Context(), "*").Val(), "nothing was queued")
}
