package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// A stop leaves the running task at DashScope; the next run, with an empty queue, finds
// it in the journal and finishes it first.
func TestStopLeavesTheTaskAndTheNextRunFinishesIt(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(3)
		s.state("job-1", jobs.StateGenerating)
		begin := time.Now()
		s.stop()
		assert.Less(t, time.Since(begin), 10*time.Second, "far less than the task takes")

		s.prepare()
		s.enqueueMany(3)
		s.run()
		for _, id := range []string{"job-1", "job-2", "job-3"} {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
			s.requireStored(id, 1)
		}
		assert.Len(t, s.sim.Tasks(), 3)
		assert.Equal(t, 1, s.sim.Stats().Lanes[0].MaxOpen)
	})
}

// A job that an earlier run paid for is stored even if no producer enqueues it again.
func TestJournaledJobIsFinishedWithoutARequest(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.stop()
		s.start()
		assert.True(t, s.worker.Unfinished(t.Context()))
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		assert.False(t, s.worker.Unfinished(t.Context()))
		s.requireStored("job-1", 1)
	})
}

// The clock of the worker that submitted was ahead by more than a day: the next one queries
// the task all the same, before the links to its images expire.
func TestTaskOfAClockThatWasAhead(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.leave()
		rec := s.get("job-1")
		rec.SubmittedAt = rec.SubmittedAt.Add(26 * time.Hour)
		encoded, err := json.Marshal(rec)
		require.NoError(t, err)
		require.NoError(t, s.redis.HSet(t.Context(), rediskey.Record("job-1"), "record", encoded).Err())
		s.comeBack("data")
		s.requireMadeOnce("job-1")
	})
}

// A finished job that is enqueued again gets its result from its sidecar, without a
// task.
func TestFinishedJobIsNotMadeAgain(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		first := s.wait("job-1")
		s.stop()
		s.start()
		s.enqueueMany(1)
		again := s.wait("job-1")
		assert.Equal(t, jobs.StateSucceeded, again.State)
		assert.Equal(t, first.Images, again.Images)
		assert.Equal(t, first.TaskID, again.TaskID)
		assert.Len(t, s.sim.Tasks(), 1)
	})
}

// An ID that belongs to another request in the bucket is refused, and the existing image
// stays.
func TestTakenIDIsNotOverwritten(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		first := s.wait("job-1")
		s.stop()
		s.start()
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "something else"})
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateFailed, rec.State)
		assert.Equal(t, "JobIDTaken", rec.Code)
		assert.Equal(t, first.Images[0].SHA256, s.requireStored("job-1", 1).Images[0].SHA256)
		assert.Len(t, s.sim.Tasks(), 1)
	})
}

var errAway = errors.New("the bucket is away")

// An unavailable bucket stops new submits and loses no image, although links expire
// meanwhile: the images are in the spool.
func TestBucketUnavailable(t *testing.T) {
	bubble(t, &simulator.Simulator{ResultLifetime: time.Hour}, func(t *testing.T, s *stack) {
		s.stop()
		s.queueInterval = 30 * time.Second
		s.start()
		s.enqueueMany(5)
		s.state("job-1", jobs.StateGenerating)
		s.away.Store(true)
		<-time.After(2 * time.Hour)
		assert.LessOrEqual(t, len(s.sim.Tasks()), 2, "the bucket is away: only what was prepared before is submitted")
		s.away.Store(false)
		for _, id := range []string{"job-1", "job-2", "job-3", "job-4", "job-5"} {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
			s.requireStored(id, 1)
		}
		s.requireChargedOnce()
	})
}

// A link that is refused before its expiry is tried again.
func TestRefusedLinkIsTriedAgain(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteResult, Status: http.StatusForbidden, Times: 8})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.requireStored("job-1", 1)
	})
}

// Content that is not PNG is quarantined for an operator; the job is held and does not
// fail.
func TestUnverifiedImageIsQuarantined(t *testing.T) {
	sim := &simulator.Simulator{Render: func(painter.Picture) []byte { return []byte("<html>no picture</html>") }}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateHeld, rec.State)
		body, _, err := s.bucket.Get(t.Context(), s.bucket.HeldKey(rec.TaskID, "job-1.1-1"))
		require.NoError(t, err)
		require.NoError(t, body.Close())
		s.stop()
		s.start()
		s.enqueueMany(1)
		assert.Equal(t, jobs.StateHeld, s.wait("job-1").State)
		assert.Len(t, sim.Tasks(), 1)
	})
}

// The job of a task that DashScope no longer finds is held after a while, and the lane
// continues.
func TestRule9UnknownTaskIsHeld(t *testing.T) {
	sim := &simulator.Simulator{Keys: map[string]simulator.Key{"sk-test": {Account: "one"}}}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(2)
		s.state("job-1", jobs.StateGenerating)
		s.stop()
		// The key now belongs to another account.
		other := &simulator.Simulator{Render: tinyPNG}
		require.NoError(t, s.sim.Close())
		s.sim = other
		s.prepare()
		s.enqueueMany(2)
		s.run()
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateHeld, rec.State)
		assert.Equal(t, "TaskUnknown", rec.Code)
		assert.Equal(t, jobs.StateSucceeded, s.wait("job-2").State)
		assert.Zero(t, s.tasksOf("prompt of job-1"))
	})
}

