package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// killAt executes a worker's Redis commands up to the n-th write of a job's state, and
// returns no reply after that: as if the worker were killed right after that write.
type killAt struct {
	n int
	// journal reads the journal's file at that moment.
	journal func() []byte

	mu     sync.Mutex
	seen   int
	killed bool
	// fired is closed at that moment; command and disk describe it.
	fired   chan struct{}
	command string
	disk    []byte
}

var errKilled = errors.New("the worker was killed")

func (d *killAt) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d *killAt) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		d.mu.Lock()
		killed := d.killed
		d.mu.Unlock()
		if !killed {
			err := next(ctx, cmd)
			if !d.kills(cmd) {
				return err
			}
		}
		<-time.After(time.Second) // otherwise a retry loop never ends
		cmd.SetErr(errKilled)
		return errKilled
	}
}

func (d *killAt) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		d.mu.Lock()
		killed := d.killed
		d.mu.Unlock()
		if killed {
			<-time.After(time.Second)
			return errKilled
		}
		return next(ctx, cmds)
	}
}

func (d *killAt) kills(cmd redis.Cmder) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.killed || !writesJobState(cmd.Args()) {
		return d.killed
	}
	if d.seen++; d.seen == d.n {
		d.killed, d.command, d.disk = true, fmt.Sprint(cmd.Args()[0], " ", cmd.Args()[min(3, len(cmd.Args())-1)]), d.journal()
		close(d.fired)
	}
	return d.killed
}

// writesJobState reports whether a command may write the state of a job or its task.
func writesJobState(args []any) bool {
	switch args[0] {
	case "hset", "hsetnx", "hdel":
	case "evalsha":
		index := keysOf(args)
		if len(args) == 3+len(index) || len(index) == 2 && strings.HasPrefix(index[1], "danqing:jobs:") {
			return false // read only
		}
	default:
		return false
	}
	for _, arg := range args[1:min(6, len(args))] {
		text, _ := arg.(string)
		for _, name := range []string{"danqing:job:job-1", "danqing:task:", ":intents", ":quarantine", ":in_flight", "danqing:ledger:"} {
			if strings.Contains(text, name) {
				return true
			}
		}
	}
	return false
}

// keysOf returns the keys of a script's call.
func keysOf(args []any) []string {
	n, _ := args[2].(int)
	keys := make([]string, n)
	for i := range keys {
		keys[i], _ = args[3+i].(string)
	}
	return keys
}

// killedOnce runs a scenario, kills the worker after the n-th write that follows, and
// starts another worker, on the same Redis or on an empty one. It reports whether there
// was an n-th write.
func (s *stack) killedOnce(n int, sameRedis bool, scenario func()) bool {
	s.t.Helper()
	s.worker.Stop()
	require.NoError(s.t, <-s.ended)
	require.NoError(s.t, s.data.Close())
	killer := &killAt{n: n, fired: make(chan struct{}), journal: func() []byte { return s.journal("data") }}
	s.worker, s.data = s.newWorker("data")
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.worker.Run(ctx) }()
	scenario()
	s.queue.Client().AddHook(killer)
	over := make(chan *jobs.Job, 1)
	go func() {
		rec, err := jobs.NewClient(s.redis).Wait(ctx, "job-1")
		if err == nil {
			over <- rec
		}
	}()
	select {
	case <-over:
		<-time.After(2 * time.Minute)
	case <-killer.fired:
	}
	killer.mu.Lock()
	killed := killer.killed
	killer.mu.Unlock()
	if !killed {
		s.worker.Stop()
		require.NoError(s.t, <-s.ended)
		s.ended = nil
		return false
	}
	kill()
	require.ErrorIs(s.t, <-s.ended, context.Canceled)
	require.NoError(s.t, s.data.Close())
	s.rewriteJournal("data", killer.disk)
	s.t.Log("killed after", killer.command)
	killer.mu.Lock()
	killer.killed = false
	killer.mu.Unlock()
	if sameRedis {
		s.worker, s.data = s.newWorker("data")
		s.run()
		return true
	}
	require.NoError(s.t, s.queue.Close())
	s.start()
	if rec, err := jobs.NewStore(s.redis).Get(s.t.Context(), "job-1"); errors.Is(err, jobs.ErrNotFound) || rec.State.Waiting() {
		s.enqueueMany(1)
	}
	return true
}

// A worker is killed after each of the writes that follow a lost reply: the next worker
// completes the steps, buys nothing twice and holds the same jobs.
func TestKilledWhileReconciling(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reset   simulator.Reset
		foreign bool
	}{
		"a task to adopt": {reset: simulator.ResetAfter},
		"no task":         {reset: simulator.ResetBefore},
		"two to hold for": {reset: simulator.ResetAfter, foreign: true},
	} {
		for _, sameRedis := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, same redis %t", name, sameRedis), func(t *testing.T) {
				t.Parallel()
				for n, more := 1, true; more && !t.Failed() && n < 100; n += unlessRaced(1, 3) {
					dir := memoryDir(t)
					synctest.Test(t, func(t *testing.T) {
						s := newStack(t, dir, &simulator.Simulator{})
						s.shared = sameRedis
						defer s.close()
						s.start()
						s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
						s.requireMadeOnce("first")
						more = s.killedOnce(n, sameRedis, func() {
							s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: c.reset})
							s.enqueueMany(1)
							s.state("job-1", jobs.StateSubmitting)
							<-time.After(500 * time.Millisecond)
							if c.foreign {
								s.foreign("sk-test")
							}
						})
						ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
						defer cancel()
						rec, err := jobs.NewClient(s.redis).Wait(ctx, "job-1")
						require.NoError(t, err, "killed after write %d", n)
						<-time.After(2 * time.Minute)
						if c.foreign {
							require.Equal(t, jobs.StateHeld, rec.State, "killed after write %d", n)
							assert.Len(t, rec.Candidates, 2)
							assert.Equal(t, 1, s.tasksOf("prompt of job-1"), "killed after write %d", n)
							for _, task := range rec.Candidates {
								s.requireKept(task)
							}
							return
						}
						assert.Equal(t, 1, s.tasksOf("prompt of job-1"), "killed after write %d", n)
						assert.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
						s.requireLedger()
					})
				}
			})
		}
	}
}
