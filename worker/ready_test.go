package worker_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
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
