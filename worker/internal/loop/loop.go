// Package loop provides the waits, repetitions and stops of a worker's background
// activities.
//
// An activity stops when its context ends; the context's cause says why.
package loop

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrStopped is the cause of a context that ends because the worker shuts down.
var ErrStopped = errors.New("the worker is stopping")

// Sleep waits for d. It fails with the cause of ctx if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Every calls do now, and then interval after each of its returns, until ctx ends or stop is
// called. stop waits for a call in progress.
func Every(ctx context.Context, interval time.Duration, do func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		for do(ctx); Sleep(ctx, interval) == nil; {
			do(ctx)
		}
	})
	return func() { cancel(); group.Wait() }
}

// Backoff is an exponential backoff that doubles from First to Most. It is safe for
// concurrent use.
type Backoff struct {
	First, Most time.Duration

	mu   sync.Mutex
	last time.Duration
}

// Next returns the next wait.
func (b *Backoff) Next() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = min(max(2*b.last, b.First), b.Most)
	return b.last
}

// Reset makes First the next wait.
func (b *Backoff) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = 0
}
