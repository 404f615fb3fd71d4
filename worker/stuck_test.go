package worker_test

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// The account's list is unavailable for a day: the outcome of a lost create cannot be
// determined, and the job is held.
func TestRule8NoListForADay(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, dir, &simulator.Simulator{})
		s.queueInterval = time.Minute
		defer s.close()
		s.start()
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetBefore})
		whole := func(r *http.Request) bool { return r.URL.Query().Get("page_size") == "100" }
		s.sim.Script(simulator.Fault{Route: simulator.RouteList, Match: whole, Status: http.StatusInternalServerError, Code: "InternalError", Times: -1})
		s.enqueueMany(1)
		s.state("job-1", jobs.StateSubmitting)
		<-time.After(10 * time.Minute)
		require.Equal(t, jobs.StateSubmitting, s.get("job-1").State)
		s.stop() // a day of polls would make the test slow
		<-time.After(22*time.Hour + 40*time.Minute)
		s.start()
		require.Equal(t, jobs.StateSubmitting, s.get("job-1").State)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		rec, err := jobs.NewClient(s.redis).Wait(ctx, "job-1")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateHeld, rec.State)
	})
}

// heldForTwo holds a job with two candidates, of which one is another program's.
func (s *stack) heldForTwo(model string) *jobs.Record {
	s.t.Helper()
	s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first", Model: model})
	require.Equal(s.t, jobs.StateSucceeded, s.wait("first").State)
	s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
	s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Model: model})
	s.state("job-1", jobs.StateSubmitting)
	<-time.After(time.Second)
	s.foreignOf(model)
	rec := s.wait("job-1")
	require.Equal(s.t, jobs.StateHeld, rec.State)
	require.Len(s.t, rec.Candidates, 2)
	return rec
}

// A worker with an in-memory queue crashes after it has held a job: the next run
// quarantines the images of the candidates.
func TestRule8CandidatesAreKeptAfterARestart(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, dir, &simulator.Simulator{TaskTime: simulator.Between(10*time.Minute, 10*time.Minute)})
		defer s.close()
		s.start()
		rec := s.heldForTwo(jobs.DefaultModel)
		s.stop()
		s.start()
		<-time.After(time.Hour)
		for _, task := range rec.Candidates {
			s.requireKept(task)
		}
	})
}

// heldForLost holds job-1 of n images for its lost create, whose task is then quarantined, and returns
// the task.
func (s *stack) heldForLost(n int) (task string) {
	s.t.Helper()
	s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
	s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: n})
	rec := s.wait("job-1")
	require.Equal(s.t, jobs.StateHeld, rec.State)
	require.Len(s.t, rec.Candidates, 1)
	return rec.Candidates[0]
}

// unknownTask is the answer for a task that the service does not find.
const unknownTask = `{"request_id":"r","output":{"task_status":"UNKNOWN"}}`

// A link that is refused before its expiry, or a task that is not found for a while, does not end the
// quarantine of a paid task.
func TestQuarantineOutlastsFaults(t *testing.T) {
	for name, fault := range map[string]simulator.Fault{
		"404":     {Route: simulator.RouteResult, Status: http.StatusNotFound, Code: "NoSuchKey"},
		"403":     {Route: simulator.RouteResult, Status: http.StatusForbidden, Code: "AccessDenied", Times: 9},
		"302":     {Route: simulator.RouteResult, Status: http.StatusFound, Code: "Moved"},
		"UNKNOWN": {Route: simulator.RouteQuery, Body: unknownTask, Times: 9},
	} {
		t.Run(name, func(t *testing.T) {
			withModel(t, &simulator.Simulator{}, "wan2.7-image", func(_ *testing.T, s *stack) {
				s.sim.Script(fault)
				task := s.heldForLost(1)
				<-time.After(10 * time.Minute)
				s.requireKept(task)
			})
		})
	}
}

