package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// alert test says of each receiver whether it accepts alerts, and shows no part of their URLs but the
// hosts.
func TestAlertTest(t *testing.T) {
	t.Parallel()
	robot := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		assert.JSONEq(t, `{"msgtype":"text","text":{"content":"Danqing: 这是 danqing 的告警测试"}}`, string(body))
		_, _ = io.WriteString(w, `{"errcode":0,"errmsg":"ok"}`)
	}))
	defer robot.Close()
	run := func(environ ...string) (said, errs string, code int) {
		var stdout, stderr strings.Builder
		p := &program{args: []string{"alert", "test"}, environ: environ, stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr}
		code = p.run(t.Context())
		return stdout.String(), stderr.String(), code
	}
	said, errs, code := run("DANQING_ALERT_URL=wecom+" + robot.URL + "/send?key=hush,slack+http://127.0.0.1:1/hush")
	assert.Equal(t, exitFailed, code)
	assert.Equal(t, "accepted  wecom at "+robot.Listener.Addr().String()+"\nfailed    slack at 127.0.0.1:1: connection refused\n", said)
	assert.Contains(t, errs, "error: 1 of 2 receivers did not accept the alert")
	assert.NotContains(t, said+errs, "hush")

	_, errs, code = run()
	require.Equal(t, exitUsage, code)
	assert.Contains(t, errs, "DANQING_ALERT_URL is not set")
}

// A server tells what it finds without any worker: then it alone is left to say that none runs.
func TestServeSendsAlerts(t *testing.T) {
	t.Parallel()
	told := make(chan string, 1)
	robot := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		told <- string(body)
		_, _ = io.WriteString(w, "ok")
	}))
	defer robot.Close()
	s := newServeStack(t)
	_, err := s.jobs.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat"})
	require.NoError(t, err)
	store := jobs.NewStore(s.rdb)
	rec, err := store.Get(t.Context(), "cat")
	require.NoError(t, err)
	next := *rec
	next.State, next.Code, next.Message = jobs.StateHeld, jobs.CodeSubmitAmbiguous, "two tasks match"
	require.NoError(t, store.Update(t.Context(), rec, &next))
	serve, log := s.program([]string{"DANQING_ALERT_URL=slack+" + robot.URL + "/hush", "DANQING_ALERT_LANGUAGE=zh"}, "serve", "--listen", s.address)
	assert.JSONEq(t, `{"text":"Danqing: 任务 cat 等待您的决定：SubmitAmbiguous: two tasks match\n  → danqing jobs show cat"}`, <-told)
	require.NoError(t, serve.Process.Signal(os.Interrupt))
	require.NoError(t, serve.Wait())
	assert.NotContains(t, log.String(), "hush")
}
