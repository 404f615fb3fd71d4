//go:build unix

package worker_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/redistest"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// BenchmarkNextCreate measures, in real time and on this disk, how long the next create follows the
// query whose answer shows that a task has ended, without a round trip to the service: on a
// redis-server as docker-compose.yml has it, and on the durable queue of "danqing up". Beside it, in
// the same run, it reports the time of one sync of a file, and of one round trip to Redis. Run it
// with -benchtime 20x: a task takes 2.5 s, so that Redis 7.2 and later has synced the next job by
// then (WAITAOF). Other clients talk to Redis all the while, as in a deployment: after half a second
// of sleep a processor that has nothing else to do runs many times slower than in the next second.
func BenchmarkNextCreate(b *testing.B) {
	b.Run("redis", func(b *testing.B) {
		s := newStack(b, b.TempDir(), nextCreateTasks())
		s.shared = true
		s.redis = redistest.Start(b, "--appendonly", "yes", "--appendfsync", "everysec", "--dir", b.TempDir()).Client(b)
		s.measureNextCreate(b)
	})
	b.Run("embedded", func(b *testing.B) {
		s := newStack(b, b.TempDir(), nextCreateTasks())
		durable, err := queue.OpenDir(queue.Config{Dir: filepath.Join(b.TempDir(), "queue")})
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, durable.Close()) })
		s.redis = durable.Client()
		s.measureNextCreate(b)
	})
}

func nextCreateTasks() *simulator.Simulator {
	return &simulator.Simulator{TaskTime: simulator.Between(2500*time.Millisecond, 2500*time.Millisecond)}
}

// measureNextCreate lets a worker make b.N jobs after the first and reports the gaps.
func (s *stack) measureNextCreate(b *testing.B) {
	b.Helper()
	var mu sync.Mutex
	var query time.Time
	var gaps, syncs, trips []time.Duration
	s.sim.Script(simulator.Fault{Times: -1, Match: func(r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.Method == http.MethodPost && !query.IsZero():
			gaps = append(gaps, time.Since(query))
		case strings.Contains(r.URL.Path, "/tasks/"):
			query = time.Now()
		}
		return false // it only looks
	}})
	client := jobs.NewClient(s.redis)
	for i := range b.N + 1 {
		_, err := client.Enqueue(b.Context(), jobs.Request{ID: fmt.Sprintf("job-%d", i), Prompt: fmt.Sprintf("prompt %d", i)})
		require.NoError(b, err)
	}
	stop := s.runBenchmark(b)
	busy, idle := context.WithCancel(b.Context())
	defer idle()
	go func() {
		for busy.Err() == nil {
			_ = s.redis.Ping(busy).Err()
			<-time.After(500 * time.Microsecond)
		}
	}()
	file, err := os.Create(filepath.Join(s.dir, "synced"))
	require.NoError(b, err)
	for i := range b.N + 1 {
		_, err := client.Wait(b.Context(), fmt.Sprintf("job-%d", i))
		require.NoError(b, err)
		syncs = append(syncs, timed(func() {
			_, err := file.WriteString(strings.Repeat("x", 1000))
			require.NoError(b, err)
			require.NoError(b, file.Sync())
		}))
		trips = append(trips, timed(func() { require.NoError(b, s.redis.Ping(b.Context()).Err()) }))
	}
	idle()
	stop()
	require.NoError(b, file.Close())
	mu.Lock()
	defer mu.Unlock()
	for name, all := range map[string][]time.Duration{"create": gaps, "sync": syncs, "redis": trips} {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(all[len(all)*9/10].Microseconds())/1000, name+"-p90-ms")
	}
	b.ReportMetric(0, "ns/op") // of the tasks
	if stats, err := s.redis.Info(b.Context(), "commandstats").Result(); err == nil {
		waits, calls := 0, strings.SplitN(stats, "cmdstat_waitaof:calls=", 2)
		_, _ = fmt.Sscan(strings.NewReplacer(",", " ").Replace(calls[len(calls)-1]), &waits)
		b.ReportMetric(float64(waits)/float64(b.N+1), "waitaof/job")
	}
}

// runBenchmark runs a worker without a log. stop ends it and its services.
func (s *stack) runBenchmark(b *testing.B) (stop func()) {
	b.Helper()
	s.configure = func(cfg *worker.Config) { cfg.Logger = slog.New(slog.DiscardHandler) }
	w, data := s.newWorker("data")
	ended := make(chan error, 1)
	go func() { ended <- w.Run(context.Background()) }()
	return func() {
		w.Stop()
		require.NoError(b, <-ended)
		require.NoError(b, data.Close())
		require.NoError(b, s.sim.Close())
		require.NoError(b, s.files.Close())
	}
}

// BenchmarkWaitingLane measures the processor time of a worker whose lane waits for a task of 27 s,
// with the next job prepared, on a redis-server: the simulated service and the bucket, which run in
// this process, included. Run it with -benchtime 20x: it waits for as many seconds.
func BenchmarkWaitingLane(b *testing.B) {
	s := newStack(b, b.TempDir(), &simulator.Simulator{TaskTime: simulator.Between(27*time.Second, 27*time.Second)})
	s.shared, s.redis = true, redistest.Start(b, "--appendonly", "yes").Client(b)
	model, err := jobs.LookupModel("wanx-v1")
	require.NoError(b, err)
	for range 24 {
		kind := jobs.TaskKind{Model: model.Name, Size: model.Sizes.Default, N: 1}
		require.NoError(b, jobs.NewStore(s.redis).RecordDuration(b.Context(), kind, 27*time.Second))
	}
	for _, id := range []string{"running", "prepared"} {
		s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id})
	}
	stop := s.runBenchmark(b)
	s.state("prepared", jobs.StatePrepared)
	before := processorTime(b)
	b.ResetTimer()
	for range b.N {
		<-time.After(time.Second)
	}
	b.StopTimer()
	b.ReportMetric(100*float64(processorTime(b)-before)/float64(b.Elapsed()), "cpu-%")
	stop()
}

// processorTime returns what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func timed(do func()) time.Duration {
	begun := time.Now()
	do()
	return time.Since(begun)
}
