package lease_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/worker/internal/lease"
)

// slow delays every answer of Redis.
type slow time.Duration

func (slow) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s slow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		<-time.After(time.Duration(s))
		return err
	}
}

func (slow) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// noReplica is for a test in which no holder waits for a replica.
func noReplica(err error) { panic(err) }

// A lease is renewed at an interval from request to request: a Redis that takes almost five
// seconds for each answer does not lose it.
func TestLeaseWithASlowRedis(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := queue.Open()
		leases := lease.NewLeases(server.Client(), "worker-1", false)
		stop := leases.Start(t.Context())
		l := leases.New("lease")
		held, release, err := l.Hold(t.Context(), slog.New(slog.DiscardHandler), noReplica)
		require.NoError(t, err)
		<-time.After(3 * time.Second) // Redis has the scripts
		server.Client().(*redis.Client).AddHook(slow(5*time.Second - time.Millisecond))
		for range 60 {
			<-time.After(time.Second)
			assert.True(t, l.Valid())
			assert.NoError(t, context.Cause(held))
		}
		release()
		stop()
		require.NoError(t, server.Close())
	})
}

// replicas answers WAIT with a number of replicas, and counts the questions.
type replicas struct{ number, asked atomic.Int64 }

func (*replicas) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *replicas) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if wait, ok := cmd.(*redis.IntCmd); ok && cmd.Name() == "wait" {
			r.asked.Add(1)
			wait.SetVal(r.number.Load())
			return nil
		}
		return next(ctx, cmd)
	}
}

func (*replicas) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// Where Redis may fail over, a lease counts while a replica has it: the holder at a primary that
// was cut off stops two seconds before the lease ends in the new one.
func TestLeaseNeedsAReplica(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := queue.Open()
		hook := &replicas{}
		server.Client().(*redis.Client).AddHook(hook)
		log := slog.New(slog.DiscardHandler)
		leases := lease.NewLeases(server.Client(), "worker-1", true)
		stop := leases.Start(t.Context())
		l := leases.New("lease")
		told := 0
		waiting, cancel := context.WithTimeout(t.Context(), time.Minute)
		require.NoError(t, server.Client().Set(t.Context(), "lease", "worker-2", 0).Err())
		_, _, err := l.Hold(waiting, log, noReplica)
		require.ErrorIs(t, err, context.DeadlineExceeded, "another worker has the lease")
		cancel()
		require.NoError(t, server.Client().Del(t.Context(), "lease").Err())
		waiting, cancel = context.WithTimeout(t.Context(), time.Minute)
		_, _, err = l.Hold(waiting, log, func(error) { told++ })
		require.ErrorIs(t, err, context.DeadlineExceeded, "Redis has no replica")
		assert.Greater(t, told, 10)
		cancel()

		hook.number.Store(1)
		held, release, err := l.Hold(t.Context(), log, noReplica)
		require.NoError(t, err)
		<-time.After(time.Hour)
		assert.True(t, l.Valid())
		require.NoError(t, context.Cause(held))
		hook.number.Store(0)
		cut := time.Now()
		<-held.Done()
		require.ErrorIs(t, context.Cause(held), lease.ErrLost)
		assert.False(t, l.Valid())
		assert.LessOrEqual(t, time.Since(cut), lease.TTL)
		release()
		stop()

		hook.asked.Store(0)
		_, release, err = lease.NewLeases(server.Client(), "worker-1", false).New("lease").Hold(t.Context(), log, noReplica)
		require.NoError(t, err)
		release()
		assert.Zero(t, hook.asked.Load(), "one server alone")
		require.NoError(t, server.Close())
	})
}

// All leases of a worker are renewed by one command. When the worker is cut off, they are over by
// its own clock two seconds before another can have them, which is within 10 s. A released one is
// free at once, whatever is on its way.
func TestTakeover(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		server, err := queue.OpenDir(queue.Config{Dir: dir})
		require.NoError(t, err)
		log := slog.New(slog.DiscardHandler)
		holder, standby := lease.NewLeases(server.Client(), "worker-1", false), lease.NewLeases(server.Client(), "worker-2", false)
		cutOff, stop := context.WithCancel(t.Context())
		stopHolder, stopStandby := holder.Start(cutOff), standby.Start(t.Context())
		var held []*lease.Lease
		var releases []func()
		for i := range 9 {
			l := holder.New(fmt.Sprint("lease-", i))
			_, release, err := l.Hold(t.Context(), log, noReplica)
			require.NoError(t, err)
			held, releases = append(held, l), append(releases, release)
		}
		<-time.After(5*time.Minute + time.Second)
		releases[0]()
		begun := time.Now()
		_, release, err := standby.New("lease-0").Hold(t.Context(), log, noReplica)
		require.NoError(t, err)
		assert.Zero(t, time.Since(begun))
		release()

		stop() // no renewal from here on
		begun = time.Now()
		over := make(chan time.Time, 1)
		go func() {
			for held[1].Valid() {
				<-time.After(10 * time.Millisecond)
			}
			over <- time.Now()
		}()
		_, release, err = standby.New("lease-1").Hold(t.Context(), log, noReplica)
		require.NoError(t, err)
		assert.LessOrEqual(t, time.Since(begun), 10*time.Second)
		assert.GreaterOrEqual(t, time.Since(<-over), 1900*time.Millisecond)
		for _, release := range releases[1:] {
			release()
		}
		release()
		stopHolder()
		stopStandby()
		require.NoError(t, server.Close())
	})
}

// A worker was suspended for longer than its lease lives, and another one had the lane meanwhile:
// the lease is over, although it is free again.
func TestLeaseIsOverAfterASuspension(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server, err := queue.OpenDir(queue.Config{Dir: t.TempDir()})
		require.NoError(t, err)
		log := slog.New(slog.DiscardHandler)
		suspended := lease.NewLeases(server.Client(), "worker-1", false)
		l := suspended.New("lease")
		held, release, err := l.Hold(t.Context(), log, noReplica)
		require.NoError(t, err)
		<-time.After(lease.TTL) // it renews nothing
		_, releaseOther, err := lease.NewLeases(server.Client(), "worker-2", false).New("lease").Hold(t.Context(), log, noReplica)
		require.NoError(t, err)
		releaseOther()
		stop := suspended.Start(t.Context())
		<-time.After(3 * time.Second)
		assert.False(t, l.Valid())
		require.ErrorIs(t, context.Cause(held), lease.ErrLost)
		release()
		stop()
		require.NoError(t, server.Close())
	})
}
