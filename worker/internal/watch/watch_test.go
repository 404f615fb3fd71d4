package watch_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/internal/watch"
)

const interval = 200 * time.Millisecond

// fixture is a watcher with servers in simulated time.
type fixture struct {
	t       *testing.T
	redis   redis.UniversalClient
	watcher *watch.Watcher
	servers []*watch.Server
	client  *asynq.Client
	// handled receives the ID of each message.
	handled chan string
	sent    *counter
	log     *slog.Logger // of the servers, into logged, which is complete once they are shut down
	logged  bytes.Buffer
}

// bubble runs a test with servers for these queues each, after their first round.
func bubble(t *testing.T, servers [][]string, test func(*fixture)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := queue.Open()
		f := &fixture{t: t, redis: q.Client(), handled: make(chan string, 100), sent: &counter{}}
		f.log = slog.New(slog.NewTextHandler(&f.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
		f.watcher = watch.New(f.redis, interval)
		f.client = asynq.NewClientFromRedisClient(f.redis)
		f.redis.AddHook(f.sent)
		stop := f.watcher.Start(context.WithoutCancel(t.Context()))
		for _, queues := range servers {
			f.start(queues)
		}
		<-time.After(3*time.Second + interval)
		test(f)
		for _, s := range f.servers {
			s.Shutdown()
		}
		stop()
		require.NoError(t, q.Close())
	})
}

func (f *fixture) start(queues []string) {
	f.t.Helper()
	cfg := asynq.Config{Concurrency: 1, Queues: map[string]int{}, RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return 0 }}
	for _, q := range queues {
		cfg.Queues[q] = 1
	}
	server := f.watcher.NewServer(f.log, cfg)
	require.NoError(f.t, server.Start(asynq.HandlerFunc(func(ctx context.Context, message *asynq.Task) error {
		id, _ := asynq.GetTaskID(ctx)
		f.handled <- id
		if tried, _ := asynq.GetRetryCount(ctx); message.Type() == "fails once" && tried == 0 {
			return errors.New("once")
		}
		return nil
	})))
	f.servers = append(f.servers, server)
}

// enqueue enqueues a message, which Danqing announces.
func (f *fixture) enqueue(to, id string, announced bool, options ...asynq.Option) {
	f.t.Helper()
	_, err := f.client.Enqueue(asynq.NewTask("works", nil), append(options, asynq.TaskID(id), asynq.Queue(to))...)
	require.NoError(f.t, err)
	if announced {
		require.NoError(f.t, f.redis.Publish(f.t.Context(), rediskey.Events, "asynq:{"+to+"}:pending").Err())
	}
}

// requireHandled waits for a message for a time at most.
func (f *fixture) requireHandled(id string, within time.Duration) {
	f.t.Helper()
	begun := time.Now()
	assert.Equal(f.t, id, <-f.handled)
	assert.LessOrEqual(f.t, time.Since(begun), within, id)
}

// counter counts the commands that were sent to Redis, and makes it unavailable.
type counter struct {
	mu   sync.Mutex
	n    map[string]int
	down bool
}

func (c *counter) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n = map[string]int{}
}

func (c *counter) sent() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}

func (c *counter) setDown(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

func (c *counter) count(cmds ...redis.Cmder) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cmd := range cmds {
		if c.n == nil {
			c.n = map[string]int{}
		}
		c.n[cmd.Name()]++
	}
	if c.down {
		return errors.New("connection refused")
	}
	return nil
}

func (c *counter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if err := c.count(cmd); err != nil {
			cmd.SetErr(err)
			<-time.After(10 * time.Millisecond) // go-redis retries
			return err
		}
		return next(ctx, cmd)
	}
}

func (c *counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if err := c.count(cmds...); err != nil {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
			return err
		}
		return next(ctx, cmds)
	}
}

func lanes() [][]string {
	return [][]string{{"a:critical", "a:default", "a:bulk"}, {"b:critical", "b:default", "b:bulk"}, {"store"}}
}

