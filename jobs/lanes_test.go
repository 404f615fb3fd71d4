package jobs_test

import (
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

func TestLanes(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		none, err := client.Lanes(t.Context())
		require.NoError(t, err)
		assert.Empty(t, none)
		at := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
		second := jobs.LaneStatus{Account: "main", Model: "wanx-v1", Term: 3, Concurrency: 1, State: jobs.LaneOpen, At: at, Held: true, Holder: "holder"}
		paused := jobs.LaneStatus{
			Account: "main", Model: "qwen-image", Term: 1, Concurrency: 2, State: jobs.LanePaused,
			Reason: jobs.PauseAccount, Message: "Arrearage: 欠费", Simulated: true, At: at, RetryAt: at.Add(time.Minute), Until: at.Add(time.Hour), Host: "east-1",
		}
		other := jobs.LaneStatus{Account: "extra", Model: "wanx-v1", State: jobs.LaneOpen, At: at}
		for _, lane := range []jobs.LaneStatus{second, paused, other} {
			require.NoError(t, client.Store.SetLane(t.Context(), lane))
		}
		require.NoError(t, rdb.Set(t.Context(), rediskey.Lane("main", "wanx-v1", rediskey.LaneLease), "holder", time.Minute).Err())
		lanes, err := client.Lanes(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []jobs.LaneStatus{other, paused, second}, lanes)

		second.State, second.Held, second.Running = jobs.LanePaused, false, []string{"cat"}
		require.NoError(t, client.Store.SetLane(t.Context(), second))
		lanes, err = client.Lanes(t.Context())
		require.NoError(t, err)
		assert.Equal(t, jobs.LanePaused, lanes[2].State)
		assert.True(t, lanes[2].Held, "the lease exists")
		assert.Empty(t, lanes[2].Running)

		for _, name := range []string{"", "a:b", "a b", "主账号"} {
			require.ErrorContains(t, client.Store.SetLane(t.Context(), jobs.LaneStatus{Account: name}), "account: ", name)
		}
	})
}

// A lane shows the jobs that have a task, and not those that it has only prepared; and how busy it
// was in each of the last hours, and no earlier ones.
func TestLaneUsage(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		require.NoError(t, client.Store.SetLane(t.Context(), jobs.LaneStatus{Account: "main", Model: "wanx-v1", Concurrency: 2, State: jobs.LaneOpen}))
		for id, state := range map[string]jobs.State{"b": jobs.StateGenerating, "a": jobs.StateSubmitting, "c": jobs.StatePrepared} {
			rec := enqueue(t, client, id)
			next := *rec
			next.State = state
			require.NoError(t, client.Store.Update(t.Context(), rec, &next))
			require.NoError(t, rdb.HSet(t.Context(), rediskey.Lane("main", "wanx-v1", rediskey.LaneInFlight), id, "now").Err())
		}
		use := func(at time.Time, busy, idle time.Duration) {
			require.NoError(t, client.Store.RecordLaneUsage(t.Context(), "main", "wanx-v1", at, busy, idle))
		}
		now := time.Now().UTC()
		hour := now.Truncate(time.Hour)
		for _, ago := range []time.Duration{25 * time.Hour, 2 * time.Hour, time.Hour, time.Hour, 0} {
			use(now.Add(-ago), 30*time.Minute, 90*time.Second)
		}
		lanes, err := client.Lanes(t.Context())
		require.NoError(t, err)
		require.Len(t, lanes, 1)
		assert.Equal(t, []string{"a", "b"}, lanes[0].Running)
		assert.Equal(t, 2, lanes[0].Busy())
		assert.Equal(t, []jobs.LaneHour{
			{Start: hour.Add(-2 * time.Hour), BusySeconds: 1800, IdleSeconds: 90}, {Start: hour.Add(-time.Hour), BusySeconds: 3600, IdleSeconds: 180}, {Start: hour, BusySeconds: 1800, IdleSeconds: 90},
		}, lanes[0].Hours)
		possible := 2 * time.Since(hour.Add(-time.Hour)).Seconds()
		assert.InDelta(t, 5400/possible, lanes[0].BusyShare(now.Add(-time.Hour)), 0.01, "of two slots")
		fields, err := rdb.HKeys(t.Context(), rediskey.Lane("main", "wanx-v1", rediskey.LaneUsage)).Result()
		require.NoError(t, err)
		assert.Len(t, fields, 6, "the hour before the last 24 is removed")
	})
}

// asynq's client registers a queue only once, so that after a loss of data its tools would not
// show it. A queue without messages is not shown.
func TestRegisterQueues(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		enqueue(t, client, "cat")
		require.NoError(t, rdb.FlushDB(t.Context()).Err())
		enqueue(t, client, "cat")
		inspector := asynq.NewInspectorFromRedisClient(rdb)
		queues, err := inspector.Queues()
		require.NoError(t, err)
		require.Empty(t, queues, "asynq is blind")
		require.NoError(t, client.Store.RegisterQueues(t.Context(), []string{"wanx-v1", "qwen-image"}))
		queues, err = inspector.Queues()
		require.NoError(t, err)
		assert.Equal(t, []string{testQueue}, queues)
		info, err := inspector.GetTaskInfo(testQueue, "cat")
		require.NoError(t, err)
		assert.Equal(t, asynq.TaskStatePending, info.State)
	})
}
