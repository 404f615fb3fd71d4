package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
)

const (
	testQueue = "danqing:wanx-v1:default"
	testTask  = "86ecf553-d340-4e21-af6e-a0c6a421c010"
)

func enqueue(t *testing.T, client *testClient, id string) *jobs.Record {
	t.Helper()
	rec, err := client.Enqueue(t.Context(), jobs.Request{ID: id, Prompt: "a cat", Labels: map[string]string{"sku": "1"}, Batch: "shop"})
	require.NoError(t, err)
	return rec
}

// submitted moves a waiting job to a state of its first attempt.
func submitted(t *testing.T, client *testClient, rec *jobs.Record, state jobs.State) *jobs.Record {
	t.Helper()
	req, err := client.RequestOf(t.Context(), &rec.Job)
	require.NoError(t, err)
	req = req.WithSeed(rec.ID)
	return move(t, client, rec, func(next *jobs.Record) {
		next.State, next.Attempt, next.Term, next.Account = state, rec.Attempt+1, 7, "main"
		next.Request, next.SubmittedAt = &req, time.Now().UTC()
	})
}

// messages returns the states of all messages of a queue, by ID.
func messages(t *testing.T, rdb redis.UniversalClient, queue string) map[string]asynq.TaskState {
	t.Helper()
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	found := map[string]asynq.TaskState{}
	for _, list := range []func(string, ...asynq.ListOption) ([]*asynq.TaskInfo, error){
		inspector.ListPendingTasks, inspector.ListActiveTasks, inspector.ListArchivedTasks, inspector.ListCompletedTasks, inspector.ListRetryTasks,
	} {
		infos, err := list(queue)
		if errors.Is(err, asynq.ErrQueueNotFound) {
			continue
		}
		require.NoError(t, err)
		for _, info := range infos {
			found[info.ID] = info.State
		}
	}
	return found
}

func TestCancelWhileItWaits(t *testing.T) {
	t.Parallel()
	for _, state := range []jobs.State{jobs.StateScheduled, jobs.StateQueued, jobs.StateRetrying} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
				t.Helper()
				rec := enqueue(t, client, "cat")
				if state != jobs.StateQueued {
					rec = move(t, client, rec, func(next *jobs.Record) { next.State = state })
				}
				got, err := client.Cancel(t.Context(), "cat")
				require.NoError(t, err)
				stored, err := client.Store.Get(t.Context(), "cat")
				require.NoError(t, err)
				assert.Equal(t, stored, got)
				assert.Equal(t, jobs.StateCanceled, got.State)
				assert.Equal(t, "Canceled", got.Code)
				assert.Contains(t, got.Message, "it cost nothing")
				assert.WithinRange(t, got.FinishedAt, rec.EnqueuedAt, got.UpdatedAt)
				require.NotNil(t, got.Request, "for the sidecar")
				assert.Equal(t, rec.Digest, got.Request.Digest())
				assert.Equal(t, map[string]string{"sku": "1"}, got.Request.Labels)
				assert.Empty(t, messages(t, rdb, testQueue))
				assert.Equal(t, map[string]asynq.TaskState{"cat.0": asynq.TaskStatePending}, messages(t, rdb, jobs.QueueStore))
				assert.Positive(t, rdb.TTL(t.Context(), "danqing:job:cat").Val())
			})
		})
	}
}

// A submitted job may be paid for, so its lane decides. The cancel request survives writes of
// the lane that has not read it.
func TestCancelAfterTheIntent(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		rec := submitted(t, client, enqueue(t, client, "cat"), jobs.StateSubmitting)
		changes, err := client.Subscribe(t.Context())
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, changes.Close()) })
		canceled, err := client.Cancel(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateSubmitting, canceled.State)
		assert.False(t, canceled.CancelRequestedAt.IsZero())
		assert.Equal(t, "cat", <-changes.IDs(), "the lane is notified")

		rec = move(t, client, rec, func(next *jobs.Record) { next.State, next.TaskID = jobs.StateGenerating, testTask })
		again, err := client.Cancel(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, canceled.CancelRequestedAt, again.CancelRequestedAt, "the first to ask stands")
		assert.Contains(t, messages(t, rdb, testQueue), "cat")
		assert.Equal(t, jobs.StateGenerating, rec.State)
	})
}

