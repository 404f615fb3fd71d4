package embedded_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
)

// crashDir is the environment variable with the folder whose queue a child process of the
// test serves until it is killed.
const crashDir = "DANQING_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		fmt.Fprintln(os.Stderr, serveUntilKilled(dir, os.Getenv(crashDir+"_ROUND")))
		os.Exit(1) // it runs until it is killed
	}
	os.Exit(m.Run())
}

// serveUntilKilled prints the queue's URL, or, with a round, uses the queue itself and
// prints what was acknowledged.
func serveUntilKilled(dir, round string) error {
	cfg := embedded.Config{Dir: dir}
	if round == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	q, err := embedded.OpenDir(cfg)
	if err != nil {
		return err
	}
	if round == "" {
		_, _ = os.Stdout.WriteString(q.URL() + "\n")
		select {}
	}
	failed := make(chan error)
	for producer := range crashProducers {
		go func() {
			failed <- produce(q.Client(), fmt.Sprintf("%s-%02d", round, producer), func(a ack) {
				// One write per line, so that lines do not mix.
				_, _ = os.Stdout.WriteString(a.id + " " + string(a.state) + "\n")
			})
		}()
	}
	return <-failed
}

const crashProducers = 50

// ack is an acknowledged state of a job.
type ack struct {
	id    string
	state jobs.State
}

// produce enqueues jobs and finishes every second one, until an error.
func produce(rdb redis.UniversalClient, name string, acked func(ack)) error {
	ctx, client, store := context.Background(), jobs.NewClient(rdb), jobs.NewStore(rdb)
	for i := 0; ; i++ {
		rec, err := client.Enqueue(ctx, request(fmt.Sprintf("%s-%04d", name, i)))
		if err != nil {
			return err
		}
		acked(ack{rec.ID, rec.State})
		if i%2 == 0 {
			continue
		}
		next := jobs.Record{Job: *rec}
		next.State, next.TaskID = jobs.StateSucceeded, "task of "+rec.ID
		next.Images = []jobs.Image{{N: 1, Key: rec.ID + ".png"}}
		if err := store.Update(ctx, &jobs.Record{Job: *rec}, &next); err != nil {
			return err
		}
		acked(ack{rec.ID, next.State})
	}
}

// After a kill -9 at any moment, each acknowledged job exists once, with its message, in
// the acknowledged state or a later one.
func TestKill(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(*testing.T, string, int, int) []ack{"over TCP": killWithExternalClients, "in process": killWithInternalClients} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			acked := map[string]jobs.State{}
			acks, rounds := 0, 4
			for round := range rounds {
				for _, a := range use(t, dir, round, 60+rand.IntN(200)) {
					acks++
					if acked[a.id] != jobs.StateSucceeded {
						acked[a.id] = a.state
					}
				}
				verifyCrash(t, dir, acked)
			}
			t.Logf("%d kills, %d acknowledgements of %d jobs: none lost", rounds, acks, len(acked))
		})
	}
}

// startChild starts the test binary as a child process on dir.
func startChild(t *testing.T, dir, round string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), crashDir+"="+dir, crashDir+"_ROUND="+round)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	return child, bufio.NewScanner(out)
}

// killWithExternalClients kills a queue after limit acknowledgments to clients in this
// process.
func killWithExternalClients(t *testing.T, dir string, round, limit int) []ack {
	t.Helper()
	child, lines := startChild(t, dir, "")
	require.True(t, lines.Scan())
	options, err := redis.ParseURL(lines.Text())
	require.NoError(t, err)
	options.MaxRetries, options.DialerRetries = -1, 1 // the first error ends a producer
	var mu sync.Mutex
	var acks []ack
	var producers sync.WaitGroup
	for producer := range crashProducers {
		producers.Go(func() {
			rdb := redis.NewClient(options)
			defer rdb.Close() //nolint:errcheck // the server is dead
			_ = produce(rdb, fmt.Sprintf("%03d-%02d", round, producer), func(a ack) {
				mu.Lock()
				defer mu.Unlock()
				acks = append(acks, a)
				if len(acks) == limit {
					assert.NoError(t, child.Process.Kill())
				}
			}) // ends with the queue
		})
	}
	producers.Wait()
	require.Error(t, child.Wait())
	require.GreaterOrEqual(t, len(acks), limit)
	return acks
}

