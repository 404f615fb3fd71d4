package quarantine_test

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/internal/quarantine"
)

// A task that Redis has lost meanwhile leaves no entry behind: one without a task's ID
// could never be processed.
func TestJobHeldForALostTask(t *testing.T) {
	t.Parallel()
	queue := embedded.Open()
	defer queue.Close() //nolint:errcheck // in memory
	list := &quarantine.List{Redis: queue.Client()}
	require.NoError(t, list.JobHeld(t.Context(), "default", "wanx-v1", "task"))
	n, err := list.Unstored(t.Context(), "default", "wanx-v1")
	require.NoError(t, err)
	assert.Zero(t, n)
}

// A damaged entry does not hide the others, nor its own task.
func TestDamagedEntry(t *testing.T) {
	t.Parallel()
	queue := embedded.Open()
	defer queue.Close() //nolint:errcheck // in memory
	ctx, log := t.Context(), slog.New(slog.DiscardHandler)
	list := &quarantine.List{Redis: queue.Client(), Store: jobs.NewStore(queue.Client()), Log: log}
	require.NoError(t, list.Add(ctx, quarantine.Task{JobID: "job-1", Account: "default", Model: "wanx-v1", TaskID: "task-1", HoldsNext: true}))
	key := rediskey.Lane("default", "wanx-v1", rediskey.LaneQuarantine)
	require.NoError(t, queue.Client().HSet(ctx, key, "task-2", `{"job_id": damaged`, "task-3", `{"task_id":"task-4"}`).Err())
	next, err := list.HoldingNext(ctx, "default", "wanx-v1")
	require.NoError(t, err)
	assert.Equal(t, []string{"task-1"}, next)
	n, err := list.Unstored(ctx, "default", "wanx-v1")
	require.NoError(t, err)
	assert.Equal(t, 3, n)
}
