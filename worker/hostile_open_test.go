package worker_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// An image of a held job is in the bucket already. Bought again, the job is held
// once more, every time: the new image 1 finds the old one under its key.
func TestHostileBuyAgainAfterAPartialStore(t *testing.T) {
	made := 0
	sim := &simulator.Simulator{Render: func(p simulator.Picture) []byte {
		if made++; made == 2 {
			return []byte("<html>no picture</html>")
		}
		return tinyPNG(p)
	}}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
		require.Equal(t, jobs.StateHeld, s.wait("job-1").State)
		<-time.After(time.Minute)
		_, err := s.worker.Jobs().Resolve(t.Context(), "job-1", jobs.Resolution{BuyAgain: true})
		require.NoError(t, err)
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
	})
}

// A worker leaves a task in a lane that the surviving worker does not have: nobody
// polls it, and its image dies after a day.
func TestHostileLaneOfADeadWorker(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Minute, 2*time.Minute)}
	flash := map[string][]worker.Lane{"": {{Model: "wan2.2-t2i-flash"}}}
	bubbleWith(t, sim, flash, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Model: "wan2.2-t2i-flash"})
		s.state("job-1", jobs.StateGenerating)
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		s.ended <- nil
		s.accounts = nil // a lane for wanx-v1 alone
		b := s.secondWorker()
		ended := make(chan error, 1)
		go func() { ended <- b.Run(t.Context()) }()
		<-time.After(time.Hour)
		rec, err := s.worker.Jobs().Get(t.Context(), "job-1")
		assert.NoError(t, err)
		assert.Equal(t, jobs.StateSucceeded, rec.State)
		b.Stop()
		require.NoError(t, <-ended)
	})
}

// A journal that says "ambiguous" comes back after the job was resolved and
// finished by others and has left Redis: it is held again, whatever its sidecar says.
func TestHostileJournalComesBackAfterAWeek(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		rec := s.wait("job-1")
		s.stop()
		old := *rec
		old.State, old.Images, old.FinishedAt, old.TaskID, old.Code = jobs.StateHeld, nil, time.Time{}, "", "SubmitAmbiguous"
		line, err := json.Marshal(map[string]any{"at": rec.SubmittedAt, "kind": "ambiguous", "job_id": "job-1", "attempt": 1, "term": 1, "record": old})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(s.dir, "data", "journal.jsonl"), append(line, '\n'), 0o600))
		s.start()
		<-time.After(time.Minute)
		if got, err := s.worker.Jobs().Get(t.Context(), "job-1"); err == nil {
			assert.Equal(t, jobs.StateSucceeded, got.State)
		}
	})
}

// Run from the archive, when the clock of the worker that failed the job is ahead:
// lastWord and ready disagree, and the slot spins for as long as the clocks differ.
func TestHostileRunFromTheArchiveWithSkew(t *testing.T) {
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
		require.NoError(t, asynq.NewInspectorFromRedisClient(s.redis).RunTask(laneQueue, "job-1"))
		<-time.After(10 * time.Second)
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		begin := time.Now()
		require.Equal(t, jobs.StateSucceeded, s.wait("job-2").State)
		assert.Less(t, time.Since(begin), 10*time.Minute)
	})
}
