package jobs_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
)

// onBoth runs a test on the embedded Redis and on a real one.
func onBoth(t *testing.T, test func(t *testing.T, client *jobs.Client, rdb redis.UniversalClient)) {
	t.Helper()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		test(t, jobs.NewClient(rdb), rdb)
	})
}

// errLost is a reply that did not come back.
var errLost = errors.New("the reply was lost")

// loser loses the reply of the nth command from now on: it is done, and the
// caller gets an error.
type loser struct{ left atomic.Int64 }

var _ redis.Hook = (*loser)(nil)

func (l *loser) loseNth(n int) { l.left.Store(int64(n)) }

func (l *loser) lose(err error) error {
	if l.left.Add(-1) == 0 {
		return errLost
	}
	return err
}

func (l *loser) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l *loser) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := l.lose(next(ctx, cmd))
		if errors.Is(err, errLost) {
			cmd.SetErr(err)
		}
		return err
	}
}

func (l *loser) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := l.lose(next(ctx, cmds))
		if errors.Is(err, errLost) {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
		}
		return err
	}
}

// interloper does something else once, right before the nth command.
type interloper struct {
	left atomic.Int64
	do   func()
}

var _ redis.Hook = (*interloper)(nil)

func (i *interloper) DialHook(next redis.DialHook) redis.DialHook { return next }

func (i *interloper) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if i.left.Add(-1) == 0 {
			i.do()
		}
		return next(ctx, cmd)
	}
}

func (i *interloper) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// dying does what it is asked for a number of commands, and then nothing any more.
type dying struct{ left atomic.Int64 }

var _ redis.Hook = (*dying)(nil)

func (d *dying) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d *dying) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if d.left.Add(-1) <= 0 {
			cmd.SetErr(errLost)
			return errLost
		}
		return next(ctx, cmd)
	}
}

func (d *dying) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
