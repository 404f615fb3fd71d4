package worker_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// stopAfter calls stop after the first write of a record in a state, or instead of it.
type stopAfter struct {
	state  string
	before bool
	stop   func()
	done   atomic.Bool
}

func (r *stopAfter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *stopAfter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		first := writesState(cmd, r.state) && r.done.CompareAndSwap(false, true)
		if !first {
			return next(ctx, cmd)
		}
		defer func() {
			r.stop()
			<-time.After(time.Second)
		}()
		if r.before {
			cmd.SetErr(errOutage)
			return errOutage
		}
		return next(ctx, cmd)
	}
}

func (r *stopAfter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A worker that is stopped while it replays its journal leaves no record without the mark
// by which a lane finds its task.
func TestStopDuringAReplay(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Hour, time.Hour)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.stop()

		s.shared = true
		s.start()
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		require.NoError(t, s.data.Close())
		require.NoError(t, s.redis.FlushAll(t.Context()).Err())
		s.worker, s.data = s.newWorker("data")
		hook := &stopAfter{state: "generating", stop: s.worker.Stop}
		s.queue.Client().AddHook(hook)
		require.ErrorIs(t, s.worker.Prepare(t.Context()), worker.ErrStopped)
		require.True(t, hook.done.Load())
		s.ended <- nil
		assert.True(t, s.redis.HExists(t.Context(), rediskey.Lane("default", "wanx-v1", rediskey.LaneInFlight), "job-1").Val())
	})
}

// A worker dies after the journal holds a job and before the record does: once the journal
// has brought the record up to date, the job's intent is in the index all the same, for
// tasks that appear later.
func TestDeathBeforeAHoldKeepsTheIntent(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.shared = true
		s.start()
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		hook := &stopAfter{state: "held", before: true, stop: s.worker.Stop}
		s.queue.Client().AddHook(hook)
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Times: -1, Reset: simulator.ResetBefore})
		s.enqueueMany(1)
		require.NoError(t, <-s.ended)
		require.True(t, hook.done.Load())
		require.Equal(t, jobs.StateSubmitting, s.get("job-1").State)
		require.NoError(t, s.data.Close())
		s.worker, s.data = s.newWorker("data")
		s.run()
		require.Equal(t, jobs.StateHeld, s.wait("job-1").State)
		<-time.After(time.Second) // the index is written after the record
		assert.True(t, s.redis.HExists(t.Context(), rediskey.Lane("default", "wanx-v1", rediskey.LaneIntents), "job-1.3").Val())
	})
}

// A caller that gives up on Prepare while Redis is away, in the middle of the replay, does
// not wait for Redis.
func TestPrepareEndsWithItsContext(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Hour, time.Hour)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		require.NoError(t, s.data.Close())
		require.NoError(t, s.redis.FlushAll(t.Context()).Err())
		s.worker, s.data = s.newWorker("data")
		down := &outage{}
		hook := &stopAfter{state: "generating", before: true, stop: func() { down.on.Store(true) }}
		s.queue.Client().AddHook(hook)
		s.queue.Client().AddHook(down)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.worker.Prepare(ctx) }()
		<-time.After(time.Minute)
		require.True(t, hook.done.Load())
		cancel()
		select {
		case err := <-ended:
			require.ErrorIs(t, err, context.Canceled)
		case <-time.After(time.Minute):
			assert.Fail(t, "Prepare goes on")
			s.worker.Stop()
			assert.Error(t, <-ended)
		}
		down.on.Store(false)
		s.ended <- nil
	})
}

// stopAtQuarantine calls stop after a task was added to a quarantine.
type stopAtQuarantine struct {
	stop func()
	done atomic.Bool
}

func (r *stopAtQuarantine) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *stopAtQuarantine) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		key, _ := cmd.Args()[min(1, len(cmd.Args())-1)].(string)
		if cmd.Name() == "hsetnx" && strings.HasSuffix(key, ":quarantine") && r.done.CompareAndSwap(false, true) {
			r.stop()
			<-time.After(time.Second)
		}
		return err
	}
}

func (r *stopAtQuarantine) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A worker that is stopped when it has just found the late task of a lost create notes all
// the same that the create has made it: any further task has another creator, and must not
// be canceled.
func TestStopAtALateTask(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(4*time.Minute, 4*time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		hook := &stopAtQuarantine{stop: s.worker.Stop}
		s.queue.Client().AddHook(hook)
		late := s.holdBack("prompt of job-1", 7*time.Minute)
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Match: late.match, Reset: simulator.ResetBefore})
		s.enqueueMany(3)
		<-late.done
		require.NoError(t, <-s.ended)
		s.ended <- nil
		require.True(t, hook.done.Load())
		encoded, err := s.redis.HGet(t.Context(), rediskey.Lane("default", "wanx-v1", rediskey.LaneIntents), "job-1.1").Result()
		require.NoError(t, err)
		assert.Contains(t, encoded, "late_task_found")
	})
}
