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

// loseRedisData empties Redis, and enqueues the jobs again, as producers do that have no result
// yet.
func (s *stack) loseRedisData(ids []string) {
	s.t.Helper()
	require.NoError(s.t, s.redis.FlushAll(s.t.Context()).Err())
	for _, id := range ids {
		s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id})
	}
}

// share restarts the worker on a Redis that outlives it.
func (s *stack) share() {
	s.t.Helper()
	s.stop()
	s.shared = true
	s.start()
}

// Redis loses all data in the middle of fifty jobs, and the producers enqueue them
// again: the journal and the bucket prevent a second purchase.
func TestRule15RedisEmptied(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.share()
		ids := s.enqueueMany(50)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-20").State)
		s.state("job-21", jobs.StateGenerating)
		s.loseRedisData(ids)
		for _, id := range ids {
			s.requireMadeOnce(id)
		}
		assert.Len(t, s.sim.Tasks(), 50)
		assert.Equal(t, 1, s.sim.Stats().Lanes[0].MaxOpen)
	})
}

// Redis loses all data right after the lane's holder has created a task, and the holder
// does not return. Another worker cannot find the task's job: it holds the next job for
// each such task, keeps the images and buys nothing twice.
func TestRule14RedisEmptiedAndTheJournalLost(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		// The other worker has used the account before, so that it has the key's api_key_id.
		s.stop()
		s.shared = true
		s.prepare()
		other, data := s.newWorker("data-2")
		ctx, kill := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- other.Run(ctx) }()
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		require.Equal(t, jobs.StateSucceeded, s.wait("first").State)
		s.run() // as a standby
		ids := s.enqueueMany(5)
		s.state("job-1", jobs.StateGenerating)
		<-time.After(15 * time.Second)
		// Redis's data and the crashed worker's journal are lost, before the standby can see
		// the in-flight mark.
		require.NoError(t, s.redis.FlushAll(t.Context()).Err())
		kill()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.NoError(t, data.Close())
		for _, id := range ids {
			s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id})
		}
		<-time.After(45 * time.Second)
		lanes, err := jobs.NewInspector(s.redis).Lanes(t.Context())
		require.NoError(t, err)
		require.Len(t, lanes, 1)
		assert.Equal(t, jobs.LanePaused, lanes[0].State)
		assert.Contains(t, lanes[0].Message, "data may have been lost")
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

		// An operator looks at the image, and adopts its task.
		for _, id := range ids {
			if rec := s.get(id); rec.State == jobs.StateHeld && s.tasksOf("prompt of "+id) == 1 {
				_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), id, jobs.Resolution{Adopt: rec.Candidates[0]}, jobs.Decider{})
				require.NoError(t, err)
				s.requireMadeOnce(id)
			}
		}
	})
}

// One job is held for each task that may belong to a queued job, however many jobs are
// about to be submitted.
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

// Redis loses its last second: the record of a job with a running task says that the job
// waits. The journal corrects it.
func TestRule15RedisLostItsLastSecond(t *testing.T) {
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

// A worker that has lost the lane gets a reply after the job was bought again: its task
// is an extra one, and is canceled while it is pending.
func TestRule3ReplyAfterTheJobWasBoughtAgain(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Minute, 2*time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: 5 * time.Second, AfterWork: true})
		s.enqueueMany(1)
		rec := s.state("job-1", jobs.StateSubmitting)
		// Another worker has wrongly concluded that there is no task, and has bought again.
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
