package jobs

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// CheckKeys fails if a key that all jobs of a lane share has a wrong type: another program
// has written it, and no job can be recorded. The error names the key and the remedy. It also
// fails with Redis's own error.
func (s *Store) CheckKeys(ctx context.Context, account, model string) error {
	want := map[string]string{
		rediskey.Deadlines: "zset", rediskey.NotificationsDue: "zset", rediskey.LedgerDays: "zset", rediskey.KeyIDs: "hash",
		rediskey.Lane(account, model, rediskey.LaneIntents): "hash", rediskey.Lane(account, model, rediskey.LaneInFlight): "hash",
		rediskey.Lane(account, model, rediskey.LaneQuarantine): "hash",
	}
	for _, state := range []State{
		StateScheduled, StateQueued, StatePrepared, StateSubmitting, StateGenerating, StateStoring, StateRetrying, StateHeld, StateSucceeded, StateFailed, StateCanceled,
	} {
		want[indexKey(state)] = "zset"
	}
	keys := slices.Sorted(maps.Keys(want))
	types := make([]*redis.StatusCmd, len(keys))
	if _, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, key := range keys {
			types[i] = pipe.Type(ctx, key)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("check the types of keys: %w", err)
	}
	for i, key := range keys {
		if got := types[i].Val(); got != "none" && got != want[key] {
			return fmt.Errorf("the redis key %s is a %s instead of a %s: another program has written it; rename or delete it", key, got, want[key])
		}
	}
	return nil
}
