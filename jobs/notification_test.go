package jobs_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// enqueueNotifying enqueues the job cat, which has both kinds of notification.
func enqueueNotifying(t *testing.T, client *testClient) *jobs.Record {
	t.Helper()
	rec, err := client.Enqueue(t.Context(), jobs.Request{
		ID: "cat", Prompt: "a cat", Callback: "https://shop.example/hook", FollowUp: &jobs.FollowUp{Type: "image:ready", Queue: "shop"},
	})
	require.NoError(t, err)
	return rec
}

func due(t *testing.T, rdb redis.UniversalClient) []string {
	t.Helper()
	ids, err := rdb.ZRange(t.Context(), "danqing:notifications:due", 0, -1).Result()
	require.NoError(t, err)
	return ids
}

// The end of a job enqueues its notifications, if it has any.
func TestNotify(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		enqueueNotifying(t, client)
		enqueue(t, client, "dog")
		for _, id := range []string{"cat", "dog"} {
			_, err := client.Cancel(t.Context(), id)
			require.NoError(t, err)
		}
		rec, err := client.Store.Get(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, map[string]asynq.TaskState{
			rec.NotificationID(jobs.NotificationCallback): asynq.TaskStatePending, rec.NotificationID(jobs.NotificationFollowUp): asynq.TaskStatePending,
		}, messages(t, rdb, jobs.QueueNotify))
		assert.Empty(t, due(t, rdb))

		info, err := asynq.NewInspectorFromRedisClient(rdb).GetTaskInfo(jobs.QueueNotify, rec.NotificationID(jobs.NotificationCallback))
		require.NoError(t, err)
		var message jobs.NotifyMessage
		require.NoError(t, json.Unmarshal(info.Payload, &message))
		assert.Equal(t, jobs.NotifyMessage{JobID: "cat", EventID: rec.EventID(), Kind: jobs.NotificationCallback}, message)
		assert.Equal(t, jobs.TypeNotify, info.Type)

		// A retried job ends again, with another event.
		first := rec.EventID()
		_, err = client.Retry(t.Context(), "cat")
		require.NoError(t, err)
		rec, err = client.Cancel(t.Context(), "cat")
		require.NoError(t, err)
		assert.NotEqual(t, first, rec.EventID())
		assert.Len(t, messages(t, rdb, jobs.QueueNotify), 4)
	})
}

// If the process dies at any point after it has written the end, the notifications are due,
// and each is enqueued once.
func TestNotificationsAreDueUntilQueued(t *testing.T) {
	t.Parallel()
	for lost := 1; ; lost++ {
		client, rdb := newClient(t)
		rec := enqueueNotifying(t, client)
		next := *rec
		next.End(jobs.StateFailed, "Bad", "bad", time.Now().UTC())
		hook := &failAfter{}
		rdb.AddHook(hook)
		hook.left.Store(int64(lost) + 1) // after the write of the record
		require.NoError(t, client.Store.Update(t.Context(), rec, &next))
		died := hook.left.Load() <= 0
		hook.left.Store(1 << 30)
		if died {
			require.Equal(t, []string{"cat"}, due(t, rdb), lost)
		}
		require.NoError(t, client.Store.EnqueueDueNotifications(t.Context()))
		require.Len(t, messages(t, rdb, jobs.QueueNotify), 2, lost)
		require.Empty(t, due(t, rdb))
		if !died {
			require.Greater(t, lost, 3, "the queueing of two messages is several commands")
			return
		}
	}
}

// A due job that is gone does not block the others.
func TestNotificationsOfALostJob(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	require.NoError(t, rdb.ZAdd(t.Context(), "danqing:notifications:due", redis.Z{Score: 1, Member: "gone"}, redis.Z{Score: 2, Member: "cat"}).Err())
	enqueueNotifying(t, client)
	require.NoError(t, client.Store.EnqueueDueNotifications(t.Context()))
	assert.Empty(t, due(t, rdb), "one is gone, the other has not ended")
	assert.Empty(t, messages(t, rdb, jobs.QueueNotify))
}

