package metrics_test

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"log/slog"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/redistest"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/metrics"
	"github.com/danqing-queue/danqing/worker/metrics/metricstest"
)

var update = flag.Bool("update", false, "rewrite the table of metrics")

const page = "../../cmd/danqing/docs/metrics.md"

// The page's table has every metric, with its labels and its help.
func TestMetricsPage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	const begin, end = "<!-- Made by go test ./worker/metrics -run Page -update. -->\n\n", "\n<!-- end -->"
	head, rest, found := strings.Cut(string(text), begin)
	require.True(t, found)
	_, tail, found := strings.Cut(rest, end)
	require.True(t, found)
	want := head + begin + table(t) + end + tail
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(want), 0o644))
	}
	assert.Equal(t, want, string(text), "%s is out of date: go test ./worker/metrics -run Page -update", page)
}

var descPattern = regexp.MustCompile(`fqName: "(danqing_[a-z_]+)", help: "([^"]*)",.* constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}`)

func table(t *testing.T) string {
	t.Helper()
	m := metrics.New("test")
	m.WatchQueue(redistest.Embedded(t))
	descs := make(chan *prometheus.Desc, 1000)
	m.Registry().Describe(descs)
	close(descs)
	var rows []string
	for desc := range descs {
		if parts := descPattern.FindStringSubmatch(desc.String()); parts != nil {
			labels := parts[4]
			if constant, _, has := strings.Cut(parts[3], "="); has {
				labels = constant
			}
			rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |\n", parts[1], strings.ReplaceAll(labels, ",", ", "), parts[2]))
		}
	}
	require.Greater(t, len(rows), 30)
	slices.Sort(rows)
	return "| metric | labels | meaning |\n| --- | --- | --- |\n" + strings.Join(rows, "")
}

// What is exposed follows Prometheus's conventions, with series of every metric, and without Redis
// the counters remain.
func TestExposition(t *testing.T) {
	t.Parallel()
	rdb := redistest.Embedded(t)
	m := metrics.New("test")
	m.WatchQueue(rdb)
	fill(t, m, rdb)
	problems, err := testutil.GatherAndLint(m.Registry())
	require.NoError(t, err)
	assert.Empty(t, problems)
	text := scrape(m)
	for _, line := range []string{
		`danqing_redis_up 1`, `danqing_jobs{state="queued"} 1`, `danqing_jobs_held{code="SubmitAmbiguous"} 1`, `danqing_jobs_held{code="other"} 1`,
		`danqing_queue_depth{model="wanx-v1",priority="default"} 1`, `danqing_lane_paused{account="east",model="wanx-v1",reason="budget"} 1`,
		`danqing_lane_paused{account="east",model="qwen-image",reason="operator"} 1`,
		`danqing_lane_slots{account="east",model="wanx-v1"} 2`, `danqing_budget_yuan{account="east"} 10`, `danqing_unstored_images 2`,
	} {
		assert.Contains(t, text, line+"\n")
	}
	assert.NotContains(t, text, "secret")
	metricstest.Promtool(t, text, "check", "metrics")

	gone := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	t.Cleanup(func() { assert.NoError(t, gone.Close()) })
	without := metrics.New("test")
	without.WatchQueue(gone)
	without.Created("east", "wanx-v1")
	text = scrape(without)
	assert.Contains(t, text, "danqing_redis_up 0\n")
	assert.Contains(t, text, `danqing_creates_total{account="east",model="wanx-v1",outcome="created"} 1`)
}

