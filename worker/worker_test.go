package worker_test

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

func TestOneJobBecomesAnImageAndASidecar(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "cat", Prompt: "有一只黑色的小猫", Style: "水彩", N: 2, Labels: map[string]string{"sku": "A-17"}})
		rec := s.wait("cat")
		require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
		sidecar := s.requireStored("cat", 2)
		assert.Equal(t, "single/cat-1.png", sidecar.Images[0].Key)
		assert.Equal(t, int64(2*simulator.MicroYuanPerImage), sidecar.CostMicroYuan)
		assert.Equal(t, map[string]string{"sku": "A-17"}, sidecar.Labels)
		task := s.sim.Tasks()[0]
		assert.Equal(t, "<watercolor>", task.Request.Parameters.Style)
		assert.Equal(t, 2, *task.Request.Parameters.N)
		assert.Equal(t, sidecar.Seed, *task.Request.Parameters.Seed)
		assert.Equal(t, task.ID, sidecar.Attempts[0].TaskID)
	})
}

// An idle worker submits a job as soon as it is queued, and copies its image as soon as it is
// made, whatever its polling interval.
func TestIdleWorkerStartsAtOnce(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		for _, id := range []string{"first", "second"} {
			<-time.After(10*time.Minute + time.Millisecond)
			s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id})
			rec := s.wait(id)
			assert.Equal(t, rec.EnqueuedAt, rec.SubmittedAt)
			assert.Equal(t, rec.GeneratedAt, rec.FinishedAt)
		}
	})
}

// The slot must be busy at least 95 % of the time while there is a backlog.
func TestSlotIsBusyWithABacklog(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Second, 12*time.Second)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		total := unlessRaced(200, 80)
		for _, id := range s.enqueueMany(total) {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		stats := sim.Stats()
		t.Logf("slot busy %.1f %%", 100*stats.Lanes[0].Utilization)
		assert.GreaterOrEqual(t, stats.Lanes[0].Utilization, 0.95)
		assert.Equal(t, 1, stats.Lanes[0].MaxOpen)
		assert.Zero(t, stats.Throttled)
		assert.Len(t, sim.Tasks(), total)
		s.requireChargedOnce()
	})
}

// One in a hundred replies of the service, on every route, is a throttle, an error, an
// HTML page, a reset before or after the work, a truncated body, or missing: each of a
// thousand jobs is delivered, and charged once.
func TestThousandJobsWithFaults(t *testing.T) {
	sim := &simulator.Simulator{Seed: 7, TaskTime: simulator.Between(10*time.Second, 40*time.Second), ListLag: 2 * time.Second}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.queueInterval = 30 * time.Second
		s.start()
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"}) // shows the key's api_key_id
		s.requireMadeOnce("first")
		const each = 0.01 / 8
		for _, fault := range []simulator.Fault{
			{Status: http.StatusTooManyRequests, Code: "Throttling"},
			{Status: http.StatusInternalServerError, Code: "InternalError"},
			{Status: http.StatusInternalServerError, Code: "InternalError", AfterWork: true},
			{Status: http.StatusBadGateway, Body: "<html>bad gateway</html>"},
			{Reset: simulator.ResetBefore},
			{Reset: simulator.ResetAfter},
			{Truncate: true},
			{Delay: time.Hour},
		} {
			fault.Times, fault.Probability = -1, each
			sim.Script(fault)
		}
		begin, total := time.Now(), unlessRaced(1000, 80)
		ids := s.enqueueMany(total)
		for _, id := range ids {
			rec := s.wait(id)
			require.Equal(t, jobs.StateSucceeded, rec.State, "%s: %s: %s", id, rec.Code, rec.Message)
		}
		for _, id := range ids {
			s.requireStored(id, 1)
		}
		lane := sim.Stats().Lanes[0]
		t.Logf("%d jobs in %s simulated, slot busy %.1f %%, %d faults", len(ids), time.Since(begin), 100*lane.Utilization, sim.Stats().Faults)
		assert.Len(t, sim.Tasks(), len(ids)+1)
		assert.Equal(t, 1, lane.MaxOpen)
		s.requireChargedOnce()
		s.requireLedger()
	})
}

// A create that certainly made no task is tried again, costs no attempt, and delays the
// jobs behind it without failing them.
func TestRule4CertainRefusalIsTriedAgain(t *testing.T) {
	for name, fault := range map[string]simulator.Fault{
		"429 with JSON":    {Status: http.StatusTooManyRequests, Code: "Throttling.RateQuota"},
		"503 no capacity":  {Status: http.StatusServiceUnavailable, Code: "ModelUnavailable"},
		"account in debt":  {Status: http.StatusBadRequest, Code: "Arrearage"},
		"key not accepted": {Status: http.StatusUnauthorized, Code: "InvalidApiKey"},
	} {
		t.Run(name, func(t *testing.T) {
			fault.Route, fault.Times = simulator.RouteCreate, 5
			sim := &simulator.Simulator{}
			bubble(t, sim, func(t *testing.T, s *stack) {
				sim.Script(fault)
				for _, id := range s.enqueueMany(3) {
					require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
					assert.Len(t, s.requireStored(id, 1).Attempts, 1)
				}
				assert.Len(t, sim.Tasks(), 3)
			})
		})
	}
}

