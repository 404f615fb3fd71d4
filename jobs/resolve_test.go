package jobs_test

import (
	"context"
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

// heldJob returns a job that may or may not have a task. Its message is gone, as after its
// handler returned.
func heldJob(t *testing.T, client *testClient, rdb redis.UniversalClient, id string) *jobs.Record {
	t.Helper()
	rec := submitted(t, client, enqueue(t, client, id), jobs.StateSubmitting)
	_, err := client.Cancel(t.Context(), id)
	require.NoError(t, err)
	require.NoError(t, asynq.NewInspectorFromRedisClient(rdb).DeleteTask(testQueue, id))
	return move(t, client, rec, func(next *jobs.Record) {
		next.State, next.Code, next.Message = jobs.StateHeld, "SubmitAmbiguous", "the program died"
	})
}

func TestResolveByAdopting(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		held := heldJob(t, client, rdb, "cat")
		got, err := client.Resolve(t.Context(), "cat", jobs.Resolution{Adopt: testTask})
		require.NoError(t, err)
		stored, err := client.Store.Get(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, stored, got)
		want := *held
		want.State, want.TaskID, want.Code, want.Message = jobs.StateGenerating, testTask, "", ""
		want.CancelRequestedAt, want.ResolvedAt, want.UpdatedAt = time.Time{}, got.ResolvedAt, got.UpdatedAt
		want.Decisions = got.Decisions
		assert.Equal(t, &want, got)
		assert.WithinRange(t, got.ResolvedAt, held.UpdatedAt, got.UpdatedAt)
		assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStatePending}, messages(t, rdb, testQueue))

		// A task belongs to one job.
		heldJob(t, client, rdb, "dog")
		refused, err := client.Resolve(t.Context(), "dog", jobs.Resolution{Adopt: testTask})
		var owned *jobs.TaskOwnedError
		require.ErrorAs(t, err, &owned)
		assert.Equal(t, "cat", owned.JobID)
		assert.Equal(t, jobs.StateHeld, refused.State)
	})
}

// A task of a job's current or past attempt cannot be adopted for another job.
func TestResolveRefusesTheTaskOfAnotherJob(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		put(t, client, jobs.Record{Job: jobs.Job{ID: "now", State: jobs.StateGenerating, TaskID: "86ecf553-d340-4e21-af6e-000000000001"}})
		past := put(t, client, jobs.Record{Job: jobs.Job{ID: "past", State: jobs.StateGenerating, TaskID: "86ecf553-d340-4e21-af6e-000000000002"}})
		move(t, client, past, func(next *jobs.Record) { next.TaskID = "86ecf553-d340-4e21-af6e-000000000003" })
		heldJob(t, client, rdb, "cat")
		for task, owner := range map[string]string{"86ecf553-d340-4e21-af6e-000000000001": "now", "86ecf553-d340-4e21-af6e-000000000002": "past", "86ecf553-d340-4e21-af6e-000000000003": "past"} {
			for range 2 { // a refusal claims nothing
				_, err := client.Resolve(t.Context(), "cat", jobs.Resolution{Adopt: task})
				var owned *jobs.TaskOwnedError
				require.ErrorAs(t, err, &owned)
				assert.Equal(t, jobs.TaskOwnedError{TaskID: task, JobID: owner}, *owned)
			}
		}
	})
}

// Of two concurrent adoptions of one task for two jobs, one succeeds.
func TestResolveAdoptsATaskOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		const rounds, rivals = 10, 3
		for round := range rounds {
			task := fmt.Sprintf("86ecf553-d340-4e21-af6e-%012d", round)
			var group errgroup.Group
			for rival := range rivals {
				id := heldJob(t, client, rdb, fmt.Sprintf("cat-%d-%d", round, rival)).ID
				group.Go(func() error {
					_, _ = client.Resolve(t.Context(), id, jobs.Resolution{Adopt: task})
					return nil
				})
			}
			require.NoError(t, group.Wait())
			owners := 0
			for rival := range rivals {
				rec, err := client.Store.Get(t.Context(), fmt.Sprintf("cat-%d-%d", round, rival))
				require.NoError(t, err)
				if rec.TaskID == task {
					owners++
				}
			}
			assert.Equal(t, 1, owners)
		}
	})
}

