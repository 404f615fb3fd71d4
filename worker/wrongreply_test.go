package worker_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/journal"
)

// A reply that names another job's task, as a broken proxy may send it, is not believed:
// the list tells which task the create made. The owner is known from the worker's own
// journal, or from Redis alone if another worker created the task.
func TestReplyNamesAnotherJobsTask(t *testing.T) {
	for _, known := range []string{"journal", "redis"} {
		t.Run(known, func(t *testing.T) {
			bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
				s.requireMadeOnce("first")
				task := s.sim.Tasks()[0].ID
				if known == "redis" {
					task = "task-of-another-worker"
					require.NoError(t, jobs.NewStore(s.redis).ClaimTask(t.Context(), task, "elsewhere"))
				}
				s.sim.Script(simulator.Fault{
					Route: simulator.RouteCreate, AfterWork: true,
					Body: `{"request_id":"r","output":{"task_id":"` + task + `","task_status":"PENDING"}}`,
				})
				s.enqueue(jobs.Request{ID: "second", Prompt: "prompt of second"})
				s.requireMadeOnce("second")
				require.Len(t, s.sim.Tasks(), 2)
				assert.Equal(t, s.sim.Tasks()[1].ID, s.get("second").TaskID)
				s.requireLedger()
			})
		})
	}
}

// The worker dies after such a reply is in its journal, before it knows the task's owner: the next
// run asks Redis.
func TestKilledAfterAReplyThatNamesAnotherJobsTask(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		ctx, kill := context.WithCancel(t.Context())
		s.leave()
		s.worker, s.data = s.newWorker("data")
		s.ended = make(chan error, 1)
		go func() { s.ended <- s.worker.Run(ctx) }()
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, AfterWork: true, Delay: time.Minute})
		s.enqueue(jobs.Request{ID: "second", Prompt: "prompt of second"})
		s.state("second", jobs.StateSubmitting)
		<-time.After(time.Second)
		text := s.journal("data")
		kill()
		require.ErrorIs(t, <-s.ended, context.Canceled)
		require.NoError(t, s.data.Close())
		s.rewriteJournal("data", text)

		const foreign = "task-of-another-worker"
		require.NoError(t, jobs.NewStore(s.redis).ClaimTask(t.Context(), foreign, "elsewhere"))
		data, err := journal.OpenDataDir(filepath.Join(s.dir, "data"))
		require.NoError(t, err)
		reply, _ := data.Journal.OpenJob("second")
		reply.Record.State, reply.Record.TaskID = jobs.StateGenerating, foreign
		require.NoError(t, data.Journal.Append(journal.KindTask, reply.Record))
		require.NoError(t, data.Close())
		s.comeBack("data")
		s.requireMadeOnce("second")
		assert.Equal(t, s.sim.Tasks()[1].ID, s.get("second").TaskID)
	})
}
