package worker_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// roundTrip delays each command to Redis.
type roundTrip time.Duration

func (d roundTrip) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d roundTrip) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		<-time.After(time.Duration(d))
		return next(ctx, cmd)
	}
}

func (d roundTrip) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		<-time.After(time.Duration(d))
		return next(ctx, cmds)
	}
}

// aheadTasks have tasks of 20 s.
func aheadTasks() *simulator.Simulator {
	return &simulator.Simulator{TaskTime: simulator.Between(20*time.Second, 20*time.Second)}
}

// untilFullMinutes has tasks that end at full minutes, half a minute after their create or later.
func untilFullMinutes() *simulator.Simulator {
	return &simulator.Simulator{TaskTime: func(*rand.Rand, dashscope.CreateRequest) time.Duration {
		return time.Until(time.Now().Add(30 * time.Second).Truncate(time.Minute).Add(time.Minute))
	}}
}

// tasksByTime returns the tasks in the order of their creates.
func tasksByTime(sim *simulator.Simulator) []simulator.Task {
	tasks := sim.Tasks()
	slices.SortFunc(tasks, func(a, b simulator.Task) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return tasks
}

// prepareOne makes a lane work on the job "running" while "job-1" is prepared.
func (s *stack) prepareOne() *jobs.Record {
	s.t.Helper()
	s.enqueue(jobs.Request{ID: "running", Prompt: "prompt of running"})
	s.state("running", jobs.StateGenerating)
	s.enqueueMany(1)
	rec := s.state("job-1", jobs.StatePrepared)
	<-time.After(100 * time.Millisecond)
	return rec
}

// requireNextAtOnce checks that a prepared job was made as soon as the running one had ended,
// and without a doubt.
func (s *stack) requireNextAtOnce() {
	s.t.Helper()
	begun := time.Now()
	for _, id := range []string{"running", "job-1"} {
		s.requireMadeOnce(id)
	}
	rec := s.get("job-1")
	assert.Equal(s.t, 1, rec.Attempt)
	assert.Empty(s.t, rec.PastAttempts)
	assert.Less(s.t, time.Since(begun), 2*time.Minute)
	s.requireLedger()
}

// While a task runs, everything is done for the next create that can be done before: of twenty
// or more round trips to Redis, three are between a task's end and the next create.
func TestNextCreateFollowsATaskAtOnce(t *testing.T) {
	const trip = 20 * time.Millisecond
	sim := aheadTasks()
	bubble(t, sim, func(t *testing.T, s *stack) {
		var mu sync.Mutex
		var query time.Time
		var gaps []time.Duration
		sim.Script(simulator.Fault{Times: -1, Match: func(r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case r.Method == http.MethodPost && !query.IsZero():
				gaps = append(gaps, time.Since(query))
			case strings.Contains(r.URL.Path, "/tasks/"):
				query = time.Now()
			}
			return false // it only looks
		}})
		s.queue.Client().AddHook(roundTrip(trip))
		for _, id := range s.enqueueMany(5) {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, gaps, 4)
		for _, gap := range gaps {
			assert.LessOrEqual(t, gap, 3*trip)
		}
		s.requireChargedOnce()
		s.requireLedger()
	})
}

// What belongs to a task that has ended is written when the next create has its outcome: it would
// delay that. A create whose reply takes long is not waited for.
func TestNextCreateGoesBeforeTheWritesOfTheLast(t *testing.T) {
	const trip = 2 * time.Millisecond
	for name, c := range map[string]struct {
		reply, look time.Duration
		state       jobs.State
	}{
		"quick reply": {reply: 40 * time.Millisecond, look: 25 * time.Millisecond, state: jobs.StateGenerating},
		"slow reply":  {reply: 20 * time.Second, look: 10 * time.Second, state: jobs.StateSucceeded},
	} {
		sim := aheadTasks()
		t.Run(name, func(t *testing.T) {
			bubble(t, sim, func(t *testing.T, s *stack) {
				s.queue.Client().AddHook(roundTrip(trip))
				s.prepareOne()
				seen := make(chan jobs.State, 1)
				sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: c.reply, Match: func(*http.Request) bool {
					time.AfterFunc(c.look, func() { seen <- s.get("running").State })
					return true
				}})
				assert.Equal(t, c.state, <-seen)
				s.requireNextAtOnce()
			})
		})
	}
}

