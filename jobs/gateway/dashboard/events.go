package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
	"sync"
	"time"
)

const (
	// watchInterval is how often the state is read while somebody looks.
	watchInterval = 2 * time.Second
	// heartbeat is how often a silent stream gets a comment, against proxies that cut it.
	heartbeat = 20 * time.Second
	// eventTimeout limits a write to a client.
	eventTimeout = 30 * time.Second
	// maxWatchers limits the open streams; pages beyond them are read again by hand.
	maxWatchers = 200
)

// watchers are the open streams of events. One poller reads for all of them, and stops with
// the last one.
type watchers struct {
	mu     sync.Mutex
	open   map[chan struct{}]struct{}
	stop   context.CancelFunc // of the poller; nil while it does not run
	group  sync.WaitGroup
	closed context.CancelFunc
	done   context.Context //nolint:containedctx // the dashboard's lifetime, not a caller's
}

func (v *watchers) init() {
	v.open = map[chan struct{}]struct{}{}
	v.done, v.closed = context.WithCancel(context.Background())
}

func (v *watchers) close() {
	v.mu.Lock()
	v.closed()
	v.mu.Unlock()
	v.group.Wait()
}

// watch returns a channel that receives a value after a change, nil if there are too many. The
// caller must call leave.
func (d *Dashboard) watch() (changed chan struct{}, leave func()) {
	v := &d.watchers
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.open) >= maxWatchers || v.done.Err() != nil {
		return nil, func() {}
	}
	changed = make(chan struct{}, 1)
	v.open[changed] = struct{}{}
	if v.stop == nil {
		var ctx context.Context
		ctx, v.stop = context.WithCancel(v.done)
		v.group.Go(func() { d.poll(ctx) })
	}
	return changed, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if delete(v.open, changed); len(v.open) == 0 {
			v.stop()
			v.stop = nil
		}
	}
}

// poll tells all watchers when the state has changed.
func (d *Dashboard) poll(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	last := d.fingerprint(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := d.fingerprint(ctx)
		if now == last || now == 0 {
			continue
		}
		last = now
		d.watchers.mu.Lock()
		for changed := range d.watchers.open {
			select {
			case changed <- struct{}{}:
			default: // it has not seen the last change yet
			}
		}
		d.watchers.mu.Unlock()
	}
}

// fingerprint is a hash of the state, 0 if it cannot be read.
func (d *Dashboard) fingerprint(ctx context.Context) uint64 {
	s, err := d.current(ctx)
	if err != nil {
		return 0
	}
	shown := *s
	shown.At = time.Time{}
	sum := fnv.New64a()
	if json.NewEncoder(sum).Encode(shown) != nil {
		return 0
	}
	return sum.Sum64()
}

// events is a stream of server-sent events: one whenever the pages have changed.
func (d *Dashboard) events(w http.ResponseWriter, r *http.Request) {
	changed, leave := d.watch()
	defer leave()
	if changed == nil {
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Accel-Buffering", "no") // nginx
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	control := http.NewResponseController(w)
	for text := "retry: 3000\n\n"; ; {
		_ = control.SetWriteDeadline(time.Now().Add(eventTimeout)) // unsupported in tests
		if _, err := fmt.Fprint(w, text); err != nil || control.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-d.watchers.done.Done():
			return
		case <-changed:
			text = "event: change\ndata:\n\n"
		case <-beat.C:
			text = ":\n\n"
		}
	}
}
