package dashscope

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// answering returns a client that gets one answer to every request.
func answering(t *testing.T, status int, retryAfter string, body []byte) *Client {
	t.Helper()
	c, err := New(Config{APIKey: testKey, QueriesPerSecond: 1e9})
	require.NoError(t, err)
	rt := roundTripper(func(*http.Request) *http.Response {
		header := http.Header{"Date": {"Fri, 02 Jan 2026 03:04:05 GMT"}, "Content-Type": {"text/html"}, "Retry-After": {retryAfter}}
		return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(string(body)))}
	})
	c.oneShot.Transport, c.pooled.Transport = rt, rt
	return c
}

// refusesIn reports whether a body is a refusal by the service: a JSON object with a
// code, in one of its two formats.
func refusesIn(body []byte) bool {
	var own struct{ Code any }
	var openAI struct{ Error struct{ Code any } }
	if json.Unmarshal(body, &own) == nil {
		if code, ok := own.Code.(string); ok && code != "" {
			return true
		}
	}
	if json.Unmarshal(body, &openAI) == nil {
		if code, ok := openAI.Error.Code.(string); ok && code != "" {
			return true
		}
	}
	return false
}

// The client concludes that no task was created only from a refusal in the service's
// format with an error status. It returns a task only for an ID in the service's JSON,
// whatever the status.
func FuzzCreateIsCertain(f *testing.F) {
	for _, status := range []int{200, 201, 302, 400, 401, 403, 404, 408, 409, 429, 499, 500, 502, 503, 504} {
		for _, body := range []string{
			`{"code":"Throttling.RateQuota","message":"Requests rate limit exceeded"}`, `{"code":"ModelServingError"}`, `{"code":"ModelUnavailable"}`,
			`{"code":"InvalidApiKey"}`, `{"code":"Arrearage"}`, `{"code":"DataInspectionFailed"}`, `{"error":{"code":"limit_requests"}}`,
			`{"output":{"task_id":"86ecf553-d340-4e21-af6e-a0c6a421c010","task_status":"PENDING"}}`, `{"output":{"task_id":"86ecf553-d340-4e21-af6e-a0c6a421c010"},"code":"Throttling"}`,
			`<html><h1>502 Bad Gateway</h1></html>`, `{"code":"Throttling"`, `{"code":""}`, `{"code":["Throttling"]}`, `[{"code":"Throttling"}]`, `"Throttling"`, ``, `null`, "\x00",
		} {
			f.Add(status, "1", []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, status int, retryAfter string, body []byte) {
		if status < 100 || status > 999 { // net/http reads no other
			return
		}
		created, err := answering(t, status, retryAfter, body).Create(t.Context(), CreateRequest{})
		if err == nil {
			var told TaskResponse
			require.NoError(t, json.Unmarshal(body, &told))
			require.Equal(t, told.Output.TaskID, created.TaskID)
			require.Regexp(t, taskIDPattern, created.TaskID)
			return
		}
		e := requireKindOfError(t, err)
		require.GreaterOrEqual(t, e.RetryAfter, time.Duration(0))
		require.LessOrEqual(t, e.RetryAfter, 24*time.Hour)
		if e.Kind == KindAmbiguous {
			return
		}
		require.Contains(t, []Kind{KindRefused, KindThrottled, KindAccount, KindTerminal, KindRetry}, e.Kind)
		require.True(t, refusesIn(body), "%s out of %q", e.Kind, body)
		require.NotEmpty(t, e.Code)
		if status != http.StatusServiceUnavailable {
			require.True(t, status >= 400 && status < 500 && status != http.StatusRequestTimeout && status != 499, "%s out of HTTP %d", e.Kind, status)
		} else {
			require.Equal(t, KindRefused, e.Kind)
		}
	})
}

// A list is authoritative about the created tasks: an answer without a total is no
// list, and a failed list says nothing about a task.
func FuzzListAndQuery(f *testing.F) {
	for _, body := range []string{
		`{"total":0,"data":[]}`, `{"total":2,"total_page":1,"page_no":1,"page_size":10,"data":[{"task_id":"t1","status":"SUCCEEDED","model_name":"wanx-v1","api_key_id":"1","gmt_create":1767323045000},{"task_id":"t2"}]}`,
		`{"data":[{"task_id":"t1"}]}`, `{"total":-1}`, `{"total":"1"}`, `{"total":1e3}`, `{"total":1,"data":{"task_id":"t1"}}`, `{"total":1,"data":[null]}`, `{}`, `null`,
		`{"output":{"task_id":"t1","task_status":"SUCCEEDED","results":[{"url":"http://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1d/a-1.png?Expires=1&Signature=s"},{"code":"E","message":"m"}],"task_metrics":{"TOTAL":2,"SUCCEEDED":1,"FAILED":1}},"usage":{"image_count":1}}`,
		`{"output":{"task_id":"t2","task_status":"SUCCEEDED"}}`, `{"output":{"task_status":"FAILED","code":"InternalError","message":"see https://x/y?Signature=s"}}`, `{"output":{"task_id":"t1","task_status":""}}`,
		`{"code":"Throttling"}`, `<html>`,
	} {
		for _, status := range []int{200, 404, 429, 500} {
			f.Add(status, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		c := answering(t, status, "", body)
		harmless := []Kind{KindTemporary, KindThrottled, KindAccount}
		page, err := c.List(t.Context(), ListFilter{})
		if err != nil {
			require.Contains(t, harmless, requireKindOfError(t, err).Kind)
		} else {
			var told struct{ Total *int }
			require.NoError(t, json.Unmarshal(body, &told))
			require.NotNil(t, told.Total, "an empty list out of %q", body)
			require.Equal(t, *told.Total, page.Total)
			require.Equal(t, http.StatusOK, status)
			require.False(t, page.Date.IsZero())
		}
		task, err := c.Query(t.Context(), "t1")
		if err != nil {
			require.Contains(t, harmless, requireKindOfError(t, err).Kind)
			return
		}
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, "t1", task.Output.TaskID)
		require.NotEmpty(t, task.Output.TaskStatus)
		for _, text := range append([]string{task.Output.Message}, messages(task.Output.Results)...) {
			require.Equal(t, text, clean(scrub(text, testKey)), "no key, signature or second line")
		}
	})
}

func messages(results []Result) []string {
	var all []string
	for _, r := range results {
		all = append(all, r.Message)
	}
	return all
}

// A time is parsed in the service's format, or rejected with a single-line error.
func FuzzTime(f *testing.F) {
	for _, text := range []string{"2026-01-02 03:04:05.678", "2026-01-02 03:04:05", "0000-00-00 00:00:00.000", "1767323045000", "", "\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at, err := ParseTime(text)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		again, err := ParseTime(at.Format("2006-01-02 15:04:05.000"))
		require.NoError(t, err)
		require.WithinDuration(t, at, again, time.Millisecond)
	})
}

