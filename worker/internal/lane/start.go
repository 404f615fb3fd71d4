package lane

import (
	"context"
	"time"

	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/internal/loop"
)

const (
	// idleStart is for how long lanes without work let the account's other lanes start first: each
	// reads the account's task list, within its query budget. idleStartPoll is how often they look.
	idleStart     = time.Second
	idleStartPoll = idleStart / 10
	// firstWarm is for how long a term that begins keeps a connection open for its first create.
	firstWarm = 5 * time.Second
)

// keepFirstWarm opens a connection for a job that waits already.
func (l *lane) keepFirstWarm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstWarm)
	defer cancel()
	l.cfg.Account.Client.KeepWarm(ctx)
}

// letOthersStart waits for a moment, or until the lane has work, if the account has other lanes.
func (l *lane) letOthersStart(ctx context.Context) error {
	for begun := time.Now(); l.cfg.AccountLanes > 1 && time.Since(begun) < idleStart && l.isIdle(ctx); {
		if err := loop.Sleep(ctx, idleStartPoll); err != nil {
			return err
		}
	}
	return nil
}

// isIdle reports whether the lane has nothing to do.
func (l *lane) isIdle(ctx context.Context) bool {
	upcoming, err := l.recorder.Store.Upcoming(ctx, l.cfg.Model.Name, 1)
	if err != nil || len(upcoming) > 0 {
		return false
	}
	inFlight, err := l.recorder.Redis.HLen(ctx, l.key(rediskey.LaneInFlight)).Result()
	return err == nil && inFlight == 0
}
