package notify

import (
	"maps"
	"sync"
	"time"
)

const (
	// breakerPause is how long a receiver is skipped after a timeout.
	breakerPause = 30 * time.Second
	// breakerMemory is how long a receiver's timeout is kept after that.
	breakerMemory = time.Hour
)

// hostBreaker is a circuit breaker per producer and host: a receiver that timed out must not
// occupy every delivery slot of its producer, and no producer can make it skip another's. One callback at a time probes it, breakerPause apart; the others
// fail at once, which counts as an attempt. The zero value is ready to use.
type hostBreaker struct {
	mu sync.Mutex
	// retryAt is, by producer and host, when the next callback may probe it.
	retryAt map[string]time.Time
}

// Allow reports whether a callback may be sent to a receiver now.
func (b *hostBreaker) Allow(receiver string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	retryAt, timedOut := b.retryAt[receiver]
	if !timedOut {
		return true
	}
	if now.Before(retryAt) {
		return false
	}
	b.retryAt[receiver] = now.Add(callbackTimeout + breakerPause) // this callback is the probe
	return true
}

// Record records whether a callback timed out.
func (b *hostBreaker) Record(receiver string, now time.Time, timedOut bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !timedOut {
		delete(b.retryAt, receiver)
		return
	}
	maps.DeleteFunc(b.retryAt, func(_ string, retryAt time.Time) bool { return now.Sub(retryAt) > breakerMemory })
	if b.retryAt == nil {
		b.retryAt = map[string]time.Time{}
	}
	b.retryAt[receiver] = now.Add(breakerPause)
}
