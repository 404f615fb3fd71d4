package jobs_test

import (
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

const messageKey = "asynq:{" + testQueue + "}:t:cat"

// putInto moves the message of job cat into one of asynq's states.
func putInto(t *testing.T, rdb redis.UniversalClient, state string) {
	t.Helper()
	const queue = "asynq:{" + testQueue + "}:"
	require.NoError(t, rdb.LRem(t.Context(), queue+"pending", 0, "cat").Err())
	require.NoError(t, rdb.HSet(t.Context(), messageKey, "state", state).Err())
	switch state {
	case "pending", "active":
		require.NoError(t, rdb.LPush(t.Context(), queue+state, "cat").Err())
	default:
		require.NoError(t, rdb.ZAdd(t.Context(), queue+state, redis.Z{Score: float64(time.Now().Add(time.Hour).Unix()), Member: "cat"}).Err())
	}
}

// The message of a job that is held or has failed lies in the archive, with the reason, wherever
// it was. Only an active one stays: its handler archives it.
func TestMessageOfAJobThatNeedsSomebody(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ *testClient, rdb redis.UniversalClient) {
		t.Helper()
		for _, state := range []string{"pending", "scheduled", "retry", "completed", "archived", "active"} {
			for over, text := range map[jobs.State]string{
				jobs.StateHeld:   "held for a decision: TaskUnknown: DashScope forgot it (danqing jobs show cat)",
				jobs.StateFailed: "TaskUnknown: DashScope forgot it (to try again: danqing jobs retry cat)",
			} {
				require.NoError(t, rdb.FlushDB(t.Context()).Err())
				client := newTestClient(rdb)
				rec := submitted(t, client, enqueue(t, client, "cat"), jobs.StateGenerating)
				putInto(t, rdb, state)
				rec = move(t, client, rec, func(next *jobs.Record) {
					next.State, next.Attempt, next.Code, next.Message = over, 3, "TaskUnknown", "DashScope forgot it"
				})
				info, err := asynq.NewInspectorFromRedisClient(rdb).GetTaskInfo(testQueue, "cat")
				require.NoError(t, err)
				if state == "active" {
					assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStateActive}, messages(t, rdb, testQueue))
					continue
				}
				assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStateArchived}, messages(t, rdb, testQueue), state)
				assert.Equal(t, text, info.LastErr)
				assert.Equal(t, 2, info.Retried)
				assert.Equal(t, rec.UpdatedAt.Unix(), info.LastFailedAt.Unix())
				assert.Contains(t, string(info.Payload), `"job_id":"cat"`)

				if over == jobs.StateHeld {
					_, err = client.Resolve(t.Context(), "cat", jobs.Resolution{BuyAgain: true})
				} else {
					_, err = client.Retry(t.Context(), "cat")
				}
				require.NoError(t, err)
				assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStatePending}, messages(t, rdb, testQueue), "decided")
			}
		}
	})
}

// A handler that returned just before its job was held elsewhere leaves the message completed.
func TestArchiveCompleted(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		rec := submitted(t, client, enqueue(t, client, "cat"), jobs.StateStoring)
		other := enqueue(t, client, "dog")
		putInto(t, rdb, "active")
		rec = move(t, client, rec, func(next *jobs.Record) { next.State, next.Code = jobs.StateHeld, "ImageUnverified" })
		require.NoError(t, rdb.Del(t.Context(), "asynq:{"+testQueue+"}:active").Err())
		putInto(t, rdb, "completed")
		require.NoError(t, client.Store.ArchiveCompleted(t.Context(), []*jobs.Record{rec, other}))
		assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStateArchived, "dog": asynq.TaskStatePending}, messages(t, rdb, testQueue))
	})
}

// What asynq has left behind goes back to the head of the queue, or away if there is nothing of
// it; what a server has a lease for stays.
func TestReleaseAbandoned(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		const queue = "asynq:{" + testQueue + "}:"
		for _, id := range []string{"next", "leased", "expired", "unleased", "gone"} {
			enqueue(t, client, id)
			if id == "next" {
				continue
			}
			require.NoError(t, rdb.LRem(t.Context(), queue+"pending", 0, id).Err())
			require.NoError(t, rdb.LPush(t.Context(), queue+"active", id).Err())
			require.NoError(t, rdb.HSet(t.Context(), queue+"t:"+id, "state", "active").Err())
		}
		require.NoError(t, rdb.HDel(t.Context(), queue+"t:gone", "msg").Err())
		for id, ends := range map[string]time.Duration{"leased": time.Second, "expired": -5 * time.Minute} {
			require.NoError(t, rdb.ZAdd(t.Context(), queue+"lease", redis.Z{Score: float64(time.Now().Add(ends).Unix()), Member: id}).Err())
		}
		left, err := client.Store.ReleaseAbandoned(t.Context(), testQueue)
		require.NoError(t, err)
		assert.ElementsMatch(t, []string{"expired", "unleased", "gone"}, left)
		assert.Equal(t, map[string]asynq.TaskState{
			"leased": asynq.TaskStateActive, "expired": asynq.TaskStatePending, "unleased": asynq.TaskStatePending, "next": asynq.TaskStatePending,
		}, messages(t, rdb, testQueue))
		assert.Zero(t, rdb.Exists(t.Context(), queue+"t:gone").Val())
		assert.Equal(t, "next", rdb.LIndex(t.Context(), queue+"pending", 0).Val(), "the others are drawn first")
		left, err = client.Store.ReleaseAbandoned(t.Context(), testQueue)
		require.NoError(t, err)
		assert.Empty(t, left)
	})
}

// A message that is in no list of asynq does not block its job: asynq leaves one behind if one of
// its commands fails half-way, and when its archive is full.
func TestMessageInNoList(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, _ *testClient, rdb redis.UniversalClient) {
		t.Helper()
		for state, want := range map[string]jobs.State{"active": jobs.StateQueued, "completed": jobs.StateQueued, "archived": jobs.StateCanceled} {
			require.NoError(t, rdb.FlushDB(t.Context()).Err())
			client := newTestClient(rdb)
			rec := enqueue(t, client, "cat")
			require.NoError(t, rdb.LRem(t.Context(), "asynq:{"+testQueue+"}:pending", 0, "cat").Err())
			require.NoError(t, rdb.HSet(t.Context(), messageKey, "state", state).Err())
			orphans, err := client.Store.WithoutMessage(t.Context(), []*jobs.Record{rec})
			require.NoError(t, err)
			require.Len(t, orphans, 1, state)
			got, err := client.Store.RequeueOrphan(t.Context(), rec)
			require.NoError(t, err)
			assert.Equal(t, want, got.State)
			if want == jobs.StateCanceled {
				_, err = client.Retry(t.Context(), "cat")
				require.NoError(t, err)
			}
			assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStatePending}, messages(t, rdb, testQueue), state)
		}
	})
}
