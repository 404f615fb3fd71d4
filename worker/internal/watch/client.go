package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// The keys and scripts of asynq that are recognized here were read from its sources, of the
// version that jobs/asynqkeys.go names: internal/base/base.go and internal/rdb/rdb.go. A script
// that is not recognized passes unchanged: then a server polls as asynq does.
const (
	asynqServers = "asynq:servers" // base.AllServers, and the prefix of a server's own key
	asynqWorkers = "asynq:workers" // base.AllWorkers, the same
)

// asynqPending is the key of a queue's list of pending messages (base.PendingKey).
func asynqPending(queue string) string { return "asynq:{" + queue + "}:pending" }

const (
	// beatInterval is how often a server without messages writes its state, for the web UI's
	// list of servers: asynq writes it every 5 s, with 6 commands. beatTTL is how long that
	// list shows a server that has crashed.
	beatInterval = 45 * time.Second
	beatTTL      = 100 * time.Second
)

// errRoundOver makes an asynq server begin another round of its queues at once. After a round
// without a message it would sleep for its polling interval.
var errRoundOver = errors.New("no message was ready")

// client is the Redis client of one asynq server. It answers by itself what is known without
// asking Redis, and holds the end of a round without a message until there may be one.
type client struct {
	redis.UniversalClient

	watcher *Watcher
	// pending are the lists of the server's queues.
	pending map[string]bool
	woken   chan struct{}
	stopped chan struct{}
	stop    func()
	// empty is how many queues of the current round had no message. asynq's processor asks
	// for one after the other.
	empty int

	// written is when the server's state was last written without messages, zero after it was
	// written with some. members are its entries in asynq's sets. Both belong to asynq's
	// heartbeater.
	written time.Time
	members map[string]any
}