// quarantineBubble runs a test in simulated time with a lane of a model whose lost creates are held.
func quarantineBubble(t *testing.T, sim *simulator.Simulator, log slog.Handler, test func(*testing.T, *stack)) {
	t.Helper()
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, dir, sim)
		s.queueInterval, s.model, s.accounts = time.Minute, "wan2.7-image", map[string][]worker.Lane{"": {{Model: "wan2.7-image"}}}
		s.configure = func(cfg *worker.Config) { cfg.Logger = slog.New(log) }
		defer s.close()
		s.start()
		test(t, s)
	})
}

// A quarantined task is given up when its links have expired or it is too old to be found, not before.
// A restart does not begin a new day.
func TestQuarantineGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		after, links time.Duration
		fault        simulator.Fault
	}{
		"link":    {2 * time.Hour, 2 * time.Hour, simulator.Fault{Route: simulator.RouteResult, Status: http.StatusForbidden}},
		"UNKNOWN": {24 * time.Hour, 0, simulator.Fault{Route: simulator.RouteQuery, Body: unknownTask}},
	} {
		t.Run(name, func(t *testing.T) {
			quarantineBubble(t, &simulator.Simulator{ResultLifetime: c.links}, slog.DiscardHandler, func(t *testing.T, s *stack) {
				c.fault.Times = -1
				s.sim.Script(c.fault)
				s.heldForLost(1)
				<-time.After(c.after / 2)
				s.stop()
				s.start()
				<-time.After(c.after/2 - 30*time.Minute)
				assert.True(t, s.worker.Unfinished(t.Context()))
				<-time.After(time.Hour)
				assert.False(t, s.worker.Unfinished(t.Context()))
			})
		})
	}
}

// An image that cannot be stored does not delay the task's others, whose links expire too.
func TestQuarantineStoresTheOtherImages(t *testing.T) {
	quarantineBubble(t, &simulator.Simulator{}, slog.DiscardHandler, func(t *testing.T, s *stack) {
		s.sim.Script(simulator.Fault{
			Route: simulator.RouteResult, Status: http.StatusNotFound, Times: -1,
			Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "-1.png") },
		})
		task := s.heldForLost(2)
		<-time.After(10 * time.Minute)
		_, err := s.bucket.Head(t.Context(), s.bucket.HeldKey(task, task+"-2.png"))
		require.NoError(t, err)
		assert.True(t, s.worker.Unfinished(t.Context()))
	})
}

// A quarantined task that names fewer images than it was charged for is logged.
func TestQuarantinedAnswerThatLacksImages(t *testing.T) {
	var log logText
	quarantineBubble(t, &simulator.Simulator{}, slog.NewTextHandler(&log, nil), func(t *testing.T, s *stack) {
		s.sim.Script(simulator.Fault{
			Route: simulator.RouteQuery, Times: -1,
			Body: `{"output":{"task_status":"SUCCEEDED","finished":true,"choices":[]},"usage":{"image_count":2}}`,
		})
		task := s.heldForLost(2)
		<-time.After(10 * time.Minute)
		assert.False(t, s.worker.Unfinished(t.Context()))
		s.stop()
		assert.Regexp(t, `level=WARN msg="quarantine: answer lacks images" .*task_id=`+task+` images=0 missing=2`, log.text.String())
	})
}

// The images of a held job's candidates are quarantined, even if no lane for its model
// is configured any more.
func TestRule16CandidatesOfALaneThatIsNotConfigured(t *testing.T) {
	const flash = "wan2.2-t2i-flash"
	sim := &simulator.Simulator{TaskTime: simulator.Between(10*time.Minute, 10*time.Minute)}
	bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: flash}}}, func(t *testing.T, s *stack) {
		rec := s.heldForTwo(flash)
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		s.ended <- nil
		s.accounts = nil // only a lane for wanx-v1
		b := s.secondWorker()
		ended := make(chan error, 1)
		go func() { ended <- b.Run(t.Context()) }()
		<-time.After(time.Hour)
		for _, task := range rec.Candidates {
			s.requireKept(task)
		}
		b.Stop()
		require.NoError(t, <-ended)
	})
}

