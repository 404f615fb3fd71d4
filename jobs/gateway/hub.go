package gateway

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// hub wakes the requests that are held when a job of theirs has changed. One
// subscription serves all of them.
type hub struct {
	jobs  *jobs.Client
	log   *slog.Logger
	start sync.Once
	group sync.WaitGroup
	stop  context.CancelFunc
	done  context.Context //nolint:containedctx // it is the hub's own life, not a caller's

	mu      sync.Mutex
	waiters map[string]map[chan struct{}]struct{} // by job ID
}

func newHub(client *jobs.Client, log *slog.Logger) *hub {
	h := &hub{jobs: client, log: log, waiters: map[string]map[chan struct{}]struct{}{}}
	h.done, h.stop = context.WithCancel(context.Background())
	return h
}

// close wakes nobody any more; done tells those who wait.
func (h *hub) close() {
	h.stop()
	h.start.Do(func() {}) // nobody starts it from now on
	h.group.Wait()
}

// watch returns a channel that has something in it after a change of the job, which
// may have been missed by a moment: look at the record after the call, and now and
// then besides. The caller must call stop.
func (h *hub) watch(id string) (changed <-chan struct{}, stop func()) {
	h.start.Do(func() { h.group.Go(h.listen) })
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

// subscribePause is how long the hub waits after it could not subscribe.
const subscribePause = time.Second

func (h *hub) listen() {
	for h.done.Err() == nil {
		changes, err := h.jobs.Subscribe(h.done)
		if err != nil {
			if h.done.Err() == nil {
				h.log.Warn("changes not heard, trying again", "err", err, "wait", subscribePause)
			}
			select {
			case <-time.After(subscribePause):
			case <-h.done.Done():
			}
			continue
		}
		h.wake("") // what changed before
		h.follow(changes)
		_ = changes.Close() // nothing was written
	}
}

func (h *hub) follow(changes *jobs.Changes) {
	for {
		select {
		case id, ok := <-changes.IDs():
			if !ok {
				return
			}
			h.wake(id)
		case <-h.done.Done():
			return
		}
	}
}

// wake wakes who waits for a job; "" is everybody.
func (h *hub) wake(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id != "" {
		wakeAll(h.waiters[id])
		return
	}
	for _, waiters := range h.waiters {
		wakeAll(waiters)
	}
}

func wakeAll(waiters map[chan struct{}]struct{}) {
	for c := range waiters {
		select {
		case c <- struct{}{}:
		default: // it has been told already
		}
	}
}

const (
	// recheckEvery is how long a lost event can hide a change, half as much again at
	// most: ten thousand held requests then cost Redis some 400 reads a second.
	recheckEvery = 20 * time.Second
	awayFirst    = 500 * time.Millisecond
	awayMost     = 5 * time.Second
)

// recheck is when to look again at what nobody told of; after failures sooner, and then
// more and more seldom.
func recheck(failures int) time.Duration {
	wait := recheckEvery
	if failures > 0 {
		wait = min(awayFirst<<min(failures-1, 10), awayMost)
	}
	return wait + rand.N(wait/2) //nolint:gosec // it spreads the load
}

// pause waits for a change, the next look, or the end of ctx or the hub, and reports
// whether there is a reason to look again.
func (h *hub) pause(ctx context.Context, changed <-chan struct{}, wait time.Duration) bool {
	timer := time.NewTimer(wait)
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
