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

// testClient has what producers, operators and workers call.
type testClient struct {
	*jobs.Client
	*jobs.Inspector
	Store *jobs.Store
}

func newTestClient(rdb redis.UniversalClient) *testClient {
	return &testClient{jobs.NewClient(rdb), jobs.NewInspector(rdb), jobs.NewStore(rdb)}
}

// record is the whole record of a job that a call returned.
func (c *testClient) record(ctx context.Context, job *jobs.Job, err error) (*jobs.Record, error) {
	if job == nil {
		return nil, err
	}
	if rec, getErr := c.Store.Get(ctx, job.ID); getErr == nil {
		return rec, err
	}
	return &jobs.Record{Job: *job}, err
}

func (c *testClient) Enqueue(ctx context.Context, req jobs.Request) (*jobs.Record, error) {
	job, err := c.Client.Enqueue(ctx, req)
	return c.record(ctx, job, err)
}

func (c *testClient) EnqueueWithin(ctx context.Context, req jobs.Request, limits jobs.Limits) (*jobs.Record, error) {
	job, err := c.Client.EnqueueWithin(ctx, req, limits)
	return c.record(ctx, job, err)
}

func (c *testClient) Wait(ctx context.Context, id string) (*jobs.Record, error) {
	job, err := c.Client.Wait(ctx, id)
	return c.record(ctx, job, err)
}

func (c *testClient) Cancel(ctx context.Context, id string) (*jobs.Record, error) {
	job, err := c.Client.Cancel(ctx, id)
	return c.record(ctx, job, err)
}

func (c *testClient) Retry(ctx context.Context, id string) (*jobs.Record, error) {
	job, err := c.Inspector.Retry(ctx, id)
	return c.record(ctx, job, err)
}

func (c *testClient) RetryRecord(ctx context.Context, rec *jobs.Record) (*jobs.Record, error) {
	job, err := c.RetryJob(ctx, &rec.Job)
	return c.record(ctx, job, err)
}

func (c *testClient) Resolve(ctx context.Context, id string, decision jobs.Resolution) (*jobs.Record, error) {
	job, err := c.Inspector.Resolve(ctx, id, decision)
	return c.record(ctx, job, err)
}

// onBoth runs a test on the embedded Redis and on a real one.
func onBoth(t *testing.T, test func(t *testing.T, client *testClient, rdb redis.UniversalClient)) {
	t.Helper()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		test(t, newTestClient(rdb), rdb)
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