// Two workers replay the same job to an empty Redis, or a producer enqueues it
// meanwhile: the later write reads the record again.
func TestRule15TwoWorkersReplayOneJob(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetBefore})
		s.enqueueMany(1)
		s.state("job-1", jobs.StateSubmitting)
		<-time.After(time.Second)
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:job-1").Err())
		s.queue.Client().AddHook(&beforeWrite{state: "submitting", do: func() { s.enqueueMany(1) }})
		other, data := s.worker, s.data
		other.Stop()
		require.NoError(t, <-s.ended)
		require.NoError(t, data.Close())
		s.worker, s.data = s.newWorker("data")
		require.NoError(t, s.worker.Prepare(t.Context()))
		s.run()
		assert.Equal(t, jobs.StateSubmitting, s.get("job-1").State)
	})
}

// An operator's program crashes between the write that adopts a task and the message for
// a lane: the janitor finds the job.
func TestAdoptedWithoutAMessage(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		rec := s.heldForTwo(jobs.DefaultModel)
		<-time.After(time.Minute)
		adopted := *rec
		adopted.State, adopted.TaskID, adopted.Candidates, adopted.ResolvedAt = jobs.StateGenerating, rec.Candidates[1], nil, time.Now()
		require.NoError(t, jobs.NewStore(s.redis).Update(t.Context(), rec, &adopted))
		<-time.After(15 * time.Minute)
		assert.Equal(t, jobs.StateSucceeded, s.get("job-1").State)
	})
}

// A lost create made no task. Tasks that another program submits with the same key
// afterwards are not canceled. At most one counts as the late task.
func TestRule6TasksOfAnotherProgramAreNotCanceled(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(4*time.Minute, 4*time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetBefore})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		for range 4 {
			s.foreign("sk-test")
			<-time.After(time.Minute)
		}
		<-time.After(30 * time.Minute)
		canceled := 0
		for _, task := range sim.Tasks() {
			if task.Status == "CANCELED" {
				canceled++
			}
		}
		assert.LessOrEqual(t, canceled, 1)
	})
}

// The reservation of a held job is released when an operator decides, even days later.
func TestReservationOfAHeldJobIsReleased(t *testing.T) {
	t.Parallel()
	for name, decision := range map[string]jobs.Resolution{"give up": {GiveUp: true}, "buy again": {BuyAgain: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := memoryDir(t)
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, dir, &simulator.Simulator{})
				s.leasesEnd = true // a queue that outlives its worker
				defer s.close()
				s.start()
				s.sim.Script(simulator.Fault{Route: simulator.RouteQuery, Times: 6,
					Body: `{"request_id":"r","output":{"task_status":"SUCCEEDED","results":[]},"usage":{"image_count":1}}`})
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Batch: "b"})
				require.Equal(t, jobs.StateHeld, s.wait("job-1").State)
				s.stop()
				<-time.After(3 * 24 * time.Hour)
				s.start()
				_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", decision, jobs.Decider{})
				require.NoError(t, err)
				<-time.After(10 * time.Minute)
				all, err := ledger.New(s.redis).Spending(t.Context(), time.Time{}, time.Time{})
				require.NoError(t, err)
				for _, one := range all {
					assert.Zero(t, one.ReservedMicroYuan, one.Day)
				}
			})
		})
	}
}

// The list lags for longer than the submit limit, and the worker restarts meanwhile:
// "not created" is concluded only when the list shows a task that was created later.
func TestRule6WaitsForALaterTaskOverARestart(t *testing.T) {
	sim := &simulator.Simulator{ListLag: 7 * time.Minute}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		s.enqueueMany(2)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-2").State)
		s.stop()
		s.start()
		<-time.After(20 * time.Minute)
		assert.Equal(t, 1, s.tasksOf("prompt of job-1"))
	})
}

// A run with another data directory recognizes the tasks of an earlier run by their
// sidecars in the same bucket: a lost create of its own is adopted.
func TestRule5SidecarsOfAnotherRun(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(_ *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		s.stop()
		s.queue = queue.Open()
		s.redis = s.queue.Client()
		s.worker, s.data = s.newWorker("data-2")
		s.run()
		s.enqueue(jobs.Request{ID: "second", Prompt: "prompt of second"})
		s.requireMadeOnce("second")
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
	})
}
