package worker_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynqmon"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// asynqmonOf is asynq's own web UI, as somebody may run it beside Danqing, on the stack's Redis.
func (s *stack) asynqmonOf() func(method, path string, body any) int {
	monitor := asynqmon.New(asynqmon.Options{RedisConnOpt: sharedRedis{s.redis}})
	return func(method, path string, body any) int {
		encoded, err := json.Marshal(body)
		require.NoError(s.t, err)
		r := httptest.NewRequestWithContext(s.t.Context(), method, "/api/queues/"+path, bytes.NewReader(encoded))
		w := httptest.NewRecorder()
		monitor.ServeHTTP(w, r)
		return w.Code
	}
}

type sharedRedis struct{ client redis.UniversalClient }

// MakeRedisClient implements asynq.RedisConnOpt.
func (r sharedRedis) MakeRedisClient() any { return r.client }

// everyState brings jobs into every state of theirs and of asynq's: one is held, one has failed,
// one has succeeded, one is generating, others wait, for a time, for a later attempt or for a
// slot.
func (s *stack) everyState(sim *simulator.Simulator) []string {
	s.t.Helper()
	enqueue := func(id string, at time.Duration) {
		req := jobs.Request{ID: id, Prompt: "prompt of " + id}
		if at > 0 {
			req.NotBefore = time.Now().Add(at)
		}
		s.enqueue(req)
	}
	sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
	enqueue("held", 0)
	require.Equal(s.t, jobs.StateHeld, s.wait("held").State)
	sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "DataInspectionFailed", Message: "no"})
	enqueue("failed", 0)
	require.Equal(s.t, jobs.StateFailed, s.wait("failed").State)
	enqueue("succeeded", 0)
	require.Equal(s.t, jobs.StateSucceeded, s.wait("succeeded").State)
	enqueue("retrying", 0)
	s.state("retrying", jobs.StateRetrying)
	enqueue("generating", 0)
	s.state("generating", jobs.StateGenerating)
	enqueue("queued", 0)
	enqueue("last", 0)
	enqueue("scheduled", 20*time.Minute)
	return []string{"held", "failed", "succeeded", "retrying", "generating", "queued", "last", "scheduled"}
}

// requireArchived checks that a job's message lies in asynq's archive, with the reason.
func (s *stack) requireArchived(id, reason string) {
	s.t.Helper()
	info, err := asynq.NewInspectorFromRedisClient(s.redis).GetTaskInfo(laneQueue, id)
	require.NoError(s.t, err)
	require.Equal(s.t, asynq.TaskStateArchived, info.State, id)
	require.Contains(s.t, info.LastErr, reason)
	require.False(s.t, info.LastFailedAt.IsZero())
}

// Asynq's own web UI shows a held and a failed job in the archive, and nothing that can be done
// there, with every job in every list, pays for anything twice, loses a job, or decides what only
// an operator's command may.
func TestAsynqmon(t *testing.T) {
	lists := []string{"active_tasks", "pending_tasks", "scheduled_tasks", "retry_tasks", "archived_tasks", "completed_tasks"}
	for name, c := range map[string]struct {
		method string
		// one, some and all are the suffixes of the action's routes.
		one, some, all string
		waiting        jobs.State // of the jobs that waited
	}{
		"run":     {http.MethodPost, ":run", ":batch_run", ":run_all", jobs.StateSucceeded},
		"archive": {http.MethodPost, ":archive", ":batch_archive", ":archive_all", jobs.StateCanceled},
		"delete":  {http.MethodDelete, "", ":batch_delete", ":delete_all", jobs.StateCanceled},
		"cancel":  {http.MethodPost, ":cancel", ":batch_cancel", ":cancel_all", jobs.StateSucceeded},
	} {
		sim := &simulator.Simulator{TaskTime: simulator.Between(3*time.Minute, 3*time.Minute)}
		sim.Outcome = failsOnce("prompt of retrying")
		t.Run(name, func(t *testing.T) {
			bubble(t, sim, func(t *testing.T, s *stack) {
				ids := s.everyState(sim)
				call := s.asynqmonOf()
				s.requireArchived("held", "held for a decision: SubmitAmbiguous: ")
				s.requireArchived("failed", "DataInspectionFailed: no")
				done := 0
				for _, act := range []func(path string) int{
					func(path string) int { return call(c.method, path+"/held"+c.one, nil) },
					func(path string) int { return call(c.method, path+"/queued"+c.one, nil) },
					func(path string) int { return call(c.method, path+"/generating"+c.one, nil) },
					func(path string) int { return call(http.MethodPost, path+c.some, map[string][]string{"task_ids": ids}) },
					func(path string) int { return call(c.method, path+c.all, nil) },
				} {
					for _, list := range lists {
						if act(laneQueue+"/"+list) < 300 {
							done++
						}
					}
					<-time.After(5 * time.Second) // the worker answers
				}
				require.NotZero(t, done)
				for _, id := range []string{"queued", "last", "scheduled"} {
					assert.Equal(t, c.waiting, s.wait(id).State, id)
				}
				<-time.After(15 * time.Minute) // of maintenance

				rec, err := jobs.NewStore(s.redis).Get(t.Context(), "held")
				require.NoError(t, err)
				assert.Equal(t, jobs.StateHeld, rec.State)
				assert.Equal(t, 1, s.tasksOf("prompt of held"))
				assert.Equal(t, jobs.StateFailed, s.wait("failed").State)
				assert.Zero(t, s.tasksOf("prompt of failed"))
				s.requireMadeOnce("succeeded")
				s.requireMadeOnce("generating")
				if name != "archive" { // its record has the request: if its message is deleted, it gets another one
					assert.Equal(t, jobs.StateSucceeded, s.wait("retrying").State)
				}
				if name != "delete" {
					s.requireArchived("held", "held for a decision: SubmitAmbiguous: ")
					s.requireArchived("failed", "DataInspectionFailed: no")
				}
				s.requireChargedOnce()

				// What an operator decides is done, wherever the message is.
				inspector := jobs.NewInspector(s.redis)
				_, err = inspector.Resolve(t.Context(), "held", jobs.Resolution{Adopt: rec.Candidates[0]}, jobs.Decider{})
				require.NoError(t, err)
				_, err = inspector.Retry(t.Context(), "failed", jobs.Decider{})
				require.NoError(t, err)
				s.requireMadeOnce("failed")
			})
		})
	}
}

