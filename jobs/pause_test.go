package jobs_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

func TestPauseAccount(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, _ redis.UniversalClient) {
		t.Helper()
		pause, err := client.Store.LanePause(t.Context(), "main", "wanx-v1")
		require.NoError(t, err)
		assert.Nil(t, pause)
		before := time.Now()
		require.NoError(t, client.PauseAccount(t.Context(), "main", jobs.Decider{By: "li", Why: "the price went up"}))
		pause, err = client.Store.LanePause(t.Context(), "main", "wanx-v1")
		require.NoError(t, err)
		assert.Equal(t, "main", pause.Account)
		assert.Equal(t, "li", pause.By)
		assert.Equal(t, "the price went up", pause.Why)
		assert.WithinRange(t, pause.At, before, time.Now())
		pause, err = client.Store.LanePause(t.Context(), "extra", "wanx-v1")
		require.NoError(t, err)
		assert.Nil(t, pause, "another account")
		require.NoError(t, client.ResumeAccount(t.Context(), "main", jobs.Decider{By: "wang"}))
		pause, err = client.Store.LanePause(t.Context(), "main", "wanx-v1")
		require.NoError(t, err)
		assert.Nil(t, pause)
		require.NoError(t, client.ResumeAccount(t.Context(), "main", jobs.Decider{}))
		require.ErrorContains(t, client.PauseAccount(t.Context(), "a:b", jobs.Decider{}), `account: "a:b"`)
		require.ErrorContains(t, client.PauseAccount(t.Context(), "main", jobs.Decider{Why: "a\nb"}), `why: "a\nb"`)

		history, err := client.PauseHistory(t.Context())
		require.NoError(t, err)
		require.Len(t, history, 3)
		assert.Equal(t, "wang", history[1].By)
		assert.Equal(t, jobs.ActionResume, history[1].Action)
		assert.Equal(t, jobs.ActionPause, history[2].Action)
	})
}

// A model's pause is that of its queues: asynq's own tools show it, can end it, and can begin it.
func TestPauseModel(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		paused := func() *jobs.Pause {
			pause, err := client.Store.LanePause(t.Context(), "main", "wanx-v1")
			require.NoError(t, err)
			return pause
		}
		require.NoError(t, client.Store.RegisterQueues(t.Context(), []string{"wanx-v1", "qwen-image"}))
		require.NoError(t, client.PauseModel(t.Context(), "wanx-v1", jobs.Decider{By: "li", Why: "wrong colors"}))
		assert.Equal(t, "wanx-v1", paused().Model)
		assert.Equal(t, "wrong colors", paused().Why)
		other, err := client.Store.LanePause(t.Context(), "main", "qwen-image")
		require.NoError(t, err)
		assert.Nil(t, other)
		inspector := asynq.NewInspectorFromRedisClient(rdb)
		for queue := range jobs.LaneQueues("wanx-v1") {
			info, err := inspector.GetQueueInfo(queue)
			require.NoError(t, err)
			assert.True(t, info.Paused, queue)
		}
		require.NoError(t, inspector.UnpauseQueue("danqing:wanx-v1:critical"))
		assert.Nil(t, paused(), "critical jobs are made")
		require.NoError(t, inspector.PauseQueue("danqing:wanx-v1:critical"))
		assert.Equal(t, "wanx-v1", paused().Model)
		require.NoError(t, client.ResumeModel(t.Context(), "wanx-v1", jobs.Decider{By: "li"}))
		assert.Nil(t, paused())

		before := time.Now().Truncate(time.Second)
		for queue := range jobs.LaneQueues("wanx-v1") {
			require.NoError(t, inspector.PauseQueue(queue))
		}
		assert.Equal(t, jobs.ByWebUI, paused().By)
		assert.WithinRange(t, paused().At, before, time.Now())
		require.ErrorContains(t, client.PauseModel(t.Context(), "wanx-v7", jobs.Decider{}), "wanx-v7")
		require.ErrorContains(t, client.ResumeModel(t.Context(), "wanx-v7", jobs.Decider{}), "wanx-v7")
	})
}

// What a person decided about a job is kept with who, when and why, once for each decision.
func TestDecisionsAreKept(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		requireLast := func(id string, n int, action, why string) {
			t.Helper()
			job, err := client.Get(t.Context(), id)
			require.NoError(t, err)
			require.Len(t, job.Decisions, n)
			last := job.Decisions[n-1]
			assert.Equal(t, jobs.Decision{Action: action, By: "li", Why: why, At: last.At}, last)
			assert.WithinDuration(t, time.Now(), last.At, time.Minute)
		}
		li := func(why string) jobs.Decider { return jobs.Decider{By: "li", Why: why} }
		for range 2 { // repeated, it is one decision
			enqueue(t, client, "cat")
			_, err := client.Client.Cancel(t.Context(), "cat", li("too early"))
			require.NoError(t, err)
			requireLast("cat", 1, jobs.ActionCancel, "too early")
		}
		for range 2 {
			_, err := client.Inspector.Retry(t.Context(), "cat", li("now"))
			require.NoError(t, err)
			requireLast("cat", 2, jobs.ActionRetry, "now")
		}
		rec, err := client.Store.Get(t.Context(), "cat")
		require.NoError(t, err)
		running := submitted(t, client, rec, jobs.StateGenerating)
		for range 2 {
			_, err = client.Client.Cancel(t.Context(), "cat", li("it runs"))
			require.NoError(t, err)
			requireLast("cat", 3, jobs.ActionCancel, "it runs")
		}
		// Its lane does not know of the request when it writes.
		held := move(t, client, running, func(next *jobs.Record) { next.State, next.Code = jobs.StateHeld, "SubmitAmbiguous" })
		requireLast("cat", 3, jobs.ActionCancel, "it runs")
		for range 2 {
			_, err = client.Inspector.Resolve(t.Context(), "cat", jobs.Resolution{Adopt: testTask}, li("seen in the console"))
			require.NoError(t, err)
			requireLast("cat", 4, jobs.ActionAdopt, "seen in the console")
		}
		heldJob(t, client, rdb, "dog")
		_, err = client.Inspector.Resolve(t.Context(), "dog", jobs.Resolution{BuyAgain: true}, li("lost"))
		require.NoError(t, err)
		requireLast("dog", 2, jobs.ActionBuyAgain, "lost")
		heldJob(t, client, rdb, "cow")
		_, err = client.Inspector.Resolve(t.Context(), "cow", jobs.Resolution{GiveUp: true}, li("not needed"))
		require.NoError(t, err)
		requireLast("cow", 2, jobs.ActionGiveUp, "not needed")

		for range 30 {
			held.Decide(jobs.Decision{Action: jobs.ActionRetry, At: time.Now()})
		}
		assert.Len(t, held.Decisions, 20)
		for _, wrong := range []jobs.Decider{{Why: strings.Repeat("x", 501)}, {By: "a\tb"}, {By: "\xff"}} {
			_, err = client.Inspector.Retry(t.Context(), "cow", wrong)
			require.ErrorContains(t, err, "one line of at most")
		}
		requireLast("cow", 2, jobs.ActionGiveUp, "not needed")
	})
}
