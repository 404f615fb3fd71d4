package worker_test

import (
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/journal"
)

// heldBetweenRuns holds job-1, whose create made a task and lost its reply, and stops the worker.
// It returns the task.
func heldBetweenRuns(t *testing.T, s *stack) (task string) {
	t.Helper()
	s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
	s.requireMadeOnce("first")
	s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
	s.enqueueMany(1)
	s.state("job-1", jobs.StateSubmitting)
	<-time.After(time.Second)
	s.foreign("sk-test")
	require.Equal(t, jobs.StateHeld, s.wait("job-1").State)
	<-time.After(5 * time.Minute) // until the candidates are kept
	s.stop()
	for _, made := range s.sim.Tasks() {
		if made.Request.Input.Prompt == "prompt of job-1" {
			task = made.ID
		}
	}
	require.NotEmpty(t, task)
	return task
}

// resolveOffline decides between two runs.
func resolveOffline(t *testing.T, s *stack, id string, decision jobs.Resolution) (*jobs.Job, error) {
	t.Helper()
	data, err := journal.OpenDataDir(filepath.Join(s.dir, "data"))
	require.NoError(t, err)
	memory := queue.Open()
	s.openBucket() // as a new process does
	job, err := (&worker.Offline{DataDir: data, Bucket: s.bucket, Redis: memory.Client()}).Resolve(t.Context(), id, decision, jobs.Decider{By: "li", Why: "between two runs"})
	require.NoError(t, data.Close())
	require.NoError(t, memory.Close())
	return job, err
}

// requireDecided checks that the record and the sidecar keep who decided between two runs.
func requireDecided(t *testing.T, s *stack, rec *jobs.Record, action string) {
	t.Helper()
	require.NotEmpty(t, rec.Decisions)
	made := rec.Decisions[0]
	assert.Equal(t, jobs.Decision{Action: action, By: "li", Why: "between two runs", At: made.At}, made)
	side, err := s.bucket.Sidecar(t.Context(), rec.ID)
	require.NoError(t, err)
	require.NotEmpty(t, side.Decisions)
	assert.Equal(t, storage.SidecarDecision(made), side.Decisions[0])
}

// A task that is adopted between two runs is fetched by the next one, whatever it is asked for.
func TestOfflineAdopt(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		task := heldBetweenRuns(t, s)
		owned := ""
		for _, made := range s.sim.Tasks() {
			if made.Request.Input.Prompt == "prompt of first" {
				owned = made.ID
			}
		}
		_, err := resolveOffline(t, s, "job-1", jobs.Resolution{Adopt: owned})
		require.ErrorAs(t, err, new(*jobs.TaskOwnedError), "a finished job has that task")
		_, err = resolveOffline(t, s, "first", jobs.Resolution{GiveUp: true})
		require.ErrorIs(t, err, jobs.ErrInvalidState)
		_, err = resolveOffline(t, s, "nobody", jobs.Resolution{GiveUp: true})
		require.ErrorIs(t, err, jobs.ErrNotFound)

		job, err := resolveOffline(t, s, "job-1", jobs.Resolution{Adopt: task})
		require.NoError(t, err)
		assert.Equal(t, jobs.StateGenerating, job.State)
		s.prepare() // a run that is killed at once
		s.stop()
		s.start()
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateSucceeded, rec.State)
		assert.Equal(t, task, rec.TaskID)
		requireDecided(t, s, rec, jobs.ActionAdopt)
		assert.Equal(t, 1, s.tasksOf("prompt of job-1"))
	})
}

// A job that is given up between two runs has ended in the bucket at once: no run buys it again.
func TestOfflineGiveUp(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		heldBetweenRuns(t, s)
		s.away.Store(true)
		_, err := resolveOffline(t, s, "job-1", jobs.Resolution{GiveUp: true})
		require.Error(t, err)
		s.away.Store(false)
		job, err := resolveOffline(t, s, "job-1", jobs.Resolution{GiveUp: true})
		require.NoError(t, err)
		assert.Equal(t, jobs.StateFailed, job.State)
		s.start()
		s.enqueueMany(1)
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateFailed, rec.State)
		assert.Equal(t, jobs.CodeAbandoned, rec.Code)
		requireDecided(t, s, rec, jobs.ActionGiveUp)
		assert.Equal(t, 1, s.tasksOf("prompt of job-1"))
	})
}

// A job that is to be bought again stays held in runs that do not ask for it. The run that does
// buys it once, also if it is killed at any step, or the create is refused first.
func TestOfflineBuyAgain(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		heldBetweenRuns(t, s)
		_, err := resolveOffline(t, s, "job-1", jobs.Resolution{BuyAgain: true})
		require.NoError(t, err)
		asked := func() {
			t.Helper()
			rec := s.get("job-1")
			require.Equal(t, jobs.StateHeld, rec.State)
			require.False(t, rec.BuyAgainAt.IsZero())
			assert.Equal(t, "SubmitAmbiguous", rec.Code)
		}
		again := func() {
			t.Helper()
			s.enqueueMany(1)
			_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", jobs.Resolution{BuyAgain: true}, jobs.Decider{})
			require.NoError(t, err)
		}
		s.start()
		<-time.After(time.Hour)
		asked()
		s.stop()
		require.Equal(t, 1, s.tasksOf("prompt of job-1"), "nobody asked for it")

		s.prepare() // a run that is killed before it submits
		asked()
		again()
		s.stop()

		var refuses atomic.Bool
		refuses.Store(true)
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: 429, Code: "Throttling", Times: -1, Match: func(*http.Request) bool { return refuses.Load() }})
		s.start() // one whose creates are refused
		asked()
		again()
		<-time.After(10 * time.Minute)
		s.stop()
		refuses.Store(false)

		s.prepare()
		asked()
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		again()
		s.run() // one whose reply is lost
		s.state("job-1", jobs.StateSubmitting)
		<-time.After(2 * time.Second)
		s.stop()

		s.start()
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
		assert.True(t, rec.BuyAgainAt.IsZero())
		assert.Equal(t, 2, s.tasksOf("prompt of job-1"))
		s.stop()
		s.start()
		s.enqueueMany(1)
		s.wait("job-1")
		assert.Equal(t, 2, s.tasksOf("prompt of job-1"))
	})
}