// A permanent refusal fails this job alone, with a reason.
func TestTerminalRefusalFailsTheJob(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "DataInspectionFailed", Message: "Input data may contain inappropriate content."})
		s.enqueueMany(2)
		failed := s.wait("job-1")
		assert.Equal(t, jobs.StateFailed, failed.State)
		assert.Equal(t, "DataInspectionFailed", failed.Code)
		assert.Equal(t, jobs.StateSucceeded, s.wait("job-2").State)
		sidecar, err := s.bucket.Sidecar(t.Context(), "job-1")
		require.NoError(t, err)
		assert.Equal(t, "failed", sidecar.State)
		assert.Zero(t, sidecar.CostMicroYuan)
	})
}

// A failed task costs nothing and is tried three times; a moderated prompt is not tried
// again.
func TestFailedTasks(t *testing.T) {
	for _, c := range []struct {
		code         string
		tasks        int
		failsForEver bool
		want         jobs.State
	}{
		{"InternalError.Timeout", 3, true, jobs.StateFailed},
		{"InternalError", 2, false, jobs.StateSucceeded},
		{"DataInspectionFailed", 1, true, jobs.StateFailed},
	} {
		t.Run(c.code, func(t *testing.T) {
			made := 0
			sim := &simulator.Simulator{Outcome: func(dashscope.CreateRequest) simulator.Outcome {
				if made++; made > 1 && !c.failsForEver {
					return simulator.Outcome{}
				}
				return simulator.Outcome{Code: c.code, Message: "no image"}
			}}
			bubble(t, sim, func(t *testing.T, s *stack) {
				s.enqueueMany(1)
				assert.Equal(t, c.want, s.wait("job-1").State)
				assert.Len(t, sim.Tasks(), c.tasks)
				sidecar, err := s.bucket.Sidecar(t.Context(), "job-1")
				require.NoError(t, err)
				assert.Len(t, sidecar.Attempts, c.tasks)
			})
		})
	}
}

// One of four images fails: the job has succeeded, three images are charged, and the
// message says why the fourth is missing.
func TestPartialResult(t *testing.T) {
	sim := &simulator.Simulator{Outcome: func(dashscope.CreateRequest) simulator.Outcome {
		return simulator.Outcome{Images: map[int]simulator.Failure{1: {Code: "DataInspectionFailed", Message: "no"}}}
	}}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "four", Prompt: "p", N: 4})
		rec := s.wait("four")
		assert.Equal(t, jobs.StateSucceeded, rec.State)
		sidecar := s.requireStored("four", 3)
		assert.Equal(t, int64(3*simulator.MicroYuanPerImage), sidecar.CostMicroYuan)
		assert.Equal(t, "DataInspectionFailed", sidecar.Images[1].Code)
		assert.Equal(t, int64(3*simulator.MicroYuanPerImage), sim.Stats().ChargedMicroYuan)
	})
}

// A worker that is started again sends its first creates within 230 ms, where the service is 30 ms
// away, a connection takes 60 ms, Redis is 1 ms and the bucket 10 ms away, and nothing else takes
// time. Lanes that have no work let others go first.
func TestSecondStart(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(2*time.Second, 2*time.Second)}
	var lanes []worker.Lane
	for _, model := range jobs.Models() {
		lanes = append(lanes, worker.Lane{Model: model.Name})
	}
	bubbleWith(t, sim, map[string][]worker.Lane{"": lanes}, func(t *testing.T, s *stack) {
		s.shared = true
		created := make(chan time.Time, 3)
		sim.Script(simulator.Fault{Times: -1, Delay: 30 * time.Millisecond, Match: func(r *http.Request) bool {
			if r.Method == http.MethodPost {
				created <- time.Now()
			}
			return true
		}})
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		<-created
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		require.NoError(t, s.data.Close())
		next := []string{lanes[0].Model, lanes[len(lanes)-1].Model}
		for _, model := range next {
			s.enqueue(jobs.Request{ID: model, Prompt: "prompt of " + model, Model: model})
		}
		s.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			<-time.After(60 * time.Millisecond)
			return sim.DialContext(ctx, network, addr)
		}
		s.queue.Client().AddHook(roundTrip(time.Millisecond))
		s.bucketTrip = 10 * time.Millisecond
		s.openBucket()
		begun := time.Now()
		s.worker, s.data = s.newWorker("data")
		s.run()
		for _, model := range next {
			took := (<-created).Sub(begun)
			t.Log("create after", took)
			assert.LessOrEqual(t, took, 230*time.Millisecond)
			defer s.requireMadeOnce(model)
		}
	})
}
