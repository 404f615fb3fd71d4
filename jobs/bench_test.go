package jobs_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
)

// BenchmarkCheck measures what is done with a request before Redis is asked: checks,
// spelling and digest.
func BenchmarkCheck(b *testing.B) {
	req := jobs.Request{Prompt: strings.Repeat("一只白瓷茶杯", 40), Style: "摄影", Size: "1024x1024", N: 1}
	for b.Loop() {
		normal, _, err := req.Normalize()
		if err != nil || normal.Digest() == "" {
			b.Fatal(err)
		}
	}
}

// enqueueRound is how many jobs a contender of BenchmarkEnqueue enqueues before the next one
// has its turn.
const enqueueRound = 10_000

// BenchmarkEnqueue enqueues b.N jobs with a prompt of 240 bytes in three ways, each on a
// redis-server of its own: with asynq's Enqueue, whose payload is the request alone, with
// Client.Enqueue, and with Client.EnqueueAll. It reports speed and bytes in Redis as ratios to
// asynq's; that of the speed is the median of the rounds, so that the machine's other work
// counts little. Run it with -benchtime 100000x.
func BenchmarkEnqueue(b *testing.B) {
	reference := &contender{name: "asynq", enqueue: asynqLoop}
	others := []*contender{
		{name: "Enqueue", enqueue: func(b *testing.B, rdb redis.UniversalClient, reqs []jobs.Request) {
			b.Helper()
			client := jobs.NewClient(rdb)
			for _, req := range reqs {
				_, err := client.Enqueue(b.Context(), req)
				require.NoError(b, err)
			}
		}},
		{name: "EnqueueAll", enqueue: func(b *testing.B, rdb redis.UniversalClient, reqs []jobs.Request) {
			b.Helper()
			_, err := jobs.NewClient(rdb).EnqueueAll(b.Context(), reqs)
			require.NoError(b, err)
		}},
	}
	for _, c := range append(others, reference) {
		c.rdb = startTCP(b)
		c.run(b, requests(-1, 0)) // loads the scripts
		c.empty = usedMemory(b, c.rdb)
	}
	b.ResetTimer()
	for from := 0; from < b.N; from += enqueueRound {
		reqs := requests(from, min(from+enqueueRound, b.N))
		took := reference.run(b, reqs)
		for _, c := range others {
			c.ratios = append(c.ratios, took.Seconds()/c.run(b, reqs).Seconds())
		}
	}
	bytes := usedMemory(b, reference.rdb) - reference.empty
	b.ReportMetric(0, "ns/op") // of all three together: of no use
	b.ReportMetric(float64(b.N)/reference.took.Seconds(), "asynq-jobs/s")
	b.ReportMetric(float64(bytes)/float64(b.N), "asynq-B/job")
	for _, c := range others {
		slices.Sort(c.ratios)
		b.ReportMetric(c.ratios[len(c.ratios)/2], c.name+"-x-asynq")
		b.ReportMetric(float64(usedMemory(b, c.rdb)-c.empty)/float64(bytes), c.name+"-x-bytes")
	}
}

// contender is one way to enqueue.
type contender struct {
	name    string
	enqueue func(*testing.B, redis.UniversalClient, []jobs.Request)

	rdb    redis.UniversalClient
	empty  int64 // memory used before the first job
	took   time.Duration
	ratios []float64 // of the speed to asynq's, by round
}

// run enqueues the requests and returns how long that took.
func (c *contender) run(b *testing.B, reqs []jobs.Request) time.Duration {
	b.Helper()
	began := time.Now()
	c.enqueue(b, c.rdb, reqs)
	took := time.Since(began)
	c.took += took
	return took
}

// requests returns requests with IDs and a prompt of 240 bytes.
func requests(from, to int) []jobs.Request {
	reqs := make([]jobs.Request, 0, to-from)
	for i := from; i < to; i++ {
		number := fmt.Sprintf("%09d", i)
		reqs = append(reqs, jobs.Request{ID: "sku-" + number, Prompt: number + strings.Repeat("一只白瓷茶杯，在", 9) + strings.Repeat("一", 5)})
	}
	return reqs
}

// asynqLoop enqueues the requests as a program with asynq alone does.
func asynqLoop(b *testing.B, rdb redis.UniversalClient, reqs []jobs.Request) {
	b.Helper()
	client := asynq.NewClientFromRedisClient(rdb)
	for _, req := range reqs {
		payload, err := json.Marshal(req)
		require.NoError(b, err)
		_, err = client.EnqueueContext(b.Context(), asynq.NewTask("generate", payload), asynq.TaskID(req.ID), asynq.Queue("images"))
		require.NoError(b, err)
	}
}

// usedMemory returns the bytes that a redis-server has allocated for its data.
func usedMemory(b *testing.B, rdb redis.UniversalClient) int64 {
	b.Helper()
	info, err := rdb.InfoMap(b.Context(), "memory").Result()
	require.NoError(b, err)
	used, err := strconv.ParseInt(info["Memory"]["used_memory"], 10, 64)
	require.NoError(b, err)
	return used
}

// startTCP starts a redis-server that is reached over TCP, as most are.
func startTCP(b *testing.B) redis.UniversalClient {
	b.Helper()
	port, _ := redistest.Listen(b)
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port})
	b.Cleanup(func() { require.NoError(b, rdb.Close()) })
	require.Eventually(b, func() bool { return rdb.Ping(b.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
	return rdb
}
