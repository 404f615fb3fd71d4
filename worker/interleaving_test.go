package worker_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
	"github.com/danqing-queue/danqing/worker/journal"
)

// A job is canceled and retried while an execution with the old record waits to submit
// it: the sidecar of the cancellation does not count as the result of the images that
// are bought then.
func TestCanceledAndRetriedBeforeItsTurn(t *testing.T) {
	const flash = "wan2.2-t2i-flash"
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Minute, time.Minute)}
	two := map[string][]worker.Lane{"": {{Model: flash, Concurrency: 2}}}
	bubbleWith(t, sim, two, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: 50 * time.Second})
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Model: flash})
		s.state("job-1", jobs.StateSubmitting)
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2", Model: flash})
		<-time.After(10 * time.Second)
		_, err := jobs.NewClient(s.redis).Cancel(t.Context(), "job-2", jobs.Decider{})
		require.NoError(t, err)
		<-time.After(10 * time.Second)
		_, err = jobs.NewInspector(s.redis).Retry(t.Context(), "job-2", jobs.Decider{})
		require.NoError(t, err)
		<-time.After(5 * time.Minute)
		s.requireMadeOnce("job-2")
	})
}

// A cancellation right before the rollback of a refused intent is not lost.
func TestCanceledWhileAnIntentIsRolledBack(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusTooManyRequests, Code: "Throttling"})
		s.enqueueMany(1)
		s.queue.Client().AddHook(&beforeWrite{state: "queued", do: func() {
			_, err := jobs.NewClient(s.redis).Cancel(t.Context(), "job-1", jobs.Decider{By: "li", Why: "not needed"})
			assert.NoError(t, err)
		}})
		assert.Equal(t, jobs.StateCanceled, s.wait("job-1").State)
		assert.Empty(t, sim.Tasks())
		sidecar, err := s.bucket.Sidecar(t.Context(), "job-1")
		require.NoError(t, err)
		assert.Equal(t, "canceled", sidecar.State)
		require.Len(t, sidecar.Decisions, 1)
		assert.Equal(t, storage.SidecarDecision{Action: "cancel", By: "li", Why: "not needed", At: sidecar.Decisions[0].At}, sidecar.Decisions[0])
	})
}

// beforeWrite calls a function right before the first write of a state.
type beforeWrite struct {
	state string
	do    func()
	done  atomic.Bool
}

func (b *beforeWrite) DialHook(next redis.DialHook) redis.DialHook { return next }

func (b *beforeWrite) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if _, state := writtenRecord(cmd); state == b.state && b.done.CompareAndSwap(false, true) {
			b.do()
		}
		return next(ctx, cmd)
	}
}

func (b *beforeWrite) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The journal has an attempt that Redis lost with its last second. An earlier retry by
// an operator whose clock is ahead does not hide it.
func TestRetriedByAClockThatIsAhead(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Minute, 2*time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "DataInspectionFailed"})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		<-time.After(time.Minute)
		rec, err := jobs.NewStore(s.redis).Retry(t.Context(), "job-1", jobs.Decider{})
		require.NoError(t, err)
		earlier := *rec
		earlier.RetriedAt = earlier.RetriedAt.Add(10 * time.Minute)
		s.state("job-1", jobs.StateGenerating)
		<-time.After(10 * time.Second)
		s.stop()
		s.queue = queue.Open()
		s.redis = s.queue.Client()
		client := jobs.NewStore(s.redis)
		require.NoError(t, client.Update(t.Context(), nil, &earlier))
		require.NoError(t, client.EnqueueGenerate(t.Context(), &earlier, earlier.OriginalRequest()))
		s.worker, s.data = s.newWorker("data")
		s.run()
		s.requireMadeOnce("job-1")
	})
}

// A hold that an operator resolved stays resolved, although the operator's clock is
// behind the worker's.
func TestAdoptedByAClockThatIsBehind(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		s.enqueueMany(1)
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		<-time.After(time.Minute)
		adopted := *rec
		adopted.State, adopted.TaskID, adopted.Code, adopted.Message = jobs.StateGenerating, sim.Tasks()[0].ID, "", ""
		adopted.ResolvedAt = time.Now().Add(-2 * time.Minute)
		client := jobs.NewStore(s.redis)
		require.NoError(t, client.Update(t.Context(), rec, &adopted))
		require.NoError(t, client.EnqueueGenerate(t.Context(), &adopted, adopted.OriginalRequest()))
		assert.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		assert.Len(t, sim.Tasks(), 1)
	})
}

