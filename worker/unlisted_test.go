package worker_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// unlisted is a simulator whose list shows the tasks of text2image only.
func unlisted() *simulator.Simulator {
	return &simulator.Simulator{Unlisted: []dashscope.Protocol{dashscope.ProtocolImage2Image, dashscope.ProtocolImageGeneration}}
}

// withModel runs a test in simulated time with one lane, of a model.
func withModel(t *testing.T, sim *simulator.Simulator, model string, test func(*testing.T, *stack)) {
	t.Helper()
	bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: model}}}, func(t *testing.T, s *stack) {
		s.model = model
		test(t, s)
	})
}

// The task list does not show the tasks of the newer paths: a lost create is held, whether it
// made a task or not, and never bought again. Other jobs go on.
func TestLostCreateOfAnUnlistedModelIsHeld(t *testing.T) {
	for _, model := range []string{"wan2.7-image", "wan2.5-i2i-preview"} {
		for _, reset := range []simulator.Reset{simulator.ResetAfter, simulator.ResetBefore} {
			t.Run(fmt.Sprint(model, " ", reset), func(t *testing.T) {
				withModel(t, unlisted(), model, func(t *testing.T, s *stack) {
					s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
					s.requireMadeOnce("first")
					s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: reset})
					s.enqueueMany(2)
					s.requireMadeOnce("job-2")
					rec := s.wait("job-1")
					require.Equal(t, jobs.StateHeld, rec.State)
					assert.Equal(t, jobs.CodeSubmitAmbiguous, rec.Code)
					assert.Contains(t, rec.Message, "the account's task list has not shown a task of "+model)
					assert.Less(t, time.Since(rec.SubmittedAt), 10*time.Minute)
					<-time.After(10 * time.Minute)
					assert.Equal(t, jobs.StateHeld, s.get("job-1").State)
					made := map[simulator.Reset]int{simulator.ResetAfter: 1}[reset]
					assert.Equal(t, made, s.tasksOf("prompt of job-1"))
				})
			})
		}
	}
}

// A create is lost before the list has shown any task of the model: it is held although the list
// shows its task, which an operator can adopt. What is lost later is reconciled.
func TestFirstCreateOfANewModelIsHeld(t *testing.T) {
	withModel(t, &simulator.Simulator{}, "wan2.7-image", func(t *testing.T, s *stack) {
		s.sim.Script(
			simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter},
			simulator.Fault{Route: simulator.RouteQuery, Times: 2, Body: `{"output":{"task_status":"SUCCEEDED","finished":true,"choices":[]},"usage":{"image_count":1}}`}, // the image comes later
		)
		s.enqueueMany(1)
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		require.Len(t, rec.Candidates, 1)
		require.Equal(t, 1, s.tasksOf("prompt of job-1"))
		<-time.After(time.Minute)
		s.requireKept(rec.Candidates[0])

		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		require.Equal(t, int64(1), s.redis.Exists(t.Context(), "danqing:lane:default:wan2.7-image:listed").Val(), "the list has shown the task")
	})
}

// Once the list has shown a task of the model, a lost create is reconciled as any other: its task
// is adopted, or it is bought again.
func TestLostCreateOfAListedModel(t *testing.T) {
	for name, reset := range map[string]simulator.Reset{"made": simulator.ResetAfter, "not made": simulator.ResetBefore} {
		t.Run(name, func(t *testing.T) {
			withModel(t, &simulator.Simulator{}, "wan2.6-t2i", func(_ *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
				s.requireMadeOnce("first")
				s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: reset})
				s.enqueueMany(1)
				s.requireMadeOnce("job-1")
				s.requireLedger()
			})
		})
	}
}

// An answer of image-generation has no place for an image that failed: a task with fewer images than
// its create asked for is adopted all the same.
func TestPartialTaskOfAListedModelIsAdopted(t *testing.T) {
	sim := &simulator.Simulator{Outcome: outcomes(simulator.Outcome{}, simulator.Outcome{Images: map[int]simulator.Failure{1: blocked}})}
	withModel(t, sim, "wan2.7-image", func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
		assert.True(t, rec.Adopted)
		s.requireStored("job-1", 1)
		assert.Equal(t, []int{2}, rec.Missing())
		assert.Equal(t, 1, s.tasksOf("prompt of job-1"))
		s.requireLedger()
	})
}

// That the list shows the model's tasks is known over a restart, also if it has none now.
func TestListedModelIsRemembered(t *testing.T) {
	withModel(t, &simulator.Simulator{}, "wan2.6-t2i", func(t *testing.T, s *stack) {
		require.NoError(t, s.redis.Set(t.Context(), "danqing:lane:default:wan2.6-t2i:listed", "2000-01-01T00:00:00Z", 0).Err())
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetBefore})
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
	})
}

// A worker is killed after each write that follows a lost reply, and continues on the same Redis or
// on an empty one: an unlisted model's job is held each time, and bought once at most.
func TestKilledWhileTheListShowsNothing(t *testing.T) {
	t.Parallel()
	for reset, made := range map[simulator.Reset]int{simulator.ResetAfter: 1, simulator.ResetBefore: 0} {
		for _, sameRedis := range []bool{true, false}[:1+made] {
			t.Run(fmt.Sprintf("%v, same redis %t", reset, sameRedis), func(t *testing.T) {
				t.Parallel()
				for n, more := 1, true; more && !t.Failed() && n < 100; n += unlessRaced(1, 3) {
					dir := memoryDir(t)
					synctest.Test(t, func(t *testing.T) {
						s := newStack(t, dir, unlisted())
						s.model, s.accounts = "wan2.7-image", map[string][]worker.Lane{"": {{Model: "wan2.7-image"}}}
						s.shared = sameRedis
						defer s.close()
						s.start()
						s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
						s.requireMadeOnce("first")
						more = s.killedOnce(n, sameRedis, func() {
							s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: reset})
							s.enqueueMany(1)
							s.state("job-1", jobs.StateSubmitting)
							<-time.After(500 * time.Millisecond)
						})
						ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
						defer cancel()
						rec, err := jobs.NewClient(s.redis).Wait(ctx, "job-1")
						require.NoError(t, err, "killed after write %d", n)
						<-time.After(2 * time.Minute)
						require.Equal(t, jobs.StateHeld, rec.State, "killed after write %d", n)
						assert.Equal(t, made, s.tasksOf("prompt of job-1"), "killed after write %d", n)
					})
				}
			})
		}
	}
}

// Redis and the journal lose their data while a task of an unlisted model runs. Nothing shows that
// task, so that the waiting job may be the one that was paid for: the model is paused until an
// operator has looked.
func TestUnlistedModelIsPausedAfterDataLoss(t *testing.T) {
	withModel(t, unlisted(), "wan2.7-image", func(t *testing.T, s *stack) {
		s.share()
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.leave()
		s.loseFile("journal.jsonl", false)
		s.loseRedisData([]string{"job-1"})
		s.comeBack("data")
		<-time.After(5 * time.Minute)
		require.Equal(t, jobs.StateQueued, s.get("job-1").State)
		assert.Equal(t, 1, s.tasksOf("prompt of job-1"))
		pause, err := jobs.NewStore(s.redis).LanePause(t.Context(), "default", "wan2.7-image")
		require.NoError(t, err)
		require.NotNil(t, pause)
		assert.Contains(t, pause.Why, "waiting jobs may have been paid for")

		require.NoError(t, jobs.NewInspector(s.redis).ResumeModel(t.Context(), "wan2.7-image", jobs.Decider{By: "li"}))
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State, "an operator has decided")
	})
}
