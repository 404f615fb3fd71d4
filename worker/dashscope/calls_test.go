package dashscope

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// policyJSON is the sample of the get-temporary-file-url page.
const policyJSON = `{"request_id":"r1","data":{"policy":"cG9saWN5","signature":"c2ln","upload_dir":"dashscope-instant/52/2024-07-18/u1",
"upload_host":"http://store.test","expire_in_seconds":300,"max_file_size_mb":100,"capacity_limit_mb":999999999,
"oss_access_key_id":"LTAI","x_oss_object_acl":"private","x_oss_forbid_overwrite":"true"}}`

// api answers every call with success.
func api() http.Handler {
	m := http.NewServeMux()
	m.Handle("POST /api/v1"+PathText2Image, reply(200, `{"request_id":"r1","output":{"task_id":"t1","task_status":"PENDING"}}`))
	m.Handle("GET /api/v1/tasks/t1", reply(200, `{"request_id":"r2","output":{"task_id":"t1","task_status":"RUNNING"}}`))
	m.Handle("POST /api/v1/tasks/t1/cancel", reply(200, `{"request_id":"r3"}`))
	m.Handle("GET /api/v1/tasks", reply(200, `{"total":1,"total_page":1,"page_no":1,"page_size":10,"data":[{"task_id":"t1","status":"RUNNING","gmt_create":1745568293253}]}`))
	m.Handle("GET /api/v1/uploads", reply(200, policyJSON))
	m.HandleFunc("POST store.test/", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	return m
}

// The requests on the wire, byte for byte.
func TestWire(t *testing.T) {
	t.Parallel()
	c, m := connect(t, api(), Config{Workspace: "llm-1"})
	n, seed, strength := 1, int64(7), 0.0
	_, err := c.Create(t.Context(), CreateRequest{Model: "wanx-v1", Input: Input{Prompt: "一只 <可爱> & \"猫\""}})
	require.NoError(t, err)
	_, err = c.Create(t.Context(), CreateRequest{
		Model: "wanx-v1",
		Input: Input{Prompt: "cat", NegativePrompt: "dog", RefImg: "oss://dashscope-instant/a/cat.png"},
		Parameters: Parameters{Style: "<auto>", Size: "1024*1024", N: &n, Seed: &seed,
			RefStrength: &strength, RefMode: "repaint"},
	})
	require.NoError(t, err)
	_, err = c.Query(t.Context(), "t1")
	require.NoError(t, err)
	require.NoError(t, c.Cancel(t.Context(), "t1"))
	_, err = c.List(t.Context(), ListFilter{})
	require.NoError(t, err)
	_, err = c.List(t.Context(), ListFilter{TaskID: "t1", Model: "wanx-v1", Status: StatusPending, PageNo: 2, PageSize: 50})
	require.NoError(t, err)
	oss, err := c.Upload(t.Context(), "wanx-v1", `C:\图片\小猫 1.png`, "image/png", 4, strings.NewReader("\x89PNG"))
	require.NoError(t, err)
	assert.Equal(t, "oss://dashscope-instant/52/2024-07-18/u1/___1.png", oss)

	got := m.text("dashscope.test:80") + "\n==== store.test ====\n" + m.text("store.test:80")
	boundary := regexp.MustCompile(`[0-9a-f]{60}`)
	got = strings.ReplaceAll(boundary.ReplaceAllString(got, "BOUNDARY"), "\r\n", "\n")
	golden := filepath.Join("testdata", "wire.golden")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), got)
}