// To adopt another task in place of a lost one is a new attempt.
func TestResolveAdoptsInPlaceOfALostTask(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	rec := move(t, client, heldJob(t, client, rdb, "cat"), func(next *jobs.Record) { next.TaskID, next.Code = "lost", "TaskUnknown" })
	got, err := client.Resolve(t.Context(), rec.ID, jobs.Resolution{Adopt: testTask})
	require.NoError(t, err)
	assert.Equal(t, 2, got.Attempt)
	require.Len(t, got.PastAttempts, 1)
	assert.Equal(t, "lost", got.PastAttempts[0].TaskID)
	assert.Equal(t, "TaskUnknown", got.PastAttempts[0].Code)
}

// Unverified images are stored again without being paid for again.
func TestResolveStoresAgain(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	rec := move(t, client, heldJob(t, client, rdb, "cat"), func(next *jobs.Record) {
		next.TaskID, next.Code, next.CostMicroYuan = testTask, "ImageUnverified", 160_000
		next.Results, next.Images = []jobs.Result{{N: 1, URL: "https://x"}}, []jobs.Image{{N: 1, Code: "ImageUnverified"}}
	})
	got, err := client.Resolve(t.Context(), rec.ID, jobs.Resolution{Adopt: testTask})
	require.NoError(t, err)
	assert.Equal(t, jobs.StateStoring, got.State)
	assert.Equal(t, 1, got.Attempt)
	assert.Equal(t, rec.Results, got.Results)
	assert.Empty(t, got.Images)
	assert.EqualValues(t, 160_000, got.CostMicroYuan)
	assert.Equal(t, map[string]asynq.TaskState{"cat.1": asynq.TaskStatePending}, messages(t, rdb, jobs.QueueStore))
	assert.Empty(t, messages(t, rdb, testQueue))
}

func TestResolveByBuyingAgain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		held := heldJob(t, client, rdb, "cat")
		got, err := client.Resolve(t.Context(), "cat", jobs.Resolution{BuyAgain: true})
		require.NoError(t, err)
		assert.Equal(t, jobs.StateQueued, got.State)
		assert.Empty(t, got.Code)
		assert.True(t, got.CancelRequestedAt.IsZero())
		assert.False(t, got.ResolvedAt.IsZero())
		assert.False(t, got.RetriedAt.IsZero())
		require.Len(t, got.PastAttempts, 1)
		past := got.PastAttempts[0]
		assert.Equal(t, jobs.Attempt{Attempt: 1, Term: 7, SubmittedAt: held.SubmittedAt, EndedAt: past.EndedAt, Code: "SubmitAmbiguous", Message: "the program died"}, past)
		assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStatePending}, messages(t, rdb, testQueue))
	})
}

func TestResolveByGivingUp(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		heldJob(t, client, rdb, "cat")
		got, err := client.Resolve(t.Context(), "cat", jobs.Resolution{GiveUp: true})
		require.NoError(t, err)
		assert.Equal(t, jobs.StateFailed, got.State)
		assert.Equal(t, "Abandoned", got.Code)
		assert.Equal(t, "given up on request; it was held: SubmitAmbiguous: the program died", got.Message)
		assert.False(t, got.FinishedAt.IsZero())
		assert.Equal(t, map[string]asynq.TaskState{"cat.1": asynq.TaskStatePending}, messages(t, rdb, jobs.QueueStore), "for its sidecar")
		assert.Positive(t, rdb.TTL(t.Context(), "danqing:job:cat").Val())
	})
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	client, rdb := newClient(t)
	heldJob(t, client, rdb, "cat")
	for _, wrong := range []jobs.Resolution{
		{}, {BuyAgain: true, GiveUp: true}, {Adopt: "x", GiveUp: true}, {Adopt: "a b"}, {Adopt: "../x"},
	} {
		_, err := client.Resolve(t.Context(), "cat", wrong)
		var field jobs.FieldError
		require.ErrorAs(t, err, &field, "%+v", wrong)
	}
	rec := enqueue(t, client, "dog")
	_, err := client.Resolve(t.Context(), rec.ID, jobs.Resolution{GiveUp: true})
	require.ErrorIs(t, err, jobs.ErrInvalidState)
	require.ErrorContains(t, err, "it is not held (queued)")
	_, err = client.Resolve(t.Context(), "unknown", jobs.Resolution{GiveUp: true})
	require.ErrorIs(t, err, jobs.ErrNotFound)

	// A job that is held without an intent, as after a loss of data, has no account.
	move(t, client, rec, func(next *jobs.Record) { next.State = jobs.StateHeld })
	_, err = client.Resolve(t.Context(), "dog", jobs.Resolution{Adopt: testTask})
	require.ErrorContains(t, err, "the task's account is unknown")
	got, err := client.Resolve(t.Context(), "dog", jobs.Resolution{BuyAgain: true})
	require.NoError(t, err)
	assert.Empty(t, got.PastAttempts)
}