// A client is created only if its calls go to the base URL's host, and the error does
// not print what may contain a password.
func FuzzBaseURL(f *testing.F) {
	for _, text := range []string{"https://dashscope.aliyuncs.com/api/v1", "http://127.0.0.1:8766/api/v1/", "https://u:p@h/api/v1", "https://h/api/v1?x", "https:/api/v1", "//h/api/v1", "https://h/%61pi/v1", "h", "https://[::1]/api/v1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := New(Config{APIKey: testKey, BaseURL: text})
		if err != nil {
			if u, bad := url.Parse(text); bad != nil || u.User != nil {
				require.NotContains(t, err.Error(), "@")
			}
			return
		}
		r, err := c.request(t.Context(), http.MethodGet, PathTasks, nil, nil)
		require.NoError(t, err)
		require.Equal(t, c.BaseURL().Hostname(), r.URL.Hostname())
		require.True(t, strings.HasSuffix(r.URL.Path, "/api/v1"+PathTasks), r.URL)
		require.Empty(t, r.URL.RawQuery)
		_ = c.Region()
	})
}

// A key of a few characters is redacted as a word, and does not garble the others.
func TestScrubShortKey(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"any task of company any, Many":     "**redacted** task of company **redacted**, Many",
		`key "any": Bearer any`:             `key "**redacted**": Bearer **redacted**`,
		"anyany 任any any":                   "anyany 任any **redacted**",
		"https://h/any?Signature=any&b=any": "https://h/**redacted**?**redacted**",
	} {
		require.Equal(t, want, scrub(text, "any"))
	}
	require.Equal(t, "x**redacted**y", scrub("xsk-0123456789y", "sk-0123456789"))
}
