package jobs_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
)

// testClient has the methods of producers, operators and workers.
type testClient struct {
	*jobs.Client
	*jobs.Inspector
	Store *jobs.Store
}

func newTestClient(rdb redis.UniversalClient) *testClient {
	return &testClient{jobs.NewClient(rdb), jobs.NewInspector(rdb), jobs.NewStore(rdb)}
}

// record reads the whole record of a returned job.
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

// enqueueAll enqueues new jobs, or existing ones again, and checks the order of the answer.
func (c *testClient) enqueueAll(t *testing.T, reqs []jobs.Request) error {
	t.Helper()
	list, err := c.EnqueueAll(t.Context(), reqs)
	for i, job := range list {
		assert.Equal(t, reqs[i].ID, job.ID)
		assert.Equal(t, jobs.StateQueued, job.State)
	}
	return err
}

func (c *testClient) Wait(ctx context.Context, id string) (*jobs.Record, error) {
	job, err := c.Client.Wait(ctx, id)
	return c.record(ctx, job, err)
}

func (c *testClient) Cancel(ctx context.Context, id string) (*jobs.Record, error) {
	job, err := c.Client.Cancel(ctx, id, jobs.Decider{})
	return c.record(ctx, job, err)
}

func (c *testClient) Retry(ctx context.Context, id string) (*jobs.Record, error) {
	job, err := c.Inspector.Retry(ctx, id, jobs.Decider{})
	return c.record(ctx, job, err)
}

func (c *testClient) RetryRecord(ctx context.Context, rec *jobs.Record) (*jobs.Record, error) {
	job, err := c.RetryJob(ctx, &rec.Job, jobs.Decider{})
	return c.record(ctx, job, err)
}

func (c *testClient) Resolve(ctx context.Context, id string, decision jobs.Resolution) (*jobs.Record, error) {
	job, err := c.Inspector.Resolve(ctx, id, decision, jobs.Decider{})
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

// errLost is the error of a lost reply.
var errLost = errors.New("the reply was lost")

// replyLoser loses the reply of the nth command from now on: Redis executes the command, and
// the caller gets an error.
type replyLoser struct{ left atomic.Int64 }

var _ redis.Hook = (*replyLoser)(nil)

func (l *replyLoser) loseNth(n int) { l.left.Store(int64(n)) }

func (l *replyLoser) lose(err error) error {
	if l.left.Add(-1) == 0 {
		return errLost
	}
	return err
}

func (l *replyLoser) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l *replyLoser) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := l.lose(next(ctx, cmd))
		if errors.Is(err, errLost) {
			cmd.SetErr(err)
		}
		return err
	}
}

func (l *replyLoser) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
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

// interruption calls do once, directly before the nth command.
type interruption struct {
	left atomic.Int64
	do   func()
}

var _ redis.Hook = (*interruption)(nil)

func (i *interruption) DialHook(next redis.DialHook) redis.DialHook { return next }

func (i *interruption) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if i.left.Add(-1) == 0 {
			i.do()
		}
		return next(ctx, cmd)
	}
}

func (i *interruption) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// failAfter executes some commands, and fails all later ones.
type failAfter struct{ left atomic.Int64 }

var _ redis.Hook = (*failAfter)(nil)

func (f *failAfter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f *failAfter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if f.left.Add(-1) <= 0 {
			cmd.SetErr(errLost)
			return errLost
		}
		return next(ctx, cmd)
	}
}

func (f *failAfter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