// A message that Danqing enqueues is handled at once, whatever its queue, also the next one.
func TestAnnouncedMessage(t *testing.T) {
	bubble(t, lanes(), func(f *fixture) {
		for i, to := range []string{"a:default", "store", "a:default", "a:bulk", "b:critical"} {
			<-time.After(time.Duration(i) * 777 * time.Millisecond)
			f.enqueue(to, to+string(rune('0'+i)), true)
			f.requireHandled(to+string(rune('0'+i)), 0)
		}
		f.enqueue("a:default", "one", true)
		f.enqueue("a:default", "two", true)
		f.requireHandled("one", 0)
		f.requireHandled("two", 0)
	})
}

// What no Danqing announces is handled, too: messages of other programs, delayed ones, retries,
// and those of a queue that was paused.
func TestOtherMessages(t *testing.T) {
	bubble(t, lanes(), func(f *fixture) {
		f.enqueue("a:default", "foreign", false)
		f.requireHandled("foreign", time.Second)
		f.enqueue("b:bulk", "scheduled", false, asynq.ProcessIn(10*time.Second))
		f.requireHandled("scheduled", 13*time.Second)

		_, err := f.client.Enqueue(asynq.NewTask("fails once", nil), asynq.TaskID("fails"), asynq.Queue("store"))
		require.NoError(f.t, err)
		f.requireHandled("fails", time.Second)
		f.requireHandled("fails", 3*time.Second)

		inspector := asynq.NewInspectorFromRedisClient(f.redis)
		require.NoError(f.t, inspector.PauseQueue("a:default"))
		f.enqueue("a:default", "paused", true)
		<-time.After(time.Minute)
		assert.Empty(f.t, f.handled)
		require.NoError(f.t, inspector.UnpauseQueue("a:default"))
		f.requireHandled("paused", time.Second)

		f.enqueue("a:critical", "run", false, asynq.ProcessIn(time.Hour))
		<-time.After(time.Minute)
		require.NoError(f.t, inspector.RunTask("a:critical", "run"))
		f.requireHandled("run", time.Second)
	})
}

// asynq's scripts are recognized: idle servers cost Redis one command a second for all of them,
// and three every 45 s for each.
func TestIdleServers(t *testing.T) {
	bubble(t, lanes(), func(f *fixture) {
		f.sent.reset()
		<-time.After(9 * time.Minute)
		assert.Equal(f.t, map[string]int{"exists": 540, "zadd": 2 * 12 * 3, "evalsha": 12 * 3}, f.sent.sent())

		servers, err := asynq.NewInspectorFromRedisClient(f.redis).Servers()
		require.NoError(f.t, err)
		assert.Len(f.t, servers, len(f.servers), "in the web UI's list")
	})
}

// A server that waits for a message stops at once.
func TestStopWhileWaiting(t *testing.T) {
	bubble(t, lanes(), func(f *fixture) {
		begun := time.Now()
		f.servers[0].Stop()
		assert.Zero(f.t, time.Since(begun))
		f.servers[0].Shutdown()
		f.enqueue("b:default", "other", true)
		f.requireHandled("other", 0)

		f.enqueue("a:default", "next", true)
		<-time.After(time.Minute)
		assert.Empty(f.t, f.handled)
		f.start([]string{"a:critical", "a:default", "a:bulk"})
		f.requireHandled("next", 0)
	})
}

// Servers of the same queue share its messages.
func TestSharedQueue(t *testing.T) {
	bubble(t, [][]string{{"a"}, {"a"}, {"a"}}, func(f *fixture) {
		for id := range strings.SplitSeq("abcdefghij", "") {
			f.enqueue("a", id, true)
		}
		for range 10 {
			<-f.handled
		}
	})
}

// After an outage of Redis, and with a lost subscription, messages are found by asking. The log
// has lines of one kind, and none of asynq's own.
func TestOutage(t *testing.T) {
	bubble(t, lanes(), func(f *fixture) {
		f.sent.setDown(true)
		<-time.After(time.Minute)
		f.sent.setDown(false)
		f.enqueue("a:default", "after", false)
		f.requireHandled("after", 2*time.Second)
		for _, s := range f.servers {
			s.Shutdown()
		}
		f.servers = nil
		assert.NotEmpty(f.t, f.logged.String())
		for line := range strings.Lines(f.logged.String()) {
			assert.Regexp(f.t, `level=WARN msg="redis unavailable" err="redis (eval|command) error: .*"\n$`, line)
		}
	})
}