// Two slots of a lane whose tasks end at once get their next tasks as soon as queries show that: a
// job is prepared for each, and two creates may follow each other.
func TestCreatesFollowTasksThatEndTogether(t *testing.T) {
	const trip, flash = 20 * time.Millisecond, "wan2.2-t2i-flash"
	sim := untilFullMinutes()
	bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: flash, Concurrency: 2}}}, func(t *testing.T, s *stack) {
		var mu sync.Mutex
		queried := map[string]time.Time{} // the last time
		sim.Script(simulator.Fault{Route: simulator.RouteQuery, Times: -1, Match: func(r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			queried[path.Base(r.URL.Path)] = time.Now()
			return false // it only looks
		}})
		s.queue.Client().AddHook(roundTrip(trip))
		const n = 12
		for i := range n {
			s.enqueue(jobs.Request{ID: fmt.Sprintf("job-%d", i), Model: flash, Prompt: fmt.Sprintf("prompt of job-%d", i)})
		}
		for i := range n {
			s.requireMadeOnce(fmt.Sprintf("job-%d", i))
		}
		tasks := tasksByTime(sim)
		require.Len(t, tasks, n)
		mu.Lock()
		defer mu.Unlock()
		noticed := slices.SortedFunc(maps.Values(queried), time.Time.Compare)
		for i := range n - 2 {
			assert.LessOrEqual(t, tasks[i+2].CreatedAt.Sub(noticed[i]), 10*trip)
		}
		assert.Zero(t, sim.Stats().Throttled)
		s.requireLedger()
	})
}

// What was prepared is taken back at once if a critical job comes, and costs nothing.
func TestCriticalJobGoesBeforeThePreparedOne(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		s.prepareOne()
		s.enqueue(jobs.Request{ID: "urgent", Priority: jobs.PriorityCritical, Prompt: "prompt of urgent"})
		s.state("urgent", jobs.StatePrepared)
		assert.Equal(t, jobs.StateQueued, s.get("job-1").State)
		s.requireMadeOnce("urgent")
		require.True(t, s.get("job-1").SubmittedAt.IsZero() || s.get("job-1").SubmittedAt.After(s.get("urgent").SubmittedAt))
		s.requireNextAtOnce()
	})
}

// A prepared job is canceled like any that waits: it ends at once, and costs nothing.
func TestCancelOfAPreparedJob(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		s.prepareOne()
		_, err := jobs.NewClient(s.redis).Cancel(t.Context(), "job-1", jobs.Decider{})
		require.NoError(t, err)
		assert.Equal(t, jobs.StateCanceled, s.get("job-1").State)
		s.requireMadeOnce("running")
		<-time.After(time.Minute)
		assert.Zero(t, s.tasksOf("prompt of job-1"))
		s.requireLedger()
	})
}

