package worker_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// A batch's budget limits its reservations: a job beyond it is held and not bought, and
// continues when the budget is raised.
func TestRule1BatchBudget(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		client := jobs.NewInspector(s.redis)
		require.NoError(t, ledger.New(s.redis).SetBatchBudget(t.Context(), "shop", 3*simulator.MicroYuanPerImage))
		ids := []string{"a", "b", "c"}
		for _, id := range ids {
			s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id, N: 2, Batch: "shop"})
		}
		s.requireMade("a", 2)
		for _, id := range ids[1:] {
			rec := s.wait(id)
			require.Equal(t, jobs.StateHeld, rec.State)
			assert.Equal(t, "BudgetExceeded", rec.Code)
			assert.Contains(t, rec.Message, "0.48 yuan")
		}
		assert.Len(t, s.sim.Tasks(), 1)
		s.requireLedger()

		require.NoError(t, ledger.New(s.redis).SetBatchBudget(t.Context(), "shop", 6*simulator.MicroYuanPerImage))
		for _, id := range ids[1:] {
			_, err := client.Resolve(t.Context(), id, jobs.Resolution{BuyAgain: true}, jobs.Decider{})
			require.NoError(t, err)
			s.requireMade(id, 2)
		}
		s.requireLedger()
	})
}

// requireMade waits for the job and checks that one task has made a number of images.
func (s *stack) requireMade(id string, images int) {
	s.t.Helper()
	rec := s.wait(id)
	require.Equal(s.t, jobs.StateSucceeded, rec.State, rec.Message)
	s.requireStored(id, images)
	require.Equal(s.t, 1, s.tasksOf("prompt of "+id))
}

// A spent daily budget pauses the account's lane until the next day in China; the jobs
// keep their order.
func TestRule1DailyBudget(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.budget = 5 * simulator.MicroYuanPerImage
		<-time.After(15*time.Hour + 40*time.Minute) // it is 23:40 in China
		s.start()
		ids := s.enqueueMany(8)
		<-time.After(10 * time.Minute)
		lanes, err := jobs.NewInspector(s.redis).Lanes(t.Context())
		require.NoError(t, err)
		assert.Equal(t, jobs.LanePaused, lanes[0].State)
		assert.Equal(t, jobs.PauseBudget, lanes[0].Reason)
		assert.Equal(t, "2000-01-02T00:00:00+08:00", lanes[0].Until.In(ledger.Zone()).Format(time.RFC3339), "a new day's budget")
		for _, id := range ids {
			s.requireMadeOnce(id)
		}
		perDay := map[string]int{}
		for _, task := range sim.Tasks() {
			perDay[ledger.Day(task.CreatedAt)]++
		}
		assert.Len(t, perDay, 2)
		for day, n := range perDay {
			assert.LessOrEqual(t, n, 5, day)
		}
	})
}

// The spending of earlier runs counts, although each run begins with an empty queue.
func TestRule1DailyBudgetOverRuns(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.budget = 3 * simulator.MicroYuanPerImage
		s.start()
		day := ledger.Day(time.Now())
		for _, id := range s.enqueueMany(2) {
			s.requireMadeOnce(id)
		}
		s.stop()
		s.start()
		s.enqueueMany(5)
		s.requireMadeOnce("job-3")
		<-time.After(10 * time.Minute)
		require.Equal(t, day, ledger.Day(time.Now()), "the test runs within a day")
		assert.Len(t, sim.Tasks(), 3)
		s.requireLedger()
	})
}

// Failed, refused and canceled tasks release their reservations; contract prices are
// booked.
func TestReservationsOfFreeTasksAreReleased(t *testing.T) {
	failures := 0
	sim := &simulator.Simulator{Outcome: func(req dashscope.CreateRequest) simulator.Outcome {
		if req.Input.Prompt == "prompt of job-1" && failures < 2 {
			failures++
			return simulator.Outcome{Code: "InternalError", Message: "no image"}
		}
		return simulator.Outcome{}
	}}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.prices = map[string]int64{"wanx-v1": 123456}
		s.start()
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Nth: 4, Status: 400, Code: "DataInspectionFailed"})
		ids := s.enqueueMany(4)
		for _, id := range ids {
			s.wait(id)
		}
		spent, err := ledger.New(s.redis).Spending(t.Context(), time.Now().Add(-time.Hour), time.Now())
		require.NoError(t, err)
		require.Len(t, spent, 1)
		assert.Zero(t, spent[0].ReservedMicroYuan)
		assert.Equal(t, int64(sim.Stats().Images)*123456, spent[0].SpentMicroYuan)
		assert.Equal(t, sim.Stats().Images, spent[0].Images)
	})
}
