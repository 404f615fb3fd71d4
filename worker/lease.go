package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// leaseTTL is the lease's lifetime in Redis, and how long a lane is idle after its
	// holder crashed.
	leaseTTL = 15 * time.Second
	// leaseRenew is how often the holder renews the lease.
	leaseRenew = 5 * time.Second
	// leasePoll is how often a standby tries to acquire the lease.
	leasePoll = 500 * time.Millisecond
	// leaseMargin is subtracted from the lease's lifetime at the holder. It covers the
	// round trip to Redis and clock drift.
	leaseMargin = 3 * time.Second
)

// acquireScript acquires a free lease, or renews the holder's own, also after a restart.
var acquireScript = redis.NewScript(`
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
`)

// releaseScript releases the holder's own lease.
var releaseScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
`)

// lease gives one worker exclusive use of a lane. Only its holder submits.
type lease struct {
	redis    redis.UniversalClient
	key      string
	workerID string
	// until is when, by the local monotonic clock, the lease counts as lost, whatever Redis
	// says.
	until atomic.Pointer[time.Time]
	// done is closed by invalidate once the lease is lost.
	done chan struct{}
	once sync.Once
}

// invalidate stops the holder: the lease is lost or no longer trusted.
func (l *lease) invalidate() { l.once.Do(func() { close(l.done) }) }

// acquire acquires or renews the lease and reports whether it is held.
func (l *lease) acquire(ctx context.Context) (bool, error) {
	sent := time.Now()
	held, err := acquireScript.Run(ctx, l.redis, []string{l.key}, l.workerID, leaseTTL.Milliseconds()).Bool()
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, fmt.Errorf("acquire lease %s: %w", l.key, err)
	}
	if held {
		until := sent.Add(leaseTTL - leaseMargin)
		l.until.Store(&until)
	}
	return held, nil
}

// valid reports whether the lease is certainly still held.
func (l *lease) valid() bool { return time.Now().Before(*l.until.Load()) }

// renew renews the lease until ctx ends. It calls invalidate if the lease is lost.
func (l *lease) renew(ctx context.Context) {
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		asking, cancel := context.WithDeadline(ctx, *l.until.Load())
		held, err := l.acquire(asking)
		cancel()
		if err == nil && !held || !l.valid() {
			l.invalidate()
			return
		}
	}
}

// release releases the lease, so that a standby does not wait until it expires.
func (l *lease) release(ctx context.Context) error {
	return releaseScript.Run(ctx, l.redis, []string{l.key}, l.workerID).Err()
}
