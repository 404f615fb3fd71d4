package gateway_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

const queue = "danqing:wanx-v1:default"

// world is a gateway on a queue.
type world struct {
	redis     redis.UniversalClient
	jobs      *jobs.Client
	inspector *asynq.Inspector
	server    *httptest.Server
}

func newWorld(t *testing.T, rdb redis.UniversalClient) *world {
	t.Helper()
	handler, err := gateway.New(gateway.Config{UI: true, Redis: rdb})
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return &world{redis: rdb, jobs: jobs.NewClient(rdb), inspector: asynq.NewInspectorFromRedisClient(rdb), server: server}
}

func embeddedRedis(t *testing.T) redis.UniversalClient {
	t.Helper()
	q := embedded.Open()
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	return q.Client()
}

// redisServer starts a redis-server of its own on a socket in a temporary folder.
func redisServer(t *testing.T) redis.UniversalClient {
	t.Helper()
	binary := installed(t, "redis-server", "redis-server")
	dir, err := os.MkdirTemp("", "redis-*") //nolint:usetesting // a socket's path may have 107 bytes
	require.NoError(t, err)
	socket := filepath.Join(dir, "socket")
	server := exec.CommandContext(t.Context(), binary, "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "")
	require.NoError(t, server.Start())
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: socket, MaxRetries: 20})
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		require.NoError(t, server.Process.Kill())
		_ = server.Wait()
		require.NoError(t, os.RemoveAll(dir))
	})
	require.Eventually(t, func() bool { return client.Ping(t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
	return client
}

// installed finds a program, or skips the test; in CI it fails instead.
func installed(t *testing.T, program, debianPackage string) string {
	t.Helper()
	binary, err := exec.LookPath(program)
	if err == nil {
		return binary
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed: apt-get install %s", program, debianPackage)
	}
	t.Skipf("%s is not installed: apt-get install %s would run this", program, debianPackage)
	return ""
}

// queues are what a gateway may stand on.
func queues() map[string]func(*testing.T) redis.UniversalClient {
	return map[string]func(*testing.T) redis.UniversalClient{"embedded": embeddedRedis, "redis-server": redisServer}
}

// ask sends a request and returns the answer's status, type and body.
func (w *world) ask(t *testing.T, method, path, body string, headers ...string) (status int, kind, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.server.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	require.NoError(t, err)
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(answer)
}

// get asks the UI's API and decodes the answer.
func get[T any](t *testing.T, w *world, path string) (answer T) {
	t.Helper()
	status, _, body := w.ask(t, http.MethodGet, "/ui/api"+path, "")
	require.Equal(t, http.StatusOK, status, body)
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	return answer
}

func (w *world) enqueue(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		_, err := w.jobs.Enqueue(t.Context(), jobs.Request{ID: id, Prompt: "水墨画：" + id + "　红色"})
		require.NoError(t, err)
	}
}

// work ends every job there is by the given handler, as a lane would.
func (w *world) work(t *testing.T, handle asynq.HandlerFunc) {
	t.Helper()
	server := asynq.NewServerFromRedisClient(w.redis, asynq.Config{
		Queues: jobs.LaneQueues("wanx-v1"), TaskCheckInterval: 10 * time.Millisecond, LogLevel: asynq.FatalLevel,
		RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return time.Hour },
	})
	require.NoError(t, server.Start(handle))
	defer server.Shutdown()
	require.Eventually(t, func() bool {
		info, err := w.inspector.GetQueueInfo(queue)
		return err == nil && info.Pending+info.Active == 0
	}, 30*time.Second, 10*time.Millisecond)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: filepath.Join(t.TempDir(), "nobody"), MaxRetries: -1})
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	status, _, body := newWorld(t, rdb).ask(t, http.MethodGet, "/healthz", "")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Equal(t, "the queue does not answer\n", body)

	status, _, body = newWorld(t, embeddedRedis(t)).ask(t, http.MethodGet, "/healthz", "")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, "ok\n", body)
}

func TestNewNeedsRedis(t *testing.T) {
	t.Parallel()
	_, err := gateway.New(gateway.Config{})
	require.ErrorContains(t, err, "Redis is not set")
}

func TestListen(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "localhost:0"} {
		listener, local, err := gateway.Listen(t.Context(), address, false)
		require.NoError(t, err)
		assert.True(t, local)
		require.NoError(t, listener.Close())
	}
	listener, local, err := gateway.Listen(t.Context(), "0.0.0.0:0", true)
	require.NoError(t, err)
	assert.False(t, local)
	require.NoError(t, listener.Close())
	for _, address := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:80", "localhost.example.com:80"} {
		_, _, err := gateway.Listen(t.Context(), address, false)
		require.ErrorContains(t, err, "not on this machine's loopback", address)
	}
	_, _, err = gateway.Listen(t.Context(), "8765", false)
	require.ErrorContains(t, err, "not host:port")
}

