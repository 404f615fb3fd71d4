package worker_test

import (
	"context"
	"errors"
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

var errRefused = errors.New("NOPERM this user has no permissions")

// refusedWrite makes Redis refuse the first write of a record in a state, with an error that
// is not temporary.
type refusedWrite struct {
	state   string
	refused atomic.Bool
}

func (r *refusedWrite) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *refusedWrite) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if writesState(cmd, r.state) && r.refused.CompareAndSwap(false, true) {
			cmd.SetErr(errRefused)
			return errRefused
		}
		return next(ctx, cmd)
	}
}

func (r *refusedWrite) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// writesState reports whether a command writes a record in a state.
func writesState(cmd redis.Cmder, state string) bool {
	_, written := writtenRecord(cmd)
	return cmd.Name() == "evalsha" && written == state
}

// writtenRecord returns the key and the state of the record that a command writes, "" if it
// writes none: the first key of the script, and the second argument after the time.
func writtenRecord(cmd redis.Cmder) (key, state string) {
	args := cmd.Args()
	if len(args) < 4 {
		return "", ""
	}
	keys, ok := args[2].(int)
	if !ok || keys < 2 || len(args) <= keys+5 {
		return "", ""
	}
	if index, _ := args[4].(string); !strings.HasPrefix(index, "danqing:jobs:") {
		return "", ""
	}
	key, _ = args[3].(string)
	state, _ = args[keys+5].(string)
	return key, state
}

// Redis refuses one write for a job that no message would bring back, in a lane that only
// finishes what was left: the lane does not end before the image is stored.
func TestDrainLaneOutlastsARefusedWrite(t *testing.T) {
	const flash = "wan2.2-t2i-flash"
	for state, fault := range map[string]simulator.Fault{
		"generating": {Route: simulator.RouteCreate, Reset: simulator.ResetAfter}, // adopted
		"storing":    {Route: simulator.RouteCreate, Delay: time.Second},
	} {
		t.Run(state, func(t *testing.T) {
			sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Minute, 2*time.Minute)}
			bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: flash}}}, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first", Model: flash})
				s.requireMadeOnce("first")
				sim.Script(fault)
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Model: flash})
				s.state("job-1", jobs.StateSubmitting)
				<-time.After(5 * time.Second)
				s.worker.Stop()
				require.NoError(t, <-s.ended)
				s.ended <- nil
				hook := &refusedWrite{state: state}
				s.queue.Client().AddHook(hook)
				s.accounts = nil // a lane for wanx-v1 alone
				b := s.secondWorker()
				ended := make(chan error, 1)
				go func() { ended <- b.Run(t.Context()) }()
				<-time.After(time.Hour)
				rec, err := jobs.NewStore(s.redis).Get(t.Context(), "job-1")
				assert.NoError(t, err)
				assert.True(t, hook.refused.Load())
				assert.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
				s.requireChargedOnce()
				b.Stop()
				require.NoError(t, <-ended)
			})
		})
	}
}

// A stop at once with a cause of the caller's own keeps the in-flight mark, by which the
// next holder of the lane finds the task.
func TestQuickStopWithACauseKeepsTheMark(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.prepare()
		ctx, quick := context.WithCancelCause(t.Context())
		s.ended = make(chan error, 1)
		go func() { s.ended <- s.worker.Run(ctx) }()
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		<-time.After(time.Second)
		cause := errors.New("the caller has had enough")
		quick(cause)
		require.ErrorIs(t, <-s.ended, cause)
		s.ended <- nil
		assert.True(t, s.redis.HExists(t.Context(), rediskey.Lane("default", "wanx-v1", rediskey.LaneInFlight), "job-1").Val())
	})
}
