package worker_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// The worker is killed after each of its writes about a prepared job: nothing is bought twice,
// and nothing is lost, on the same Redis and on an empty one, and with a job prepared for each of
// two slots.
func TestKilledWhilePreparing(t *testing.T) {
	t.Parallel()
	const flash = "wan2.2-t2i-flash"
	for name, c := range map[string]struct {
		sim       func() *simulator.Simulator
		lane      worker.Lane
		sameRedis bool
		step      int
		jobs      []string
	}{
		"same redis":  {aheadTasks, worker.Lane{}, true, 1, []string{"running", "job-1"}},
		"empty redis": {aheadTasks, worker.Lane{}, false, 1, []string{"running", "job-1"}},
		"two slots":   {untilFullMinutes, worker.Lane{Model: flash, Concurrency: 2}, true, 2, []string{"running", "running-2", "job-1", "job-2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n, more := 1, true; more && !t.Failed() && n < 100; n += c.step * unlessRaced(1, 3) {
				dir := memoryDir(t)
				synctest.Test(t, func(t *testing.T) {
					s := newStack(t, dir, c.sim())
					s.shared, s.accounts = c.sameRedis, map[string][]worker.Lane{"": {c.lane}}
					defer s.close()
					s.start()
					more = s.killedOnce(n, c.sameRedis, func() {
						for i, id := range c.jobs {
							s.enqueue(jobs.Request{ID: id, Model: c.lane.Model, Prompt: "prompt of " + id})
							if i == len(c.jobs)/2-1 {
								s.state(id, jobs.StateGenerating)
							}
						}
					})
					for _, id := range c.jobs[1:] {
						s.requireMadeOnce(id)
					}
					<-time.After(10 * time.Minute)
					s.requireStored("running", 1)
					s.requireChargedOnce()
					assert.Len(t, s.sim.Tasks(), len(c.jobs))
				})
			}
		})
	}
}

// A create of which the outcome is unknown delays what was prepared for another slot as well: the
// task that appears must be known to be its own.
func TestLostReplyWhileAnotherJobIsPrepared(t *testing.T) {
	const flash = "wan2.2-t2i-flash"
	sim := untilFullMinutes()
	bubbleWith(t, sim, map[string][]worker.Lane{"": {{Model: flash, Concurrency: 2}}}, func(t *testing.T, s *stack) {
		for i := range 4 {
			s.enqueue(jobs.Request{ID: fmt.Sprintf("job-%d", i), Model: flash, Prompt: fmt.Sprintf("prompt of job-%d", i)})
		}
		for i, state := range []jobs.State{jobs.StateGenerating, jobs.StateGenerating, jobs.StatePrepared, jobs.StatePrepared} {
			s.state(fmt.Sprintf("job-%d", i), state)
		}
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		for i := range 4 {
			s.requireMadeOnce(fmt.Sprintf("job-%d", i))
		}
		tasks := tasksByTime(sim)
		require.Len(t, tasks, 4)
		assert.GreaterOrEqual(t, tasks[3].CreatedAt.Sub(tasks[2].CreatedAt), 33*time.Second)
		s.requireLedger()
	})
}

// failover makes the write of a job's create fail once: Redis has another dataset by then.
type failover struct {
	away
	at   jobs.State // when job-1 is written in it
	once sync.Once
}

func (f *failover) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		args := cmd.Args()
		failed := false
		if slices.Contains(args, any(string(f.at))) && slices.Contains(args, any("job-1")) {
			f.once.Do(func() {
				failed = true
				<-time.After(3 * time.Second)
				_ = next(ctx, redis.NewStatusCmd(ctx, "set", rediskey.Dataset, "another"))
			})
		}
		if failed {
			cmd.SetErr(io.EOF)
			return io.EOF
		}
		return next(ctx, cmd)
	}
}

// Redis fails over while the create of a prepared job is written down: what it lost may be that
// another lane has taken the job over and bought it. The other workers replay first.
func TestRedisFailsOverBeforeAPreparedCreate(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		s.share()
		s.prepareOne()
		s.queue.Client().AddHook(&failover{at: jobs.StateSubmitting})
		s.requireMadeOnce("running")
		over := time.Now()
		s.requireMadeOnce("job-1")
		assert.Greater(t, s.get("job-1").SubmittedAt.Sub(over), time.Minute)
		s.requireLedger()
	})
}

// The same while a job is prepared in a slot.
func TestRedisFailsOverWhileAJobIsPrepared(t *testing.T) {
	bubble(t, aheadTasks(), func(t *testing.T, s *stack) {
		s.share()
		s.queue.Client().AddHook(&failover{at: jobs.StatePrepared})
		begun := time.Now()
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		assert.Greater(t, s.get("job-1").SubmittedAt.Sub(begun), time.Minute)
		s.requireLedger()
	})
}