func TestCancelRefuses(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t)
	for state, want := range map[jobs.State]struct {
		err  error
		text string
	}{
		jobs.StateStoring:   {jobs.ErrInvalidState, "its images are paid for and are being stored"},
		jobs.StateHeld:      {jobs.ErrInvalidState, "danqing jobs resolve held --give-up"},
		jobs.StateSucceeded: {jobs.ErrFinished, "it has succeeded"},
		jobs.StateFailed:    {jobs.ErrFinished, "it has failed"},
	} {
		put(t, client, jobs.Record{Job: jobs.Job{ID: string(state), State: state}})
		got, err := client.Cancel(t.Context(), string(state))
		require.ErrorIs(t, err, want.err)
		require.ErrorContains(t, err, want.text)
		assert.Equal(t, state, got.State)
	}
	_, err := client.Cancel(t.Context(), "unknown")
	require.ErrorIs(t, err, jobs.ErrNotFound)
}

// After a concurrent cancel and submit, either nothing was submitted, or the cancel request is
// set.
func TestCancelAgainstSubmit(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, _ redis.UniversalClient) {
		t.Helper()
		outcomes := map[jobs.State]int{}
		for i := range 60 {
			rec := enqueue(t, client, fmt.Sprintf("cat-%d", i))
			var submit error
			var group errgroup.Group
			group.Go(func() error {
				next := *rec
				next.State, next.Attempt, next.Term = jobs.StateSubmitting, 1, 7
				submit = client.Store.Update(t.Context(), rec, &next)
				if errors.Is(submit, jobs.ErrConflict) {
					return nil
				}
				task := next
				task.State, task.TaskID = jobs.StateGenerating, testTask
				return errors.Join(submit, client.Store.Update(t.Context(), &next, &task))
			})
			group.Go(func() error {
				_, err := client.Cancel(t.Context(), rec.ID)
				return err
			})
			require.NoError(t, group.Wait())
			got, err := client.Store.Get(t.Context(), rec.ID)
			require.NoError(t, err)
			outcomes[got.State]++
			if submit != nil {
				require.ErrorIs(t, submit, jobs.ErrConflict)
				assert.Equal(t, jobs.StateCanceled, got.State)
				continue
			}
			assert.Equal(t, jobs.StateGenerating, got.State)
			assert.False(t, got.CancelRequestedAt.IsZero())
		}
		t.Log(outcomes)
	})
}

// A job that changes between the read and the write is read again.
func TestActionsRetryAfterConflict(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from, to jobs.State
		call     func(context.Context, *testClient) (*jobs.Record, error)
		err      error
	}{
		"cancel what waits": {jobs.StateQueued, jobs.StateHeld, func(ctx context.Context, client *testClient) (*jobs.Record, error) {
			return client.Cancel(ctx, "cat")
		}, jobs.ErrInvalidState},
		"cancel what runs": {jobs.StateGenerating, jobs.StateStoring, func(ctx context.Context, client *testClient) (*jobs.Record, error) {
			return client.Cancel(ctx, "cat")
		}, jobs.ErrInvalidState},
		"cancel a task that has just ended": {jobs.StateGenerating, jobs.StateSucceeded, func(ctx context.Context, client *testClient) (*jobs.Record, error) {
			return client.Cancel(ctx, "cat")
		}, jobs.ErrFinished},
		"retry": {jobs.StateFailed, jobs.StateSucceeded, func(ctx context.Context, client *testClient) (*jobs.Record, error) {
			return client.Retry(ctx, "cat")
		}, jobs.ErrFinished},
		"give up": {jobs.StateHeld, jobs.StateGenerating, func(ctx context.Context, client *testClient) (*jobs.Record, error) {
			return client.Resolve(ctx, "cat", jobs.Resolution{GiveUp: true})
		}, jobs.ErrInvalidState},
		"adopt": {jobs.StateHeld, jobs.StateStoring, func(ctx context.Context, client *testClient) (*jobs.Record, error) {
			return client.Resolve(ctx, "cat", jobs.Resolution{Adopt: testTask})
		}, jobs.ErrInvalidState},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, rdb := newClient(t)
			rec := enqueue(t, client, "cat")
			if c.from != jobs.StateQueued {
				rec = submitted(t, client, rec, c.from)
			}
			hook := &interruption{do: func() { move(t, client, rec, func(next *jobs.Record) { next.State = c.to }) }}
			rdb.AddHook(hook)
			hook.left.Store(2)
			got, err := c.call(t.Context(), client)
			require.ErrorIs(t, err, c.err)
			assert.Equal(t, c.to, got.State)
			assert.True(t, got.CancelRequestedAt.IsZero())
			stored, err := client.Store.Get(t.Context(), "cat")
			require.NoError(t, err)
			assert.Equal(t, stored, got, "nothing was written")
		})
	}
}