// The message of an ended job, in another queue than that of its record, does not stop
// the lane.
func TestMessageInAnotherQueue(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "DataInspectionFailed"})
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Priority: jobs.PriorityBulk})
		require.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		<-time.After(time.Minute)
		bulk, inspector := jobs.Queue(jobs.DefaultModel, jobs.PriorityBulk), asynq.NewInspectorFromRedisClient(s.redis)
		info, err := inspector.GetTaskInfo(bulk, "job-1")
		require.NoError(t, err)
		require.NoError(t, inspector.DeleteTask(bulk, "job-1"))
		_, err = asynq.NewClientFromRedisClient(s.redis).EnqueueContext(t.Context(), asynq.NewTask(jobs.TypeGenerate, info.Payload), asynq.TaskID("job-1"), asynq.Queue(laneQueue))
		require.NoError(t, err)
		<-time.After(time.Minute)
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		<-time.After(10 * time.Minute)
		s.requireMadeOnce("job-2")
	})
}

// A lane configured twice is refused: one process would hold it twice and run two tasks.
func TestSameLaneTwice(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		data, err := journal.OpenDataDir(filepath.Join(s.dir, "data-2"))
		require.NoError(t, err)
		s.accounts = map[string][]worker.Lane{"": {{}, {Model: jobs.DefaultModel}}}
		_, err = worker.New(s.config(data))
		require.ErrorContains(t, err, "configured twice")
		require.NoError(t, data.Close())
	})
}

// failedRead fails the first read of a record after a lane has read its in-flight marks.
type failedRead struct{ noted, failed atomic.Bool }

func (f *failedRead) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f *failedRead) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		switch fmt.Sprint(cmd.Args()[:min(2, len(cmd.Args()))]...) {
		case "hset" + rediskey.Lane("default", jobs.DefaultModel, "in_flight"):
			f.noted.Store(true)
		case "hmget" + "danqing:job:job-1":
			if f.noted.Load() && f.failed.CompareAndSwap(false, true) {
				cmd.SetErr(errOutage)
				return errOutage
			}
		}
		return next(ctx, cmd)
	}
}

func (f *failedRead) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A failed read at a takeover does not lose a task.
func TestFailedReadAtATakeover(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.stop()
		s.prepare()
		hook := &failedRead{}
		s.queue.Client().AddHook(hook)
		s.run()
		<-time.After(10 * time.Minute)
		require.True(t, hook.failed.Load())
		rec, err := jobs.NewStore(s.redis).Get(t.Context(), "job-1")
		require.NoError(t, err)
		require.Equal(t, jobs.StateSucceeded, rec.State)
		assert.Len(t, s.sim.Tasks(), 1)
	})
}

// A held job with one image in the bucket can be bought again: that image stays, and
// only the other one is bought.
func TestBuyAgainAfterAPartialStore(t *testing.T) {
	sim := &simulator.Simulator{Render: func(p painter.Picture) []byte {
		if p.Index == 1 {
			return []byte("<html>no picture</html>")
		}
		return tinyPNG(p)
	}}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
		held := s.wait("job-1")
		require.Equal(t, jobs.StateHeld, held.State)
		<-time.After(time.Minute)
		_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", jobs.Resolution{BuyAgain: true}, jobs.Decider{})
		require.NoError(t, err)
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
		assert.Equal(t, held.Images[0], s.requireRecorded(2).Images[0])
		assert.Equal(t, 1, *sim.Tasks()[1].Request.Parameters.N)
	})
}

// A crashed worker leaves a task in a lane that the other worker is not configured for:
// the other worker finishes the task and draws no further job.
func TestRule16LaneOfADeadWorker(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Minute, 2*time.Minute)}
	flash := map[string][]worker.Lane{"": {{Model: "wan2.2-t2i-flash"}}}
	bubbleWith(t, sim, flash, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Model: "wan2.2-t2i-flash"})
		s.state("job-1", jobs.StateGenerating)
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		s.ended <- nil
		s.accounts = nil // only a lane for wanx-v1
		b := s.secondWorker()
		ended := make(chan error, 1)
		go func() { ended <- b.Run(t.Context()) }()
		<-time.After(time.Hour)
		rec, err := jobs.NewStore(s.redis).Get(t.Context(), "job-1")
		assert.NoError(t, err)
		assert.Equal(t, jobs.StateSucceeded, rec.State)
		b.Stop()
		require.NoError(t, <-ended)
	})
}

