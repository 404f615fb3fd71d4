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
	// leaseTTL is how long a lane stands idle after its holder has died.
	leaseTTL = 15 * time.Second
	// leaseRenew is how often the holder says that it lives.
	leaseRenew = 5 * time.Second
	// leaseAsk is how often a standby asks for the lane.
	leaseAsk = 500 * time.Millisecond
	// leaseMargin is taken off the holder's own idea of its lease: the way to
	// Redis, and clocks that do not run alike.
	leaseMargin = 3 * time.Second
)

// takeScript takes a free lease, or the holder's own after a restart.
var takeScript = redis.NewScript(`
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
`)

// dropScript gives the holder's own lease back.
var dropScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
`)

// lease is one holding of a lane. Only its holder submits.
type lease struct {
	redis    redis.UniversalClient
	key      string
	workerID string
	// until is when, by the local monotonic clock, the lease must be taken for
	// lost, whatever Redis might say.
	until atomic.Pointer[time.Time]
	// lost is closed once the lease is, by lose.
	done chan struct{}
	once sync.Once
}

// lose has the holder stop: the lease is lost, or not to be trusted.
func (l *lease) invalidate() { l.once.Do(func() { close(l.done) }) }

// take takes or renews the lease and reports whether it is held.
func (l *lease) acquire(ctx context.Context) (bool, error) {
	asked := time.Now()
	held, err := takeScript.Run(ctx, l.redis, []string{l.key}, l.workerID, leaseTTL.Milliseconds()).Bool()
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, fmt.Errorf("take lease %s: %w", l.key, err)
	}
	if held {
		until := asked.Add(leaseTTL - leaseMargin)
		l.until.Store(&until)
	}
	return held, nil
}

// valid reports whether the lease is still held for certain.
func (l *lease) valid() bool { return time.Now().Before(*l.until.Load()) }

// keep renews the lease until ctx ends, or closes lost.
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

// drop gives the lease back, so that a standby need not wait for its end.
func (l *lease) release(ctx context.Context) error {
	return dropScript.Run(ctx, l.redis, []string{l.key}, l.workerID).Err()
}
