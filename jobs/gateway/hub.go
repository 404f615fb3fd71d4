package gateway

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// hub notifies the requests in a long poll when their job has changed. It has one
// subscription for all of them.
type hub struct {
	jobs  *jobs.Client
	log   *slog.Logger
	start sync.Once
	group sync.WaitGroup
	stop  context.CancelFunc
	done  context.Context //nolint:containedctx // the hub's lifetime, not a caller's

	mu      sync.Mutex
	waiters map[string]map[chan struct{}]struct{} // by job ID
}

func newHub(client *jobs.Client, log *slog.Logger) *hub {
	h := &hub{jobs: client, log: log, waiters: map[string]map[chan struct{}]struct{}{}}
	h.done, h.stop = context.WithCancel(context.Background())
	return h
}

// close stops the hub. Waiting requests return, because done is closed.
func (h *hub) close() {
	h.stop()
	h.start.Do(func() {}) // a later watch must not start it
	h.group.Wait()
}

// watch returns a channel that receives a value after a change of the job. Events can be
// lost, so read the record after the call, and again from time to time. The caller must
// call stop.
func (h *hub) watch(id string) (changed <-chan struct{}, stop func()) {
	h.start.Do(func() { h.group.Go(h.run) })
	c := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiters[id] == nil {
		h.waiters[id] = map[chan struct{}]struct{}{}
	}
	h.waiters[id][c] = struct{}{}
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if delete(h.waiters[id], c); len(h.waiters[id]) == 0 {
			delete(h.waiters, id)
		}
	}
}

// resubscribeDelay is how long the hub waits after a failed subscription.
const resubscribeDelay = time.Second

func (h *hub) run() {
	for h.done.Err() == nil {
		changes, err := h.jobs.Subscribe(h.done)
		if err != nil {
			if h.done.Err() == nil {
				h.log.Warn("redis unavailable", "err", err, "wait", resubscribeDelay)
			}
			select {
			case <-time.After(resubscribeDelay):
			case <-h.done.Done():
			}
			continue
		}
		h.notify("") // for changes before the subscription
		h.forward(changes)
		_ = changes.Close() // read only
	}
}

func (h *hub) forward(changes *jobs.Changes) {
	for {
		select {
		case id, ok := <-changes.IDs():
			if !ok {
				return
			}
			h.notify(id)
		case <-h.done.Done():
			return
		}
	}
}

// notify wakes the requests that wait for a job, or all of them for "".
func (h *hub) notify(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id != "" {
		notifyAll(h.waiters[id])
		return
	}
	for _, waiters := range h.waiters {
		notifyAll(waiters)
	}
}

func notifyAll(waiters map[chan struct{}]struct{}) {
	for c := range waiters {
		select {
		case c <- struct{}{}:
		default: // already notified
		}
	}
}

const (
	// pollInterval, plus up to half of it, is how long a lost event can delay a change.
	// Ten thousand waiting requests then cost Redis about 400 reads a second.
	pollInterval  = 20 * time.Second
	minRetryDelay = 500 * time.Millisecond
	maxRetryDelay = 5 * time.Second
)

// pollDelay returns when to read the record again without an event. After failures it is
// shorter, with exponential backoff.
func pollDelay(failures int) time.Duration {
	wait := pollInterval
	if failures > 0 {
		wait = min(minRetryDelay<<min(failures-1, 10), maxRetryDelay)
	}
	return wait + rand.N(wait/2) //nolint:gosec // jitter
}

// wait waits for a change, the delay, or the end of ctx or the hub. It reports whether to
// read the record again.
func (h *hub) wait(ctx context.Context, changed <-chan struct{}, delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-changed:
		return true
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-h.done.Done():
	}
	return false
}
