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
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// twoAccounts are two main accounts, each with lanes for two models.
func twoAccounts() map[string][]worker.Lane {
	models := []worker.Lane{{Model: "wanx-v1"}, {Model: "wan2.2-t2i-flash", Concurrency: 2}}
	return map[string][]worker.Lane{"east": models, "west": models}
}

func twoKeys() *simulator.Simulator {
	return &simulator.Simulator{
		TaskTime: simulator.Between(20*time.Second, 40*time.Second),
		Keys:     map[string]simulator.Key{"sk-testeast": {Account: "1"}, "sk-testwest": {Account: "2"}},
	}
}

// enqueueModels enqueues n jobs, of both models in turn.
func (s *stack) enqueueModels(n int) []string {
	s.t.Helper()
	var ids []string
	for i := 1; i <= n; i++ {
		id := fmt.Sprintf("job-%d", i)
		s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id, Model: []string{"wanx-v1", "wan2.2-t2i-flash"}[i%2]})
		ids = append(ids, id)
	}
	return ids
}

// usageOf returns for how long a lane's slots were busy, and idle while jobs waited.
func usageOf(lane jobs.LaneStatus) (busy, idle time.Duration) {
	for _, hour := range lane.Hours {
		busy += time.Duration(hour.BusySeconds * float64(time.Second))
		idle += time.Duration(hour.IdleSeconds * float64(time.Second))
	}
	return busy, idle
}

// Two accounts with two models each are four lanes, and all are busy. Their hours tell it as the
// simulator measures it.
func TestFourLanes(t *testing.T) {
	sim := twoKeys()
	bubbleWith(t, sim, twoAccounts(), func(t *testing.T, s *stack) {
		total := unlessRaced(160, 80)
		for _, id := range s.enqueueModels(total) {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		stats := sim.Stats()
		require.Len(t, stats.Lanes, 4)
		for _, lane := range stats.Lanes {
			t.Logf("%s %s: %d tasks, %.1f %% busy", lane.Account, lane.Model, lane.Tasks, 100*lane.Utilization)
			assert.Equal(t, map[string]int{"wanx-v1": 1, "wan2.2-t2i-flash": 2}[lane.Model], lane.MaxOpen)
			assert.GreaterOrEqual(t, lane.Utilization, 0.9)
		}
		assert.Zero(t, stats.Throttled)
		s.requireChargedOnce()
		assert.Len(t, sim.Tasks(), total)
		<-time.After(time.Minute)
		lanes, err := jobs.NewInspector(s.redis).Lanes(t.Context())
		require.NoError(t, err)
		for i, lane := range lanes { // both are in the order of account and model
			busy, idle := usageOf(lane)
			assert.InDelta(t, 1, busy.Seconds()/stats.Lanes[i].Busy.Seconds(), 0.05)
			assert.Less(t, idle, time.Minute, "while jobs waited")
			assert.Empty(t, lane.Running)
		}
	})
}

// One account's key is revoked: its lanes pause and publish the reason, their jobs
// continue when the key is valid again, and the other account finishes the rest.
func TestRule17RevokedKey(t *testing.T) {
	sim := twoKeys()
	bubbleWith(t, sim, twoAccounts(), func(t *testing.T, s *stack) {
		ids := s.enqueueModels(40)
		s.state("job-1", jobs.StateGenerating)
		sim.Revoke("sk-testwest")
		left := map[string]bool{}
		begin := time.Now()
		for len(ids)-len(left) > 0 && time.Since(begin) < time.Hour {
			<-time.After(time.Minute)
			clear(left)
			for _, id := range ids {
				rec, err := jobs.NewStore(s.redis).Get(t.Context(), id)
				require.NoError(t, err)
				if !rec.State.Final() {
					left[id] = true
					continue
				}
				require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
			}
			if len(left) <= 3 {
				break
			}
		}
		// It has one slot for one model and two slots for the other.
		assert.LessOrEqual(t, len(left), 3, "only what the revoked account was at is left")
		lanes, err := jobs.NewInspector(s.redis).Lanes(t.Context())
		require.NoError(t, err)
		refused := 0
		for _, lane := range lanes {
			// A lane that polls a task is open, and says that the query is refused.
			if lane.State == jobs.LanePaused || lane.Message != "" {
				refused++
				assert.Equal(t, "west", lane.Account)
				assert.Contains(t, lane.Message, "InvalidApiKey")
			}
		}
		assert.Positive(t, refused)

		// Later jobs do not wait for the paused account.
		for i := range 4 {
			id := fmt.Sprintf("later-%d", i)
			s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id})
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		sim.Restore("sk-testwest")
		for _, id := range ids {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		s.requireChargedOnce()
		assert.Len(t, sim.Tasks(), 44)
	})
}

// An account paused by an operator submits nothing until it is resumed; the other
// account continues.
func TestPausedAccount(t *testing.T) {
	sim := twoKeys()
	bubbleWith(t, sim, twoAccounts(), func(t *testing.T, s *stack) {
		client := jobs.NewInspector(s.redis)
		require.NoError(t, client.PauseAccount(t.Context(), "west", jobs.Decider{Why: "the invoice"}))
		for _, id := range s.enqueueModels(6) {
			rec := s.wait(id)
			require.Equal(t, jobs.StateSucceeded, rec.State)
			assert.Equal(t, "east", rec.Account)
		}
		require.NoError(t, client.PauseAccount(t.Context(), "east", jobs.Decider{}))
		s.enqueue(jobs.Request{ID: "late", Prompt: "late"})
		<-time.After(10 * time.Minute)
		assert.Zero(t, s.tasksOf("late"))
		paused := time.Duration(0)
		lanes, err := client.Lanes(t.Context())
		require.NoError(t, err)
		said := 0
		for _, lane := range lanes {
			if lane.State == jobs.LanePaused {
				said++
				assert.Contains(t, lane.Message, "paused by an operator")
				assert.Equal(t, jobs.PauseOperator, lane.Reason)
				if _, idle := usageOf(lane); lane.Account == "east" {
					paused += idle
				}
			}
		}
		assert.InDelta(t, 10*time.Minute, paused, float64(20*time.Second), "the slot was idle while the job waited")
		assert.NotZero(t, said)
		require.NoError(t, client.ResumeAccount(t.Context(), "west", jobs.Decider{}))
		rec := s.wait("late")
		assert.Equal(t, jobs.StateSucceeded, rec.State)
		assert.Equal(t, "west", rec.Account)
	})
}

// The same main account under two names is refused: its limits apply once.
func TestRule16SameMainAccountTwice(t *testing.T) {
	sim := &simulator.Simulator{Keys: map[string]simulator.Key{
		"sk-test": {Account: "1"}, "sk-testeast": {Account: "1"}, "sk-testwest": {Account: "1"},
	}}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.foreignTask()
		s.accounts = twoAccounts()
		w, data := s.newWorker("data-2")
		require.ErrorIs(t, w.Prepare(t.Context()), worker.ErrSameAccount)
		require.NoError(t, data.Close())
	})
}

