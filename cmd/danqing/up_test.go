package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// upProcess is a running `danqing up --simulate`.
type upProcess struct {
	cmd  *exec.Cmd
	log  bytes.Buffer // read it only after the end
	data string
	at   instance
}

// startUp starts `danqing up` in dir and waits until it is ready.
func startUp(t *testing.T, dir string) *upProcess {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	u := &upProcess{cmd: exec.CommandContext(t.Context(), self), data: filepath.Join(dir, "danqing-data", "simulated")}
	u.cmd.Args = []string{"danqing", "up", "--simulate", "--listen", "127.0.0.1:0"}
	u.cmd.Dir, u.cmd.Stdout, u.cmd.Stderr = dir, &u.log, &u.log
	u.cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), noExitSleep}
	require.NoError(t, u.cmd.Start())
	require.Eventually(t, func() bool {
		// The file of a killed one exists until this one replaces it.
		u.at, err = readInstance(t.Context(), u.data)
		return err == nil && u.at.PID == u.cmd.Process.Pid
	}, time.Minute, 10*time.Millisecond)
	return u
}

// client returns a client of its queue.
func (u *upProcess) client(t *testing.T) *jobs.Client {
	t.Helper()
	options, err := redis.ParseURL(u.at.RedisURL)
	require.NoError(t, err)
	options.MaxRetries, options.DialerRetries = -1, 1 // no retries after the kill
	rdb := redis.NewClient(options)
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	return jobs.NewClient(rdb)
}

// request sends a request to it and returns the body of the response.
func (u *upProcess) request(t *testing.T, method, path string, want int) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, u.at.HTTP+path, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, want, resp.StatusCode, "%s %s: %s", method, path, body)
	return string(body)
}

// stop stops it and requires exit code 0.
func (u *upProcess) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, u.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, u.cmd.Wait(), u.log.String())
	assert.NoFileExists(t, filepath.Join(u.data, instanceFile))
}

func TestUpServesHTTP(t *testing.T) {
	t.Parallel()
	u := startUp(t, t.TempDir())
	for path, want := range map[string]string{"/healthz": "ok\n", "/ui/": "<title>Asynq - Monitoring</title>", "/ui/api/queues": `"queues":`} {
		assert.Contains(t, u.request(t, http.MethodGet, path, http.StatusOK), want, path)
	}
	info, err := os.Stat(filepath.Join(u.data, instanceFile))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	u.stop(t)
}

// Actions on a lane's messages in the web UI are applied to the jobs. No image is made twice,
// or for a canceled job.
func TestUpWebUIActions(t *testing.T) {
	t.Parallel()
	u := startUp(t, t.TempDir())
	client := u.client(t)
	queue := "/ui/api/queues/" + jobs.Queue("wanx-v1", jobs.PriorityDefault)
	u.request(t, http.MethodPost, queue+":pause", http.StatusNoContent)
	for _, id := range []string{"made", "deleted", "archived", "run-again"} {
		_, err := client.Enqueue(t.Context(), jobs.Request{ID: id, Prompt: "猫：" + id})
		require.NoError(t, err)
	}
	u.request(t, http.MethodDelete, queue+"/pending_tasks/deleted", http.StatusNoContent)
	u.request(t, http.MethodPost, queue+"/pending_tasks/archived:archive", http.StatusNoContent)
	u.request(t, http.MethodPost, queue+"/pending_tasks/run-again:archive", http.StatusNoContent)
	for id, want := range map[string]jobs.State{"made": jobs.StateQueued, "deleted": jobs.StateCanceled, "archived": jobs.StateCanceled, "run-again": jobs.StateCanceled} {
		rec, err := client.Get(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, want, rec.State, "%s, while the queue is paused", id)
	}
	u.request(t, http.MethodPost, queue+"/archived_tasks/run-again:run", http.StatusNoContent)
	u.request(t, http.MethodPost, queue+":resume", http.StatusNoContent)
	for _, id := range []string{"made", "run-again"} {
		require.Eventually(t, func() bool { // if it is run again, it stays canceled until a lane takes it
			rec, err := client.Get(t.Context(), id)
			return err == nil && rec.State == jobs.StateSucceeded
		}, time.Minute, 10*time.Millisecond, id)
	}
	sidecar := filepath.Join(u.data, "bucket", bucket.DefaultBucket, "_jobs", "deleted.json")
	require.Eventually(t, func() bool { _, err := os.Stat(sidecar); return err == nil }, time.Minute, 10*time.Millisecond, "a canceled job has its sidecar")
	u.stop(t)

	sim := &simulator.Simulator{StateDir: filepath.Join(u.data, "dashscope")}
	require.NoError(t, sim.Load())
	assert.Len(t, sim.Tasks(), 2)
	require.NoError(t, sim.Close())
}

// The program is killed by kill -9 repeatedly while 50 clients enqueue: every acknowledged
// job exists after the restart, with its request.
func TestKilledUpKeepsAcknowledgedJobs(t *testing.T) {
	t.Parallel()
	const rounds, clients, before = 3, 50, 200
	dir := t.TempDir()
	acknowledged := map[string]string{} // job ID to prompt
	for round := range rounds {
		u := startUp(t, dir)
		u.enqueueUntilKilled(t, fmt.Sprintf("round-%d", round), clients, before, acknowledged)
	}
	require.GreaterOrEqual(t, len(acknowledged), rounds*before)
	u := startUp(t, dir)
	client := u.client(t)
	for id, prompt := range acknowledged {
		rec, err := client.Get(t.Context(), id)
		require.NoError(t, err)
		req, err := client.RequestOf(t.Context(), rec)
		require.NoError(t, err, "%s is %s", id, rec.State)
		require.Equal(t, prompt, req.Prompt)
	}
	u.stop(t)
}

// enqueueUntilKilled enqueues with several clients until enough jobs are acknowledged, kills
// the program, and records the acknowledged jobs.
func (u *upProcess) enqueueUntilKilled(t *testing.T, name string, clients, enough int, acknowledged map[string]string) {
	t.Helper()
	var mu sync.Mutex
	var group errgroup.Group
	count, reached := 0, make(chan struct{})
	for c := range clients {
		client := u.client(t)
		group.Go(func() error {
			for n := 0; ; n++ {
				id, prompt := fmt.Sprintf("%s-%d-%d", name, c, n), fmt.Sprintf("%s：第%d只猫", name, c*1000+n)
				if _, err := client.Enqueue(context.Background(), jobs.Request{ID: id, Prompt: prompt}); err != nil {
					select {
					case <-reached:
						return nil // killed
					default:
						return err
					}
				}
				mu.Lock()
				acknowledged[id] = prompt
				if count++; count == enough {
					close(reached)
				}
				mu.Unlock()
			}
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	<-reached
	require.NoError(t, u.cmd.Process.Kill())
	require.NoError(t, <-ended)
	require.Error(t, u.cmd.Wait())
}
