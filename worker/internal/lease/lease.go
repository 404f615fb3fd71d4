// Package lease gives one worker at a time exclusive use of a lane, by a key in Redis, and
// detects that Redis may have lost data.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/worker/internal/loop"
)

const (
	// TTL is the lease's lifetime in Redis, and how long a lane is idle after its
	// holder crashed.
	TTL = 15 * time.Second
	// leaseRenew is how often the holder renews the lease. It is lost if Redis takes longer
	// than 6 s for an answer.
	leaseRenew = 5 * time.Second
	// Poll is how often a standby tries to acquire the lease.
	Poll = 500 * time.Millisecond
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

// ErrLost is the cause of a context that ends because the lease is lost.
var ErrLost = errors.New("lease lost")

// Lease gives one worker exclusive use of a lane. Only its holder submits. A Lease is held
// once.
type Lease struct {
	redis    redis.UniversalClient
	key      string
	workerID string
	// until is when, by the local monotonic clock, the lease counts as lost, whatever Redis
	// says.
	until atomic.Pointer[time.Time]
	end   context.CancelCauseFunc // nil before Hold
}

// New returns a lease under a Redis key that is not held yet.
func New(rdb redis.UniversalClient, key, workerID string) *Lease {
	return &Lease{redis: rdb, key: key, workerID: workerID}
}

// Hold waits for the lease and renews it until release is called. The returned context ends
// with ctx, or with [ErrLost] when the lease is lost. Hold fails with the cause of ctx.
func (l *Lease) Hold(ctx context.Context, log *slog.Logger) (held context.Context, release func(), err error) {
	if err := l.await(ctx, log); err != nil {
		return nil, nil, err
	}
	held, l.end = context.WithCancelCause(ctx)
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var group sync.WaitGroup
	group.Go(func() { l.renew(renewing) })
	return held, func() {
		stop()
		group.Wait()
		l.end(nil)
		// A standby need not wait until it expires.
		if err := releaseScript.Run(context.WithoutCancel(ctx), l.redis, []string{l.key}, l.workerID).Err(); err != nil {
			log.Warn("lease not released", "err", err)
		}
	}, nil
}

// await waits for the lease.
func (l *Lease) await(ctx context.Context, log *slog.Logger) error {
	retry := loop.Backoff{First: Poll, Most: leaseRenew}
	for waiting := false; ; waiting = true {
		held, err := l.acquire(ctx)
		if held {
			return nil
		}
		wait := Poll
		switch {
		case err != nil && ctx.Err() == nil:
			wait = retry.Next()
			loop.WarnRedis(log, err, "wait", wait)
		case !waiting && err == nil:
			log.Info("standby: lease held elsewhere")
		}
		if err := loop.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// Invalidate stops the holder: the lease is lost or no longer trusted.
func (l *Lease) Invalidate() { l.end(ErrLost) }

// acquire acquires or renews the lease and reports whether it is held.
func (l *Lease) acquire(ctx context.Context) (bool, error) {
	sent := time.Now()
	held, err := acquireScript.Run(ctx, l.redis, []string{l.key}, l.workerID, TTL.Milliseconds()).Bool()
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, fmt.Errorf("acquire lease %s: %w", l.key, err)
	}
	if held {
		until := sent.Add(TTL - leaseMargin)
		l.until.Store(&until)
	}
	return held, nil
}

// Valid reports whether the lease is certainly still held.
func (l *Lease) Valid() bool { return time.Now().Before(*l.until.Load()) }

// renew renews the lease until ctx ends, or the lease is lost. The interval is from request to
// request: a slow answer must not delay the next one.
func (l *Lease) renew(ctx context.Context) {
	for sent := l.until.Load().Add(leaseMargin - TTL); loop.Sleep(ctx, leaseRenew-time.Since(sent)) == nil; {
		sent = time.Now()
		asking, cancel := context.WithDeadline(ctx, *l.until.Load())
		held, err := l.acquire(asking)
		cancel()
		if err == nil && !held || !l.Valid() {
			l.Invalidate()
			return
		}
	}
}