// The lane pauses, stops, or is stopped at once while a job is prepared: the job is queued
// again, and made later without a doubt about an earlier create.
func TestPreparedJobIsTakenBack(t *testing.T) {
	for name, end := range map[string]func(*stack){
		"paused": func(s *stack) {
			client := jobs.NewInspector(s.redis)
			require.NoError(s.t, client.PauseAccount(s.t.Context(), "default", jobs.Decider{Why: "test"}))
			s.state("job-1", jobs.StateQueued)
			s.requireMadeOnce("running")
			<-time.After(time.Minute)
			assert.Zero(s.t, s.tasksOf("prompt of job-1"))
			require.NoError(s.t, client.ResumeAccount(s.t.Context(), "default", jobs.Decider{}))
		},
		"model paused": func(s *stack) {
			client := jobs.NewInspector(s.redis)
			require.NoError(s.t, client.PauseModel(s.t.Context(), "wanx-v1", jobs.Decider{By: "li", Why: "test"}))
			s.state("job-1", jobs.StateQueued)
			s.requireMadeOnce("running")
			s.enqueue(jobs.Request{ID: "urgent", Prompt: "prompt of urgent", Priority: jobs.PriorityCritical})
			<-time.After(time.Minute)
			assert.Zero(s.t, s.tasksOf("prompt of job-1"))
			assert.Zero(s.t, s.tasksOf("prompt of urgent"))
			lanes, err := client.Lanes(s.t.Context())
			require.NoError(s.t, err)
			assert.Equal(s.t, "test", lanes[0].Pause.Why)
			require.NoError(s.t, client.ResumeModel(s.t.Context(), "wanx-v1", jobs.Decider{}))
			s.requireMadeOnce("urgent")
		},
		"stopped": func(s *stack) {
			s.worker.Stop()
			require.NoError(s.t, <-s.ended)
			assert.Equal(s.t, jobs.StateQueued, s.get("job-1").State)
			require.NoError(s.t, s.data.Close())
			s.worker, s.data = s.newWorker("data")
			s.run()
		},
		"message archived and run again": func(s *stack) {
			inspector := asynq.NewInspectorFromRedisClient(s.redis)
			require.NoError(s.t, inspector.ArchiveTask(laneQueue, "job-1"))
			s.state("job-1", jobs.StateQueued)
			s.requireMadeOnce("running")
			assert.Zero(s.t, s.tasksOf("prompt of job-1"))
			require.NoError(s.t, inspector.RunTask(laneQueue, "job-1"))
		},
		"queue paused": func(s *stack) {
			inspector := asynq.NewInspectorFromRedisClient(s.redis)
			require.NoError(s.t, inspector.PauseQueue(laneQueue))
			s.state("job-1", jobs.StateQueued)
			s.requireMadeOnce("running")
			assert.Zero(s.t, s.tasksOf("prompt of job-1"))
			require.NoError(s.t, inspector.UnpauseQueue(laneQueue))
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, aheadTasks(), func(_ *testing.T, s *stack) {
				s.share()
				s.prepareOne()
				end(s)
				s.requireNextAtOnce()
			})
		})
	}
}

// The worker is killed while a job is prepared. Whoever continues, nothing was sent: the job
// is made without a wait.
func TestKilledWhileAJobIsPrepared(t *testing.T) {
	for name, dir := range map[string]string{"same worker": "data", "another worker": "data-2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := memoryDir(t)
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, folder, aheadTasks())
				s.leasesEnd = true
				defer s.close()
				s.prepare()
				ctx, kill := context.WithCancel(context.Background())
				s.ended = make(chan error, 1)
				go func() { s.ended <- s.worker.Run(ctx) }()
				s.prepareOne()
				s.queue.Client().AddHook(&away{until: time.Now().Add(time.Second)}) // it writes nothing more
				kill()
				require.Error(t, <-s.ended)
				require.NoError(t, s.data.Close())
				<-time.After(2 * time.Second)
				assert.Equal(t, jobs.StatePrepared, s.get("job-1").State)
				s.worker, s.data = s.newWorker(dir)
				s.run()
				s.requireNextAtOnce()
			})
		})
	}
}

// away makes each command fail until a time.
type away struct{ until time.Time }

func (a *away) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a *away) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if time.Now().Before(a.until) {
			<-time.After(100 * time.Millisecond)
			cmd.SetErr(errAway)
			return errAway
		}
		return next(ctx, cmd)
	}
}

func (a *away) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if time.Now().Before(a.until) {
			<-time.After(100 * time.Millisecond)
			return errAway
		}
		return next(ctx, cmds)
	}
}

// Redis may have lost data since a job was prepared, and the worker that prepared it does not
// come back: the create may have been sent, and is reconciled.
func TestPreparedBeforeRedisLostData(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		s.share()
		rec := s.prepareOne()
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		require.NoError(t, s.data.Close())
		lost := *rec
		lost.Dataset = "another"
		current := s.get("job-1")
		require.NoError(t, jobs.NewStore(s.redis).Update(t.Context(), current, &lost))
		s.worker, s.data = s.newWorker("data-2")
		s.run()
		s.state("job-1", jobs.StateSubmitting)
		s.requireMadeOnce("job-1")
		assert.NotEmpty(t, s.get("job-1").PastAttempts)
	})
}

// A lane with a free slot takes over what another lane has prepared.
func TestPreparedJobIsTakenOver(t *testing.T) {
	sim := twoKeys()
	sim.TaskTime = simulator.Between(40*time.Second, 40*time.Second)
	bubbleWith(t, sim, map[string][]worker.Lane{"east": {{}}}, func(t *testing.T, s *stack) {
		s.share()
		s.prepareOne()
		s.accounts = map[string][]worker.Lane{"west": {{}}}
		w := s.secondWorker()
		ended := make(chan error, 1)
		go func() { ended <- w.Run(context.Background()) }()
		s.others = append(s.others, func() { w.Stop(); require.NoError(t, <-ended) })
		rec := s.state("job-1", jobs.StateGenerating)
		assert.Equal(t, "west", rec.Account)
		assert.Equal(t, jobs.StateGenerating, s.get("running").State)
		for _, id := range []string{"running", "job-1"} {
			s.requireMadeOnce(id)
		}
		s.requireLedger()
	})
}