// A foreign page can neither read (its name points here) nor change anything.
func TestForeignPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, embeddedRedis(t))
	w.enqueue(t, "cat")
	pause := "/ui/api/queues/" + queue + ":pause"
	for _, c := range []struct {
		method, path, header, value string
		want                        int
	}{
		{http.MethodGet, "/ui/", "Host", "evil.example", http.StatusMisdirectedRequest},
		{http.MethodGet, "/ui/api/queues", "Host", "evil.example:8765", http.StatusMisdirectedRequest},
		{http.MethodGet, "/ui/", "Host", "127.0.0.1.evil.example", http.StatusMisdirectedRequest},
		{http.MethodGet, "/ui/", "Host", "192.0.2.1:8765", http.StatusMisdirectedRequest},
		{http.MethodGet, "/ui/", "Host", "localhost:8765", http.StatusOK},
		{http.MethodGet, "/ui/", "Host", "127.1.2.3", http.StatusOK},
		{http.MethodGet, "/ui/", "Host", "[::1]:8765", http.StatusOK},
		{http.MethodPost, pause, "Sec-Fetch-Site", "cross-site", http.StatusForbidden},
		{http.MethodPost, pause, "Sec-Fetch-Site", "same-site", http.StatusForbidden},
		{http.MethodPost, pause, "Origin", "https://evil.example", http.StatusForbidden},
		{http.MethodPost, pause, "Origin", "null", http.StatusForbidden},
		{http.MethodDelete, "/ui/api/queues/" + queue + "/pending_tasks:delete_all", "Sec-Fetch-Site", "cross-site", http.StatusForbidden},
		{http.MethodPost, pause, "Sec-Fetch-Site", "same-origin", http.StatusNoContent},
	} {
		status, _, _ := w.ask(t, c.method, c.path, "", c.header, c.value)
		assert.Equal(t, c.want, status, "%s %s with %s: %s", c.method, c.path, c.header, c.value)
	}
	rec, err := w.jobs.Get(t.Context(), "cat")
	require.NoError(t, err)
	assert.Equal(t, jobs.StateQueued, rec.State)
}

func TestQueuesAndJobsReadWell(t *testing.T) {
	t.Parallel()
	for name, start := range queues() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, start(t))
			w.enqueue(t, "cat-1", "cat-2")
			require.NoError(t, w.inspector.PauseQueue(queue))
			type list struct {
				Queues []struct {
					Queue  string `json:"queue"`
					Size   int    `json:"size"`
					Paused bool   `json:"paused"`
				} `json:"queues"`
			}
			listed := get[list](t, w, "/queues").Queues
			require.Len(t, listed, 1)
			assert.Equal(t, queue, listed[0].Queue)
			assert.Equal(t, 2, listed[0].Size)
			assert.True(t, listed[0].Paused)
			status, _, body := w.ask(t, http.MethodPost, "/ui/api/queues/"+queue+":resume", "")
			assert.Equal(t, http.StatusNoContent, status, body)
			assert.False(t, get[list](t, w, "/queues").Queues[0].Paused)

			type task struct{ Payload, Result, State string }
			waiting := get[task](t, w, "/queues/"+queue+"/tasks/cat-1")
			assert.Equal(t, "pending", waiting.State)
			assert.Contains(t, waiting.Payload, `"prompt":"水墨画：cat-1　红色"`, "with its ideographic space")

			w.work(t, func(ctx context.Context, message *asynq.Task) error {
				rec, err := w.jobs.Get(ctx, message.ResultWriter().TaskID())
				require.NoError(t, err)
				rec.State, rec.TaskID, rec.Images = jobs.StateSucceeded, "task-1", []jobs.Image{{N: 1, Key: "红色/cat-1.png"}}
				return w.jobs.ShowResult(ctx, rec)
			})
			done := get[task](t, w, "/queues/"+queue+"/tasks/cat-1")
			assert.Equal(t, "completed", done.State)
			assert.JSONEq(t, `{"state":"succeeded","task_id":"task-1","images":["红色/cat-1.png"]}`, done.Result)
			assert.Contains(t, done.Result, "红色")
		})
	}
}

// What asynq itself asks for an empty queue holds: one with jobs is not deleted.
func TestQueueWithJobsIsNotDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, embeddedRedis(t))
	w.enqueue(t, "cat")
	status, _, body := w.ask(t, http.MethodDelete, "/ui/api/queues/"+queue, "")
	assert.Equal(t, http.StatusBadRequest, status, body)
	_, err := w.inspector.GetTaskInfo(queue, "cat")
	require.NoError(t, err)
}
