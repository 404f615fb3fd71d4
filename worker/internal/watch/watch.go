// Package watch runs the asynq servers of a worker without polling.
//
// asynq has no blocking dequeue: each of its servers asks Redis for every one of its queues, many
// times a second. Here a server waits until one of its queues may have a message. That is known
// from what is published with each message, and, for messages that are not announced, from one
// command that asks for the queues of all servers at an interval.
package watch

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/internal/loop"
)

const (
	// sweepShortest is the shortest interval of sweep, so that it costs Redis one command a
	// second. A message that was not announced waits that long, half of it on average.
	sweepShortest = time.Second
	// pingInterval is how often a silent subscription is checked. A lost one only means that
	// messages wait for the next sweep.
	pingInterval = 15 * time.Second
)

// existScript returns which of its keys exist.
var existScript = redis.NewScript(`
local exist = {}
for i = 1, #KEYS do exist[i] = redis.call('EXISTS', KEYS[i]) end
return exist
`)

// Exist returns which keys exist, with one command.
func Exist(ctx context.Context, rdb redis.UniversalClient, keys []string) ([]bool, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	return existScript.Run(ctx, rdb, keys).BoolSlice()
}

// Watcher knows which Redis keys of a worker may exist: the queues of its asynq servers, and
// others that mostly do not exist.
type Watcher struct {
	redis redis.UniversalClient
	// interval is the polling interval of a server that cannot wait.
	interval time.Duration

	mu sync.Mutex
	// queues says of each queue's pending list whether it may have a message that no server has
	// tried to take.
	queues map[string]bool
	// others says of each other key whether it existed at the last sweep, or is new.
	others  map[string]bool
	servers map[*client]struct{}
}

// New returns a watcher that does not run yet. interval is the polling interval of servers that
// cannot wait, as in worker.Config.
func New(rdb redis.UniversalClient, interval time.Duration) *Watcher {
	return &Watcher{
		redis: rdb, interval: interval,
		queues: map[string]bool{}, others: map[string]bool{}, servers: map[*client]struct{}{},
	}
}

// Start watches until ctx ends or stop is called, which must be after the last server has been
// shut down.
func (w *Watcher) Start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { w.listen(ctx) })
	stopSweeping := loop.Every(ctx, max(w.interval, sweepShortest), w.sweep)
	return func() {
		cancel()
		stopSweeping()
		group.Wait()
	}
}

// listen wakes the servers whose queues got a message.
func (w *Watcher) listen(ctx context.Context) {
	sub := w.redis.Subscribe(ctx, rediskey.Events)
	defer context.AfterFunc(ctx, func() { _ = sub.Close() })() // it only reads
	for r := range sub.ChannelWithSubscriptions(redis.WithChannelHealthCheckInterval(pingInterval)) {
		message, ok := r.(*redis.Message)
		if !ok { // subscribed, perhaps again: some may have been missed
			w.wakeAll()
		} else {
			w.wake(message.Payload)
		}
	}
}

// MayExist reports whether a key existed at the last sweep, a second ago or so. It is true for a
// key that was not asked for before.
func (w *Watcher) MayExist(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	exists, known := w.others[key]
	if !known {
		w.others[key] = true
	}
	return exists || !known
}

// take reports whether a queue may have a message. It is false from then on, until there may be
// another one.
func (w *Watcher) take(pending string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	may := w.queues[pending]
	w.queues[pending] = false
	return may
}

// wake wakes the servers of a queue that may have a message. Other keys, and IDs of jobs, are
// ignored.
func (w *Watcher) wake(pending string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wakeLocked(pending)
}

func (w *Watcher) wakeLocked(pending string) {
	if _, watched := w.queues[pending]; !watched {
		return
	}
	w.queues[pending] = true
	for c := range w.servers {
		if c.pending[pending] {
			c.wake()
		}
	}
}

func (w *Watcher) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for pending := range w.queues {
		w.wakeLocked(pending)
	}
}

// MayHaveMessages reports whether one of the queues may have a message that no server has tried to
// take. It is true for a queue that no server has asked for yet.
func (w *Watcher) MayHaveMessages(queues map[string]int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for queue := range queues {
		if ready, watched := w.queues[asynqPending(queue)]; ready || !watched {
			return true
		}
	}
	return false
}

// anyReady reports whether one of the queues may have a message.
func (w *Watcher) anyReady(pending map[string]bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range pending {
		if w.queues[p] {
			return true
		}
	}
	return false
}

// sweep asks which of the watched keys exist: with one command for all that did not exist,
// and a script for the others. While Redis does not answer, the servers poll.
func (w *Watcher) sweep(ctx context.Context) {
	absent, ask := w.watched()
	if len(absent) > 0 {
		n, err := w.redis.Exists(ctx, absent...).Result()
		if err != nil {
			w.wakeAll()
			return
		}
		if n > 0 {
			ask = append(ask, absent...)
		}
	}
	exist, err := Exist(ctx, w.redis, ask)
	if err != nil {
		w.wakeAll()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, key := range ask {
		if _, other := w.others[key]; other {
			w.others[key] = exist[i]
		} else if exist[i] {
			w.wakeLocked(key)
		}
	}
}

// watched returns the keys that are believed not to exist, and those that are believed to. A
// queue that may have a message is left out until a server has tried to take one.
func (w *Watcher) watched() (absent, present []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, ready := range w.queues {
		if !ready {
			absent = append(absent, key)
		}
	}
	for key, exists := range w.others {
		if exists {
			present = append(present, key)
		} else {
			absent = append(absent, key)
		}
	}
	return absent, present
}
