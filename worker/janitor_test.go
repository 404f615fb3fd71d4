package worker_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

const laneQueue = "danqing:wanx-v1:default"

// busyLane gives the lane a long task, so that later jobs wait.
func (s *stack) busyLane() {
	s.t.Helper()
	s.enqueue(jobs.Request{ID: "long", Prompt: "a long one"})
	s.state("long", jobs.StateGenerating)
}

func longTasks() *simulator.Simulator {
	return &simulator.Simulator{TaskTime: simulator.Between(15*time.Minute, 15*time.Minute)}
}

// Deleting a job's message in asynq ends the job, which can be enqueued again.
func TestDeletedMessage(t *testing.T) {
	bubble(t, longTasks(), func(t *testing.T, s *stack) {
		s.busyLane()
		s.enqueueMany(1)
		require.NoError(t, asynq.NewInspectorFromRedisClient(s.redis).DeleteTask(laneQueue, "job-1"))
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateCanceled, rec.State)
		assert.Equal(t, jobs.CodeMessageLost, rec.Code)
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
	})
}

// Archiving a job's message in the web UI ends the job; run from the archive, it
// continues.
func TestArchivedMessage(t *testing.T) {
	bubble(t, longTasks(), func(t *testing.T, s *stack) {
		inspector := asynq.NewInspectorFromRedisClient(s.redis)
		s.busyLane()
		s.enqueueMany(1)
		require.NoError(t, inspector.ArchiveTask(laneQueue, "job-1"))
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateCanceled, rec.State)
		assert.Equal(t, "Archived", rec.Code)
		require.NoError(t, inspector.RunTask(laneQueue, "job-1"))
		s.made("job-1")
		s.requireMadeOnce("job-1")
	})
}

// A failed job is in the archive with a reason, and stays there if it is run: only an operator's
// command submits it again. Its sidecar records the success.
func TestFailedJobRunFromTheArchive(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		inspector := asynq.NewInspectorFromRedisClient(s.redis)
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "DataInspectionFailed", Message: "no"})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		<-time.After(time.Minute)
		info, err := inspector.GetTaskInfo(laneQueue, "job-1")
		require.NoError(t, err)
		require.Equal(t, asynq.TaskStateArchived, info.State)
		assert.Contains(t, info.LastErr, "DataInspectionFailed: no")
		require.NoError(t, inspector.RunTask(laneQueue, "job-1"))
		<-time.After(time.Hour)
		s.requireArchived("job-1", "DataInspectionFailed: no")
		require.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		_, err = jobs.NewInspector(s.redis).Retry(t.Context(), "job-1", jobs.Decider{})
		require.NoError(t, err)
		s.requireMadeOnce("job-1")
	})
}

// A failed job that is retried is bought, although its sidecar says that it has ended.
func TestRetriedJob(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "DataInspectionFailed"})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		<-time.After(time.Minute)
		_, err := jobs.NewInspector(s.redis).Retry(t.Context(), "job-1", jobs.Decider{})
		require.NoError(t, err)
		s.requireMadeOnce("job-1")
		assert.Len(t, s.requireStored("job-1", 1).Attempts, 2)
	})
}

// A job canceled while it waits costs nothing and gets its sidecar.
func TestCanceledJob(t *testing.T) {
	bubble(t, longTasks(), func(t *testing.T, s *stack) {
		s.busyLane()
		s.enqueueMany(1)
		_, err := jobs.NewClient(s.redis).Cancel(t.Context(), "job-1", jobs.Decider{})
		require.NoError(t, err)
		<-time.After(time.Minute)
		sidecar, err := s.bucket.Sidecar(t.Context(), "job-1")
		require.NoError(t, err)
		assert.Equal(t, "canceled", sidecar.State)
		assert.Contains(t, string(sidecar.Request), "prompt of job-1")
		assert.Zero(t, s.tasksOf("prompt of job-1"))
		s.enqueueMany(1)
		assert.Equal(t, jobs.StateCanceled, s.wait("job-1").State, "enqueued again, it stays canceled")
	})
}

// A cancellation cancels a pending task at DashScope; the images of a running task are
// kept.
func TestRule16CanceledTask(t *testing.T) {
	for name, c := range map[string]struct {
		foreign bool // another program's task occupies the account's only slot
		want    jobs.State
	}{
		"pending": {true, jobs.StateCanceled},
		"running": {false, jobs.StateSucceeded},
	} {
		t.Run(name, func(t *testing.T) {
			sim := longTasks()
			bubble(t, sim, func(t *testing.T, s *stack) {
				if c.foreign {
					s.foreignTask()
				}
				s.enqueueMany(1)
				s.state("job-1", jobs.StateGenerating)
				<-time.After(time.Minute)
				_, err := jobs.NewClient(s.redis).Cancel(t.Context(), "job-1", jobs.Decider{})
				require.NoError(t, err)
				assert.Equal(t, c.want, s.wait("job-1").State)
			})
		})
	}
}

// The archive of a queue stays below the size at which asynq's trimming fails.
func TestArchiveIsTrimmed(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		client, inspector := asynq.NewClientFromRedisClient(s.redis), asynq.NewInspectorFromRedisClient(s.redis)
		for i := range 1200 {
			id := fmt.Sprintf("garbage-%d", i)
			_, err := client.EnqueueContext(t.Context(), asynq.NewTask("other", nil), asynq.Queue(laneQueue), asynq.TaskID(id), asynq.ProcessIn(time.Hour))
			require.NoError(t, err)
			require.NoError(t, inspector.ArchiveTask(laneQueue, id))
		}
		<-time.After(6 * time.Minute)
		info, err := inspector.GetQueueInfo(laneQueue)
		require.NoError(t, err)
		assert.Equal(t, 1000, info.Archived)
		_, err = inspector.GetTaskInfo(laneQueue, "garbage-0")
		require.ErrorIs(t, err, asynq.ErrTaskNotFound, "the oldest go first")
	})
}