// killWithInternalClients kills a queue whose clients are in its own process.
func killWithInternalClients(t *testing.T, dir string, round, limit int) []ack {
	t.Helper()
	child, lines := startChild(t, dir, strconv.Itoa(round))
	var acks []ack
	for lines.Scan() {
		id, state, ok := strings.Cut(lines.Text(), " ")
		require.True(t, ok)
		acks = append(acks, ack{id, jobs.State(state)})
		if len(acks) == limit {
			require.NoError(t, child.Process.Kill())
		}
	}
	require.Error(t, child.Wait())
	require.GreaterOrEqual(t, len(acks), limit)
	return acks
}

func verifyCrash(t *testing.T, dir string, acked map[string]jobs.State) {
	t.Helper()
	q := open(t, embedded.Config{Dir: dir})
	client := jobs.NewClient(q.Client())
	inspector := asynq.NewInspectorFromRedisClient(q.Client())
	queue := jobs.Queue("wanx-v1", jobs.PriorityDefault)
	for id, state := range acked {
		rec, err := client.Get(t.Context(), id)
		require.NoError(t, err, "lost: %s", id)
		if state != rec.State {
			require.Equal(t, jobs.StateSucceeded, rec.State, "an older state than the acknowledged one: %s", id)
		}
		info, err := inspector.GetTaskInfo(queue, id)
		require.NoError(t, err, "lost the message of %s", id)
		require.Equal(t, asynq.TaskStatePending, info.State, id)
	}
	waiting, err := q.Client().LRange(t.Context(), "asynq:{"+queue+"}:pending", 0, -1).Result()
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, id := range waiting {
		require.False(t, seen[id], "twice in the queue: %s", id)
		seen[id] = true
	}
	before := dump(t, q.Client())
	require.NoError(t, q.Close())
	q = open(t, embedded.Config{Dir: dir})
	require.Equal(t, before, dump(t, q.Client()))
	require.NoError(t, q.Close())
}

// The replayed log equals the stored data, for everything that asynq writes: results,
// retries, archives, groups and schedules.
func TestReplayEqualsState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	q := open(t, embedded.Config{Dir: dir})
	client := asynq.NewClientFromRedisClient(q.Client())
	const tasks = 60
	done := make(chan struct{}, tasks)
	server := asynq.NewServerFromRedisClient(q.Client(), asynq.Config{
		Concurrency: 4, LogLevel: asynq.FatalLevel,
		Queues: map[string]int{"default": 1},
	})
	require.NoError(t, server.Start(asynq.HandlerFunc(func(_ context.Context, task *asynq.Task) error {
		defer func() { done <- struct{}{} }()
		switch task.Payload()[0] % 4 {
		case 0:
			return errors.New("try again")
		case 1:
			return fmt.Errorf("never: %w", asynq.SkipRetry)
		}
		_, err := task.ResultWriter().Write([]byte("result of " + string(task.Payload())))
		return err
	})))
	for i := range tasks {
		_, err := client.EnqueueContext(t.Context(), asynq.NewTask("paint", []byte{byte(i), 0xff, '\n'}),
			asynq.TaskID(strconv.Itoa(i)), asynq.Retention(1e12))
		require.NoError(t, err)
	}
	for range tasks {
		<-done
	}
	server.Shutdown()
	for i, option := range []asynq.Option{asynq.ProcessIn(1e12), asynq.Group("g"), asynq.Unique(1e12)} {
		_, err := client.EnqueueContext(t.Context(), asynq.NewTask("paint", []byte{byte(i)}), option)
		require.NoError(t, err)
	}

	crashed := t.TempDir()
	require.NoError(t, os.CopyFS(crashed, os.DirFS(dir)))
	before := dump(t, q.Client())
	require.NoError(t, q.Close())
	q = open(t, embedded.Config{Dir: crashed})
	assert.Equal(t, before, dump(t, q.Client()))
	inspector := asynq.NewInspectorFromRedisClient(q.Client())
	info, err := inspector.GetQueueInfo("default")
	require.NoError(t, err)
	assert.Equal(t, []int{15, 15, 30, 1, 1}, []int{info.Retry, info.Archived, info.Completed, info.Pending, info.Scheduled})
	result, err := inspector.GetTaskInfo("default", "2")
	require.NoError(t, err)
	assert.Equal(t, "result of \x02\xff\n", string(result.Result))
	require.NoError(t, q.Close())
}
