package worker_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// forget empties Redis, and has the producers, who have had no word of their jobs,
// enqueue them again.
func (s *stack) forget(ids []string) {
	s.t.Helper()
	require.NoError(s.t, s.redis.FlushAll(s.t.Context()).Err())
	for _, id := range ids {
		s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id})
	}
}

// share starts the worker anew on a Redis that is not its own.
func (s *stack) share() {
	s.t.Helper()
	s.stop()
	s.shared = true
	s.start()
}

// Redis is emptied in the middle of fifty jobs, and the producers enqueue all of them
// again: the worker's journal and the bucket know what was made.
func TestRule15RedisEmptied(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.share()
		ids := s.enqueueMany(50)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-20").State)
		s.state("job-21", jobs.StateGenerating)
		s.forget(ids)
		for _, id := range ids {
			s.requireMadeOnce(id)
		}
		assert.Len(t, s.sim.Tasks(), 50)
		assert.Equal(t, 1, s.sim.Stats().Lanes[0].MaxOpen)
	})
}

// Redis is emptied when the holder of the lane has just made a task, and the holder
// never comes back. Another worker cannot know which job the task was for: it holds
// the next job for each such task, keeps the images, and buys nothing twice.
func TestRule14RedisEmptiedAndTheJournalLost(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		// The other worker has worked on the account before, so that it knows the key.
		s.stop()
		s.shared = true
		s.prepare()
		other, data := s.newWorker("data-2")
		ctx, kill := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- other.Run(ctx) }()
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		require.Equal(t, jobs.StateSucceeded, s.wait("first").State)
		s.run() // stands by
		ids := s.enqueueMany(5)
		s.state("job-1", jobs.StateGenerating)
		<-time.After(15 * time.Second)
		kill()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.NoError(t, data.Close())
		// What Redis knew, and the dead worker's journal, are gone.
		s.forget(ids)
		held := 0
		for _, id := range ids {
			rec := s.wait(id)
			if rec.State == jobs.StateHeld {
				held++
				assert.Equal(t, "OrphanedTask", rec.Code)
				require.Len(t, rec.Candidates, 1)
				<-time.After(time.Minute)
				s.requireKept(rec.Candidates[0])
				continue
			}
			require.Equal(t, jobs.StateSucceeded, rec.State)
		}
		assert.Equal(t, 1, held)
		s.requireChargedOnce()

		// A person looks at the image, and says whose it is.
		for _, id := range ids {
			if rec := s.get(id); rec.State == jobs.StateHeld && s.tasksOf("prompt of "+id) == 1 {
				_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), id, jobs.Resolution{Adopt: rec.Candidates[0]})
				require.NoError(t, err)
				s.requireMadeOnce(id)
			}
		}
	})
}

// For each task that may be one of the queue's jobs, one job is held, however many are
// about to be submitted at once.
func TestRule14HoldsOneJobForOneTask(t *testing.T) {
	const flash = "wan2.2-t2i-flash"
	two := map[string][]worker.Lane{"": {{Model: flash, Concurrency: 2}}}
	bubbleWith(t, &simulator.Simulator{}, two, func(t *testing.T, s *stack) {
		s.stop()
		s.shared = true
		s.start()
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first", Model: flash})
		require.Equal(t, jobs.StateSucceeded, s.wait("first").State)
		_, err := s.client("sk-test").Create(t.Context(), dashscope.CreateRequest{Model: flash, Input: dashscope.Input{Prompt: "of a journal that is lost"}})
		require.NoError(t, err)
		require.NoError(t, s.redis.FlushAll(t.Context()).Err())
		<-time.After(time.Second)
		held := 0
		for i := range 6 {
			s.enqueue(jobs.Request{ID: fmt.Sprintf("job-%d", i), Prompt: fmt.Sprintf("prompt %d", i), Model: flash})
		}
		for i := range 6 {
			if s.wait(fmt.Sprintf("job-%d", i)).State == jobs.StateHeld {
				held++
			}
		}
		assert.Equal(t, 1, held)
	})
}

// A task for which no job could be held yet does not keep a run from its end: its images
// are stored. The next job is held for it all the same.
func TestRule14StoredTaskIsFinished(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.share()
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		s.foreignTask()
		require.NoError(t, s.redis.FlushAll(t.Context()).Err())
		<-time.After(time.Hour)
		s.requireKept(s.sim.Tasks()[1].ID)
		assert.False(t, s.worker.Unfinished(t.Context()))
		s.enqueueMany(2)
		assert.Equal(t, jobs.StateHeld, s.wait("job-1").State)
		s.requireMadeOnce("job-2")
	})
}

// Redis forgets its last second: the record of a task that is running says that the
// job waits. The journal knows better.
func TestRule15RedisForgotItsLastSecond(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.share()
		s.enqueueMany(3)
		before := s.redis.HGetAll(t.Context(), "danqing:job:job-1").Val()
		s.state("job-1", jobs.StateGenerating)
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:job-1", "danqing:dataset").Err())
		require.NoError(t, s.redis.HSet(t.Context(), "danqing:job:job-1", before).Err())
		for _, id := range []string{"job-1", "job-2", "job-3"} {
			s.requireMadeOnce(id)
		}
		assert.Equal(t, 1, s.sim.Stats().Lanes[0].MaxOpen)
	})
}

// A reply comes to a worker that has lost the lane meanwhile, when the job has been
// bought again: its task is an extra one of ours, and is canceled while it waits.
func TestRule3ReplyAfterTheJobWasBoughtAgain(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Minute, 2*time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: 5 * time.Second, AfterWork: true})
		s.enqueueMany(1)
		rec := s.state("job-1", jobs.StateSubmitting)
		// Another worker has concluded that there is no task, wrongly, and bought again.
		next := *rec
		next.PastAttempts = []jobs.Attempt{{Attempt: 1, Term: rec.Term, SubmittedAt: rec.SubmittedAt, Code: "NotCreated"}}
		next.State, next.Attempt, next.TaskID, next.Request = jobs.StateQueued, 1, "", nil
		require.NoError(t, jobs.NewStore(s.redis).Update(t.Context(), rec, &next))
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		<-time.After(10 * time.Minute)
		s.requireStored("job-1", 1)
		extra := sim.Tasks()[1]
		if extra.ChargedMicroYuan > 0 {
			s.requireKept(extra.ID)
		}
		require.Len(t, sim.Tasks(), 3)
		s.requireLedger()
	})
}
