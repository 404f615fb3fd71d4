package worker_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// cutOff starts a worker whose connection to Redis can be interrupted: to other workers
// it looks crashed or frozen.
func (s *stack) cutOff(dir string) (cut *outage) {
	s.t.Helper()
	own, ok := s.redis.(*redis.Client)
	require.True(s.t, ok)
	shared, redisOf := s.redis, redis.NewClient(own.Options())
	s.redis = redisOf
	w, data := s.newWorker(dir)
	s.redis = shared
	cut = &outage{}
	redisOf.AddHook(cut)
	ended := make(chan error, 1)
	ctx, quick := context.WithCancel(context.Background())
	go func() { ended <- w.Run(ctx) }()
	s.others = append(s.others, func() {
		cut.on.Store(false)
		quick()
		if err := <-ended; err != nil {
			require.ErrorIs(s.t, err, context.Canceled)
		}
		require.NoError(s.t, data.Close())
		require.NoError(s.t, redisOf.Close())
	})
	return cut
}

// onlyCutOff is cutOff for the only worker, on a queue whose leases expire.
func (s *stack) onlyCutOff(dir string) *outage {
	s.t.Helper()
	s.stop()
	s.leasesEnd = true
	s.start()
	s.worker.Stop()
	require.NoError(s.t, <-s.ended)
	s.ended <- nil
	return s.cutOff(dir)
}

// The lane's holder crashes: the standby takes over within 20 seconds, resumes the jobs
// in flight first and does not wait for messages that the holder had drawn. When the old
// holder returns after a minute, it submits nothing before it notices the lost lease.
func TestStandbyTakesOverAfterACrash(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(30*time.Second, 30*time.Second)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.queueInterval = time.Second // of the standby, too
		cut := s.onlyCutOff("data-2")
		s.enqueueMany(6)
		s.state("job-1", jobs.StateGenerating)
		s.cutOff("data-3")
		<-time.After(5 * time.Second)
		cut.on.Store(true)
		died := time.Now()
		// The task runs for 25 s more; the standby must poll it by then.
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.state("job-2", jobs.StateGenerating)
		assert.Less(t, time.Since(died), 30*time.Second)
		<-time.After(time.Minute)
		cut.on.Store(false)
		for _, id := range []string{"job-2", "job-3", "job-4", "job-5", "job-6"} {
			s.requireMadeOnce(id)
		}
		assert.Equal(t, 1, sim.Stats().Lanes[0].MaxOpen)
		assert.Zero(t, sim.Stats().Throttled)
	})
}

// A lane is idle for at most 20 seconds after its holder has crashed with a drawn job
// that has no task yet.
func TestDrawnJobAfterACrash(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Second, time.Second)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		cut := s.onlyCutOff("data-2")
		s.away.Store(true) // drawn, and not submitted
		s.enqueueMany(3)
		s.drawn("job-1")
		cut.on.Store(true)
		s.away.Store(false)
		died := time.Now()
		s.cutOff("data-3")
		s.made("job-1")
		first := sim.Tasks()[0].CreatedAt
		assert.Less(t, first.Sub(died), 20*time.Second)
		for _, id := range []string{"job-1", "job-2", "job-3"} {
			s.requireMadeOnce(id)
		}
	})
}

// drawn waits until a lane has marked the job as in flight.
func (s *stack) drawn(id string) {
	s.t.Helper()
	for range 1000 {
		if s.redis.HExists(s.t.Context(), rediskey.Lane("default", "wanx-v1", "in_flight"), id).Val() {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	require.Fail(s.t, "not drawn", id)
}

// The same holder, restarted after a crash, continues within 5 seconds: it need not wait
// for the expiry of its own lease.
func TestSameHolderResumesAtOnce(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Second, time.Second)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		cut := s.onlyCutOff("data-2")
		s.enqueueMany(20)
		s.state("job-1", jobs.StateGenerating)
		cut.on.Store(true)
		died := time.Now()
		// The same worker ID in another directory: the crashed worker has locked its own.
		first, _, _ := bytes.Cut(s.journal("data-2"), []byte("\n"))
		require.NoError(t, os.MkdirAll(filepath.Join(s.dir, "data-3"), 0o750))
		s.rewriteJournal("data-3", append(first, '\n'))
		s.cutOff("data-3")
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.made("job-2")
		assert.Less(t, sim.Tasks()[1].CreatedAt.Sub(died), 5*time.Second)
		for i := range 20 {
			s.requireMadeOnce("job-" + string("123456789"[i%9]))
		}
		assert.Equal(t, 1, sim.Stats().Lanes[0].MaxOpen)
	})
}

// After a graceful stop the standby submits within 2 seconds.
func TestHandOver(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(10*time.Second, 10*time.Second)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.queueInterval = 200 * time.Millisecond // the worker's own
		s.start()
		// No job is in flight, so that the next submit is visible.
		require.NoError(t, jobs.NewInspector(s.redis).PauseAccount(t.Context(), "default", jobs.Decider{}))
		s.enqueueMany(2)
		<-time.After(30 * time.Second)
		s.cutOff("data-2")
		<-time.After(10 * time.Second)
		require.Empty(t, sim.Tasks())
		require.NoError(t, jobs.NewInspector(s.redis).ResumeAccount(t.Context(), "default", jobs.Decider{}))
		s.worker.Stop()
		stopped := time.Now()
		require.NoError(t, <-s.ended)
		s.ended <- nil
		s.made("job-1")
		assert.Less(t, sim.Tasks()[0].CreatedAt.Sub(stopped), 2*time.Second)
		s.requireMadeOnce("job-2")
	})
}

// A stop does not wait for a bucket that does not respond.
func TestHandOverWhileTheBucketIsUnavailable(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.queueInterval = 200 * time.Millisecond // the worker's own
		s.start()
		s.away.Store(true)
		s.enqueueMany(1)
		s.drawn("job-1")
		<-time.After(100 * time.Millisecond) // the first of several tries has failed
		stopped := time.Now()
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		s.ended <- nil
		assert.Less(t, time.Since(stopped), 2*time.Second)
		s.away.Store(false)
		s.cutOff("data-2")
		s.requireMadeOnce("job-1")
	})
}

// A stop does not wait for a bucket that does not answer either when a job that costs
// nothing is ended: its deadline has passed.
func TestStopWhileTheEndOfAnOverdueJobHangs(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.queueInterval = 200 * time.Millisecond // the worker's own
		s.start()
		require.NoError(t, jobs.NewInspector(s.redis).PauseAccount(t.Context(), "default", jobs.Decider{}))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Deadline: time.Now().Add(30 * time.Second)})
		require.NoError(t, s.redis.Del(t.Context(), "danqing:deadlines").Err()) // so that the lane ends it
		<-time.After(40 * time.Second)
		s.hangs.Store(true)
		require.NoError(t, jobs.NewInspector(s.redis).ResumeAccount(t.Context(), "default", jobs.Decider{}))
		<-time.After(10 * time.Second)
		require.False(t, s.get("job-1").State.Final())
		stopped := time.Now()
		s.worker.Stop()
		require.NoError(t, <-s.ended)
		s.ended <- nil
		assert.Less(t, time.Since(stopped), 5*time.Second)
	})
}
