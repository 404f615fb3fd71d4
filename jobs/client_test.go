package jobs_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
)

func newClient(t *testing.T) (*testClient, redis.UniversalClient) {
	t.Helper()
	rdb := redistest.Embedded(t)
	return newTestClient(rdb), rdb
}

func TestEnqueueIsIdempotent(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	req := jobs.Request{ID: "cat", Prompt: "有一只黑色的小猫", Priority: "bulk"}
	first, err := client.Enqueue(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, jobs.StateQueued, first.State)

	// Explicit defaults, labels and another priority do not change the digest.
	req.N, req.Style, req.Priority, req.Labels = 1, "<auto>", "critical", map[string]string{"a": "b"}
	again, err := client.Enqueue(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, first.EnqueuedAt, again.EnqueuedAt)
	assert.Equal(t, "bulk", again.Priority)

	inspector := asynq.NewInspectorFromRedisClient(rdb)
	queues, err := inspector.Queues()
	require.NoError(t, err)
	assert.Equal(t, []string{"danqing:wanx-v1:bulk"}, queues)
	message, err := inspector.GetTaskInfo("danqing:wanx-v1:bulk", "cat")
	require.NoError(t, err)
	assert.Equal(t, jobs.TypeGenerate, message.Type)
	assert.Contains(t, string(message.Payload), `"prompt":"有一只黑色的小猫"`, "readable in the web UI")
	assert.Contains(t, string(message.Payload), `"style":"<auto>"`)
	assert.NotContains(t, string(message.Payload), "\n")
}

func TestEnqueueRefusesAnotherRequestUnderTheSameID(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t)
	_, err := client.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a black cat"})
	require.NoError(t, err)
	_, err = client.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a white cat"})
	require.ErrorIs(t, err, jobs.ErrDigestConflict)
}

// A producer died between record and message. Its repeated call must enqueue the message, or
// the job would wait forever.
func TestEnqueueRepairsAJobWithoutMessage(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	req := jobs.Request{ID: "cat", Prompt: "a black cat"}
	_, err := client.Enqueue(t.Context(), req)
	require.NoError(t, err)
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	require.NoError(t, inspector.DeleteTask("danqing:wanx-v1:default", "cat"))
	_, err = client.Enqueue(t.Context(), req)
	require.NoError(t, err)
	_, err = inspector.GetTaskInfo("danqing:wanx-v1:default", "cat")
	require.NoError(t, err)
}

func TestEnqueueInvalid(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	_, err := client.Enqueue(t.Context(), jobs.Request{Prompt: " ", Size: "1*1", N: 9})
	var invalid *jobs.InvalidError
	require.ErrorAs(t, err, &invalid)
	assert.Len(t, invalid.Fields, 3)
	assert.Empty(t, rdb.Keys(t.Context(), "*").Val())
}

func TestEnqueueWithoutIDIsANewJobEveryTime(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t)
	first, err := client.Enqueue(t.Context(), jobs.Request{Prompt: "a cat"})
	require.NoError(t, err)
	second, err := client.Enqueue(t.Context(), jobs.Request{Prompt: "a cat"})
	require.NoError(t, err)
	assert.NotEqual(t, first.ID, second.ID)
}

// The record is changed by compare-and-set on state, attempt and term.
func TestUpdate(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	rec, err := client.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat"})
	require.NoError(t, err)
	next := *rec
	next.State, next.Attempt, next.Term = jobs.StateSubmitting, 1, 3
	require.NoError(t, client.Store.Update(t.Context(), rec, &next))
	require.ErrorIs(t, client.Store.Update(t.Context(), rec, &next), jobs.ErrConflict, "the old state")
	require.ErrorIs(t, client.Store.Update(t.Context(), nil, &next), jobs.ErrConflict, "there is a record")
	other := next
	other.Term = 4
	require.ErrorIs(t, client.Store.Update(t.Context(), &other, &next), jobs.ErrConflict, "another term")

	final := next
	final.State, final.CostMicroYuan = jobs.StateSucceeded, 160_000
	final.Images = []jobs.Image{{N: 1, Key: "cat/cat-1.png", Bytes: 7}}
	require.NoError(t, client.Store.Update(t.Context(), &next, &final))
	got, err := client.Store.Get(t.Context(), "cat")
	require.NoError(t, err)
	assert.Equal(t, &final, got)
	assert.Equal(t, jobs.RecordLifetime, rdb.TTL(t.Context(), "danqing:job:cat").Val())
}

