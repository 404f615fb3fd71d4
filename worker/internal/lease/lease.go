// Package lease gives one worker at a time exclusive use of a lane, by a key in Redis, and
// detects that Redis may have lost data.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/worker/internal/loop"
)

const (
	// TTL is the lease's lifetime in Redis. A standby takes the lane over in at most TTL and
	// Poll after its holder crashed.
	TTL = 9 * time.Second
	// leaseRenew is how often the holder renews its leases. They are lost if Redis takes longer
	// than 5 s for an answer.
	leaseRenew = 2 * time.Second
	// Poll is how often a standby tries to acquire the lease.
	Poll = 500 * time.Millisecond
	// leaseMargin is subtracted from the lease's lifetime at the holder, which counts from the
	// moment at which it sent the command, on its monotonic clock. Redis counts from a later
	// moment, so that the holder stops this long before another worker can have the lease, less
	// what the two clocks differ in TTL. A create that has passed the check by then is on record:
	// the next holder resumes its job, and does not buy it again.
	leaseMargin = 2 * time.Second
	// standbyRetryMax is the longest wait of a standby after an error.
	standbyRetryMax = 5 * time.Second
	// replicaTimeout is how long a replica may take to acknowledge leases.
	replicaTimeout = time.Second
)

// acquireScript acquires free leases, and renews the holder's own, also after a restart. It
// returns 1 for each that it holds, else 0.
var acquireScript = redis.NewScript(`
local held = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
  if held[i] and held[i] ~= ARGV[1] then
    held[i] = 0
  else
    redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
    held[i] = 1
  end
end
return held
`)