// lostReplyTest is a call that is repeated after a lost reply, and its result.
type lostReplyTest struct {
	prepare func(*testing.T, *testClient, redis.UniversalClient)
	call    func(context.Context, *testClient) error
	state   jobs.State
	queue   string
	message string
	past    int
}

// After any lost reply, the repeated call has the same result, once.
func TestActionsAfterALostReply(t *testing.T) {
	t.Parallel()
	enqueued := func(t *testing.T, client *testClient, _ redis.UniversalClient) {
		t.Helper()
		enqueue(t, client, "cat")
	}
	failed := func(t *testing.T, client *testClient, _ redis.UniversalClient) {
		t.Helper()
		submitted(t, client, enqueue(t, client, "cat"), jobs.StateFailed)
	}
	held := func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		heldJob(t, client, rdb, "cat")
	}
	cancel := func(ctx context.Context, client *testClient) error {
		_, err := client.Cancel(ctx, "cat")
		return err
	}
	retry := func(ctx context.Context, client *testClient) error {
		_, err := client.Retry(ctx, "cat")
		return err
	}
	resolve := func(decision jobs.Resolution) func(context.Context, *testClient) error {
		return func(ctx context.Context, client *testClient) error {
			_, err := client.Resolve(ctx, "cat", decision)
			return err
		}
	}
	for name, test := range map[string]lostReplyTest{
		"cancel":    {enqueued, cancel, jobs.StateCanceled, jobs.QueueStore, "cat.0", 0},
		"retry":     {failed, retry, jobs.StateQueued, testQueue, "cat", 1},
		"adopt":     {held, resolve(jobs.Resolution{Adopt: testTask}), jobs.StateGenerating, testQueue, "cat", 0},
		"buy again": {held, resolve(jobs.Resolution{BuyAgain: true}), jobs.StateQueued, testQueue, "cat", 1},
		"give up":   {held, resolve(jobs.Resolution{GiveUp: true}), jobs.StateFailed, jobs.QueueStore, "cat.1", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nth := 1
			for test.loseReply(t, nth) {
				nth++
			}
			assert.Greater(t, nth, 3, "commands of the call")
		})
	}
}

// loseReply loses the nth reply of the call, and then repeats the call. It reports whether the
// call had that many replies.
func (c lostReplyTest) loseReply(t *testing.T, nth int) bool {
	t.Helper()
	client, rdb := newClient(t)
	c.prepare(t, client, rdb)
	hook := &replyLoser{}
	rdb.AddHook(hook)
	hook.loseNth(nth)
	err := c.call(t.Context(), client)
	lost := hook.left.Load() <= 0
	hook.loseNth(0)
	if err != nil {
		require.ErrorContains(t, err, errLost.Error(), "reply %d", nth) // asynq breaks the chain
	}
	require.NoError(t, c.call(t.Context(), client), "after reply %d was lost", nth)
	rec, err := client.Store.Get(t.Context(), "cat")
	require.NoError(t, err)
	assert.Equal(t, c.state, rec.State, "reply %d", nth)
	assert.Len(t, rec.PastAttempts, c.past, "reply %d", nth)
	want := map[string]asynq.TaskState{c.message: asynq.TaskStatePending}
	assert.Equal(t, want, messages(t, rdb, c.queue), "reply %d", nth)
	if c.queue == jobs.QueueStore {
		assert.Empty(t, messages(t, rdb, testQueue), "reply %d", nth)
	}
	return lost
}
