package worker_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// When a create reaches the service, the money is reserved, and the intent is in the
// record and in the journal.
func TestRule1BeforeTheCreate(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		seen := 0
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Times: -1, Match: func(*http.Request) bool {
			seen++
			rec := s.get("job-1")
			assert.Equal(t, jobs.StateSubmitting, rec.State)
			assert.Equal(t, 1, rec.Attempt)
			assert.NotZero(t, rec.ServiceAt)
			journal := string(s.journal("data"))
			assert.Contains(t, journal[strings.LastIndexByte(strings.TrimSpace(journal), '\n')+1:], `"kind":"intent"`)
			open, err := ledger.New(s.redis).OpenReservations(t.Context(), "default", time.Now())
			assert.NoError(t, err)
			if assert.Len(t, open, 1) {
				assert.Equal(t, "job-1", open[0].JobID)
				assert.Equal(t, int64(simulator.MicroYuanPerImage), open[0].MicroYuan)
			}
			return false
		}})
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		assert.Equal(t, 1, seen)
	})
}

// All lanes of an account together send at most half of the queries that the service
// allows.
func TestRule10QueryRate(t *testing.T) {
	var mu sync.Mutex
	var asked []time.Time
	note := func(*http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, time.Now())
		return false
	}
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Second, 3*time.Second)}
	models := []string{"wanx-v1", "wanx2.1-t2i-turbo", "wan2.2-t2i-flash"}
	lanes := make([]worker.Lane, len(models))
	for i, model := range models {
		lanes[i].Model = model
	}
	bubbleWith(t, sim, map[string][]worker.Lane{"": lanes}, func(t *testing.T, s *stack) {
		for _, route := range []simulator.Route{simulator.RouteQuery, simulator.RouteList, simulator.RouteCancel} {
			sim.Script(simulator.Fault{Route: route, Times: -1, Match: note})
		}
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Nth: 4, Times: 3, Reset: simulator.ResetAfter})
		for i := range 30 {
			id := "job-" + string(rune('a'+i%26)) + models[i%3]
			s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id, Model: models[i%3]})
		}
		for i := range 30 {
			id := "job-" + string(rune('a'+i%26)) + models[i%3]
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		assert.Zero(t, sim.Stats().Throttled)
		mu.Lock()
		defer mu.Unlock()
		most := 0
		for first, last := 0, 0; last < len(asked); last++ {
			for asked[last].Sub(asked[first]) >= time.Second {
				first++
			}
			most = max(most, last-first+1)
		}
		t.Logf("%d looks, at most %d within a second", len(asked), most)
		// Each lane's queries are evenly spaced; some seconds contain one more of each lane.
		assert.LessOrEqual(t, most, 10+len(models))
		assert.LessOrEqual(t, len(asked), 10*int(asked[len(asked)-1].Sub(asked[0])/time.Second)+len(models))
	})
}

// An account is removed from the configuration while its task runs, and added again
// later: the task is not changed meanwhile, and is finished then.
func TestRule16AccountIsRemoved(t *testing.T) {
	both := map[string][]worker.Lane{"east": {{}}, "west": {{}}}
	bubbleWith(t, twoKeys(), both, func(t *testing.T, s *stack) {
		s.enqueueMany(2)
		s.state("job-1", jobs.StateGenerating)
		left := s.state("job-2", jobs.StateGenerating).Account
		s.stop()

		s.accounts = map[string][]worker.Lane{"east": {{}}, "west": {{}}}
		delete(s.accounts, left)
		s.start()
		s.requireMadeOnce("job-1")
		<-time.After(10 * time.Minute)
		assert.Equal(t, jobs.StateGenerating, s.get("job-2").State)
		s.stop()

		s.accounts = both
		s.start()
		s.requireMadeOnce("job-2")
		assert.Len(t, s.sim.Tasks(), 2)
	})
}

// A cancellation races with the submit: without a task it costs nothing, else the task's
// images are kept.
func TestRule16CancelRacesTheSubmit(t *testing.T) {
	for name, fault := range map[string]simulator.Fault{
		"answered":         {Delay: 2 * time.Second, AfterWork: true},
		"lost, made":       {Delay: 2 * time.Second, Reset: simulator.ResetAfter},
		"lost, not made":   {Delay: 2 * time.Second, Reset: simulator.ResetBefore},
		"refused for now":  {Delay: 2 * time.Second, Status: http.StatusTooManyRequests, Code: "Throttling"},
		"refused for good": {Delay: 2 * time.Second, Status: http.StatusBadRequest, Code: "DataInspectionFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			sim := &simulator.Simulator{}
			bubble(t, sim, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
				s.requireMadeOnce("first")
				fault.Route = simulator.RouteCreate
				sim.Script(fault)
				s.enqueueMany(2)
				s.state("job-1", jobs.StateSubmitting)
				<-time.After(time.Second)
				_, err := jobs.NewClient(s.redis).Cancel(t.Context(), "job-1", jobs.Decider{})
				require.NoError(t, err)
				rec := s.wait("job-1")
				s.requireMadeOnce("job-2")
				switch s.tasksOf("prompt of job-1") {
				case 0:
					assert.Contains(t, []jobs.State{jobs.StateCanceled, jobs.StateFailed}, rec.State)
				case 1:
					require.Equal(t, jobs.StateSucceeded, rec.State)
					s.requireStored("job-1", 1)
				}
				s.requireChargedOnce()
				s.requireLedger()
			})
		})
	}
}
