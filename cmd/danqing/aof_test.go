package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
)

// Redis is killed by kill -9 during 120 jobs, and restarted from its append-only file:
// once from the whole file, and once without the writes of the last second, as after a
// power cut. Producers enqueue unacknowledged jobs again. No image is made twice, none is
// lost, and a job whose outcome is unknown is held.
func TestRedisCrashAndRestart(t *testing.T) {
	t.Parallel()
	total := 120
	if testing.Short() { // in the race detector's run
		total = 40
	}
	server := newAOFRedis(t)
	f := newFleet(t, server.Socket)
	ids := f.enqueueAll(total)
	f.start(0)
	f.start(1)
	for crash := range 2 {
		f.waitForTasks((crash + 1) * total / 4)
		server.crash(crash > 0)
		f.enqueueAll(total)
	}
	resting, recovered := context.WithCancel(t.Context())
	var restarts sync.WaitGroup
	restarts.Go(func() { f.recoverMessages(resting) })
	held := 0
	for _, id := range ids {
		rec := f.wait(id)
		if rec.State == jobs.StateHeld {
			held++
			assert.NotEmpty(t, rec.Message)
			continue
		}
		require.Equal(t, jobs.StateSucceeded, rec.State, "%s: %s", id, rec.Message)
		_, err := os.Stat(f.files.Path("single/" + id + "-1.png"))
		require.NoError(t, err)
	}
	recovered()
	restarts.Wait()
	t.Logf("%d jobs held", held)
	charged := map[string]int{}
	for _, task := range f.sim.Tasks() {
		if task.ChargedMicroYuan > 0 {
			charged[task.Request.Input.Prompt]++
		}
	}
	for prompt, n := range charged {
		assert.Equal(t, 1, n, prompt)
	}
	for _, lane := range f.sim.Stats().Lanes {
		assert.Equal(t, 1, lane.MaxOpen, "%s: tasks at once", lane.Model)
	}
	assert.LessOrEqual(t, held, 6, "the journals know most of what was lost")
}

// enqueueAll enqueues jobs, with retries until Redis has acknowledged each.
func (f *fleet) enqueueAll(n int) []string {
	f.t.Helper()
	var ids []string
	for i := range n {
		id := fmt.Sprintf("job-%d", i)
		require.Eventually(f.t, func() bool {
			_, err := f.client.Enqueue(f.t.Context(), jobs.Request{ID: id, Prompt: "prompt of " + id, Model: fleetModels()[i%len(fleetModels())]})
			return err == nil
		}, time.Minute, 50*time.Millisecond, id)
		ids = append(ids, id)
	}
	return ids
}

// wait waits for a job's end, through outages of Redis.
func (f *fleet) wait(id string) (rec *jobs.Job) {
	f.t.Helper()
	require.Eventually(f.t, func() (ok bool) {
		var err error
		rec, err = f.client.Wait(f.t.Context(), id)
		return err == nil
	}, 8*time.Minute, 50*time.Millisecond, id) // asynq recovers messages of dead workers every minute
	return rec
}

// waitForTasks waits until n tasks were created.
func (f *fleet) waitForTasks(n int) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return len(f.sim.Tasks()) >= n }, 3*time.Minute, 10*time.Millisecond)
}

// recoverMessages does at once what asynq does within two minutes: it requeues messages whose
// reply was lost, once no lane makes progress. asynq looks for expired leases at start.
func (f *fleet) recoverMessages(ctx context.Context) {
	const idle = 12 * time.Second
	tick := time.NewTicker(idle)
	defer tick.Stop()
	for tasks := 0; ; tasks = len(f.sim.Tasks()) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if len(f.sim.Tasks()) > tasks {
			continue
		}
		f.expireLeases(ctx, idle)
		for i := range 2 {
			_ = f.members[i].Process.Signal(syscall.SIGTERM)
			_ = f.members[i].Wait()
			f.start(i)
		}
	}
}

// expireLeases lets asynq's leases expire that were not extended for a while. A running worker
// extends them every 5 s, and without this a message waits a minute for its dead worker.
func (f *fleet) expireLeases(ctx context.Context, overdue time.Duration) {
	const lease, expired = 30 * time.Second, -31 * time.Second
	now := time.Now()
	extendedBefore := strconv.FormatInt(now.Add(lease-overdue).Unix(), 10)
	for _, key := range f.rdb.Keys(ctx, "asynq:{danqing:*}:lease").Val() {
		for _, message := range f.rdb.ZRangeArgs(ctx, redis.ZRangeArgs{Key: key, Start: "-inf", Stop: extendedBefore, ByScore: true}).Val() {
			f.rdb.ZAddXX(ctx, key, redis.Z{Score: float64(now.Add(expired).Unix()), Member: message})
		}
	}
}

// aofRedis is a redis-server with an append-only file that can be killed.
type aofRedis struct {
	*redistest.Server
	t *testing.T
}

func newAOFRedis(t *testing.T) *aofRedis {
	t.Helper()
	return &aofRedis{redistest.Start(t, "--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"), t}
}

// crash kills the server and starts it again. loseLastSecond removes the writes of the last
// second.
func (r *aofRedis) crash(loseLastSecond bool) {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.Dir, "appendonlydir", "*.incr.aof"))
	require.NoError(r.t, err)
	require.Len(r.t, files, 1)
	before, err := os.Stat(files[0])
	require.NoError(r.t, err)
	if loseLastSecond {
		<-time.After(time.Second)
	}
	r.Kill()
	if loseLastSecond {
		require.NoError(r.t, os.Truncate(files[0], before.Size()))
	}
	r.Run()
}