// Two accounts turn out to be one only after the first has a task: then nothing more is
// bought on the second.
func TestSameMainAccountFoundLater(t *testing.T) {
	sim := &simulator.Simulator{Keys: map[string]simulator.Key{
		"sk-test": {Account: "1"}, "sk-testeast": {Account: "1"}, "sk-testwest": {Account: "1"},
	}}
	bubbleWith(t, sim, twoAccounts(), func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "first"})
		require.Equal(t, jobs.StateSucceeded, s.wait("first").State)
		<-time.After(10 * time.Minute)
		owner := ""
		for i := range 6 {
			id := fmt.Sprintf("job-%d", i)
			s.enqueue(jobs.Request{ID: id, Prompt: id})
			rec := s.wait(id)
			require.Equal(t, jobs.StateSucceeded, rec.State)
			if owner == "" {
				owner = rec.Account
			}
			assert.Equal(t, owner, rec.Account)
		}
	})
}

// One account's key is refused from the start: the other account works.
func TestOneRefusedKeyAtTheStart(t *testing.T) {
	sim := twoKeys()
	sim.Revoke("sk-testwest")
	bubbleWith(t, sim, twoAccounts(), func(t *testing.T, s *stack) {
		for _, id := range s.enqueueModels(6) {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		sim.Restore("sk-testwest")
		<-time.After(30 * time.Minute)
		for _, id := range s.enqueueModels(20) {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		assert.Len(t, sim.Stats().Lanes, 4, "its lanes have woken by themselves")
	})
}

// A lane keeps all its slots busy, and never exceeds them.
func TestSeveralTasksAtOnce(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(20*time.Second, 40*time.Second)}
	five := map[string][]worker.Lane{"": {{Model: "wan2.5-t2i-preview", Concurrency: 5}}}
	bubbleWith(t, sim, five, func(t *testing.T, s *stack) {
		sim.Script(
			simulator.Fault{Route: simulator.RouteCreate, Times: -1, Probability: 0.1, Status: http.StatusTooManyRequests, Code: "Throttling.RateQuota"},
			simulator.Fault{Route: simulator.RouteCreate, Times: -1, Probability: 0.02, Status: http.StatusBadRequest, Code: "Arrearage"},
		)
		total := unlessRaced(100, 40)
		var ids []string
		for i := range total {
			id := fmt.Sprintf("job-%d", i)
			s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id, Model: "wan2.5-t2i-preview"})
			ids = append(ids, id)
		}
		for _, id := range ids {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		lane := sim.Stats().Lanes[0]
		t.Logf("%.1f %% busy", 100*lane.Utilization)
		assert.Equal(t, 5, lane.MaxOpen)
		assert.Len(t, sim.Tasks(), total)
		s.requireChargedOnce()
	})
}

