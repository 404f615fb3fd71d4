package worker_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// requireMadeOnce waits for the job and checks that it was made by one task.
func (s *stack) requireMadeOnce(id string) {
	s.t.Helper()
	rec := s.wait(id)
	require.Equal(s.t, jobs.StateSucceeded, rec.State, rec.Message)
	s.requireStored(id, 1)
	require.Equal(s.t, 1, s.tasksOf("prompt of "+id))
}

// Redis loses the record, or all data, while the task runs: the journal has the task,
// and it is not bought again.
func TestRecordLostWhileGenerating(t *testing.T) {
	for how, lose := range map[string]func(context.Context, redis.UniversalClient) error{
		"evicted": func(ctx context.Context, rdb redis.UniversalClient) error {
			return rdb.Del(ctx, "danqing:job:job-1").Err()
		},
		"flushed": func(ctx context.Context, rdb redis.UniversalClient) error { return rdb.FlushAll(ctx).Err() },
	} {
		t.Run(how, func(t *testing.T) {
			bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
				s.enqueueMany(1)
				s.state("job-1", jobs.StateGenerating)
				<-time.After(5 * time.Second)
				require.NoError(t, lose(t.Context(), s.redis))
				<-time.After(2 * time.Minute)
				s.requireMadeOnce("job-1")
			})
		})
	}
}

// outage makes every Redis command fail while it is on.
type outage struct {
	on atomic.Bool
	// err is the error of the commands; nil is errOutage.
	err error
}

func (o *outage) failure() error {
	if o.err != nil {
		return o.err
	}
	return errOutage
}

func (o *outage) DialHook(next redis.DialHook) redis.DialHook { return next }

func (o *outage) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !o.on.Load() {
			return next(ctx, cmd)
		}
		<-time.After(time.Second)
		cmd.SetErr(o.failure())
		return o.failure()
	}
}

func (o *outage) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if !o.on.Load() {
			return next(ctx, cmds)
		}
		<-time.After(time.Second)
		return o.failure()
	}
}

var errOutage error = &net.OpError{Op: "dial", Err: errors.New("redis is down")}

// Redis is unavailable during a create, for longer than the lease lasts: the task ID is
// kept, and the job continues when Redis is available again.
func TestRedisUnavailableDuringACreate(t *testing.T) {
	for name, err := range map[string]error{"unreachable": errOutage, "refuses": errors.New("NOPERM this user has no permissions")} {
		t.Run(name, func(t *testing.T) {
			sim := &simulator.Simulator{}
			bubble(t, sim, func(_ *testing.T, s *stack) {
				down := &outage{err: err}
				s.queue.Client().AddHook(down)
				sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: 2 * time.Second})
				s.enqueueMany(1)
				s.state("job-1", jobs.StateSubmitting)
				<-time.After(time.Second)
				down.on.Store(true)
				<-time.After(2 * time.Minute)
				down.on.Store(false)
				s.requireMadeOnce("job-1")
			})
		})
	}
}

// The lease is lost while an earlier run's task is polled: the worker waits for the
// lease and continues.
func TestLeaseLostWhileResuming(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(5*time.Minute, 5*time.Minute)}
	bubble(t, sim, func(_ *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.stop()
		s.start()
		down := &outage{}
		s.queue.Client().AddHook(down)
		<-time.After(10 * time.Second)
		down.on.Store(true)
		<-time.After(30 * time.Second)
		down.on.Store(false)
		s.requireMadeOnce("job-1")
	})
}

// A success that names no image may be charged: it is held, not bought again.
func TestSuccessWithoutImagesIsHeld(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		sim.Script(simulator.Fault{
			Route: simulator.RouteQuery, Times: -1,
			Body: `{"request_id":"r","output":{"task_status":"SUCCEEDED","results":[]},"usage":{"image_count":1}}`,
		})
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateHeld, rec.State)
		assert.Equal(t, "NoImages", rec.Code)
		assert.Len(t, sim.Tasks(), 1)
	})
}