// releaseScript releases the holder's own lease.
var releaseScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
`)

// errNoReplica means that no replica has the leases that were just acquired.
var errNoReplica = errors.New("no replica of Redis acknowledges the lease, so that after a failover another worker may buy the same: start a replica")

// ErrLost is the cause of a context that ends because the lease is lost.
var ErrLost = errors.New("lease lost")

// Leases are the leases that a worker holds. It renews all of them by one command.
type Leases struct {
	redis    redis.UniversalClient
	workerID string
	// failover is set if a replica may take Redis's place. A lease then counts once a replica
	// has it: a primary that was cut off has none, and its holder stops before the lease ends
	// in the new primary.
	failover bool

	mu   sync.Mutex
	held map[*Lease]bool
}

// NewLeases returns the leases of a worker, which holds none. failover is set if a replica may
// take Redis's place, as with Sentinels; nothing is held then while Redis has no replica.
func NewLeases(rdb redis.UniversalClient, workerID string, failover bool) *Leases {
	return &Leases{redis: rdb, workerID: workerID, failover: failover, held: map[*Lease]bool{}}
}

// Start renews the leases until ctx ends or stop is called, which must be after the last one was
// released.
func (s *Leases) Start(ctx context.Context) (stop func()) {
	var group sync.WaitGroup
	// A slow answer must not delay the next command.
	stopTicking := loop.Every(ctx, leaseRenew, func(ctx context.Context) {
		if leases := s.renewing(); len(leases) > 0 {
			group.Go(func() { s.renew(ctx, leases) })
		}
	})
	return func() { stopTicking(); group.Wait() }
}

// renewing returns the held leases, which are not released before renew is over.
func (s *Leases) renewing() []*Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	leases := slices.Collect(maps.Keys(s.held))
	for _, l := range leases {
		l.renewals.Add(1)
	}
	return leases
}

// renew renews leases, and invalidates those that are lost. One that is over is not renewed, even
// if it is free: another worker may have had it while this one was suspended.
func (s *Leases) renew(ctx context.Context, leases []*Lease) {
	asking, cancel := context.WithTimeout(ctx, TTL-leaseMargin) // a later answer is worthless
	defer cancel()
	var valid []*Lease
	for _, l := range leases {
		defer l.renewals.Done()
		if l.Valid() {
			valid = append(valid, l)
		} else {
			l.Invalidate()
		}
	}
	if len(valid) == 0 {
		return
	}
	held, err := s.acquire(asking, valid...)
	for i, l := range valid {
		if err == nil && !held[i] || !l.Valid() {
			l.Invalidate()
		}
	}
}

// acquire acquires or renews leases and reports which are held.
func (s *Leases) acquire(ctx context.Context, leases ...*Lease) ([]bool, error) {
	keys := make([]string, len(leases))
	for i, l := range leases {
		keys[i] = l.key
	}
	sent := time.Now()
	held, err := s.runAcquire(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("acquire lease %s: %w", keys[0], err)
	}
	for i, l := range leases {
		if held[i] {
			l.extend(sent.Add(TTL - leaseMargin))
		}
	}
	return held, nil
}

// runAcquire runs acquireScript and, if Redis may fail over, waits until a replica has the leases.
func (s *Leases) runAcquire(ctx context.Context, keys []string) (held []bool, err error) {
	if !s.failover {
		return acquireScript.Run(ctx, s.redis, keys, s.workerID, TTL.Milliseconds()).BoolSlice()
	}
	// WAIT counts what its own connection has written. Watch keeps one.
	err = s.redis.Watch(ctx, func(tx *redis.Tx) (err error) {
		if held, err = acquireScript.Run(ctx, tx, keys, s.workerID, TTL.Milliseconds()).BoolSlice(); err != nil {
			return err
		}
		replicas, err := tx.Wait(ctx, 1, replicaTimeout).Result()
		if err == nil && replicas < 1 && slices.Contains(held, true) {
			err = errNoReplica
		}
		return err
	})
	return held, err
}

// Lease gives one worker exclusive use of a lane. Only its holder submits. A Lease is held
// once.
type Lease struct {
	leases *Leases
	key    string
	// until is when, by the local monotonic clock, the lease counts as lost, whatever Redis
	// says.
	until atomic.Pointer[time.Time]
	end   context.CancelCauseFunc // nil before Hold
	// renewals are the commands on their way that renew it.
	renewals sync.WaitGroup
}

// New returns a lease under a Redis key that is not held yet.
func (s *Leases) New(key string) *Lease { return &Lease{leases: s, key: key} }

// Hold waits for the lease, which is renewed until release is called. The returned context ends
// with ctx, or with [ErrLost] when the lease is lost. Hold fails with the cause of ctx. It calls
// noReplica whenever Redis has given the lease to this worker, which has to wait for a replica: for
// others the lease is held.
func (l *Lease) Hold(ctx context.Context, log *slog.Logger, noReplica func(error)) (held context.Context, release func(), err error) {
	if err := l.await(ctx, log, noReplica); err != nil {
		return nil, nil, err
	}
	held, l.end = context.WithCancelCause(ctx)
	s := l.leases
	s.mu.Lock()
	s.held[l] = true
	late := time.Until(*l.until.Load()) < TTL-leaseMargin-leaseRenew
	if late {
		l.renewals.Add(1)
	}
	s.mu.Unlock()
	if late { // the answer was slow, and so may be the next one
		go s.renew(context.WithoutCancel(ctx), []*Lease{l})
	}
	return held, func() {
		s.mu.Lock()
		delete(s.held, l)
		s.mu.Unlock()
		l.renewals.Wait() // none may follow the release
		l.end(nil)
		// A standby need not wait until it expires.
		if err := releaseScript.Run(context.WithoutCancel(ctx), s.redis, []string{l.key}, s.workerID).Err(); err != nil {
			log.Warn("lease not released", "err", err)
		}
	}, nil
}

// await waits for the lease.
func (l *Lease) await(ctx context.Context, log *slog.Logger, noReplica func(error)) error {
	retry := loop.Backoff{First: Poll, Most: standbyRetryMax}
	for waiting := false; ; waiting = true {
		held, err := l.leases.acquire(ctx, l)
		if err == nil && held[0] {
			return nil
		}
		wait := Poll
		switch {
		case err != nil && ctx.Err() == nil:
			wait = retry.Next()
			loop.WarnRedis(log, err, "wait", wait)
			if errors.Is(err, errNoReplica) {
				noReplica(err)
			}
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

// Valid reports whether the lease is certainly still held.
func (l *Lease) Valid() bool { return time.Now().Before(*l.until.Load()) }

// extend extends the lease, unless the answer to a later command already has.
func (l *Lease) extend(until time.Time) {
	for {
		before := l.until.Load()
		if before != nil && before.After(until) || l.until.CompareAndSwap(before, &until) {
			return
		}
	}
}