func scrape(m *metrics.Metrics) string {
	answer := httptest.NewRecorder()
	m.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(answer, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/metrics", http.NoBody))
	return answer.Body.String()
}

// fill counts something of everything.
func fill(t *testing.T, m *metrics.Metrics, rdb redis.UniversalClient) {
	t.Helper()
	client, store := jobs.NewClient(rdb), jobs.NewStore(rdb)
	require.NoError(t, store.SetLane(t.Context(), jobs.LaneStatus{
		Account: "east", Model: "wanx-v1", Concurrency: 2, State: jobs.LanePaused, Reason: jobs.PauseBudget, DailyBudgetMicroYuan: 10_000_000,
	}))
	require.NoError(t, rdb.Set(t.Context(), "danqing:lane:east:wanx-v1:lease", "w", time.Minute).Err())
	require.NoError(t, store.SetLane(t.Context(), jobs.LaneStatus{Account: "east", Model: "qwen-image", Concurrency: 2, State: jobs.LaneOpen}))
	require.NoError(t, rdb.Set(t.Context(), "danqing:lane:east:qwen-image:lease", "w", time.Minute).Err())
	require.NoError(t, jobs.NewInspector(rdb).PauseModel(t.Context(), "qwen-image", jobs.Decider{By: "secret", Why: "secret"}))
	for id, change := range map[string]func(*jobs.Record){
		"a": nil,
		"b": func(r *jobs.Record) { r.State, r.Code = jobs.StateHeld, jobs.CodeSubmitAmbiguous },
		"c": func(r *jobs.Record) { r.State, r.Code = jobs.StateHeld, "secret" },
		"d": func(r *jobs.Record) {
			r.State, r.TaskImages, r.GeneratedAt = jobs.StateStoring, 2, time.Now().Add(-time.Hour)
		},
	} {
		_, err := client.Enqueue(t.Context(), jobs.Request{ID: id, Prompt: "secret", Batch: "secret", Labels: map[string]string{"secret": "secret"}})
		require.NoError(t, err)
		if change == nil {
			continue
		}
		rec, err := store.Get(t.Context(), id)
		require.NoError(t, err)
		next := *rec
		change(&next)
		require.NoError(t, store.Update(t.Context(), rec, &next))
		require.NoError(t, rdb.LRem(t.Context(), "asynq:{danqing:wanx-v1:default}:pending", 0, map[string]string{"d": "d"}[id]).Err())
	}
	m.Request("east", "query", 200, time.Second)
	m.Created("east", "wanx-v1")
	m.NotCreated("east", "wanx-v1", &dashscope.Error{Kind: dashscope.KindThrottled, Code: "Throttling.secret"})
	m.Booked("east", "wanx-v1", 1, 160_000)
	m.Used("east", "wanx-v1", time.Second, map[jobs.PauseReason]time.Duration{"": time.Second})
	m.TermBegun("east", "wanx-v1")
	m.LeaseLost("east", "wanx-v1")
	m.Notified("secret", "delivered")
	m.BucketRequest("PUT", 503, time.Second)
}

// The labels of codes are bounded: those of Danqing, those that the service documents, and other.
func TestCodes(t *testing.T) {
	t.Parallel()
	m := metrics.New("test")
	for _, code := range []string{"Throttling.RateQuota", "never seen", "IPInfringementSuspect", jobs.CodeDeadlineExceeded} {
		held := &jobs.Record{Job: jobs.Job{Model: "wanx-v1", State: jobs.StateQueued}}
		failed := *held
		failed.State, failed.Code = jobs.StateFailed, code
		m.Transition(held, &failed)
	}
	text := scrape(m)
	for _, code := range []string{"Throttling", "other", "IPInfringementSuspect", "DeadlineExceeded"} {
		assert.Contains(t, text, `danqing_job_failures_total{code="`+code+`",model="wanx-v1"} 1`)
	}
	assert.Contains(t, text, `danqing_moderation_refusals_total{model="wanx-v1",stage="input"} 1`)
}

// Redis commands that fail are counted by whether there was an answer; what was canceled, a missing
// key and a script that must be loaded are no errors.
func TestRedisErrors(t *testing.T) {
	t.Parallel()
	m, queue := metrics.New("test"), embedded.Open()
	rdb := queue.Client()
	rdb.AddHook(m.RedisHook())
	ctx, cancel := context.WithCancel(t.Context())
	require.ErrorIs(t, rdb.Get(ctx, "none").Err(), redis.Nil)
	require.NoError(t, rdb.Set(ctx, "text", "a", 0).Err())
	require.Error(t, rdb.EvalSha(ctx, strings.Repeat("0", 40), nil).Err())
	assert.NotContains(t, scrape(m), "danqing_redis_errors_total{")
	require.Error(t, rdb.LPush(ctx, "text", "b").Err())
	assert.Contains(t, scrape(m), `danqing_redis_errors_total{kind="reply"} 1`)
	_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { return p.LPush(ctx, "text", "b").Err() })
	require.Error(t, err)
	assert.Contains(t, scrape(m), `danqing_redis_errors_total{kind="reply"} 2`)
	cancel()
	require.ErrorIs(t, rdb.Get(ctx, "text").Err(), context.Canceled)
	assert.NotContains(t, scrape(m), `kind="connection"`)
	require.NoError(t, queue.Close())
	require.Error(t, rdb.Get(t.Context(), "text").Err())
	assert.Contains(t, scrape(m), `danqing_redis_errors_total{kind="connection"} 1`)
}

// Requests to the bucket that fail are counted by status; that an object does not exist, or does
// already, is no error.
func TestBucketErrors(t *testing.T) {
	t.Parallel()
	m := metrics.New("test")
	for _, status := range []int{http.StatusOK, http.StatusNotFound, http.StatusPreconditionFailed} {
		m.BucketRequest(http.MethodPut, status, time.Second)
	}
	assert.NotContains(t, scrape(m), "danqing_bucket_errors_total{")
	for _, status := range []int{0, http.StatusForbidden, http.StatusServiceUnavailable, 999} {
		m.BucketRequest(http.MethodPut, status, time.Second)
	}
	text := scrape(m)
	for _, status := range []string{"none", "403", "503", "other"} {
		assert.Contains(t, text, `danqing_bucket_errors_total{method="PUT",status="`+status+`"} 1`)
	}
	assert.Contains(t, text, `danqing_bucket_request_seconds_count{method="PUT"} 7`)
}
