package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/redistest"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// A worker's /readyz and danqing health say whether it can work, and why not; its metrics count
// what fails meanwhile.
func TestHealthOfAWorker(t *testing.T) {
	t.Parallel()
	server, sim := redistest.Start(t), &simulator.Simulator{}
	files, err := bucket.Open(bucket.Config{Dir: t.TempDir(), AccessKeyID: "AKIATEST", SecretAccessKey: "s3cr3t"})
	require.NoError(t, err)
	var refused atomic.Bool
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refused.Load() {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		files.ServeHTTP(w, r)
	}))
	service := httptest.NewServer(sim)
	t.Cleanup(func() {
		store.Close()
		service.Close()
		assert.NoError(t, files.Close())
		assert.NoError(t, sim.Close())
	})
	address := "127.0.0.1:" + freePorts(t)["9000"]
	s := &serveStack{t: t, env: []string{
		"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), noExitSleep, "REDIS_URL=unix://" + server.Socket, "DANQING_METRICS_LISTEN=" + address,
		"DASHSCOPE_HTTP_BASE_URL=" + service.URL + "/api/v1", "DASHSCOPE_API_KEY=sk-test", "AWS_ENDPOINT_URL_S3=" + store.URL, "AWS_REGION=us-east-1",
		"AWS_ACCESS_KEY_ID=AKIATEST", "AWS_SECRET_ACCESS_KEY=s3cr3t", "DANQING_S3_BUCKET=" + bucket.DefaultBucket, "DANQING_S3_ADDRESSING=path",
	}}
	health := func(args ...string) (code int, text string) {
		cmd, out := s.program(nil, append([]string{"health"}, args...)...)
		_ = cmd.Wait() // the exit code says it
		return cmd.ProcessState.ExitCode(), out.String()
	}
	get := func(path string) (status int, text string) {
		answer, err := http.Get("http://" + address + path) //nolint:noctx // on this machine
		require.NoError(t, err)
		defer answer.Body.Close() //nolint:errcheck // read only
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		return answer.StatusCode, string(body)
	}
	requireNotReady := func(why string) {
		t.Helper()
		status, text := get("/readyz")
		require.Equal(t, http.StatusServiceUnavailable, status, text)
		require.Contains(t, text, why)
		code, said := health()
		require.Equal(t, exitFailed, code, said)
		require.Contains(t, said, "danqing: error: not ready: ")
		require.Contains(t, said, why)
		code, said = health("--alive")
		require.Zero(t, code, said)
	}

	code, text := health()
	require.Equal(t, exitFailed, code)
	require.Contains(t, text, "no danqing answers at "+address+": it does not run")

	s.program(nil, "worker")
	require.Eventually(t, func() bool { code, text = health(); return code == 0 }, time.Minute, 10*time.Millisecond)
	require.Equal(t, "ready\n", text)
	_, text = get("/metrics")
	require.Contains(t, text, "danqing_redis_up 1\n")
	require.NotContains(t, text, "danqing_bucket_errors_total{")

	refused.Store(true)
	requireNotReady("bucket: ")
	_, text = get("/metrics")
	assert.Regexp(t, `danqing_bucket_errors_total\{method="[A-Z]+",status="403"\} [1-9]`, text)
	refused.Store(false)
	code, text = health()
	require.Zero(t, code, text)

	server.Kill()
	requireNotReady("edis")
	_, text = get("/metrics")
	assert.Contains(t, text, "danqing_redis_up 0\n")
	assert.Regexp(t, `danqing_redis_errors_total\{kind="connection"\} [1-9]`, text)
	assert.False(t, strings.Contains(text, "danqing_lane_held"), "what is not known is not exposed")
}