// The key is sent only to the base URL's host: not to the store in the policy, and not
// to a redirect's target.
func TestKeyStaysHome(t *testing.T) {
	t.Parallel()
	c, m := connect(t, api(), Config{})
	_, err := c.Upload(t.Context(), "wanx-v1", "a.png", "", 1, strings.NewReader("x"))
	require.NoError(t, err)
	require.Contains(t, m.text("store.test:80"), "policy")
	assert.NotContains(t, m.text("store.test:80"), testKey)
	assert.Contains(t, m.text("dashscope.test:80"), "Authorization: Bearer "+testKey)

	c, m = connect(t, http.RedirectHandler("http://store.test/", http.StatusTemporaryRedirect), Config{})
	_, err = c.Create(t.Context(), CreateRequest{})
	requireKind(t, err, KindAmbiguous)
	_, err = c.Query(t.Context(), "t1")
	requireKind(t, err, KindTemporary)
	_, err = c.List(t.Context(), ListFilter{})
	requireKind(t, err, KindTemporary)
	requireKind(t, c.Cancel(t.Context(), "t1"), KindTemporary)
	_, err = c.Upload(t.Context(), "wanx-v1", "a.png", "", 1, strings.NewReader("x"))
	requireKind(t, err, KindTemporary)
	assert.Empty(t, m.text("store.test:80"))
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(HeaderSimulated, "true")
		w.Header().Set(HeaderGateway, "1")
		w.Header().Set("Date", "Sun, 22 Nov 2026 10:00:00 GMT")
		api().ServeHTTP(w, r)
	}), Config{})
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

	created, err := c.Create(t.Context(), CreateRequest{})
	require.NoError(t, err)
	assert.Equal(t, &Created{TaskID: "t1", Status: StatusPending, RequestID: "r1", Simulated: true, Date: at}, created)
	task, err := c.Query(t.Context(), "t1")
	require.NoError(t, err)
	assert.Equal(t, &Task{
		TaskResponse: TaskResponse{RequestID: "r2", Output: TaskOutput{TaskID: "t1", TaskStatus: StatusRunning}},
		Simulated:    true, Date: at,
	}, task)
	page, err := c.List(t.Context(), ListFilter{})
	require.NoError(t, err)
	assert.Equal(t, []TaskInfo{{TaskID: "t1", Status: StatusRunning, GmtCreate: 1745568293253}}, page.Data)
	assert.True(t, page.Simulated)
	assert.Equal(t, at, page.Date)
	who, err := c.Probe(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Endpoint{Simulated: true, Gateway: true, Date: at}, who)
}

// A probe identifies the server even if the key is refused: a gateway that requires its
// own token must be recognized.
func TestProbeOfARefusingGateway(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(HeaderGateway, "true")
		reply(401, `{"code":"InvalidApiKey","message":"m"}`)(w, r)
	}), Config{})
	who, err := c.Probe(t.Context())
	requireKind(t, err, KindAccount)
	assert.True(t, who.Gateway)
	assert.False(t, who.Simulated)
}

// A task_id counts even if the rest of the answer is odd: a task that can be queried is
// not ambiguous.
func TestCreateFindsTheTaskID(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		status int
		body   string
	}{
		{201, `{"output":{"task_id":"t1"}}`},
		{200, `{"output":{"task_id":"t1","task_metrics":"?","results":7},"usage":[],"request_id":5}`},
		{500, `{"code":"InternalError","output":{"task_id":"t1"}}`},
	} {
		c, _ := connect(t, reply(tc.status, tc.body), Config{})
		got, err := c.Create(t.Context(), CreateRequest{})
		require.NoError(t, err, tc.body)
		assert.Equal(t, "t1", got.TaskID)
	}
}

// An answer about another task does not end the wait for this one.
func TestQueryFaults(t *testing.T) {
	t.Parallel()
	for body, status := range map[string]int{
		`{"output":{"task_id":"t2","task_status":"SUCCEEDED"}}`: 200,
		`{"output":{"task_id":"t1"}}`:                           200,
		`{"output":null}`:                                       200,
		`{}`:                                                    200,
		`[]`:                                                    200,
		``:                                                      200,
		`{"output":{"task_id":"t1","task_status":"SUCCEEDED"`:  200,
		`{"output":{"task_id":"t1","task_status":"FAILED"}}`:   500,
		`{"output":{"task_id":"t1","task_status":"UNKNOWN"}}`:  302,
		`{"code":"InvalidApiKey"}`:                             200,
		`<html>`:                                               403,
		`{"code":"InvalidParameter","message":"no such task"}`: 400,
		`{"code":"NotFound","message":"no such task"}`:         404,
		`{"code":"ModelServingError","message":"m"}`:           503,
		`{"total":0,"data":[]}` + strings.Repeat(" ", 1<<20):   200,
	} {
		c, _ := connect(t, reply(status, body), Config{})
		_, err := c.Query(t.Context(), "t1")
		requireKind(t, err, KindTemporary)
	}
	c, m := connect(t, api(), Config{})
	for _, id := range []string{"", "..", "a/b", "a?b", "ü", strings.Repeat("x", 129)} {
		_, err := c.Query(t.Context(), id)
		requireKind(t, err, KindTerminal)
		requireKind(t, c.Cancel(t.Context(), id), KindTerminal)
	}
	assert.Zero(t, m.dials)
}

