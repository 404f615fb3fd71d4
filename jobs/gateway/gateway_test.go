package gateway_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
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
	"github.com/danqing-queue/danqing/jobs/redistest"
)

const queue = "danqing:wanx-v1:default"

// testGateway is a gateway with its queue.
type testGateway struct {
	redis     redis.UniversalClient
	jobs      *jobs.Client
	inspector *asynq.Inspector
	server    *httptest.Server
}

func newTestGateway(t *testing.T, rdb redis.UniversalClient) *testGateway {
	t.Helper()
	handler, err := gateway.New(gateway.Config{UI: true, Redis: rdb})
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return &testGateway{redis: rdb, jobs: jobs.NewClient(rdb), inspector: asynq.NewInspectorFromRedisClient(rdb), server: server}
}

func embeddedRedis(t *testing.T) redis.UniversalClient {
	t.Helper()
	q := embedded.Open()
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	return q.Client()
}

// redisServer starts a redis-server.
func redisServer(t *testing.T) redis.UniversalClient {
	t.Helper()
	return redistest.Start(t).Client(t)
}

// queues returns the kinds of Redis that the tests run on.
func queues() map[string]func(*testing.T) redis.UniversalClient {
	return map[string]func(*testing.T) redis.UniversalClient{"embedded": embeddedRedis, "redis-server": redisServer}
}

// request sends a request and returns the answer's status, type and body.
func (w *testGateway) request(t *testing.T, method, path, body string, headers ...string) (status int, kind, text string) {
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

// get sends a GET request to the UI's API and decodes the answer.
func get[T any](t *testing.T, w *testGateway, path string) (answer T) {
	t.Helper()
	status, _, body := w.request(t, http.MethodGet, "/ui/api"+path, "")
	require.Equal(t, http.StatusOK, status, body)
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	return answer
}

func (w *testGateway) enqueue(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		_, err := w.jobs.Enqueue(t.Context(), jobs.Request{ID: id, Prompt: "水墨画：" + id + "　红色"})
		require.NoError(t, err)
	}
}

// processAll processes every queued message with the handler.
func (w *testGateway) processAll(t *testing.T, handle asynq.HandlerFunc) {
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
	status, _, body := newTestGateway(t, rdb).request(t, http.MethodGet, "/readyz", "")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Equal(t, "not ready: redis is unavailable\n", body)
	status, _, _ = newTestGateway(t, rdb).request(t, http.MethodGet, "/healthz", "")
	assert.Equal(t, http.StatusOK, status, "the process is alive")

	status, _, body = newTestGateway(t, embeddedRedis(t)).request(t, http.MethodGet, "/readyz", "")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, "ready\n", body)
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
		require.ErrorContains(t, err, "not a loopback address", address)
	}
	_, _, err = gateway.Listen(t.Context(), "8765", false)
	require.ErrorContains(t, err, "not host:port")
}

// A page of another origin can neither read (by DNS rebinding) nor change anything.
func TestCrossOriginRequests(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
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
		status, _, _ := w.request(t, c.method, c.path, "", c.header, c.value)
		assert.Equal(t, c.want, status, "%s %s with %s: %s", c.method, c.path, c.header, c.value)
	}
	rec, err := w.jobs.Get(t.Context(), "cat")
	require.NoError(t, err)
	assert.Equal(t, jobs.StateQueued, rec.State)
}

func TestUIShowsQueuesAndJobs(t *testing.T) {
	t.Parallel()
	for name, start := range queues() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTestGateway(t, start(t))
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
			status, _, body := w.request(t, http.MethodPost, "/ui/api/queues/"+queue+":resume", "")
			assert.Equal(t, http.StatusNoContent, status, body)
			assert.False(t, get[list](t, w, "/queues").Queues[0].Paused)

			type task struct{ Payload, Result, State string }
			waiting := get[task](t, w, "/queues/"+queue+"/tasks/cat-1")
			assert.Equal(t, "pending", waiting.State)
			assert.Contains(t, waiting.Payload, `"prompt":"水墨画：cat-1　红色"`, "including the ideographic space")

			w.processAll(t, func(ctx context.Context, message *asynq.Task) error {
				store := jobs.NewStore(w.redis)
				rec, err := store.Get(ctx, message.ResultWriter().TaskID())
				require.NoError(t, err)
				rec.State, rec.TaskID, rec.Images = jobs.StateSucceeded, "task-1", []jobs.Image{{N: 1, Key: "红色/cat-1.png"}}
				return store.PublishResult(ctx, rec)
			})
			done := get[task](t, w, "/queues/"+queue+"/tasks/cat-1")
			assert.Equal(t, "completed", done.State)
			assert.JSONEq(t, `{"state":"succeeded","task_id":"task-1","images":["红色/cat-1.png"]}`, done.Result)
			assert.Contains(t, done.Result, "红色")
		})
	}
}

// Only an empty queue can be deleted, as with asynq.
func TestQueueWithJobsCannotBeDeleted(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	w.enqueue(t, "cat")
	status, _, body := w.request(t, http.MethodDelete, "/ui/api/queues/"+queue, "")
	assert.Equal(t, http.StatusBadRequest, status, body)
	_, err := w.inspector.GetTaskInfo(queue, "cat")
	require.NoError(t, err)
}