// What DashScope reports beyond the request is neither booked nor stored. The record says so,
// and the images asked for are delivered.
func TestAnswerBeyondTheRequest(t *testing.T) {
	many := strings.Repeat(`{"url":"URL"},`, 3999) + `{"url":"URL"}`
	for name, body := range map[string]string{
		"charge":   `"results":[{"url":"URL"}]},"usage":{"image_count":1099511627776}}`,
		"overflow": `"results":[{"url":"URL"}]},"usage":{"image_count":9223372036854775807}}`,
		"second":   `"results":[{"code":"InternalError"},{"url":"URL"}]},"usage":{"image_count":1}}`,
		"results":  `"results":[` + many + `]},"usage":{"image_count":4000}}`,
	} {
		t.Run(name, func(t *testing.T) {
			sim := &simulator.Simulator{}
			bubble(t, sim, func(t *testing.T, s *stack) {
				var through atomic.Bool
				sim.Script(simulator.Fault{
					Route: simulator.RouteQuery, Times: -1, Status: http.StatusInternalServerError,
					Match: func(*http.Request) bool { return !through.Load() },
				})
				s.enqueueMany(1)
				rec := s.state("job-1", jobs.StateGenerating)
				<-time.After(time.Minute)
				through.Store(true)
				task, err := s.client("sk-test").Query(t.Context(), rec.TaskID)
				require.NoError(t, err)
				link := task.Output.Results[0].URL
				sim.Script(simulator.Fault{
					Route: simulator.RouteQuery, Times: -1,
					Body: `{"request_id":"r","output":{"task_id":"` + rec.TaskID + `","task_status":"SUCCEEDED",` + strings.ReplaceAll(body, "URL", link),
				})
				rec = s.wait("job-1")
				require.Len(t, sim.Tasks(), 1, "nothing is bought again")
				if name == "second" {
					require.Equal(t, jobs.CodeNoImages, rec.Code, rec.Message)
					return
				}
				require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
				assert.Len(t, rec.Images, 1)
				assert.EqualValues(t, 160_000, rec.CostMicroYuan)
				require.Len(t, rec.Warnings, 1)
				assert.Contains(t, rec.Warnings[0], "for a request of 1")
				s.requireLedger()
			})
		})
	}
}

// A reply that arrives after another worker has taken over the lane and held the job as
// ambiguous names the task: the job continues with it.
func TestRule3ReplyUnderALostTerm(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: 2 * time.Second, AfterWork: true})
		s.enqueueMany(1)
		rec := s.state("job-1", jobs.StateSubmitting)
		held := *rec
		held.State, held.Code = jobs.StateHeld, "SubmitAmbiguous"
		require.NoError(t, jobs.NewStore(s.redis).Update(t.Context(), rec, &held))
		<-time.After(5 * time.Minute)
		s.requireMadeOnce("job-1")
	})
}

// The Cancel button of the queue's web UI, pressed during a create, loses nothing.
func TestCancelButtonDuringACreate(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: time.Second, AfterWork: true})
		s.enqueueMany(1)
		s.state("job-1", jobs.StateSubmitting)
		require.NoError(t, s.redis.Publish(t.Context(), "asynq:cancel", "job-1").Err())
		s.requireMadeOnce("job-1")
	})
}

// lostReply loses the reply to the first write of an intent.
type lostReply struct{ lost atomic.Bool }

func (l *lostReply) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l *lostReply) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err == nil && writesState(cmd, "submitting") && l.lost.CompareAndSwap(false, true) {
			cmd.SetErr(errOutage)
			return errOutage
		}
		return err
	}
}

func (l *lostReply) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The reply to an intent's write is lost, and the write is repeated: it counts as this
// worker's own write, and the job continues.
func TestLostReplyToAnIntent(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		hook := &lostReply{}
		s.queue.Client().AddHook(hook)
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		assert.True(t, hook.lost.Load())
	})
}

// A failed job is enqueued again after its record has expired, while its message
// remains: it gets its result from its sidecar and does not wait forever.
func TestFailedJobAskedForAgainAfterAWeek(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "DataInspectionFailed"})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		<-time.After(time.Minute)
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:job-1").Err())
		s.enqueueMany(1)
		assert.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		assert.Empty(t, sim.Tasks())
	})
}

// A damaged sidecar fails its own job, not the lane.
func TestDamagedSidecar(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.wait("job-1")
		require.NoError(t, os.WriteFile(s.files.Path("_jobs/job-2.json"), []byte("{"), 0o600))
		s.enqueueMany(3)
		rec := s.wait("job-2")
		assert.Equal(t, jobs.StateFailed, rec.State)
		assert.Equal(t, "SidecarUnreadable", rec.Code)
		s.requireMadeOnce("job-3")
	})
}

// Signed links are removed from Redis when the images are stored.
func TestLinksAreRemovedFromTheRecord(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		for _, key := range s.redis.Keys(t.Context(), "danqing:job:*").Val() {
			assert.NotContains(t, s.redis.HGet(t.Context(), key, "record").Val(), "Signature=")
		}
	})
}
