package lease_test

import (
	"context"
	"log/slog"
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

// A lease is renewed at an interval from request to request: a Redis that takes five
// seconds for each answer does not lose it.
func TestLeaseWithASlowRedis(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := queue.Open()
		log := slog.New(slog.DiscardHandler)
		_, release, err := lease.New(server.Client(), "another", "worker-1").Hold(t.Context(), log)
		require.NoError(t, err)
		release() // Redis has the scripts now
		server.Client().(*redis.Client).AddHook(slow(5 * time.Second))
		l := lease.New(server.Client(), "lease", "worker-1")
		held, release, err := l.Hold(t.Context(), log)
		require.NoError(t, err)
		for range 60 {
			<-time.After(time.Second)
			assert.True(t, l.Valid())
			assert.NoError(t, context.Cause(held))
		}
		release()
		require.NoError(t, server.Close())
	})
}
