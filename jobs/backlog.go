package jobs

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

const (
	// durationsKept is how many tasks the mean is of: enough to even out their
	// differences, few enough to follow the service's mood.
	durationsPerModel = 20
)

// RecordDuration records how long a task of a model took, from its submit to its end.
func (c *Client) RecordDuration(ctx context.Context, model string, took time.Duration) error {
	_, err := c.redis.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		tx.LPush(ctx, rediskey.Durations(model), took.Milliseconds())
		tx.LTrim(ctx, rediskey.Durations(model), 0, durationsPerModel-1)
		return nil
	})
	if err != nil {
		return fmt.Errorf("note duration of %s: %w", model, err)
	}
	return nil
}

// Backlog is what stands between a model's new job and its submit.
type Backlog struct {
	// Pending are the jobs that lanes can draw, by priority; scheduled ones and those
	// that are tried again later are not in line.
	Pending map[string]int64
	// Busy are the jobs of all models that are being submitted or generated.
	Busy int64
	// TaskTime is the mean of how long the model's last tasks took, from submit to end;
	// 0 if none was seen.
	TaskTime time.Duration
}

// Backlog looks at a model's queues.
func (c *Client) Backlog(ctx context.Context, model string) (*Backlog, error) {
	lengths := map[string]*redis.IntCmd{}
	var submitting, generating *redis.IntCmd
	var durations *redis.StringSliceCmd
	_, err := c.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, priority := range priorities() {
			lengths[priority] = p.LLen(ctx, asynqPending(Queue(model, priority)))
		}
		submitting, generating = p.ZCard(ctx, indexKey(StateSubmitting)), p.ZCard(ctx, indexKey(StateGenerating))
		durations = p.LRange(ctx, rediskey.Durations(model), 0, -1)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at the backlog of %s: %w", model, err)
	}
	backlog := &Backlog{Pending: map[string]int64{}, Busy: submitting.Val() + generating.Val()}
	for priority, length := range lengths {
		backlog.Pending[priority] = length.Val()
	}
	sum := int64(0)
	for _, text := range durations.Val() {
		milliseconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("look at the backlog of %s: %s is not a duration", model, show(text))
		}
		sum += milliseconds
	}
	if n := int64(len(durations.Val())); n > 0 {
		backlog.TaskTime = time.Duration(sum/n) * time.Millisecond
	}
	return backlog, nil
}

// Position estimates how many jobs are drawn before the last one of a priority, as the
// queues are drawn by their weights.
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