// A field of another type than documented hides neither the images nor what was charged.
func TestQueryWithOddTypes(t *testing.T) {
	t.Parallel()
	for _, odd := range []string{`"usage":{"image_count":2,"output_image_type":[1]}`, `"usage":{"image_count":99999999999999999999}`, `"request_id":7`, `"usage":[]`} {
		c, _ := connect(t, reply(200, `{`+odd+`,"output":{"task_id":"t1","task_status":"SUCCEEDED","end_time":0,"finished":"yes","choices":[{"finish_reason":{},"message":{"content":[{"image":"u"},{"image":"v","text":{}}]}}]}}`), Config{})
		got, err := c.Query(t.Context(), "t1")
		require.NoError(t, err, odd)
		assert.Equal(t, []Result{{URL: "u"}, {URL: "v"}}, got.Output.Results, odd)
		assert.Equal(t, 2, got.ChargedImages(), odd)
	}
}

// A compatible server may omit the ID in its answer (both SDKs accept that).
func TestQueryFillsInTheID(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, reply(200, `{"output":{"task_status":"FAILED","code":"InvalidURL","message":"https://a.b/c?Signature=x","results":[{"message":"key `+testKey+`"}]}}`), Config{})
	got, err := c.Query(t.Context(), "t1")
	require.NoError(t, err)
	assert.Equal(t, TaskOutput{TaskID: "t1", TaskStatus: StatusFailed, Code: "InvalidURL", Message: "https://a.b/c?**redacted**",
		Results: []Result{{Message: "key **redacted**"}}}, got.Output)
}

