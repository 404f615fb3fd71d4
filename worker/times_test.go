package worker_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// A job is submitted soon after its NotBefore, not earlier. Until then it is scheduled,
// and other jobs go first.
func TestNotBefore(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		at := time.Now().Add(20 * time.Minute)
		require.Equal(t, jobs.StateScheduled, s.enqueue(jobs.Request{ID: "later", Prompt: "prompt of later", NotBefore: at}).State)
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		<-time.After(19*time.Minute - time.Since(at.Add(-20*time.Minute)))
		require.Equal(t, jobs.StateScheduled, s.get("later").State)
		require.Zero(t, s.tasksOf("prompt of later"))
		s.requireMadeOnce("later")
		rec := s.get("later")
		assert.False(t, rec.SubmittedAt.Before(at), "submitted at %v", rec.SubmittedAt)
		assert.WithinDuration(t, at, rec.SubmittedAt, 30*time.Second)
	})
}

// A job whose NotBefore has passed while no lane was available is queued.
func TestNotBeforeIsReached(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		require.NoError(t, jobs.NewInspector(s.redis).PauseAccount(t.Context(), "default", jobs.Decider{Why: "for now"}))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", NotBefore: time.Now().Add(7 * time.Minute)})
		<-time.After(6 * time.Minute)
		require.Equal(t, jobs.StateScheduled, s.get("job-1").State)
		s.state("job-1", jobs.StateQueued)
		<-time.After(10 * time.Minute)
		require.Equal(t, jobs.StateQueued, s.get("job-1").State)
		require.NoError(t, jobs.NewInspector(s.redis).ResumeAccount(t.Context(), "default", jobs.Decider{}))
		s.requireMadeOnce("job-1")
	})
}

// A job that misses its deadline in the queue is ended within seconds, and nothing is bought
// for it. A retry by an operator has no deadline.
func TestDeadlineMissedInTheQueue(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Minute, 2*time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.enqueue(jobs.Request{ID: "late", Prompt: "prompt of late", Deadline: time.Now().Add(time.Minute)})
		s.enqueue(jobs.Request{ID: "early", Prompt: "prompt of early", Deadline: time.Now().Add(time.Hour)})
		rec := s.wait("late")
		require.Equal(t, jobs.StateFailed, rec.State)
		assert.Equal(t, jobs.CodeDeadlineExceeded, rec.Code)
		assert.Zero(t, rec.CostMicroYuan)
		assert.Zero(t, s.tasksOf("prompt of late")) // though the lane may have prepared it
		assert.Less(t, time.Since(rec.EnqueuedAt), 70*time.Second)
		<-time.After(time.Minute)
		side, err := s.bucket.Sidecar(t.Context(), "late")
		require.NoError(t, err)
		assert.Equal(t, "failed", side.State)
		s.requireMadeOnce("early")

		_, err = jobs.NewInspector(s.redis).Retry(t.Context(), "late", jobs.Decider{})
		require.NoError(t, err)
		s.requireMadeOnce("late")
	})
}

// A job that no lane draws is ended within seconds of its deadline too.
func TestDeadlineMissedWithoutALane(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		require.NoError(t, jobs.NewInspector(s.redis).PauseAccount(t.Context(), "default", jobs.Decider{Why: "for now"}))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Deadline: time.Now().Add(2 * time.Minute)})
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateFailed, rec.State)
		assert.Equal(t, jobs.CodeDeadlineExceeded, rec.Code)
		assert.Less(t, time.Since(rec.EnqueuedAt), 2*time.Minute+10*time.Second)
		<-time.After(2 * time.Minute)
		_, err := s.bucket.Sidecar(t.Context(), "job-1")
		require.NoError(t, err)
		require.NoError(t, jobs.NewInspector(s.redis).ResumeAccount(t.Context(), "default", jobs.Decider{}))
		_, err = jobs.NewInspector(s.redis).Retry(t.Context(), "job-1", jobs.Decider{})
		require.NoError(t, err)
		s.requireMadeOnce("job-1")
	})
}

// RunningAt is when the task was first seen running; it is empty before, and removed
// with the task.
func TestRunningAt(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Minute, time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.foreignTask()
		s.foreignTask()
		begun := time.Now()
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		<-time.After(30 * time.Second)
		require.Zero(t, s.get("job-1").RunningAt, "it is PENDING")
		rec := s.get("job-1")
		for ; rec.RunningAt.IsZero(); rec = s.get("job-1") {
			require.Equal(t, jobs.StateGenerating, rec.State)
			<-time.After(time.Second)
		}
		assert.WithinDuration(t, begun.Add(2*time.Minute), rec.RunningAt, 15*time.Second)
		at := rec.RunningAt
		assert.Equal(t, at, s.wait("job-1").RunningAt)
	})
}

// If the record cannot be written when the task begins to run, polling continues, and
// the time is written later.
func TestRunningAtIsWrittenLater(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Minute, 2*time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		away := &scriptsAway{prefix: "danqing:job:"}
		s.queue.Client().AddHook(away)
		s.foreignTask()
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		<-time.After(100 * time.Second)
		require.Zero(t, s.get("job-1").RunningAt)
		away.on.Store(true)
		gone := time.Now()
		<-time.After(time.Minute)
		away.on.Store(false)
		<-time.After(20 * time.Second)
		rec := s.get("job-1")
		require.Equal(t, jobs.StateGenerating, rec.State)
		assert.WithinDuration(t, gone.Add(20*time.Second), rec.RunningAt, 15*time.Second)
		s.requireMadeOnce("job-1")
	})
}

// RunningAt is cleared when an attempt has failed.
func TestRunningAtIsCleared(t *testing.T) {
	n := 0
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Minute, time.Minute)}
	sim.Outcome = func(dashscope.CreateRequest) simulator.Outcome {
		if n++; n == 1 {
			return simulator.Outcome{Code: "InternalError.Timeout", Message: "again"}
		}
		return simulator.Outcome{}
	}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateRetrying)
		assert.Zero(t, s.get("job-1").RunningAt)
		s.state("job-1", jobs.StateGenerating)
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateSucceeded, rec.State)
		assert.True(t, rec.RunningAt.After(rec.SubmittedAt))
	})
}
