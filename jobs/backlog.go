package jobs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// durationsPerModel is the number of tasks in the mean: enough to even out their
// differences, few enough to follow changes of the service.
const durationsPerModel = 20

// RecordDuration records how long a task of a model took, from submit to end.
func (s *Store) RecordDuration(ctx context.Context, model string, took time.Duration) error {
	_, err := s.redis.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		tx.LPush(ctx, rediskey.Durations(model), took.Milliseconds())
		tx.LTrim(ctx, rediskey.Durations(model), 0, durationsPerModel-1)
		return nil
	})
	if err != nil {
		return fmt.Errorf("record duration of %s: %w", model, err)
	}
	return nil
}

// Backlog is what a model's new job has to wait for.
type Backlog struct {
	// Pending are the jobs that lanes can start, by priority, without scheduled ones and
	// those that wait for a later attempt.
	Pending map[string]int64
	// Busy are the jobs of all models that are submitting or generating.
	Busy int64
	// TaskTime is the mean duration of the model's last tasks, from submit to end; 0 if
	// there was none.
	TaskTime time.Duration
}

// Backlog returns what a new job of a model has to wait for. It fails with Redis's own
// error.
func (c *Client) Backlog(ctx context.Context, model string) (*Backlog, error) {
	lengths := map[string]*redis.IntCmd{}
	var submitting, generating *redis.IntCmd
	var durations *redis.StringSliceCmd
	_, err := c.store.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, priority := range priorities() {
			lengths[priority] = p.LLen(ctx, asynqPending(Queue(model, priority)))
		}
		submitting, generating = p.ZCard(ctx, indexKey(StateSubmitting)), p.ZCard(ctx, indexKey(StateGenerating))
		durations = p.LRange(ctx, rediskey.Durations(model), 0, -1)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read backlog of %s: %w", model, err)
	}
	backlog := &Backlog{Pending: map[string]int64{}, Busy: submitting.Val() + generating.Val()}
	for priority, length := range lengths {
		backlog.Pending[priority] = length.Val()
	}
	sum := int64(0)
	for _, text := range durations.Val() {
		milliseconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read backlog of %s: %s is not a duration", model, show(text))
		}
		sum += milliseconds
	}
	if n := int64(len(durations.Val())); n > 0 {
		backlog.TaskTime = time.Duration(sum/n) * time.Millisecond
	}
	return backlog, nil
}

// Position estimates how many jobs are started before the last one of a priority, given
// the weights of the queues.
func (b *Backlog) Position(model, priority string) int64 {
	weights := LaneQueues(model)
	own := max(b.Pending[priority], 1)
	ahead := own - 1
	for other, length := range b.Pending {
		if other != priority {
			drawn := own * int64(weights[Queue(model, other)]) / int64(weights[Queue(model, priority)])
			ahead += min(length, drawn)
		}
	}
	return ahead
}

// Position returns how many jobs of the same model and priority will be started before a
// waiting job, and whether it is in the queue at all: it is not while it waits for a
// later attempt, nor once a lane has taken it. It fails with Redis's own error.
func (c *Client) Position(ctx context.Context, job *Job) (ahead int64, inLine bool, err error) {
	pending := asynqPending(Queue(job.Model, job.Priority))
	at, err := c.store.redis.LPos(ctx, pending, job.ID, redis.LPosArgs{Rank: -1}).Result()
	if errors.Is(err, redis.Nil) {
		return 0, false, nil
	}
	length, lenErr := c.store.redis.LLen(ctx, pending).Result()
	if err := errors.Join(err, lenErr); err != nil {
		return 0, false, fmt.Errorf("find %s in its queue: %w", job.ID, err)
	}
	return max(length-1-at, 0), true, nil
}