// Two workers use one Redis: one holds the lane, and the other takes it over within two
// seconds after the first stops.
func TestStandbyTakesOver(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(3)
		s.state("job-1", jobs.StateGenerating)
		standby := s.secondWorker()
		ended := make(chan error, 1)
		go func() { ended <- standby.Run(t.Context()) }()
		synctest.Wait()
		<-time.After(10 * time.Second)
		assert.Len(t, s.sim.Tasks(), 1, "the standby leaves the lane alone")

		s.worker.Stop()
		require.NoError(t, <-s.ended)
		s.ended <- nil // for stop
		begin := time.Now()
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.state("job-2", jobs.StateGenerating)
		assert.Less(t, time.Since(begin), 30*time.Second)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-3").State)
		assert.Len(t, s.sim.Tasks(), 3)
		assert.Equal(t, 1, s.sim.Stats().Lanes[0].MaxOpen)
		assert.Zero(t, s.sim.Stats().Throttled)
		standby.Stop()
		require.NoError(t, <-ended)
	})
}

// A task fails after a restart that has lost the job's message: the job is tried again
// with its own request.
func TestFailedTaskAfterARestartIsTriedAgain(t *testing.T) {
	for _, code := range []string{"InternalError", "Arrearage", "Throttling"} {
		t.Run(code, func(t *testing.T) {
			made := 0
			sim := &simulator.Simulator{Outcome: func(dashscope.CreateRequest) simulator.Outcome {
				if made++; made == 1 {
					return simulator.Outcome{Code: code, Message: "no image"}
				}
				return simulator.Outcome{}
			}}
			bubble(t, sim, func(t *testing.T, s *stack) {
				s.enqueueMany(1)
				s.state("job-1", jobs.StateGenerating)
				s.stop()
				s.start()
				require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
				assert.Equal(t, 2, s.tasksOf("prompt of job-1"))
				assert.Len(t, s.requireStored("job-1", 1).Attempts, 2)
			})
		})
	}
}

// An invalid message in a lane's queue is archived with a reason and costs nothing.
func TestForeignMessages(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		cat, _, err := jobs.Request{Prompt: "a cat"}.Normalize()
		require.NoError(t, err)
		digest := cat.Digest()
		for id, payload := range map[string]string{
			"garbage":       `{"job_id":`,
			"no-id":         `{"request":{"prompt":"a cat"}}`,
			"bad-id":        `{"job_id":"../x","digest":"` + digest + `","request":{"prompt":"a cat"}}`,
			"no-prompt":     `{"job_id":"a","digest":"` + digest + `","request":{}}`,
			"changed":       `{"job_id":"b","digest":"` + digest + `","request":{"prompt":"four cats","n":4}}`,
			"foreign-model": `{"job_id":"c","digest":"` + digest + `","request":{"prompt":"a cat","model":"dall-e"}}`,
		} {
			client := asynq.NewClientFromRedisClient(s.redis)
			_, err := client.EnqueueContext(t.Context(), asynq.NewTask(jobs.TypeGenerate, []byte(payload)), asynq.TaskID(id), asynq.Queue(jobs.Queue("wanx-v1", "default")))
			require.NoError(t, err)
		}
		s.enqueueMany(1)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		archived, err := asynq.NewInspectorFromRedisClient(s.redis).ListArchivedTasks(jobs.Queue("wanx-v1", "default"))
		require.NoError(t, err)
		assert.Len(t, archived, 6)
		for _, message := range archived {
			assert.Contains(t, message.LastErr, "payload")
		}
		assert.Len(t, s.sim.Tasks(), 1)
	})
}

// A second signal ends everything at once, except that a create in progress gets two
// more seconds; if it has no reply by then, the next run
// reconciles it.
func TestQuickStop(t *testing.T) {
	for name, c := range map[string]struct {
		delay time.Duration
		want  jobs.State
	}{
		"reply within two seconds": {time.Second, jobs.StateSucceeded},
		"no reply":                 {30 * time.Second, jobs.StateSucceeded},
	} {
		t.Run(name, func(t *testing.T) {
			sim := &simulator.Simulator{}
			bubble(t, sim, func(t *testing.T, s *stack) {
				s.stop()
				s.prepare()
				ctx, quick := context.WithCancel(t.Context())
				s.ended = make(chan error, 1)
				go func() { s.ended <- s.worker.Run(ctx) }()
				sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: c.delay, AfterWork: true})
				s.enqueueMany(2)
				s.state("job-1", jobs.StateSubmitting)
				begin := time.Now()
				quick()
				require.ErrorIs(t, <-s.ended, context.Canceled)
				assert.Less(t, time.Since(begin), 10*time.Second)
				s.ended <- nil
				s.stop()

				s.start()
				s.enqueueMany(2)
				assert.Equal(t, c.want, s.wait("job-1").State)
				assert.Equal(t, jobs.StateSucceeded, s.wait("job-2").State)
				assert.Equal(t, 1, s.tasksOf("prompt of job-1"))
			})
		})
	}
}