func TestGetUnknown(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t)
	_, err := client.Store.Get(t.Context(), "unknown")
	require.ErrorIs(t, err, jobs.ErrNotFound)
}

func TestWait(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t)
	rec, err := client.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat"})
	require.NoError(t, err)
	changes, err := client.Subscribe(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, changes.Close()) })
	waited := make(chan *jobs.Record)
	go func() {
		rec, err := client.Wait(t.Context(), "cat")
		assert.NoError(t, err)
		waited <- rec
	}()
	for _, state := range []jobs.State{jobs.StateSubmitting, jobs.StateGenerating, jobs.StateStoring, jobs.StateSucceeded} {
		next := *rec
		next.State = state
		require.NoError(t, client.Store.Update(t.Context(), rec, &next))
		assert.Equal(t, "cat", <-changes.IDs())
		rec = &next
	}
	assert.Equal(t, jobs.StateSucceeded, (<-waited).State)

}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, _ := newClient(t)
		_, err := client.Enqueue(t.Context(), jobs.Request{ID: "dog", Prompt: "a dog"})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = client.Wait(ctx, "dog")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// A result is written only to an existing message: alone it would block the ID.
func TestPublishResult(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	rec, err := client.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat"})
	require.NoError(t, err)
	rec.Images = []jobs.Image{{N: 1, Key: "cat/cat-1.png"}}
	require.NoError(t, client.Store.PublishResult(t.Context(), rec))
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	message, err := inspector.GetTaskInfo("danqing:wanx-v1:default", "cat")
	require.NoError(t, err)
	var shown map[string]any
	require.NoError(t, json.Unmarshal(message.Result, &shown))
	assert.Equal(t, map[string]any{"state": "queued", "images": []any{"cat/cat-1.png"}}, shown)

	require.NoError(t, inspector.DeleteTask("danqing:wanx-v1:default", "cat"))
	require.NoError(t, client.Store.PublishResult(t.Context(), rec))
	for _, key := range rdb.Keys(t.Context(), "asynq:*").Val() {
		assert.False(t, strings.HasSuffix(key, ":t:cat"), key)
	}
}

// A reader that was too slow receives "" for the changes that it has missed.
func TestChangesMissedByASlowReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, rdb := newClient(t)
		changes, err := client.Subscribe(t.Context())
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, changes.Close()) })
		publish := func(id string) {
			require.NoError(t, rdb.Publish(t.Context(), "danqing:events", id).Err())
			synctest.Wait()
		}
		kept := 0
		for ; len(changes.IDs()) == kept; kept++ {
			publish("job")
		}
		kept--
		for range kept {
			require.Equal(t, "job", <-changes.IDs())
		}
		publish("last")
		assert.Empty(t, <-changes.IDs())
		assert.Equal(t, "last", <-changes.IDs())
	})
}