// A job whose preparation had to wait for an ambiguous create is left to its message all the same
// while that is not drawn: it is not bought while its queue is paused.
func TestPreparedAfterAWaitIsStillInItsQueue(t *testing.T) {
	const flash = "wan2.2-t2i-flash"
	sim := &simulator.Simulator{TaskTime: simulator.Between(5*time.Minute, 5*time.Minute)}
	two := map[string][]worker.Lane{"": {{Model: flash, Concurrency: 2}}}
	bubbleWith(t, sim, two, func(t *testing.T, s *stack) {
		s.share()
		s.enqueue(jobs.Request{ID: "running", Prompt: "prompt of running", Model: flash})
		s.state("running", jobs.StateGenerating)
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		s.enqueue(jobs.Request{ID: "lost", Prompt: "prompt of lost", Model: flash})
		s.state("lost", jobs.StateSubmitting)
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Model: flash})
		s.state("job-1", jobs.StatePrepared)
		inspector := asynq.NewInspectorFromRedisClient(s.redis)
		require.NoError(t, inspector.PauseQueue(jobs.Queue(flash, jobs.PriorityDefault)))
		s.state("job-1", jobs.StateQueued)
		for range 15 {
			<-time.After(time.Minute)
			require.Equal(t, jobs.StateQueued, s.get("job-1").State)
		}
		require.NoError(t, inspector.UnpauseQueue(jobs.Queue(flash, jobs.PriorityDefault)))
		s.requireMadeOnce("job-1")
		s.requireLedger()
	})
}

// Redis has just lost data, and a lane that does not know yet finds a job prepared: it must not
// take the job back as if nothing had been sent.
func TestPreparedFoundRightAfterRedisLostData(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		s.share()
		rec := s.prepareOne()
		inspector := asynq.NewInspectorFromRedisClient(s.redis)
		require.NoError(t, inspector.PauseQueue(laneQueue))
		current := s.state("job-1", jobs.StateQueued)
		s.requireMadeOnce("running")
		require.NoError(t, jobs.NewStore(s.redis).Update(t.Context(), current, rec))
		require.NoError(t, s.redis.Set(t.Context(), rediskey.Dataset, "another", 0).Err())
		require.NoError(t, inspector.UnpauseQueue(laneQueue))
		s.state("job-1", jobs.StateSubmitting)
		s.requireMadeOnce("job-1")
		assert.NotEmpty(t, s.get("job-1").PastAttempts)
	})
}

// The lane's new holder has prepared the job anew, with the same reservation: the earlier one,
// which was suspended meanwhile, does not release it.
func TestReservationOfTheNewHolderIsKept(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		rec := s.prepareOne()
		reserved := func() (sum int64) {
			all, err := ledger.New(s.redis).Spending(t.Context(), time.Now(), time.Now())
			require.NoError(t, err)
			for _, one := range all {
				sum += one.ReservedMicroYuan
			}
			return sum
		}
		before := reserved()
		anew := *rec
		anew.Term += 1000
		require.NoError(t, jobs.NewStore(s.redis).Update(t.Context(), rec, &anew))
		<-time.After(5 * time.Second)
		assert.Equal(t, before, reserved())
		assert.Equal(t, jobs.StatePrepared, s.get("job-1").State)
		s.requireNextAtOnce()
	})
}

// Critical jobs go first, but others are not left to the end.
func TestOthersAreMadeBetweenCriticalJobs(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		var critical []string
		for i := range 40 {
			id := fmt.Sprintf("critical-%d", i)
			s.enqueue(jobs.Request{ID: id, Priority: jobs.PriorityCritical, Prompt: "prompt of " + id})
			critical = append(critical, id)
		}
		s.enqueueMany(5)
		for _, id := range critical {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		assert.NotZero(t, s.tasksOf("prompt of job-1"))
		for i := range 5 {
			s.requireMadeOnce(fmt.Sprintf("job-%d", i+1))
		}
	})
}