// A paused lane makes nothing, and goes on; what is paid for is stored although its queue is
// paused. An empty queue that is deleted is shown again when it is used.
func TestAsynqmonPausesAndDeletesQueues(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		call := s.asynqmonOf()
		queues, err := asynq.NewInspectorFromRedisClient(s.redis).Queues()
		require.NoError(t, err)
		require.Empty(t, queues, "none was used")
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		queues, err = asynq.NewInspectorFromRedisClient(s.redis).Queues()
		require.NoError(t, err)
		require.ElementsMatch(t, []string{laneQueue, jobs.QueueStore}, queues)

		require.Equal(t, http.StatusNoContent, call(http.MethodPost, laneQueue+":pause", nil))
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		<-time.After(10 * time.Minute)
		assert.Zero(t, s.tasksOf("prompt of job-2"))
		require.Equal(t, http.StatusNoContent, call(http.MethodPost, jobs.QueueStore+":pause", nil))
		require.Equal(t, http.StatusNoContent, call(http.MethodPost, laneQueue+":resume", nil))
		s.requireMadeOnce("job-2")

		<-time.After(time.Minute)
		for _, queue := range []string{laneQueue, jobs.QueueStore} {
			require.Less(t, call(http.MethodDelete, queue+"/completed_tasks:delete_all", nil), 300)
			require.Equal(t, http.StatusNoContent, call(http.MethodDelete, queue, nil))
		}
		s.enqueue(jobs.Request{ID: "job-3", Prompt: "prompt of job-3"})
		s.requireMadeOnce("job-3")
		<-time.After(10 * time.Minute)
		queues, err = asynq.NewInspectorFromRedisClient(s.redis).Queues()
		require.NoError(t, err)
		assert.ElementsMatch(t, []string{laneQueue, jobs.QueueStore}, queues)
	})
}

// The message of a job that is tried again has its attempts and why the last one failed; one
// that was drawn by a lane which pauses has since when it waits.
func TestMessageShowsTheJob(t *testing.T) {
	sim := &simulator.Simulator{}
	sim.Outcome = failsOnce("prompt of job-1")
	bubble(t, sim, func(t *testing.T, s *stack) {
		inspector := asynq.NewInspectorFromRedisClient(s.redis)
		s.enqueueMany(1)
		failed := s.state("job-1", jobs.StateRetrying)
		<-time.After(time.Second)
		info, err := inspector.GetTaskInfo(laneQueue, "job-1")
		require.NoError(t, err)
		assert.Equal(t, asynq.TaskStateRetry, info.State)
		assert.Equal(t, 1, info.Retried)
		assert.Contains(t, info.LastErr, "InternalError.Timeout: again")
		assert.WithinDuration(t, failed.UpdatedAt, info.LastFailedAt, time.Second)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)

		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "Arrearage", Message: "no money"})
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		<-time.After(5 * time.Second)
		queue, err := inspector.GetQueueInfo(laneQueue)
		require.NoError(t, err)
		require.Equal(t, 1, queue.Pending)
		assert.Equal(t, 5*time.Second, queue.Latency.Round(time.Second))
		require.Equal(t, jobs.StateSucceeded, s.wait("job-2").State)
	})
}

// failsOnce is an Outcome of a simulator: the first task of a prompt fails.
func failsOnce(prompt string) func(dashscope.CreateRequest) simulator.Outcome {
	var failed atomic.Bool
	return func(r dashscope.CreateRequest) simulator.Outcome {
		if r.Input.Prompt == prompt && failed.CompareAndSwap(false, true) {
			return simulator.Outcome{Code: "InternalError.Timeout", Message: "again"}
		}
		return simulator.Outcome{}
	}
}
