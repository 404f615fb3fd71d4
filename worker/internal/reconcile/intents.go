package reconcile

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/journal"
)

// Intents is a lane's index of intents that were resubmitted or are held: a task that
// appears later may belong to one of them. The script that writes the job's record adds
// them. An open intent is in its job's record instead.
type Intents struct {
	redis redis.UniversalClient
	key   string
}

// IntentsOf returns the index of an account's lane for a model.
func IntentsOf(rdb redis.UniversalClient, account, model string) Intents {
	return Intents{redis: rdb, key: rediskey.Lane(account, model, rediskey.LaneIntents)}
}

func (i Intent) field() string { return fmt.Sprintf("%s.%d", i.JobID, i.Attempt) }

// Encode returns the intent as it is in the index, for [jobs.Record.SettledIntent].
func (i Intent) Encode() ([]byte, error) { return compactjson.Marshal(i) }

// Put writes an intent.
func (x Intents) Put(ctx context.Context, i Intent) error {
	encoded, err := i.Encode()
	if err == nil {
		err = x.redis.HSet(ctx, x.key, i.field(), encoded).Err()
	}
	if err != nil {
		return fmt.Errorf("record intent of %s: %w", i.JobID, err)
	}
	return nil
}

// PutMissing writes an intent unless Redis has it.
func (x Intents) PutMissing(ctx context.Context, i Intent) error {
	encoded, err := i.Encode()
	if err == nil {
		err = x.redis.HSetNX(ctx, x.key, i.field(), encoded).Err()
	}
	if err != nil {
		return fmt.Errorf("record intent of %s: %w", i.JobID, err)
	}
	return nil
}

// Empty reports whether the index has no intent.
func (x Intents) Empty(ctx context.Context) (bool, error) {
	n, err := x.redis.HLen(ctx, x.key).Result()
	return n == 0, err
}

// Recent returns the intents of the last day whose late task has not been found, and removes
// older ones.
func (x Intents) Recent(ctx context.Context) (found []Intent, err error) {
	all, err := x.redis.HGetAll(ctx, x.key).Result()
	if err != nil {
		return nil, fmt.Errorf("read settled intents: %w", err)
	}
	for field, encoded := range all {
		i, err := DecodeIntent(encoded)
		if err != nil || time.Since(i.From) >= journal.TaskRetention {
			if err := x.redis.HDel(ctx, x.key, field).Err(); err != nil {
				return nil, fmt.Errorf("remove intent: %w", err)
			}
			continue
		}
		if !i.LateTaskFound {
			found = append(found, i)
		}
	}
	return found, nil
}
