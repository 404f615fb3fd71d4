package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// The report of a job with missing images says how to get them, or that they are being made.
func TestJobReport(t *testing.T) {
	t.Parallel()
	rec := &jobs.Job{
		ID: "shop.cat", State: jobs.StateSucceeded, Model: "wanx-v1", Priority: "default", Attempt: 1, TaskID: "one",
		Request: &jobs.Request{Prompt: "a cat", N: 2}, Images: []jobs.Image{{N: 1, Key: "k"}, {N: 2, Code: "c"}},
		SubmittedAt: time.Now(), FinishedAt: time.Now(),
	}
	assert.Contains(t, (&jobReport{Job: rec}).text(), "to buy the missing images: danqing jobs retry shop.cat\n")

	rec.PastAttempts = []jobs.Attempt{{Attempt: 1, TaskID: "one", SubmittedAt: rec.SubmittedAt, EndedAt: rec.FinishedAt, Images: 1}}
	rec.State, rec.RetriedAt = jobs.StateQueued, time.Now()
	text := (&jobReport{Job: rec}).text()
	assert.Contains(t, text, "attempt 1: ended: 1 image in the bucket\n")
	assert.Contains(t, text, "queued again for what is missing: 1 image\n")
	assert.NotContains(t, text, "to buy")

	rec.State, rec.Images[1] = jobs.StateSucceeded, jobs.Image{N: 2, Key: "k2"}
	assert.NotContains(t, (&jobReport{Job: rec}).text(), "to buy")

	rec.State, rec.Attempt, rec.TaskID, rec.SubmittedAt = jobs.StatePrepared, 2, "", time.Now()
	assert.NotContains(t, (&jobReport{Job: rec}).text(), "attempt 2: submitted", "nothing was sent")
	rec.State = jobs.StateSubmitting
	assert.Contains(t, (&jobReport{Job: rec}).text(), "attempt 2: submitted")
}

// A key that is refused while a task is polled, a service that is away, or a lane without a
// worker: the report of a job with a task says so.
func TestJobReportShowsTheLanesTrouble(t *testing.T) {
	t.Parallel()
	server := queue.Open()
	defer server.Close() //nolint:errcheck // in memory
	store, ctx := jobs.NewStore(server.Client()), t.Context()
	q := &jobQueue{operator: jobs.NewInspector(server.Client())}
	rec := &jobs.Job{ID: "cat", State: jobs.StateGenerating, Account: "default", Model: "wanx-v1"}
	trouble := func() string {
		why, err := q.laneTrouble(ctx, rec)
		require.NoError(t, err)
		return (&jobReport{Job: rec, Waits: why}).text()
	}
	assert.Contains(t, trouble(), "waits: no worker has the lane of account default for wanx-v1: start one")
	status := jobs.LaneStatus{Account: "default", Model: "wanx-v1", State: jobs.LaneOpen, Message: "task of job cat cannot be queried: the key is refused"}
	require.NoError(t, store.SetLane(ctx, status))
	require.NoError(t, server.Client().Set(ctx, rediskey.Lane("default", "wanx-v1", rediskey.LaneLease), "worker", 0).Err())
	assert.Contains(t, trouble(), "waits: task of job cat cannot be queried: the key is refused\n")
	status.Message = ""
	require.NoError(t, store.SetLane(ctx, status))
	assert.NotContains(t, trouble(), "waits")
}
