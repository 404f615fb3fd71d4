package worker_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

const flash = "wan2.2-t2i-flash"

func twoModels() map[string][]worker.Lane {
	return map[string][]worker.Lane{"": {{Model: "wanx-v1"}, {Model: flash}}}
}

// laneOf returns what the lane of a model reports.
func (s *stack) laneOf(model string) jobs.LaneStatus {
	s.t.Helper()
	lanes, err := jobs.NewInspector(s.redis).Lanes(s.t.Context())
	require.NoError(s.t, err)
	for _, lane := range lanes {
		if lane.Model == model {
			return lane
		}
	}
	require.Fail(s.t, "no lane of "+model)
	return jobs.LaneStatus{}
}

// A model is retired while its jobs wait: its lane pauses and says so, its jobs wait and cost
// nothing, and the account's other lane goes on. They are made if the service has the model again.
func TestRetiredModelStopsItsLaneOnly(t *testing.T) {
	sim := &simulator.Simulator{}
	bubbleWith(t, sim, twoModels(), func(t *testing.T, s *stack) {
		ids := s.enqueueModels(12)
		s.state("job-1", jobs.StateGenerating)
		sim.Retire(flash, time.Now())
		for i := 1; i < len(ids); i += 2 {
			s.requireMadeOnce(ids[i])
		}
		<-time.After(5 * time.Minute)
		assert.Equal(t, jobs.LaneOpen, s.laneOf("wanx-v1").State)
		lane := s.laneOf(flash)
		assert.Equal(t, []any{jobs.LanePaused, jobs.PauseModel}, []any{lane.State, lane.Reason})
		assert.Contains(t, lane.Message, "the service does not offer the model")
		assert.Contains(t, lane.Message, "Model not exist.")
		assert.Contains(t, lane.Message, "danqing models --check")
		waiting := 0
		for i := 0; i < len(ids); i += 2 {
			if rec := s.get(ids[i]); rec.State.Waiting() {
				waiting++
				assert.Zero(t, s.tasksOf("prompt of "+ids[i]))
			}
		}
		assert.GreaterOrEqual(t, waiting, 4)
		s.requireLedger()

		sim.Retire(flash, time.Now().Add(24*time.Hour))
		for _, id := range ids {
			s.requireMadeOnce(id)
		}
		s.requireChargedOnce()
	})
}

// A staged reference image cannot be uploaded for a retired model: its job waits too.
func TestRetiredModelRefusesReferences(t *testing.T) {
	sim := &simulator.Simulator{}
	withModel(t, sim, "wan2.7-image", func(t *testing.T, s *stack) {
		sim.Retire("wan2.7-image", time.Now())
		s.enqueue(jobs.Request{ID: "edit", Prompt: "prompt of edit", RefImages: []string{s.stage()}})
		<-time.After(5 * time.Minute)
		assert.Equal(t, jobs.StateQueued, s.get("edit").State)
		assert.Equal(t, jobs.PauseModel, s.laneOf("wan2.7-image").Reason)
	})
}

// 403 AccessDenied names no model: it is the account's, unless another model of the account works.
func TestAccessDeniedIsTheModelsWhileAnotherWorks(t *testing.T) {
	for name, also := range map[string]bool{"alone": false, "beside another": true} {
		t.Run(name, func(t *testing.T) {
			sim := &simulator.Simulator{}
			bubbleWith(t, sim, twoModels(), func(t *testing.T, s *stack) {
				if also {
					s.enqueue(jobs.Request{ID: "other", Prompt: "prompt of other"})
					s.made("other")
				}
				sim.Script(simulator.Fault{Route: simulator.RouteCreate, Times: -1, Match: createOf(flash), Status: http.StatusForbidden, Code: "access_denied", Message: "Access denied."})
				s.enqueue(jobs.Request{ID: "job", Prompt: "prompt of job", Model: flash})
				<-time.After(time.Minute)
				want := map[bool]jobs.PauseReason{false: jobs.PauseAccount, true: jobs.PauseModel}[also]
				assert.Equal(t, want, s.laneOf(flash).Reason)
				assert.Equal(t, jobs.StateQueued, s.get("job").State)
			})
		})
	}
}

// createOf matches the creates of a model.
func createOf(model string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		create, decodeErr := dashscope.DecodeCreate(dashscope.ProtocolText2Image, body)
		return err == nil && decodeErr == nil && create.Model == model
	}
}

// A task of a model that only another worker's catalog has is left to that worker, with a line in
// the log; nothing else is disturbed.
func TestTaskOfAnUnknownModelIsLogged(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		store := jobs.NewStore(s.redis)
		require.NoError(t, store.SetLane(t.Context(), jobs.LaneStatus{Account: "default", Model: "new-image", Concurrency: 1, State: jobs.LaneOpen}))
		rec := &jobs.Record{Job: jobs.Job{ID: "job-new", State: jobs.StateGenerating, Model: "new-image", Account: "default", TaskID: "task-new", Attempt: 1}}
		require.NoError(t, store.Update(t.Context(), nil, rec))
		require.NoError(t, s.redis.HSet(t.Context(), rediskey.Lane("default", "new-image", rediskey.LaneInFlight), rec.ID, "1").Err())
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		s.ended <- nil
		var log logText
		s.configure = func(cfg *worker.Config) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) }
		b := s.secondWorker()
		ended := make(chan error, 1)
		go func() { ended <- b.Run(t.Context()) }()
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1"})
		s.requireMadeOnce("job-1")
		b.Stop()
		require.NoError(t, <-ended)
		assert.Regexp(t, `msg="paid jobs of a model that is not in the catalog: set DANQING_MODEL_CATALOG .*" model=new-image`, log.text.String())
		assert.Equal(t, jobs.StateGenerating, s.get("job-new").State)
	})
}