// An operator can send a notification again in every state of its message.
func TestNotifyAgain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		_, err := client.NotifyAgain(t.Context(), "cat")
		require.ErrorIs(t, err, jobs.ErrNotFound)
		enqueueNotifying(t, client)
		enqueue(t, client, "dog")
		_, err = client.NotifyAgain(t.Context(), "cat")
		require.ErrorIs(t, err, jobs.ErrInvalidState)
		for _, id := range []string{"cat", "dog"} {
			_, err = client.Cancel(t.Context(), id)
			require.NoError(t, err)
		}
		_, err = client.NotifyAgain(t.Context(), "dog")
		require.ErrorIs(t, err, jobs.ErrInvalidState)

		rec, err := client.Store.Get(t.Context(), "cat")
		require.NoError(t, err)
		callback, followUp := rec.NotificationID(jobs.NotificationCallback), rec.NotificationID(jobs.NotificationFollowUp)
		inspector := asynq.NewInspectorFromRedisClient(rdb)
		require.NoError(t, inspector.ArchiveTask(jobs.QueueNotify, callback))
		require.NoError(t, inspector.DeleteTask(jobs.QueueNotify, followUp))
		states, err := client.Notifications(t.Context(), &rec.Job)
		require.NoError(t, err)
		assert.Equal(t, []jobs.Notification{{Kind: jobs.NotificationCallback, State: "archived"}, {Kind: jobs.NotificationFollowUp}}, states)
		for range 2 {
			sent, err := client.NotifyAgain(t.Context(), "cat")
			require.NoError(t, err)
			assert.Equal(t, []string{callback, followUp}, sent)
			assert.Equal(t, map[string]asynq.TaskState{callback: asynq.TaskStatePending, followUp: asynq.TaskStatePending}, messages(t, rdb, jobs.QueueNotify))
			states, err := client.Notifications(t.Context(), &rec.Job)
			require.NoError(t, err)
			assert.Equal(t, []jobs.Notification{{Kind: jobs.NotificationCallback, State: "pending"}, {Kind: jobs.NotificationFollowUp, State: "pending"}}, states)
		}
	})
}

func TestNewEvent(t *testing.T) {
	t.Parallel()
	ended := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	rec := &jobs.Record{Job: jobs.Job{
		ID: "cat", State: jobs.StateSucceeded, Model: "wanx-v1", Labels: map[string]string{"sku": "A-17"}, CostMicroYuan: 160_000, FinishedAt: ended,
		Images: []jobs.Image{{N: 1, Key: "cat/cat-1.png", Bytes: 3}, {N: 2, Code: "DataInspectionFailed", Message: "no"}},
	}}
	link := func(image jobs.Image) (string, time.Time, error) {
		return "https://images/" + image.Key, time.Time{}, nil
	}
	event, err := jobs.NewEvent(&rec.Job, link)
	require.NoError(t, err)
	encoded, err := json.Marshal(event)
	require.NoError(t, err)
	assert.JSONEq(t, `{"type":"job.succeeded","timestamp":"2026-11-28T10:00:00Z","data":{"job_id":"cat","state":"succeeded","model":"wanx-v1",
		"labels":{"sku":"A-17"},"images":[{"n":1,"key":"cat/cat-1.png","bytes":3,"url":"https://images/cat/cat-1.png"},
		{"n":2,"code":"DataInspectionFailed","message":"no"}],"cost_micro_yuan":160000,"finished_at":"2026-11-28T10:00:00Z"}}`, string(encoded))
	assert.Equal(t, "cat.1795860000000", rec.EventID())
	rec.ID = "春.1"
	assert.Equal(t, "%E6%98%A5.1.1795860000000", rec.EventID(), "it is sent in a header")
	broken := errors.New("no bucket")
	_, err = jobs.NewEvent(&rec.Job, func(jobs.Image) (string, time.Time, error) { return "", time.Time{}, broken })
	require.ErrorIs(t, err, broken)
}