// startLane starts a lane that takes messages, and returns result for each after finish.
func startLane(t *testing.T, rdb redis.UniversalClient, result error) (taken <-chan string, finish func()) {
	t.Helper()
	server := asynq.NewServerFromRedisClient(rdb, asynq.Config{
		Concurrency: 1, Queues: map[string]int{testQueue: 1}, TaskCheckInterval: 10 * time.Millisecond, LogLevel: asynq.FatalLevel,
	})
	ids, finished := make(chan string, 10), make(chan struct{})
	require.NoError(t, server.Start(asynq.HandlerFunc(func(_ context.Context, message *asynq.Task) error {
		ids <- message.ResultWriter().TaskID()
		<-finished
		return result
	})))
	t.Cleanup(server.Shutdown)
	return ids, func() { close(finished) }
}

func TestCancelOfAnActiveMessage(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		enqueue(t, client, "cat")
		taken, finish := startLane(t, rdb, nil)
		<-taken
		got, err := client.Cancel(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateCanceled, got.State)
		finish()
	})
}

// A job is retried after its record has failed and before its handler returns. The end of the
// old message must not delete the new one.
func TestRetryBeforeTheHandlerReturns(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		waiting := enqueue(t, client, "cat")
		taken, finish := startLane(t, rdb, fmt.Errorf("no cats: %w", asynq.SkipRetry))
		require.Equal(t, "cat", <-taken)
		rec := submitted(t, client, waiting, jobs.StateFailed)
		retried := make(chan error, 1)
		changes, err := client.Subscribe(t.Context())
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, changes.Close()) })
		go func() {
			_, err := client.Retry(t.Context(), rec.ID)
			retried <- err
		}()
		<-changes.IDs() // the record says queued
		finish()
		require.NoError(t, <-retried)
		assert.Equal(t, "cat", <-taken, "the new message")
	})
}

func TestRetry(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		enqueued := enqueue(t, client, "cat")
		rec := submitted(t, client, enqueued, jobs.StateGenerating)
		_, err := client.Cancel(t.Context(), "cat")
		require.NoError(t, err)
		failed := move(t, client, rec, func(next *jobs.Record) {
			next.State, next.TaskID, next.Code, next.Message = jobs.StateFailed, testTask, "DataInspectionFailed", "no such cats"
			next.FinishedAt, next.CostMicroYuan = time.Now().UTC(), 160_000
			next.Results, next.Images = []jobs.Result{{N: 1, Code: "x"}}, []jobs.Image{{N: 1, Code: "x"}}
		})

		got, err := client.Retry(t.Context(), "cat")
		require.NoError(t, err)
		stored, err := client.Store.Get(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, stored, got)
		assert.Equal(t, jobs.StateQueued, got.State)
		assert.Equal(t, []jobs.Attempt{{
			Attempt: 1, Term: 7, TaskID: testTask, SubmittedAt: failed.SubmittedAt, EndedAt: failed.FinishedAt,
			Code: "DataInspectionFailed", Message: "no such cats",
		}}, got.PastAttempts)
		want := &jobs.Record{Job: jobs.Job{
			ID: "cat", State: jobs.StateQueued, Digest: enqueued.Digest, Model: "wanx-v1", Priority: "default", Attempt: 1, Term: 7, Account: "main",
			Request: got.Request, PastAttempts: got.PastAttempts, CostMicroYuan: 160_000, Decisions: got.Decisions,
			Labels: enqueued.Labels, Batch: "shop", RetriedAt: got.RetriedAt, EnqueuedAt: enqueued.EnqueuedAt, UpdatedAt: got.UpdatedAt,
		}}
		assert.Equal(t, want, got, "nothing else of the old attempt is left")
		assert.Nil(t, got.Request.Seed, "as enqueued")
		assert.WithinRange(t, got.RetriedAt, failed.FinishedAt, got.UpdatedAt)
		assert.Equal(t, time.Duration(-1), rdb.TTL(t.Context(), "danqing:job:cat").Val(), "a job that waits does not expire")
		assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStatePending}, messages(t, rdb, testQueue))

		// Its next attempt ends the same way, but in the record of attempt 2.
		rec = submitted(t, client, got, jobs.StateFailed)
		got, err = client.Retry(t.Context(), rec.ID)
		require.NoError(t, err)
		require.Len(t, got.PastAttempts, 2)
		assert.Equal(t, 2, got.PastAttempts[1].Attempt)
	})
}