func (w *Watcher) newClient(queues map[string]int) *client {
	c := &client{
		UniversalClient: w.redis, watcher: w, pending: map[string]bool{}, members: map[string]any{},
		woken: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	c.stop = sync.OnceFunc(func() { close(c.stopped) })
	for queue := range queues {
		c.pending[asynqPending(queue)] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.Copy(w.queues, c.pending)
	w.servers[c] = struct{}{}
	return c
}

// stopWaiting ends the server's wait for a message, for good.
func (c *client) stopWaiting() {
	c.stop()
	c.watcher.mu.Lock()
	defer c.watcher.mu.Unlock()
	delete(c.watcher.servers, c)
}

func (c *client) wake() {
	select {
	case c.woken <- struct{}{}:
	default: // it has not noticed the last time yet
	}
}

// EvalSha runs one of asynq's scripts, unless its result is known.
func (c *client) EvalSha(ctx context.Context, sha1 string, keys []string, args ...any) *redis.Cmd {
	run := func() *redis.Cmd { return c.UniversalClient.EvalSha(ctx, sha1, keys, args...) }
	switch {
	case isScript(keys, "pending", "paused", "active", "lease") && c.pending[keys[0]]: // dequeueCmd
		return c.dequeue(ctx, keys[0], run)
	case isScript(keys, "scheduled", "pending"), isScript(keys, "retry", "pending"): // forwardCmd
		if !c.watcher.MayExist(keys[0]) {
			return answer(ctx, int64(0), nil)
		}
		moved := run()
		if n, err := moved.Int(); err == nil && n > 0 {
			c.watcher.wake(keys[1])
		}
		return moved
	case len(keys) == 4 && len(args) == 1 && isScript(keys[:3], "active", "lease", "pending"): // requeueCmd
		return c.requeue(ctx, keys, args[0])
	case isScript(keys, "lease"): // listLeaseExpiredCmd
		if !c.watcher.MayExist(keys[0]) {
			return answer(ctx, []any{}, nil)
		}
	case isScript(keys, "aggregation_sets"): // reclaimStateAggregationSetsCmd
		if !c.watcher.MayExist(keys[0]) {
			return answer(ctx, "OK", nil)
		}
	case len(keys) == 2 && len(args) >= 2 && strings.HasPrefix(keys[0], asynqServers+":") && strings.HasPrefix(keys[1], asynqWorkers+":"): // writeServerStateCmd
		return c.writeState(ctx, sha1, keys, args)
	}
	return run()
}

// isScript reports whether keys are those of one queue, with these names.
func isScript(keys []string, names ...string) bool {
	if len(keys) != len(names) {
		return false
	}
	queue, ok := strings.CutSuffix(keys[0], names[0])
	for i, name := range names {
		ok = ok && keys[i] == queue+name
	}
	return ok && strings.HasSuffix(queue, "}:")
}

// answer is a command that was not sent.
func answer(ctx context.Context, value any, err error) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetVal(value)
	cmd.SetErr(err)
	return cmd
}

// dequeue takes a message from a queue that may have one. At the end of a round without a
// message it waits until there may be one, or the server stops.
func (c *client) dequeue(ctx context.Context, pending string, run func() *redis.Cmd) *redis.Cmd {
	if c.watcher.take(pending) {
		message := run()
		if !errors.Is(message.Err(), redis.Nil) {
			c.empty = 0
			c.watcher.wake(pending) // it may have more, or the outcome is unknown
			return message
		}
	}
	if c.empty++; c.empty < len(c.pending) {
		return answer(ctx, nil, redis.Nil)
	}
	c.empty = 0
	for !c.watcher.anyReady(c.pending) {
		select {
		case <-c.woken:
		case <-c.stopped:
			return answer(ctx, nil, errRoundOver)
		}
	}
	return answer(ctx, nil, errRoundOver)
}

// requeueScript is asynq's requeueCmd, which puts a message back at the head of its queue at a
// shutdown, but keeps since when it waits: without that a lane that pauses has a latency of 0 in
// the web UI.
var requeueScript = redis.NewScript(`
if redis.call('LREM', KEYS[1], 0, ARGV[1]) == 0 then return redis.error_reply('NOT FOUND') end
if redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then return redis.error_reply('NOT FOUND') end
redis.call('RPUSH', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[4], 'state', 'pending', 'pending_since', ARGV[2])
return redis.status_reply('OK')
`)

func (c *client) requeue(ctx context.Context, keys []string, id any) *redis.Cmd {
	since, err := c.UniversalClient.HGet(ctx, rediskey.Record(fmt.Sprint(id)), "enqueued").Time()
	if err != nil { // the message is not a job's
		since = time.Now()
	}
	return requeueScript.Run(ctx, c.UniversalClient, keys, id, since.UnixNano())
}

// ZAdd keeps a server's entry in asynq's set of servers until writeState writes it.
func (c *client) ZAdd(ctx context.Context, key string, members ...redis.Z) *redis.IntCmd {
	if (key != asynqServers && key != asynqWorkers) || len(members) != 1 {
		return c.UniversalClient.ZAdd(ctx, key, members...)
	}
	c.members[key] = members[0].Member
	return redis.NewIntCmd(ctx)
}

// writeState writes a server's state and its entries in asynq's sets: every time while it has
// messages, else every beatInterval.
func (c *client) writeState(ctx context.Context, sha1 string, keys []string, args []any) *redis.Cmd {
	now := time.Now()
	idle := len(args) == 2 // the lifetime in seconds, the server, and two for each message
	if idle && now.Sub(c.written) < beatInterval {
		return answer(ctx, "OK", nil)
	}
	args[0] = beatTTL.Seconds()
	for key, member := range c.members {
		err := c.UniversalClient.ZAdd(ctx, key, redis.Z{Score: float64(now.Add(beatTTL).Unix()), Member: member}).Err()
		if err != nil {
			return answer(ctx, nil, err)
		}
	}
	written := c.UniversalClient.EvalSha(ctx, sha1, keys, args...)
	c.written = time.Time{}
	if idle && written.Err() == nil {
		c.written = now
	}
	return written
}
