package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// Redis is killed -9 in the middle of 200 jobs, and starts again from its append-only
// file: once from the whole of it, and once without what it had written in the last
// second, as after a power cut. Producers enqueue again what they are not sure of.
// Nothing is made twice, nothing is lost, and what cannot be known is held.
func TestRedisKilledAndRestartedFromItsAOF(t *testing.T) {
	t.Parallel()
	total := 200
	if testing.Short() { // the race detector's run
		total = 40
	}
	server := newAOFRedis(t)
	f := newFleet(t, server.socket)
	ids := f.enqueueAll(total)
	f.start(0)
	f.start(1)
	for crash := range 2 {
		f.waitForTasks((crash + 1) * total / 4)
		server.crash(crash > 0)
		f.enqueueAll(total)
	}
	held := 0
	for _, id := range ids {
		rec := f.wait(id)
		if rec.State == jobs.StateHeld {
			held++
			assert.NotEmpty(t, rec.Message)
			continue
		}
		require.Equal(t, jobs.StateSucceeded, rec.State, "%s: %s", id, rec.Message)
		_, err := os.Stat(f.files.Path(id + "/" + id + "-1.png"))
		require.NoError(t, err)
	}
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

// enqueueAll asks for jobs until Redis has acknowledged each.
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

// wait is the client's, over outages of Redis.
func (f *fleet) wait(id string) (rec *jobs.Job) {
	f.t.Helper()
	require.Eventually(f.t, func() (ok bool) {
		var err error
		rec, err = f.client.Wait(f.t.Context(), id)
		return err == nil
	}, 8*time.Minute, 50*time.Millisecond, id) // asynq looks for messages of the dead each minute
	return rec
}

// waitForTasks waits until so many tasks were made.
func (f *fleet) waitForTasks(n int) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return len(f.sim.Tasks()) >= n }, 3*time.Minute, 10*time.Millisecond)
}

// aofRedis is a redis-server with an append-only file, which can be killed.
type aofRedis struct {
	t           *testing.T
	dir, socket string
	server      *exec.Cmd
}

func newAOFRedis(t *testing.T) *aofRedis {
	t.Helper()
	dir, err := os.MkdirTemp("", "redis-*") //nolint:usetesting // a socket's path may have 107 bytes
	require.NoError(t, err)
	r := &aofRedis{t: t, dir: dir, socket: filepath.Join(dir, "socket")}
	r.start()
	t.Cleanup(func() {
		_ = r.server.Process.Kill()
		_ = r.server.Wait()
		require.NoError(t, os.RemoveAll(dir))
	})
	return r
}

func (r *aofRedis) start() {
	r.t.Helper()
	r.server = exec.Command(redisBinary(r.t), "--port", "0", "--unixsocket", r.socket, "--dir", r.dir, "--save", "", //nolint:noctx // it is killed by the test
		"--appendonly", "yes", "--auto-aof-rewrite-percentage", "0")
	require.NoError(r.t, r.server.Start())
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: r.socket})
	defer client.Close() //nolint:errcheck // it has done its duty
	require.Eventually(r.t, func() bool { return client.Ping(r.t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
}

// crash kills the server and starts it again; forgetful takes away what it wrote in
// the last second.
func (r *aofRedis) crash(forgetful bool) {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.dir, "appendonlydir", "*.incr.aof"))
	require.NoError(r.t, err)
	require.Len(r.t, files, 1)
	before, err := os.Stat(files[0])
	require.NoError(r.t, err)
	if forgetful {
		<-time.After(time.Second)
	}
	require.NoError(r.t, r.server.Process.Kill())
	_ = r.server.Wait()
	if forgetful {
		require.NoError(r.t, os.Truncate(files[0], before.Size()))
	}
	r.start()
}