// A job that failed before any intent has its request only in its message.
func TestRetryFromTheArchivedMessage(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		rec := enqueue(t, client, "cat")
		move(t, client, rec, func(next *jobs.Record) { next.State, next.Code = jobs.StateFailed, "JobIDTaken" })
		inspector := asynq.NewInspectorFromRedisClient(rdb)
		got, err := client.Retry(t.Context(), "cat")
		require.NoError(t, err)
		assert.Empty(t, got.PastAttempts, "there was none")
		assert.Equal(t, "a cat", got.Request.Prompt)
		assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStatePending}, messages(t, rdb, testQueue))

		move(t, client, got, func(next *jobs.Record) { next.State, next.Request = jobs.StateFailed, nil })
		require.NoError(t, inspector.DeleteTask(testQueue, "cat"))
		_, err = client.Retry(t.Context(), "cat")
		require.ErrorIs(t, err, jobs.ErrRequestLost)
	})
}

func TestRetryRefuses(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t)
	for _, c := range []struct {
		rec  jobs.Record
		err  error
		text string
	}{
		{jobs.Record{Job: jobs.Job{ID: "queued", State: jobs.StateQueued}}, jobs.ErrInvalidState, "it is not finished (queued)"},
		{jobs.Record{Job: jobs.Job{ID: "storing", State: jobs.StateStoring}}, jobs.ErrInvalidState, "it is not finished (storing)"},
		{jobs.Record{Job: jobs.Job{ID: "held", State: jobs.StateHeld}}, jobs.ErrInvalidState, "jobs resolve held --buy-again"},
		{jobs.Record{Job: jobs.Job{ID: "whole", State: jobs.StateSucceeded, Images: []jobs.Image{{N: 1, Key: "k"}}}}, jobs.ErrFinished, `it has all its images; for another image of the same request enqueue a new job with "redo_of": "whole"`},
		{jobs.Record{Job: jobs.Job{ID: "part", State: jobs.StateSucceeded, Images: []jobs.Image{{N: 1, Key: "k"}, {N: 2}}}}, jobs.ErrRequestLost, "enqueue it again"},
	} {
		put(t, client, c.rec)
		got, err := client.Retry(t.Context(), c.rec.ID)
		require.ErrorIs(t, err, c.err)
		require.ErrorContains(t, err, c.text)
		assert.Equal(t, c.rec.State, got.State)
	}
	_, err := client.Retry(t.Context(), "unknown")
	require.ErrorIs(t, err, jobs.ErrNotFound)
}

// After a week only the sidecar has the job.
func TestRetryRecord(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		rec := submitted(t, client, enqueue(t, client, "cat"), jobs.StateFailed)
		require.NoError(t, rdb.FlushDB(t.Context()).Err())
		require.NoError(t, client.Store.RegisterQueues(t.Context(), []string{"wanx-v1"}))

		changed := *rec
		changed.Request = &jobs.Request{Model: "wanx-v1", Prompt: "a dog"}
		_, err := client.RetryRecord(t.Context(), &changed)
		require.ErrorIs(t, err, jobs.ErrDigestConflict)
		changed.Request = nil
		_, err = client.RetryRecord(t.Context(), &changed)
		require.ErrorIs(t, err, jobs.ErrRequestLost)
		changed.State = jobs.StateSucceeded
		_, err = client.RetryRecord(t.Context(), &changed)
		require.ErrorIs(t, err, jobs.ErrFinished)

		got, err := client.RetryRecord(t.Context(), rec)
		require.NoError(t, err)
		assert.Equal(t, jobs.StateQueued, got.State)
		assert.Len(t, got.PastAttempts, 1)
		assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStatePending}, messages(t, rdb, testQueue))

		got = move(t, client, got, func(next *jobs.Record) { next.State = jobs.StateStoring })
		_, err = client.RetryRecord(t.Context(), rec)
		require.ErrorIs(t, err, jobs.ErrInvalidState, "the record in Redis decides")
		assert.Equal(t, jobs.StateStoring, got.State)
	})
}

func TestPosition(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		for i, id := range []string{"first", "second", "third"} {
			rec := enqueue(t, client, id)
			ahead, inLine, err := client.Position(t.Context(), &rec.Job)
			require.NoError(t, err)
			assert.True(t, inLine)
			assert.EqualValues(t, i, ahead)
		}
		require.NoError(t, asynq.NewInspectorFromRedisClient(rdb).ArchiveTask(testQueue, "first"))
		for id, want := range map[string]int64{"second": 0, "third": 1} {
			rec, err := client.Store.Get(t.Context(), id)
			require.NoError(t, err)
			ahead, _, err := client.Position(t.Context(), &rec.Job)
			require.NoError(t, err)
			assert.Equal(t, want, ahead)
		}
		rec, err := client.Store.Get(t.Context(), "first")
		require.NoError(t, err)
		_, inLine, err := client.Position(t.Context(), &rec.Job)
		require.NoError(t, err)
		assert.False(t, inLine)
	})
}