// An empty list may lead to a second purchase of a task, so only a valid list is
// accepted as one.
func TestListFaults(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{}`, `null`, `{"data":[]}`, `{"total":null,"data":[]}`, `{"total":-1}`, `{"total":"0"}`, `{"total":0,"data":{}}`, `{"total":0`, `<html>`, ``} {
		c, _ := connect(t, reply(200, body), Config{})
		_, err := c.List(t.Context(), ListFilter{})
		requireKind(t, err, KindTemporary)
	}
	c, _ := connect(t, reply(200, `{"total":0,"data":[]}`), Config{})
	page, err := c.List(t.Context(), ListFilter{})
	require.NoError(t, err)
	assert.Empty(t, page.Data)
}

func TestCancelOfATaskThatIsNotPending(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, reply(400, `{"code":"UnsupportedOperation","message":"Failed to cancel the task, please confirm if the task is in PENDING status.","request_id":"r"}`), Config{})
	err := c.Cancel(t.Context(), "t1")
	require.ErrorIs(t, err, ErrNotPending)
	requireKind(t, err, KindTerminal)

	c, _ = connect(t, reply(401, `{"code":"InvalidApiKey"}`), Config{})
	err = c.Cancel(t.Context(), "t1")
	require.NotErrorIs(t, err, ErrNotPending)
	requireKind(t, err, KindAccount)
}

// Query, list and cancel share one rate limit: 20 calls at 10 per second take 1.7 s, as three
// follow each other at once, and creates do not wait for them.
func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := connect(t, api(), Config{})
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				var err error
				switch i % 3 {
				case 0:
					_, err = c.Query(t.Context(), "t1")
				case 1:
					_, err = c.List(t.Context(), ListFilter{})
				case 2:
					err = c.Cancel(t.Context(), "t1")
				}
				assert.NoError(t, err)
			})
		}
		_, err := c.Create(t.Context(), CreateRequest{})
		require.NoError(t, err)
		assert.Zero(t, time.Since(start))
		wg.Wait()
		assert.Equal(t, 1700*time.Millisecond, time.Since(start))

		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = c.Query(ctx, "t1")
		requireKind(t, err, KindTemporary)
		c.CloseIdleConnections()
	})
}

// The wait for the rate limit does not count towards the timeout.
func TestQueryTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := connect(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
			Config{QueriesPerSecond: 0.05})
		c.limiter.SetBurst(1)
		start := time.Now()
		for range 2 { // at 0 and 20 s
			_, err := c.Query(t.Context(), "t1")
			requireKind(t, err, KindTemporary)
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		assert.Equal(t, 30*time.Second, time.Since(start))
	})
}

func TestParseTime(t *testing.T) {
	t.Parallel()
	got, err := ParseTime("2025-01-08 16:03:59.840")
	require.NoError(t, err)
	assert.Equal(t, time.Date(2025, 1, 8, 8, 3, 59, 840e6, time.UTC), got.UTC())
	for _, bad := range []string{"", "2025-01-08", "2025-01-08T16:03:59Z"} {
		_, err := ParseTime(bad)
		assert.Error(t, err, bad)
	}
}

func TestNewReportsEveryProblem(t *testing.T) {
	t.Parallel()
	_, err := New(Config{BaseURL: "dashscope.aliyuncs.com", Workspace: "a b", QueryTimeout: -1})
	for _, field := range []string{"BaseURL", "APIKey", "Workspace", "QueryTimeout"} {
		require.ErrorContains(t, err, field)
	}
	for _, base := range []string{
		"ftp://a/api/v1", "https:///api/v1", "https://a", "https://a/api/v2", "https://a/api/v1?x=1", "https://a/api/v1#x",
		"https://user:" + testKey + "@a/api/v1", "https://a:" + testKey + "/api/v1", "api/v1",
	} {
		_, err = New(Config{BaseURL: base, APIKey: "k"})
		require.ErrorContains(t, err, "BaseURL", base)
		require.NotContains(t, err.Error(), testKey)
	}
	for _, key := range []string{"a b", "a\n", "\"\x00", "密钥"} {
		_, err = New(Config{APIKey: key})
		require.ErrorContains(t, err, "APIKey")
		require.NotContains(t, err.Error(), key)
	}
	c, err := New(Config{APIKey: "k"})
	require.NoError(t, err)
	assert.Equal(t, DefaultBaseURL, c.BaseURL().String())
	c, err = New(Config{APIKey: "k", BaseURL: "http://127.0.0.1:1/proxy/api/v1/"})
	require.NoError(t, err)
	c.BaseURL().Host = "changed"
	assert.Equal(t, "http://127.0.0.1:1/proxy/api/v1", c.BaseURL().String())
}

// A configuration, a client and the log do not show the key.
func TestNothingPrintsTheKey(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c, m := connect(t, api(), Config{Logger: log})
	_, err := c.Query(t.Context(), "t1")
	require.NoError(t, err)
	assert.Contains(t, out.String(), `"op":"query"`)
	require.Contains(t, m.text("dashscope.test:80"), testKey)

	cfg := Config{APIKey: testKey}
	log.Info("started", slog.Any("config", cfg), slog.Any("pointer", &cfg))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		_, _ = fmt.Fprintf(&out, verb+verb+verb, cfg, &cfg, c)
	}
	asJSON, err := json.Marshal(cfg)
	require.NoError(t, err)
	_, _ = out.Write(asJSON)
	assert.NotContains(t, out.String(), testKey)
	assert.NotContains(t, out.String(), fmt.Sprintf("%x", testKey))
}

type roundTripper func(*http.Request) *http.Response

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{})
	return f(r), nil
}

// No answer makes the client panic, turns anything but the service's JSON into a
// certain refusal, or creates a task from nothing.
func FuzzAnswer(f *testing.F) {
	for status, bodies := range map[int][]string{
		200: {`{"output":{"task_id":"t1","task_status":"PENDING"},"request_id":"r"}`, `{"total":1,"data":[{"task_id":"t1"}]}`, policyJSON, `{`, `{"output":{"task_id":7}}`},
		400: {`{"code":"InvalidParameter","message":"m"}`, `{"code":7}`, `<html>`},
		429: {`{"error":{"code":"limit_requests"}}`},
		503: {`{"code":"ModelServingError"}`},
	} {
		for _, b := range bodies {
			f.Add(status, []byte(b))
		}
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		c, err := New(Config{APIKey: testKey, QueriesPerSecond: 1e9})
		require.NoError(t, err)
		rt := roundTripper(func(*http.Request) *http.Response {
			return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(body)))}
		})
		c.oneShot.Transport, c.pooled.Transport = rt, rt
		created, err := c.Create(t.Context(), CreateRequest{})
		if err == nil {
			require.Regexp(t, taskIDPattern, created.TaskID)
			require.True(t, json.Valid(body))
		} else if e := requireKindOfError(t, err); e.Kind != KindAmbiguous {
			require.True(t, json.Valid(body), "a certainty out of no JSON: %v", e)
			require.True(t, status >= 400 && status < 500 || status == 503, "a certainty out of HTTP %d: %v", status, e)
		}
		task, err := c.Query(t.Context(), "t1")
		if err == nil {
			require.Equal(t, "t1", task.Output.TaskID)
			require.NotEmpty(t, task.Output.TaskStatus)
			require.Equal(t, 200, status)
		} else {
			require.NotContains(t, []Kind{KindAmbiguous, KindTerminal, KindRefused, KindRetry}, requireKindOfError(t, err).Kind)
		}
		if _, err = c.List(t.Context(), ListFilter{}); err == nil {
			require.True(t, json.Valid(body))
		}
		_, _ = c.Upload(t.Context(), "m", "f", "", 1, strings.NewReader("x"))
	})
}

func requireKindOfError(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e)
	require.NotContains(t, e.Error(), testKey)
	_ = e.Hint()
	return e
}

// No text of the service reaches a terminal, a log or a client as it came: not a control
// sequence, a second line, a text of 100 KB, the key or a signature.
func TestTextsOfTheServiceAreClean(t *testing.T) {
	t.Parallel()
	evil, err := json.Marshal("\x1b[31mred\nERROR forged line\u2028\u202e " + testKey + " https://x/y?Signature=abc " + strings.Repeat("長", 30_000))
	require.NoError(t, err)
	e := string(evil)
	texts := func(answer any) {
		encoded, err := json.Marshal(answer)
		require.NoError(t, err)
		for _, bad := range []string{"\\u001b", "\\n", "\\u2028", "\u202e", testKey, "Signature=abc"} {
			assert.NotContains(t, string(encoded), bad)
		}
		assert.Less(t, len(encoded), 50_000)
	}
	c, _ := connect(t, reply(200, `{"request_id":`+e+`,"output":{"task_id":"t1","task_status":"FAILED","code":`+e+`,"message":`+e+`,"results":[{"code":`+e+`,"message":`+e+`,"actual_prompt":`+e+`}]}}`), Config{})
	task, err := c.Query(t.Context(), "t1")
	require.NoError(t, err)
	texts(task)
	c, _ = connect(t, reply(200, `{"total":1,"data":[{"task_id":`+e+`,"status":`+e+`,"request_id":`+e+`,"api_key_id":`+e+`}]}`), Config{})
	page, err := c.List(t.Context(), ListFilter{})
	require.NoError(t, err)
	texts(page)
	c, _ = connect(t, reply(400, `{"code":`+e+`,"message":`+e+`,"request_id":`+e+`}`), Config{})
	_, err = c.Create(t.Context(), CreateRequest{})
	failed := typed(t, err, KindTerminal)
	texts([]string{failed.Code, failed.Message, failed.RequestID, err.Error()})
	c, _ = connect(t, reply(200, `{"request_id":`+e+`,"output":{"task_id":"t1","task_status":"PENDING"}}`), Config{})
	created, err := c.Create(t.Context(), CreateRequest{})
	require.NoError(t, err)
	texts(created)
}
