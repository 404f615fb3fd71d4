package worker_test

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// A group has as many images as the model makes of it, at most n. It lacks none of the others, so
// that a retry buys nothing.
func TestGroupHasWhatTheModelMakes(t *testing.T) {
	sim := &simulator.Simulator{Outcome: outcomes(simulator.Outcome{Images: map[int]simulator.Failure{1: blocked, 3: blocked}})}
	withModel(t, sim, "wan2.7-image", func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 6, EnableSequential: new(true)})
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
		sidecar := s.requireStored("job-1", 4)
		require.Len(t, sidecar.Images, 4)
		assert.Empty(t, rec.Missing())
		assert.Empty(t, rec.Warnings)
		assert.EqualValues(t, 4*200_000, rec.CostMicroYuan)
		s.requireLedger()
		_, err := jobs.NewInspector(s.redis).Retry(t.Context(), "job-1", jobs.Decider{})
		require.ErrorIs(t, err, jobs.ErrFinished)
	})
}

// A succeeded task names fewer images than it charges for, at first or always. It is queried again;
// then what it names is stored, and the job warns of the others.
func TestAnswerThatLacksImages(t *testing.T) {
	for name, times := range map[string]int{"at first": 2, "always": -1} {
		t.Run(name, func(t *testing.T) {
			sim := &simulator.Simulator{}
			withModel(t, sim, "wan2.7-image", func(t *testing.T, s *stack) {
				var through atomic.Bool
				sim.Script(simulator.Fault{
					Route: simulator.RouteQuery, Times: -1, Status: http.StatusInternalServerError,
					Match: func(*http.Request) bool { return !through.Load() },
				})
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
				rec := s.state("job-1", jobs.StateGenerating)
				<-time.After(time.Minute)
				through.Store(true)
				task, err := s.client("sk-test").Query(t.Context(), rec.TaskID)
				require.NoError(t, err)
				sim.Script(simulator.Fault{
					Route: simulator.RouteQuery, Times: times,
					Body: fmt.Sprintf(`{"output":{"task_id":%q,"task_status":"SUCCEEDED","finished":true,"choices":[{"message":{"content":[{"image":%q}]}}]},"usage":{"image_count":2}}`, rec.TaskID, task.Output.Results[0].URL),
				})
				rec = s.wait("job-1")
				require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
				assert.EqualValues(t, 400_000, rec.CostMicroYuan)
				s.requireLedger()
				if times > 0 {
					s.requireStored("job-1", 2)
					assert.Empty(t, rec.Warnings)
					return
				}
				s.requireStored("job-1", 1)
				require.Len(t, rec.Warnings, 1)
				assert.Contains(t, rec.Warnings[0], "charged 2 images and names 1")
				assert.Equal(t, []int{2}, rec.Missing())
			})
		})
	}
}

// A create that is refused for a reason that may pass is tried three times.
func TestRefusalThatMayPassEndsTheJob(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Times: -1, Status: http.StatusBadRequest, Code: "InvalidURL.Timeout", Message: "download timed out"})
		s.enqueueMany(1)
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateFailed, rec.State)
		assert.Equal(t, "InvalidURL.Timeout", rec.Code)
		assert.Equal(t, 3, s.sim.Stats().Requests[simulator.RouteCreate])
		s.requireLedger()
	})
}

// While a task is UNKNOWN it is queried more and more rarely.
func TestUnknownTaskIsQueriedMoreRarely(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		s.sim.Script(simulator.Fault{Route: simulator.RouteQuery, Times: -1, Body: `{"request_id":"r","output":{"task_status":"UNKNOWN"}}`})
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		<-time.After(4 * time.Minute)
		assert.Less(t, s.sim.Stats().Requests[simulator.RouteQuery], 20)
	})
}

// After an operator had a job bought again, what exceeds its request is neither stored nor booked.
func TestRule10aAfterAPurchaseByAnOperator(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		s.sim.Script(simulator.Fault{Route: simulator.RouteQuery, Times: 6, Body: `{"request_id":"r","output":{"task_status":"SUCCEEDED","results":[]},"usage":{"image_count":1}}`})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateHeld, s.wait("job-1").State)
		s.queue.Client().AddHook(roundTrip(time.Millisecond)) // the decision is before the create
		_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", jobs.Resolution{BuyAgain: true}, jobs.Decider{})
		require.NoError(t, err)
		rec := s.state("job-1", jobs.StateGenerating)
		var through atomic.Bool
		s.sim.Script(simulator.Fault{
			Route: simulator.RouteQuery, Times: -1, Status: http.StatusInternalServerError, Match: func(*http.Request) bool { return !through.Load() },
		})
		<-time.After(time.Minute)
		through.Store(true)
		task, err := s.client("sk-test").Query(t.Context(), rec.TaskID)
		require.NoError(t, err)
		result := `{"url":"` + task.Output.Results[0].URL + `"}`
		s.sim.Script(simulator.Fault{Route: simulator.RouteQuery, Times: -1, Body: `{"request_id":"r","output":{"task_id":"` + rec.TaskID +
			`","task_status":"SUCCEEDED","results":[` + result + `,` + result + `]},"usage":{"image_count":4000}}`})
		rec = s.wait("job-1")
		require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
		assert.Len(t, rec.Images, 1)
		assert.EqualValues(t, simulator.MicroYuanPerImage, rec.CostMicroYuan)
	})
}
