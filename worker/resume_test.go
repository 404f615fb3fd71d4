package worker_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// A stop leaves the running task at DashScope; the next run, with an empty queue,
// finds it in the journal and finishes it before anything else.
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

// What an earlier run paid for is stored even if nobody asks for it again.
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

// A finished job asked for again is answered by its sidecar, without a task.
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

// An ID that the bucket knows with another request is refused, and the image
// that is there stays.
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

// A bucket that is away stops new submits and loses nothing, though the links of
// what was made meanwhile die: the spool delivers.
func TestBucketUnavailable(t *testing.T) {
	bubble(t, &simulator.Simulator{ResultLifetime: time.Hour}, func(t *testing.T, s *stack) {
		s.stop()
		s.queueInterval = 30 * time.Second
		s.start()
		s.enqueueMany(5)
		s.state("job-1", jobs.StateGenerating)
		s.away.Store(true)
		<-time.After(2 * time.Hour)
		assert.Len(t, s.sim.Tasks(), 1, "nothing is submitted while the bucket is away")
		s.away.Store(false)
		for _, id := range []string{"job-1", "job-2", "job-3", "job-4", "job-5"} {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
			s.requireStored(id, 1)
		}
		s.requireChargedOnce()
	})
}

// A link that is refused before its time is tried again, not given up.
func TestRefusedLinkIsTriedAgain(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteResult, Status: http.StatusForbidden, Times: 8})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.requireStored("job-1", 1)
	})
}

// Bytes that are no PNG are kept for a person; the job is held, not failed.
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

// A task that DashScope stops to know is held after a while, and the lane goes on.
func TestRule9UnknownTaskIsHeld(t *testing.T) {
	sim := &simulator.Simulator{Keys: map[string]simulator.Key{"sk-test": {Account: "one"}}}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(2)
		s.state("job-1", jobs.StateGenerating)
		s.stop()
		// The key now is another account's.
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

// Two workers on one Redis: one has the lane, the other stands by and takes it
// over when the first stops, within two seconds.
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

// A task that fails after a restart, when its message died with the queue, is
// tried again with the job's own request.
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

// What somebody else put into the queue is archived with a sentence, and costs
// nothing.
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

// The second signal cuts everything short but a create that is on its way: that
// gets two seconds, and what is not known by then is held.
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
