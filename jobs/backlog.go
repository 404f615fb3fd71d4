package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

const (
	// durationsPerModel is how many of a model's last tasks are remembered, of any size and
	// number of images.
	durationsPerModel = 256
	// durationsInMean is the number of tasks in the mean: enough to even out their
	// differences, few enough to follow changes of the service.
	durationsInMean = 20
	// durationsOfKind is how many tasks of the same size and number of images are
	// necessary to go by them alone.
	durationsOfKind = 4
)

// TaskKind is what the duration of a task depends on.
type TaskKind struct {
	Model, Size string
	N           int // images
}

// RecordDuration records how long a task took, from submit to end.
func (s *Store) RecordDuration(ctx context.Context, kind TaskKind, took time.Duration) error {
	_, err := s.redis.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		tx.LPush(ctx, rediskey.Durations(kind.Model), fmt.Sprintf("%d %s %d", took.Milliseconds(), kind.Size, kind.N))
		tx.LTrim(ctx, rediskey.Durations(kind.Model), 0, durationsPerModel-1)
		return nil
	})
	if err != nil {
		return fmt.Errorf("record duration of %s: %w", kind.Model, err)
	}
	return nil
}

// Durations returns how long the last tasks of a kind took, the newest first; those of the
// whole model if there are less than four of the kind. It fails with Redis's own error.
func (s *Store) Durations(ctx context.Context, kind TaskKind) ([]time.Duration, error) {
	texts, err := s.redis.LRange(ctx, rediskey.Durations(kind.Model), 0, -1).Result()
	if err != nil {
		return nil, fmt.Errorf("read durations of %s: %w", kind.Model, err)
	}
	var all, same []time.Duration
	for _, text := range texts {
		took, size, n, err := parseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("read durations of %s: %w", kind.Model, err)
		}
		all = append(all, took)
		if size == kind.Size && n == kind.N {
			same = append(same, took)
		}
	}
	if len(same) < durationsOfKind {
		return all, nil
	}
	return same, nil
}

// parseDuration reads an entry of [rediskey.Durations].
func parseDuration(text string) (took time.Duration, size string, n int, err error) {
	var milliseconds int64
	if _, err := fmt.Sscanf(text, "%d %s %d", &milliseconds, &size, &n); err != nil {
		return 0, "", 0, fmt.Errorf("%s is not a duration", show(text))
	}
	return time.Duration(milliseconds) * time.Millisecond, size, n, nil
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
		durations = p.LRange(ctx, rediskey.Durations(model), 0, durationsInMean-1)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read backlog of %s: %w", model, err)
	}
	backlog := &Backlog{Pending: map[string]int64{}, Busy: submitting.Val() + generating.Val()}
	for priority, length := range lengths {
		backlog.Pending[priority] = length.Val()
	}
	sum := time.Duration(0)
	for _, text := range durations.Val() {
		took, _, _, err := parseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("read backlog of %s: %w", model, err)
		}
		sum += took
	}
	if n := len(durations.Val()); n > 0 {
		backlog.TaskTime = sum / time.Duration(n)
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