// A paused queue pauses the lane, and a resumed queue continues.
func TestPausedQueue(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		inspector := asynq.NewInspectorFromRedisClient(s.redis)
		s.enqueueMany(1)
		s.wait("job-1")
		require.NoError(t, inspector.PauseQueue(laneQueue))
		s.enqueueMany(2)
		<-time.After(10 * time.Minute)
		assert.Zero(t, s.tasksOf("prompt of job-2"))
		require.NoError(t, inspector.UnpauseQueue(laneQueue))
		s.requireMadeOnce("job-2")
	})
}

// The web UI's Cancel button during a task neither ends the task nor starts a second
// one.
func TestCancelButtonDuringATask(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Minute, time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueueMany(3)
		s.state("job-1", jobs.StateGenerating)
		for range 5 {
			<-time.After(7 * time.Second)
			require.NoError(t, s.redis.Publish(t.Context(), "asynq:cancel", "job-1").Err())
		}
		for i := 1; i <= 3; i++ {
			s.requireMadeOnce(fmt.Sprintf("job-%d", i))
		}
		assert.Equal(t, 1, sim.Stats().Lanes[0].MaxOpen)
	})
}

// Twenty slots of an account are busy within its limit of queries: one page of the task list shows
// all running tasks. With a query for each, they are busy 89 % of the time.
func TestAllSlotsOfAnAccount(t *testing.T) {
	var lanes []worker.Lane
	slots := 0
	for _, m := range jobs.Models() {
		lanes = append(lanes, worker.Lane{Model: m.Name, Concurrency: m.Concurrency})
		slots += m.Concurrency
	}
	sim := &simulator.Simulator{TaskTime: simulator.Between(4*time.Second, 12*time.Second)}
	bubbleWith(t, sim, map[string][]worker.Lane{"": lanes}, func(t *testing.T, s *stack) {
		var ids []string
		for i := range unlessRaced(20, 5) {
			for _, lane := range lanes {
				for k := range lane.Concurrency {
					id := fmt.Sprintf("%s-%d-%d", lane.Model, i, k)
					s.enqueue(jobs.Request{ID: id, Model: lane.Model, Prompt: "prompt of " + id})
					ids = append(ids, id)
				}
			}
		}
		for _, id := range ids {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		stats := sim.Stats()
		busy := 0.0
		for _, lane := range stats.Lanes {
			busy += lane.Utilization * float64(lane.MaxOpen) / float64(slots)
		}
		t.Logf("%d slots %.1f %% busy, %v requests", slots, 100*busy, stats.Requests)
		assert.Greater(t, busy, unlessRaced(0.93, 0.8))
		assert.Less(t, stats.Requests[simulator.RouteQuery], 2*len(ids))
		assert.Zero(t, stats.Throttled)
		s.requireChargedOnce()
	})
}

// A slot gets its next task as soon as the task list shows that the one before has succeeded, also if
// that one's query fails; but no more of them than the lane has slots, as nothing can be stored.
func TestSlotIsGivenOnByTheList(t *testing.T) {
	const preview = "wan2.5-t2i-preview"
	sim := untilFullMinutes()
	bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: preview, Concurrency: 5}}}, func(t *testing.T, s *stack) {
		begun := time.Now()
		sim.Script(simulator.Fault{Route: simulator.RouteQuery, Times: -1, Status: http.StatusInternalServerError, Match: func(*http.Request) bool {
			return time.Since(begun) >= time.Minute && time.Since(begun) < 5*time.Minute
		}})
		for i := range 15 {
			s.enqueue(jobs.Request{ID: fmt.Sprintf("job-%d", i), Model: preview, Prompt: fmt.Sprintf("prompt of job-%d", i)})
		}
		<-time.After(4 * time.Minute)
		tasks := tasksByTime(sim)
		require.Len(t, tasks, 10)
		assert.Less(t, tasks[9].CreatedAt.Sub(tasks[0].EndedAt), time.Second)
		for i := range 15 {
			s.requireMadeOnce(fmt.Sprintf("job-%d", i))
		}
		s.requireLedger()
	})
}
