package watch_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/jobs/redistest"
	"github.com/danqing-queue/danqing/worker/internal/watch"
)

// BenchmarkPickup measures how long a message waits for an idle server of nine lanes, beside
// asynq's own servers that poll every 200 ms. Each has a redis-server of its own; they take turns.
// It reports the median and the 90th percentile, and the commands a second while nothing happens.
// Run it with -benchtime 200x.
func BenchmarkPickup(b *testing.B) {
	type contender struct {
		name   string
		rdb    redis.UniversalClient
		client *asynq.Client
		taken  chan time.Time
		waits  []time.Duration
	}
	contenders := []*contender{{name: "asynq"}, {name: "watch"}}
	for _, c := range contenders {
		c.rdb, c.taken = redistest.Start(b).Client(b), make(chan time.Time)
		c.client = asynq.NewClientFromRedisClient(c.rdb)
		watcher := watch.New(c.rdb, interval)
		defer watcher.Start(b.Context())()
		for lane := range 9 {
			cfg := asynq.Config{
				Concurrency: 1, TaskCheckInterval: interval, DelayedTaskCheckInterval: 5 * interval, LogLevel: asynq.FatalLevel,
				Queues: map[string]int{fmt.Sprintf("%d:critical", lane): 6, fmt.Sprintf("%d:default", lane): 3, fmt.Sprintf("%d:bulk", lane): 1},
			}
			var server interface {
				Start(asynq.Handler) error
				Shutdown()
			} = asynq.NewServerFromRedisClient(c.rdb, cfg)
			if c.name == "watch" {
				server = watcher.NewServer(slog.New(slog.DiscardHandler), cfg)
			}
			require.NoError(b, server.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
				c.taken <- time.Now()
				return nil
			})))
			defer server.Shutdown()
		}
	}
	<-time.After(time.Second)
	n := 0
	for b.Loop() {
		for _, c := range contenders {
			n++
			<-time.After(time.Duration(n%7) * 37 * time.Millisecond)
			queue := fmt.Sprintf("%d:default", n%9)
			_, err := c.client.Enqueue(asynq.NewTask("works", nil), asynq.Queue(queue))
			require.NoError(b, err)
			enqueued := time.Now()
			require.NoError(b, c.rdb.Publish(b.Context(), rediskey.Events, "asynq:{"+queue+"}:pending").Err())
			c.waits = append(c.waits, (<-c.taken).Sub(enqueued))
		}
	}
	const idle = 10 * time.Second
	for _, c := range contenders {
		before := commands(b, c.rdb)
		<-time.After(idle)
		slices.Sort(c.waits)
		b.ReportMetric(float64(c.waits[len(c.waits)/2].Microseconds())/1000, c.name+"-p50-ms")
		b.ReportMetric(float64(c.waits[len(c.waits)*9/10].Microseconds())/1000, c.name+"-p90-ms")
		b.ReportMetric(float64(commands(b, c.rdb)-before)/idle.Seconds(), c.name+"-commands/s")
	}
	b.ReportMetric(0, "ns/op") // of the waits between the messages
}

// commands is the number of commands that Redis has processed, in scripts too.
func commands(b *testing.B, rdb redis.UniversalClient) (n int64) {
	b.Helper()
	info, err := rdb.InfoMap(b.Context(), "stats").Result()
	require.NoError(b, err)
	_, err = fmt.Sscan(info["Stats"]["total_commands_processed"], &n)
	require.NoError(b, err)
	return n
}
