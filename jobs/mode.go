package jobs

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// Mode says whether jobs are real or simulated. A Redis database, a bucket's prefix and a
// worker's data directory each have one mode for good, that of the first worker; "" is the
// mode of one that no worker has used.
type Mode string

// The modes.
const (
	ModeReal      Mode = "real"      // DashScope makes the images and charges for them
	ModeSimulated Mode = "simulated" // the simulator makes the images, at no cost
)

// ModeOf returns the mode of simulated jobs, or of real ones.
func ModeOf(simulated bool) Mode {
	if simulated {
		return ModeSimulated
	}
	return ModeReal
}

// Mode returns the mode of the Redis database, "" if no worker has used it. It fails with
// Redis's own error.
func (i *Inspector) Mode(ctx context.Context) (Mode, error) { return i.store.Mode(ctx) }

// Mode returns the mode of the Redis database, "" if no worker has used it. It fails with
// Redis's own error.
func (s *Store) Mode(ctx context.Context) (Mode, error) {
	mode, err := s.redis.Get(ctx, rediskey.Mode).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return "", fmt.Errorf("read %s: %w", rediskey.Mode, err)
	}
	return Mode(mode), nil
}

// ClaimMode gives the Redis database a mode if it has none, and returns the one that it has.
// The caller must not use the database if that is another one.
func (s *Store) ClaimMode(ctx context.Context, mode Mode) (Mode, error) {
	if has, err := s.Mode(ctx); err != nil || has != "" { // a full Redis may be read
		return has, err
	}
	if err := s.redis.SetNX(ctx, rediskey.Mode, string(mode), 0).Err(); err != nil {
		return "", fmt.Errorf("write %s: %w", rediskey.Mode, err)
	}
	return s.Mode(ctx)
}
