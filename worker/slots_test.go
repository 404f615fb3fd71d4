package worker_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// unqueryable makes queries of some tasks fail.
type unqueryable struct{ tasks sync.Map }

func (u *unqueryable) script(sim *simulator.Simulator) {
	sim.Script(simulator.Fault{Route: simulator.RouteQuery, Times: -1, Status: http.StatusInternalServerError, Match: func(r *http.Request) bool {
		_, bad := u.tasks.Load(path.Base(r.URL.Path))
		return bad
	}})
}

// A task that has ended cannot be queried, and a job's batch has no money left: the lane's other jobs
// go on.
func TestJobWithoutBudgetDoesNotStopItsLane(t *testing.T) {
	const model = "wan2.6-t2i"
	sim := aheadTasks()
	bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: model, Concurrency: 5}}}, func(t *testing.T, s *stack) {
		s.model = model
		require.NoError(t, ledger.New(s.redis).SetBatchBudget(t.Context(), "poor", 1))
		var bad unqueryable
		bad.script(sim)
		s.enqueueMany(5)
		rec := s.state("job-1", jobs.StateGenerating)
		time.AfterFunc(19*time.Second, func() { bad.tasks.Store(rec.TaskID, true) })
		s.state("job-5", jobs.StateGenerating)
		s.enqueue(jobs.Request{ID: "poor", Prompt: "prompt of poor", Batch: "poor"})
		<-time.After(2 * time.Minute)
		s.enqueue(jobs.Request{ID: "rich", Prompt: "prompt of rich"})
		require.Equal(t, jobs.StateSucceeded, s.wait("rich").State)
		assert.Equal(t, jobs.StateGenerating, s.get("job-1").State)
		assert.Equal(t, jobs.CodeBudgetExceeded, s.get("poor").Code)
	})
}

// The task list shows that a task has ended, which cannot be queried then: its slot is free, and the
// next job starts.
func TestSlotIsFreeWhileAnEndedTaskIsNotBooked(t *testing.T) {
	const other = "wan2.6-t2i"
	sim := &simulator.Simulator{TaskTime: func(_ *rand.Rand, r dashscope.CreateRequest) time.Duration {
		if r.Model == other {
			return 3 * time.Hour
		}
		return 20 * time.Second
	}}
	bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: "wanx-v1"}, {Model: other, Concurrency: 5}}}, func(t *testing.T, s *stack) {
		for i := range 5 { // so that the list is read
			id := fmt.Sprintf("long-%d", i)
			s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id, Model: other})
			s.state(id, jobs.StateGenerating)
		}
		var bad unqueryable
		bad.script(sim)
		s.enqueueMany(1)
		rec := s.state("job-1", jobs.StateGenerating)
		time.AfterFunc(19*time.Second, func() { bad.tasks.Store(rec.TaskID, true) })
		<-time.After(time.Minute)
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		begun := time.Now()
		s.state("job-2", jobs.StateGenerating)
		assert.Less(t, time.Since(begun), 5*time.Second)
		assert.Equal(t, jobs.StateGenerating, s.get("job-1").State)
	})
}

// A job that waits for another one's create is not sent once an operator has paused the account.
func TestPauseWhileACreateIsSlow(t *testing.T) {
	const model = "wan2.2-t2i-flash"
	sim := aheadTasks()
	bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: model, Concurrency: 2}}}, func(t *testing.T, s *stack) {
		s.model = model
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: 100 * time.Second})
		s.enqueueMany(2)
		<-time.After(10 * time.Second)
		require.NoError(t, jobs.NewInspector(s.redis).PauseAccount(t.Context(), "default", jobs.Decider{By: "li"}))
		<-time.After(5 * time.Minute)
		assert.Len(t, sim.Tasks(), 1)
	})
}

// A critical job that was prepared runs, or has ended, and its message may still wait in its queue, in
// about one of three rounds: the next job is prepared all the same.
func TestNextJobIsPreparedDuringACriticalOne(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		ids := s.enqueueMany(30)
		for i := range 12 {
			<-time.After(3 * time.Second)
			id := fmt.Sprintf("critical-%d", i)
			s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id, Priority: jobs.PriorityCritical})
			s.state(id, jobs.StateGenerating)
			<-time.After(10 * time.Second)
			prepared := 0
			for _, other := range ids {
				if s.get(other).State == jobs.StatePrepared {
					prepared++
				}
			}
			assert.Equal(t, 1, prepared)
			s.wait(id)
		}
	})
}

// A task of a job that was prepared, and whose message nobody has drawn, has failed: the job is tried
// again half a minute later, as one whose message was drawn.
func TestFailedPreparedJobWaitsForItsRetry(t *testing.T) {
	sim := aheadTasks()
	var failed sync.Map
	sim.Outcome = func(r dashscope.CreateRequest) simulator.Outcome {
		if _, again := failed.LoadOrStore(r.Input.Prompt, true); again || !strings.Contains(r.Input.Prompt, "critical") {
			return simulator.Outcome{}
		}
		return simulator.Outcome{Code: "InternalError.Timeout", Message: "again"}
	}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(40)
		s.state("job-1", jobs.StateGenerating)
		for i := range 12 {
			<-time.After(3 * time.Second)
			id := fmt.Sprintf("critical-%d", i)
			s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id, Priority: jobs.PriorityCritical})
			rec := s.wait(id)
			require.Len(t, rec.PastAttempts, 1)
			wait := rec.SubmittedAt.Sub(rec.PastAttempts[0].EndedAt)
			assert.Greater(t, wait, 28*time.Second) // asynq counts whole seconds
			assert.Less(t, wait, time.Minute)
			<-time.After(12 * time.Second)
		}
	})
}