// The queue of each message is announced to workers, beside the changes of jobs, whose readers
// do not see it.
func TestMessagesAreAnnounced(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	changes, err := client.Subscribe(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, changes.Close()) })
	events := rdb.Subscribe(t.Context(), "danqing:events")
	t.Cleanup(func() { assert.NoError(t, events.Close()) })
	_, err = events.Receive(t.Context())
	require.NoError(t, err)
	received := events.Channel()
	rec, err := client.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat", Priority: jobs.PriorityBulk, FollowUp: &jobs.FollowUp{Queue: "shop", Type: "made"}})
	require.NoError(t, err)
	require.NoError(t, client.Store.EnqueueStore(t.Context(), rec))
	next := *rec
	next.State = jobs.StateFailed
	require.NoError(t, client.Store.Update(t.Context(), rec, &next))
	for _, want := range []string{"asynq:{danqing:wanx-v1:bulk}:pending", "cat", "asynq:{danqing:store}:pending", "cat", "asynq:{danqing:notify}:pending"} {
		assert.Equal(t, want, (<-received).Payload)
	}
	assert.Equal(t, "cat", <-changes.IDs())
	assert.Equal(t, "cat", <-changes.IDs())
	assert.Empty(t, changes.IDs())
}

// After a lost connection, a reader receives "" for the missed changes.
func TestChangesMissedByAnOutage(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t).Client(t)
	changes, err := newTestClient(rdb).Subscribe(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, changes.Close()) })
	require.NoError(t, rdb.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err())
	assert.Empty(t, <-changes.IDs())
	require.NoError(t, rdb.Publish(t.Context(), "danqing:events", "cat").Err())
	assert.Equal(t, "cat", <-changes.IDs())
}

// Two producers enqueue a job again whose message was lost. Both get the new job.
func TestEnqueueOfALostJobByTwoProducers(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	req := jobs.Request{ID: "cat", Prompt: "a cat"}
	rec := enqueue(t, client, "cat")
	move(t, client, rec, func(next *jobs.Record) {
		next.State, next.Code, next.FinishedAt = jobs.StateCanceled, jobs.CodeMessageLost, time.Now()
	})
	hook := &interruption{do: func() { _, err := client.Client.Enqueue(t.Context(), req); assert.NoError(t, err) }}
	hook.left.Store(3) // the create, the read, and before the update
	rdb.AddHook(hook)
	job, err := client.Client.Enqueue(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, jobs.StateQueued, job.State)
	require.LessOrEqual(t, hook.left.Load(), int64(0))
}

// While a job waits, only its message has the request, and its record takes the compact form
// of a hash. Labels and the like are part of the record.
func TestWaitingRecord(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		plain, err := client.Enqueue(t.Context(), jobs.Request{ID: "plain", Prompt: "a cat", Model: "wan2.2-t2i-flash"})
		require.NoError(t, err)
		_, err = client.Enqueue(t.Context(), jobs.Request{ID: "labeled", Prompt: "a cat", Priority: jobs.PriorityBulk, Batch: "spring", Labels: map[string]string{"sku": "7"}})
		require.NoError(t, err)
		stored := rdb.HGetAll(t.Context(), "danqing:job:plain").Val()
		assert.Equal(t, map[string]string{
			"state": "queued", "attempt": "0", "term": "0", "digest": plain.Digest, "queue": "wan2.2-t2i-flash:default",
			"enqueued": plain.EnqueuedAt.Format(time.RFC3339Nano),
		}, stored)
		for field, value := range stored {
			assert.LessOrEqual(t, len(value), 64, "hash-max-listpack-value: %s", field)
		}
		assert.JSONEq(t, `{"batch":"spring","labels":{"sku":"7"}}`, rdb.HGet(t.Context(), "danqing:job:labeled", "record").Val())
		listed, err := client.GetAll(t.Context(), []string{"plain", "labeled", "unknown"})
		require.NoError(t, err)
		assert.Equal(t, plain.Job, *listed[0])
		assert.Equal(t, "bulk", listed[1].Priority)
		assert.Equal(t, "spring", listed[1].Batch)
		assert.Nil(t, listed[2])
		req, err := client.RequestOf(t.Context(), listed[0])
		require.NoError(t, err)
		assert.Equal(t, "plain", req.ID)
		assert.Equal(t, "a cat", req.Prompt)
	})
}
