package recorder

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/jobs"
)

// A job whose adopted task has made something else is not brought back to it by a
// journal; a reply that named the task is believed whatever others held the job for.
func TestRule7MismatchIsNotReplayed(t *testing.T) {
	t.Parallel()
	adopted := &jobs.Record{Job: jobs.Job{ID: "a", State: jobs.StateGenerating, Attempt: 1, TaskID: "task-1"}, Adopted: true}
	wrong := &jobs.Record{Job: jobs.Job{ID: "a", State: jobs.StateHeld, Attempt: 1, Candidates: []string{"task-1"}}, Rejected: []string{"task-1"}}
	assert.False(t, IsBehind(wrong, adopted, time.Now()))
	adopted.Adopted, wrong.Rejected = false, nil
	assert.True(t, IsBehind(wrong, adopted, time.Now()))
}
