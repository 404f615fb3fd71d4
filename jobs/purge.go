package jobs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// purgeBatch is how many keys are scanned or deleted at a time. The value is our choice.
const purgeBatch = 500

// ErrNotSimulated means that a Redis database is not simulated, so that nothing is deleted.
var ErrNotSimulated = errors.New("the Redis database is not simulated")

// ErrWorking means that a worker holds a lane of a Redis database, so that nothing is deleted.
var ErrWorking = errors.New("a worker works on this Redis database: stop it; if it was killed, try again in 10 s")

// SimulatedKeys returns how many keys [Inspector.PurgeSimulated] would delete. It fails with
// [ErrNotSimulated], [ErrWorking] or Redis's own error.
func (i *Inspector) SimulatedKeys(ctx context.Context) (keys int, err error) {
	err = i.eachSimulatedKey(ctx, func(found []string) error {
		keys += len(found)
		return nil
	})
	return keys, err
}

// PurgeSimulated deletes everything that Danqing has stored in a simulated Redis database:
// records, messages, ledger and budgets, and at last its mode, so that the database can be
// used for real jobs. Other keys stay. It may be repeated after an error. It fails like
// [Inspector.SimulatedKeys].
func (i *Inspector) PurgeSimulated(ctx context.Context) error {
	rdb := i.store.redis
	err := i.eachSimulatedKey(ctx, func(found []string) error { return rdb.Del(ctx, found...).Err() })
	if err != nil {
		return err
	}
	queues, err := rdb.SMembers(ctx, asynqQueues).Result()
	if err != nil {
		return fmt.Errorf("read the queues: %w", err)
	}
	for _, queue := range queues {
		if !strings.HasPrefix(queue, rediskey.Prefix) {
			continue
		}
		if err := rdb.SRem(ctx, asynqQueues, queue).Err(); err != nil {
			return fmt.Errorf("delete queue %s: %w", queue, err)
		}
	}
	if err := rdb.Del(ctx, rediskey.Mode).Err(); err != nil {
		return fmt.Errorf("delete %s: %w", rediskey.Mode, err)
	}
	return nil
}

// eachSimulatedKey calls visit with Danqing's keys in a simulated database, but that of the
// mode.
func (i *Inspector) eachSimulatedKey(ctx context.Context, visit func([]string) error) error {
	rdb := i.store.redis
	if mode, err := i.Mode(ctx); err != nil || mode != ModeSimulated {
		return errors.Join(err, ErrNotSimulated)
	}
	lanes, err := i.Lanes(ctx)
	if err != nil {
		return err
	}
	for _, lane := range lanes {
		switch {
		case !lane.Simulated:
			return fmt.Errorf("%w: a worker has made real images there", ErrNotSimulated)
		case lane.Held:
			return ErrWorking
		}
	}
	for _, pattern := range []string{rediskey.Prefix + "*", asynqKey(rediskey.Prefix+"*", "*")} {
		found, err := scanKeys(ctx, rdb, pattern)
		if err != nil {
			return err
		}
		for len(found) > 0 {
			next := found[:min(len(found), purgeBatch)]
			if err := visit(next); err != nil {
				return fmt.Errorf("delete %d keys: %w", len(next), err)
			}
			found = found[len(next):]
		}
	}
	return nil
}

// scanKeys returns the keys that match a pattern, but that of the mode, each once.
func scanKeys(ctx context.Context, rdb redis.UniversalClient, pattern string) ([]string, error) {
	seen := map[string]bool{rediskey.Mode: true}
	var found []string
	for keys := rdb.Scan(ctx, 0, pattern, purgeBatch).Iterator(); ; {
		if !keys.Next(ctx) {
			if err := keys.Err(); err != nil {
				return nil, fmt.Errorf("list the keys %s: %w", pattern, err)
			}
			return found, nil
		}
		if key := keys.Val(); !seen[key] {
			seen[key] = true
			found = append(found, key)
		}
	}
}
