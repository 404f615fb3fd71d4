package worker_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// newModeStack returns a stack with a service of a mode.
func newModeStack(t *testing.T, mode jobs.Mode) *stack {
	t.Helper()
	s := newStack(t, memoryDir(t), &simulator.Simulator{})
	if mode == jobs.ModeReal {
		s.dial = disguise(t, s.sim, func(h http.Header) { h.Del(dashscope.HeaderSimulated) })
	}
	s.queue = queue.Open()
	s.redis = s.queue.Client()
	t.Cleanup(func() {
		require.NoError(t, s.queue.Close())
		require.NoError(t, s.sim.Close())
		require.NoError(t, s.files.Close())
	})
	return s
}

// prepared prepares a worker on the stack and closes it.
func (s *stack) prepared() (checked, prepared error) {
	s.t.Helper()
	w, data := s.newWorker("data")
	defer func() { require.NoError(s.t, data.Close()) }()
	return w.CheckMode(s.t.Context()), w.Prepare(s.t.Context())
}

// modes returns the modes of the stack's places.
func (s *stack) modes() []jobs.Mode {
	s.t.Helper()
	redis, err := jobs.NewStore(s.redis).Mode(s.t.Context())
	require.NoError(s.t, err)
	bucket, err := s.bucket.Mode(s.t.Context())
	require.NoError(s.t, err)
	_, data := s.newWorker("data")
	defer func() { require.NoError(s.t, data.Close()) }()
	return []jobs.Mode{redis, jobs.Mode(bucket), data.Mode()}
}

// Redis, the bucket's prefix and the data directory are real or simulated from the first use
// on: a worker of the other mode is refused before it writes anything anywhere, whichever of
// them it shares.
func TestPlacesHaveOneMode(t *testing.T) {
	t.Parallel()
	share := map[string]func(s, with *stack){
		worker.PlaceRedis:   func(s, with *stack) { s.redis = with.redis },
		worker.PlaceBucket:  func(s, with *stack) { s.bucket = with.bucket },
		worker.PlaceDataDir: func(s, with *stack) { s.dir = with.dir },
	}
	for first, other := range map[jobs.Mode]jobs.Mode{jobs.ModeSimulated: jobs.ModeReal, jobs.ModeReal: jobs.ModeSimulated} {
		for place, shared := range share {
			t.Run(string(first)+" "+place, func(t *testing.T) {
				t.Parallel()
				used, s := newModeStack(t, first), newModeStack(t, other)
				checked, prepared := used.prepared()
				require.NoError(t, checked)
				require.NoError(t, prepared)
				assert.Equal(t, []jobs.Mode{first, first, first}, used.modes())
				shared(s, used)
				before := s.modes()
				checked, prepared = s.prepared()
				for _, err := range []error{checked, prepared} {
					var wrong *worker.ModeError
					require.ErrorAs(t, err, &wrong)
					assert.Equal(t, worker.ModeError{Places: []string{place}, Mode: first, With: worker.ConfiguredService}, *wrong)
					assert.Contains(t, err.Error(), place+" is "+string(first)+" since its first use, but the configured service is "+string(other))
					assert.Equal(t, first == jobs.ModeSimulated, strings.Contains(wrong.Hint(), "danqing purge"))
				}
				assert.Equal(t, before, s.modes(), "nothing is written")
				checked, prepared = used.prepared()
				require.NoError(t, checked)
				require.NoError(t, prepared)
			})
		}
	}
}

// Places of different modes are refused before a service has answered.
func TestModesAreComparedWithoutAService(t *testing.T) {
	t.Parallel()
	used, s := newModeStack(t, jobs.ModeSimulated), newModeStack(t, jobs.ModeReal)
	_, err := used.prepared()
	require.NoError(t, err)
	_, err = s.prepared()
	require.NoError(t, err)
	s.bucket = used.bucket
	s.sim.Script(simulator.Fault{Route: simulator.RouteList, Status: http.StatusServiceUnavailable, Times: -1})
	w, data := s.newWorker("data")
	var wrong *worker.ModeError
	require.ErrorAs(t, w.CheckMode(t.Context()), &wrong)
	assert.Equal(t, worker.ModeError{Places: []string{worker.PlaceBucket}, Mode: jobs.ModeSimulated, With: worker.PlaceRedis}, *wrong)
	require.NoError(t, data.Close())
}

// A service that throttles at first is compared all the same.
func TestModesAreComparedAfterThrottling(t *testing.T) {
	t.Parallel()
	used, s := newModeStack(t, jobs.ModeSimulated), newModeStack(t, jobs.ModeReal)
	_, err := used.prepared()
	require.NoError(t, err)
	s.bucket = used.bucket
	s.sim.Script(simulator.Fault{Route: simulator.RouteList, Status: http.StatusTooManyRequests, Code: "Throttling", Times: 1})
	w, data := s.newWorker("data")
	var wrong *worker.ModeError
	require.ErrorAs(t, w.CheckMode(t.Context()), &wrong)
	assert.Equal(t, worker.ConfiguredService, wrong.With)
	require.NoError(t, data.Close())
}

// Accounts of which one is simulated and another is real are refused.
func TestMixedAccountsAreRefused(t *testing.T) {
	t.Parallel()
	s, genuine := newModeStack(t, jobs.ModeSimulated), newModeStack(t, jobs.ModeReal)
	s.configure = func(cfg *worker.Config) {
		cfg.Accounts = append(cfg.Accounts, worker.Account{Name: "real", DashScope: genuine.client("sk-real"), Lanes: []worker.Lane{{}}})
	}
	checked, prepared := s.prepared()
	require.ErrorIs(t, checked, worker.ErrMixed)
	require.ErrorIs(t, prepared, worker.ErrMixed)
	assert.Equal(t, []jobs.Mode{"", "", ""}, s.modes())
}

// When Redis has lost its data, it gets the worker's mode again; if another worker has given
// it the other mode by then, the worker stops.
func TestModeAfterDataLoss(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		require.NoError(t, s.redis.Del(t.Context(), rediskey.Mode, rediskey.Dataset).Err())
		<-time.After(10 * time.Second)
		assert.Equal(t, "simulated", s.redis.Get(t.Context(), rediskey.Mode).Val())

		require.NoError(t, s.redis.Del(t.Context(), rediskey.Dataset).Err())
		require.NoError(t, s.redis.Set(t.Context(), rediskey.Mode, "real", 0).Err())
		var wrong *worker.ModeError
		require.ErrorAs(t, <-s.ended, &wrong)
		assert.Equal(t, []string{worker.PlaceRedis}, wrong.Places)
		s.ended <- nil
	})
}

// A bucket that is away at the start and turns out to have the other mode stops the worker
// before anything is submitted or stored.
func TestBucketOfTheOtherModeComesBack(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.stop()
		require.NoError(t, os.WriteFile(filepath.Join(s.dir, "bucket", bucket.DefaultBucket, "_mode.json"), []byte(`{"mode":"real"}`), 0o600))
		s.openBucket()
		s.away.Store(true)
		s.start()
		s.enqueueMany(1)
		<-time.After(time.Minute)
		s.away.Store(false)
		var wrong *worker.ModeError
		require.ErrorAs(t, <-s.ended, &wrong)
		assert.Equal(t, []string{worker.PlaceBucket}, wrong.Places)
		s.ended <- nil
		assert.Empty(t, s.sim.Tasks())
	})
}
