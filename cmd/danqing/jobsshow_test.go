package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/jobs"
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
	assert.Contains(t, text, "retry requested for what is missing: 1 image\n")
	assert.NotContains(t, text, "to buy")

	rec.State, rec.Images[1] = jobs.StateSucceeded, jobs.Image{N: 2, Key: "k2"}
	assert.NotContains(t, (&jobReport{Job: rec}).text(), "to buy")
}
