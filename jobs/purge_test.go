package jobs_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// A database has the mode of the first worker for good.
func TestClaimMode(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, _ redis.UniversalClient) {
		t.Helper()
		mode, err := client.Store.Mode(t.Context())
		require.NoError(t, err)
		assert.Empty(t, mode)
		for _, claimed := range []jobs.Mode{jobs.ModeSimulated, jobs.ModeReal} {
			mode, err = client.Store.ClaimMode(t.Context(), claimed)
			require.NoError(t, err)
			assert.Equal(t, jobs.ModeSimulated, mode)
		}
	})
}

// A purge deletes what Danqing has stored in a simulated database and nothing else. A real
// one, an unused one, and one with a worker stay as they are.
func TestPurgeSimulated(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		ctx, operator := t.Context(), jobs.NewInspector(rdb)
		_, err := client.Enqueue(ctx, jobs.Request{ID: "cat", Prompt: "a cat"})
		require.NoError(t, err)
		require.NoError(t, rdb.SAdd(ctx, "asynq:queues", "other:queue").Err())
		others := []string{"asynq:{other:queue}:pending", "danqin", "shop:danqing:cat"}
		for _, key := range others {
			require.NoError(t, rdb.Set(ctx, key, 1, 0).Err())
		}
		all, err := rdb.Keys(ctx, "*").Result()
		require.NoError(t, err)
		refused := func(why error) {
			t.Helper()
			_, err := operator.SimulatedKeys(ctx)
			require.ErrorIs(t, err, why)
			require.ErrorIs(t, operator.PurgeSimulated(ctx), why)
			require.GreaterOrEqual(t, rdb.DBSize(ctx).Val(), int64(len(all)))
		}

		refused(jobs.ErrNotSimulated)
		require.NoError(t, rdb.Set(ctx, rediskey.Mode, "real", 0).Err())
		refused(jobs.ErrNotSimulated)
		require.NoError(t, rdb.Set(ctx, rediskey.Mode, "simulated", 0).Err())
		lane := jobs.LaneStatus{Account: "main", Model: "wanx-v1", State: jobs.LaneOpen}
		require.NoError(t, client.Store.SetLane(ctx, lane))
		refused(jobs.ErrNotSimulated)
		lane.Simulated = true
		require.NoError(t, client.Store.SetLane(ctx, lane))
		lease := rediskey.Lane("main", "wanx-v1", rediskey.LaneLease)
		require.NoError(t, rdb.Set(ctx, lease, "holder", time.Minute).Err())
		refused(jobs.ErrWorking)
		require.NoError(t, rdb.Del(ctx, lease).Err())

		found, err := operator.SimulatedKeys(ctx)
		require.NoError(t, err)
		assert.Positive(t, found)
		for range 2 {
			require.NoError(t, operator.PurgeSimulated(ctx))
			left, err := rdb.Keys(ctx, "*").Result()
			require.NoError(t, err)
			assert.ElementsMatch(t, append([]string{"asynq:queues"}, others...), left)
			assert.Equal(t, []string{"other:queue"}, rdb.SMembers(ctx, "asynq:queues").Val())
			require.NoError(t, rdb.Set(ctx, rediskey.Mode, "simulated", 0).Err()) // as after a purge that was cut short
		}
	})
}
