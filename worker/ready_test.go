package worker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// A worker is ready if a lane may start jobs, or goes on by itself, or stands by for the lane of
// another worker.
func TestReady(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		r := s.monitored()
		fresh, data := s.newWorker("data-2")
		require.ErrorContains(t, fresh.Ready(), "the worker is starting")
		require.NoError(t, data.Close())
		<-time.After(time.Minute)
		require.NoError(t, s.worker.Ready())

		s.pause(true)
		s.enqueueMany(1)
		<-time.After(time.Minute)
		require.NoError(t, s.worker.Ready(), "paused by an operator")
		s.pause(false)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)

		s.sim.Revoke("sk-test")
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		<-time.After(time.Minute)
		err := s.worker.Ready()
		require.ErrorContains(t, err, "the lane for wanx-v1 of account default is paused: ")
		assert.NotContains(t, err.Error(), "sk-test")

		require.NoError(t, s.redis.Set(t.Context(), rediskey.Lane("default", "wanx-v1", "lease"), "another", 0).Err())
		<-time.After(time.Minute)
		require.NoError(t, s.worker.Ready(), "lane lost: it stands by")
		r.scrape(t)
		assert.Equal(t, "1", r.value("danqing_lane_leases_lost_total", `account="default",model="wanx-v1"`))
		assert.Equal(t, "1", r.value("danqing_lane_terms_total", `account="default",model="wanx-v1"`))
	})
}

// replicas answers WAIT with a number of replicas.
type replicas struct{ atomic.Int64 }

func (*replicas) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *replicas) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if wait, ok := cmd.(*redis.IntCmd); ok && cmd.Name() == "wait" {
			wait.SetVal(r.Load())
			return nil
		}
		return next(ctx, cmd)
	}
}

func (*replicas) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A worker that finds no replica with Sentinels does nothing, and everything that shows its lane says so:
// Redis has its lease.
func TestNotReadyWithoutAReplica(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		found := &replicas{}
		s.configure = func(cfg *worker.Config) {
			s.queue.Client().AddHook(found)
			cfg.Failover = true
		}
		s.stop()
		s.start()
		s.enqueueMany(1)
		<-time.After(time.Hour)
		const why = "no replica of Redis acknowledges the lease"
		require.ErrorContains(t, s.worker.Ready(), why)
		lanes, err := jobs.NewInspector(s.redis).Lanes(t.Context())
		require.NoError(t, err)
		require.Len(t, lanes, 1)
		assert.True(t, lanes[0].Held)
		assert.Equal(t, jobs.LanePaused, lanes[0].State)
		assert.Equal(t, jobs.PauseRedis, lanes[0].Reason)
		assert.Contains(t, lanes[0].Message, why)

		found.Store(1)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		require.NoError(t, s.worker.Ready())
	})
}
