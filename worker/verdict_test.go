package worker_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// answer is an error that Redis answers.
type answer string

func (a answer) Error() string { return string(a) }
func (answer) RedisError()     {}

const (
	errTooLarge = answer("ERR Protocol error: invalid bulk length")
	errNoPerm   = answer("NOPERM this user has no permissions to run the 'evalsha' command")
)

// refusedRecord makes Redis answer with an error each time when a job's record is written in
// some states.
type refusedRecord struct {
	job    string
	states []string
	with   answer
	off    atomic.Bool
	times  atomic.Int32
}

func (r *refusedRecord) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *refusedRecord) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if key, state := writtenRecord(cmd); key == rediskey.Record(r.job) && slices.Contains(r.states, state) && !r.off.Load() {
			r.times.Add(1)
			cmd.SetErr(r.with)
			return r.with
		}
		return next(ctx, cmd)
	}
}

func (r *refusedRecord) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// Redis refuses the intent of one job: the job is held, nothing was bought for it, and the lane
// goes on.
func TestRefusedIntentIsHeld(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		hook := &refusedRecord{job: "job-1", states: []string{"submitting"}, with: errTooLarge}
		s.queue.Client().AddHook(hook)
		s.enqueueMany(2)
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		assert.Equal(t, jobs.CodeRecordRefused, rec.Code)
		assert.Contains(t, rec.Message, "invalid bulk length")
		s.requireMadeOnce("job-2")
		<-time.After(10 * time.Minute)
		assert.EqualValues(t, 1, hook.times.Load(), "it is not tried again")
		assert.Zero(t, s.tasksOf("prompt of job-1"))
		s.requireLedger()
	})
}

// Redis refuses everything about a job that has a task: the journal holds it, over a restart
// too, its images are quarantined, its message is archived, and the lane goes on.
func TestRefusedTaskIsQuarantined(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.share()
		hook := &refusedRecord{job: "job-1", states: []string{"generating", "storing", "held", "queued"}, with: errTooLarge}
		s.enqueueMany(2)
		s.queue.Client().AddHook(hook)
		s.requireMadeOnce("job-2")
		<-time.After(10 * time.Minute)
		task := s.sim.Tasks()[0]
		require.Equal(t, "prompt of job-1", task.Request.Input.Prompt)
		s.requireKept(task.ID)
		info, err := asynq.NewInspectorFromRedisClient(s.redis).GetTaskInfo(laneQueue, "job-1")
		require.NoError(t, err)
		assert.Equal(t, asynq.TaskStateArchived, info.State)
		assert.Contains(t, info.LastErr, "RecordRefused: redis refuses what must be recorded of the job: ")

		s.leave()
		s.comeBack("data")
		s.enqueue(jobs.Request{ID: "job-3", Prompt: "prompt of job-3"})
		s.requireMadeOnce("job-3")
		<-time.After(time.Hour)
		assert.Equal(t, 1, s.tasksOf("prompt of job-1"))
		assert.Less(t, hook.times.Load(), int32(50))
	})
}

// Another program has written the key of a task, or of the ledger's day, after the create: the
// image is delivered all the same, and the lane goes on.
func TestWrongTypeAfterTheCreate(t *testing.T) {
	for name, key := range map[string]func(*stack) string{
		"task":   func(s *stack) string { return rediskey.Task(s.sim.Tasks()[0].ID) },
		"ledger": func(*stack) string { return rediskey.LedgerDay("default", ledger.Day(time.Now())) },
		"index":  func(*stack) string { return rediskey.Index("generating") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
				s.share()
				wrong := ""
				s.queue.Client().AddHook(&beforeWrite{state: "generating", do: func() {
					wrong = key(s)
					assert.NoError(t, s.redis.Del(t.Context(), wrong).Err())
					assert.NoError(t, s.redis.Set(t.Context(), wrong, "x", 0).Err())
				}})
				s.enqueueMany(1)
				for range 60 {
					if _, err := s.bucket.Sidecar(t.Context(), "job-1"); err == nil {
						break
					}
					<-time.After(time.Minute)
				}
				s.requireStored("job-1", 1)
				require.NoError(t, s.redis.Del(t.Context(), wrong).Err())
				s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
				s.requireMadeOnce("job-2")
				s.requireChargedOnce()
			})
		})
	}
}

// Another program has written a key that all jobs share: the lane pauses, names the key, buys
// nothing, and goes on once the key is removed.
func TestWrongTypeOfASharedKey(t *testing.T) {
	for name, key := range map[string]func() string{
		"index":  func() string { return rediskey.Index("submitting") },
		"ledger": func() string { return rediskey.LedgerDay("default", ledger.Day(time.Now())) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
				s.share()
				<-time.After(time.Minute)
				require.NoError(t, s.redis.Set(t.Context(), key(), "x", 0).Err())
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1"})
				<-time.After(2 * time.Minute)
				lanes, err := jobs.NewInspector(s.redis).Lanes(t.Context())
				require.NoError(t, err)
				require.Len(t, lanes, 1)
				assert.Equal(t, jobs.LanePaused, lanes[0].State)
				assert.Contains(t, lanes[0].Message, "WRONGTYPE")
				assert.Empty(t, s.sim.Tasks())
				require.NoError(t, s.redis.Del(t.Context(), key()).Err())
				s.requireMadeOnce("job-1")
			})
		})
	}
}

// The same with a key that only the intent's write uses: the intent is rolled back, and the
// job keeps its place.
func TestWrongTypeAtTheIntent(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.share()
		s.queue.Client().AddHook(&beforeWrite{state: "submitting", do: func() {
			assert.NoError(t, s.redis.Del(t.Context(), rediskey.Deadlines).Err())
			assert.NoError(t, s.redis.Set(t.Context(), rediskey.Deadlines, "x", 0).Err())
		}})
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Deadline: time.Now().Add(time.Hour)})
		<-time.After(2 * time.Minute)
		lanes, err := jobs.NewInspector(s.redis).Lanes(t.Context())
		require.NoError(t, err)
		require.Len(t, lanes, 1)
		assert.Equal(t, jobs.LanePaused, lanes[0].State)
		assert.Contains(t, lanes[0].Message, "the redis key danqing:deadlines is a string instead of a zset: another program has written it; rename or delete it")
		assert.Empty(t, s.sim.Tasks())
		require.NoError(t, s.redis.Del(t.Context(), rediskey.Deadlines).Err())
		s.requireMadeOnce("job-1")
		s.requireLedger()
	})
}

// An operator takes the right to write from Redis's user while a task runs, and gives it back:
// the job goes on, and is made once.
func TestDeniedWriteIsRepeated(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		hook := &refusedRecord{job: "job-1", states: []string{"generating", "held"}, with: errNoPerm}
		s.queue.Client().AddHook(hook)
		s.enqueueMany(1)
		<-time.After(10 * time.Minute)
		require.Greater(t, hook.times.Load(), int32(10))
		require.Equal(t, jobs.StateSubmitting, s.get("job-1").State)
		hook.off.Store(true)
		s.requireMadeOnce("job-1")
	})
}