// A journal with an ambiguous create is replayed after other workers have finished the
// job and its record has expired: the sidecar wins.
func TestReplayOfAJournalAWeekOld(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		rec := s.wait("job-1")
		s.stop()
		old := *rec
		old.State, old.Images, old.FinishedAt, old.TaskID, old.Code = jobs.StateHeld, nil, time.Time{}, "", "SubmitAmbiguous"
		data, err := journal.OpenDataDir(filepath.Join(s.dir, "data"))
		require.NoError(t, err)
		require.NoError(t, data.Journal.Append(journal.KindAmbiguous, &old))
		require.NoError(t, data.Close())
		s.start()
		<-time.After(time.Minute)
		if got, err := jobs.NewStore(s.redis).Get(t.Context(), "job-1"); err == nil {
			assert.Equal(t, jobs.StateSucceeded, got.State)
		}
	})
}

// A job that is retried, after the worker that failed it had a clock ahead, does
// not occupy the slot forever.
func TestRetryWithSkew(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "DataInspectionFailed", Message: "no"})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		sidecar, err := s.bucket.Sidecar(t.Context(), "job-1")
		require.NoError(t, err)
		sidecar.FinishedAt = sidecar.FinishedAt.Add(15 * time.Minute)
		require.NoError(t, s.bucket.PutSidecar(t.Context(), sidecar))
		<-time.After(time.Minute)
		_, err = jobs.NewInspector(s.redis).Retry(t.Context(), "job-1", jobs.Decider{})
		require.NoError(t, err)
		<-time.After(10 * time.Second)
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		begin := time.Now()
		require.Equal(t, jobs.StateSucceeded, s.wait("job-2").State)
		assert.Less(t, time.Since(begin), 10*time.Minute)
	})
}

// Images that another worker has stored do not count as this worker's backlog.
func TestStoredByAnotherWorker(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Second, 2*time.Second)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.cutOff("data-2")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
		defer cancel()
		for _, id := range s.enqueueMany(160) {
			rec, err := jobs.NewClient(s.redis).Wait(ctx, id)
			require.NoError(t, err, id)
			require.Equal(t, jobs.StateSucceeded, rec.State)
		}
	})
}

// A task adopted for one account is stored, although the lane of another account has
// drawn its message.
func TestAdoptedTaskDrawnByAnotherAccount(t *testing.T) {
	sim := twoKeys()
	sim.TaskTime = simulator.Between(time.Minute, time.Minute)
	one := []worker.Lane{{}}
	bubbleWith(t, sim, map[string][]worker.Lane{"east": one, "west": one}, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		s.enqueueMany(1)
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		task := sim.Tasks()[0].ID
		// The account's own lane is busy, so the other one draws the message.
		for i := 0; ; i++ {
			id := fmt.Sprintf("busy-%d", i)
			s.enqueue(jobs.Request{ID: id, Prompt: id})
			if s.state(id, jobs.StateGenerating).Account == rec.Account {
				break
			}
		}
		_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", jobs.Resolution{Adopt: task}, jobs.Decider{})
		require.NoError(t, err)
		<-time.After(20 * time.Minute)
		s.requireMadeOnce("job-1")
		s.requireStored("job-1", 1) // simulated, as its task was
	})
}

// A lane that only finishes what was left, a task in flight and one in its quarantine, ends
// with the quarantine empty, whenever the tasks end.
func TestDrainLaneEmptiesTheQuarantine(t *testing.T) {
	const flash = "wan2.2-t2i-flash"
	for _, later := range []time.Duration{40 * time.Second, 42 * time.Second} {
		t.Run(later.String(), func(t *testing.T) {
			sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Minute, 2*time.Minute)}
			bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: flash}}}, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Model: flash})
				s.state("job-1", jobs.StateGenerating)
				<-time.After(later)
				s.worker.Stop()
				require.NoError(t, <-s.ended)
				s.ended <- nil
				s.foreignOf(flash)
				task := sim.Tasks()[1].ID
				key := rediskey.Lane("default", flash, rediskey.LaneQuarantine)
				require.NoError(t, s.redis.HSet(t.Context(), key, task, `{"job_id":"job-0","attempt":1,"account":"default","model":"`+flash+`","task_id":"`+task+`"}`).Err())
				s.accounts = nil // a lane for wanx-v1 alone
				b := s.secondWorker()
				ended := make(chan error, 1)
				go func() { ended <- b.Run(t.Context()) }()
				<-time.After(time.Hour)
				s.requireKept(task)
				assert.False(t, b.Unfinished(t.Context()))
				b.Stop()
				require.NoError(t, <-ended)
			})
		})
	}
}
