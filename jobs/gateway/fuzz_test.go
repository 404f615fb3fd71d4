package gateway_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Every body gets an answer in the API's format: either a valid job is queued, or none is
// and the answer is a client error.
func FuzzCreate(f *testing.F) {
	for _, body := range []string{
		oneCat, openAICat, "", "null", "[]", `{"model":"wanx-v1","input":null,"parameters":{}}`, `{"model":"wanx-v1","input":{"prompt":"a cat"},"input":{"prompt":"b"}}`,
		`{"model":"wan2.2-t2i-flash","input":{"prompt":"\ud800"},"parameters":{"n":1e0,"seed":-0,"size":"1024*1024"}}`,
		`{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"oss://x/y.png"},"parameters":{"ref_strength":1e999}}`,
		`{"model":"wanx-v1","prompt":"a cat","response_format":{},"n":"1"}`, `{"model":"wanx-v1","prompt":"a cat","labels":{"":""},"deadline":"2000-01-01T00:00:00Z"}`,
	} {
		for _, openAI := range []bool{false, true} {
			f.Add(body, "", "", openAI)
			f.Add(body, "Idempotency-Key", "猫", openAI)
			f.Add(body, "X-Danqing-Not-Before", "99999999999999999999", openAI)
			f.Add(body, "X-Danqing-Labels", "a=b,c", openAI)
			f.Add(body, "X-Danqing-Callback", "http://[::1", openAI)
		}
	}
	f.Fuzz(func(t *testing.T, body, header, value string, openAI bool) {
		s := newService(t, func(api *gateway.API) { api.OpenAIWait = time.Nanosecond })
		path, headers := createPath, []string{"X-DashScope-Async", "enable", header, value}
		if openAI {
			path = "/v1/images/generations"
		}
		got := s.request(http.MethodPost, path, body, headers...)
		require.Contains(t, got.header.Get("Content-Type"), "application/json")
		require.True(t, json.Valid([]byte(got.body)), got.body)
		require.LessOrEqual(t, len(got.body), 16<<10)
		queued, _, err := s.jobs.List(t.Context(), jobs.ListFilter{})
		require.NoError(t, err)
		if len(queued) == 0 {
			require.Contains(t, []int{400, 403, 404, 413, 421, 422}, got.status, got.body)
			return
		}
		require.Len(t, queued, 1)
		req, err := s.jobs.RequestOf(t.Context(), queued[0])
		require.NoError(t, err)
		_, _, err = req.Normalize()
		require.NoError(t, err, "a worker can read it")
		if openAI {
			assert.Equal(t, http.StatusGatewayTimeout, got.status, "a wait of zero")
			return
		}
		require.Equal(t, http.StatusOK, got.status, got.body)
		var created dashscope.TaskResponse
		require.NoError(t, json.Unmarshal([]byte(got.body), &created))
		assert.Equal(t, queued[0].ID, created.Output.TaskID)
		assert.Equal(t, queued[0].ID, s.query(created.Output.TaskID).Output.TaskID)
	})
}

// Every body with messages or images is a valid job or a client error.
func FuzzEdit(f *testing.F) {
	for _, body := range []string{
		`{"model":"wan2.7-image","input":{"messages":[{"role":"user","content":[{"text":"a"},{"image":"https://e.com/a.png"}]}]},"parameters":{"n":1}}`,
		`{"model":"wan2.7-image","input":{"messages":[{"content":[null,{},{"text":null,"image":"oss://x"},{"text":"\ud800"}]}]}}`,
		`{"model":"qwen-image-3.0","input":null,"prompt":"a"}`, `{"model":"wan2.6-t2i","input":{"messages":7,"input":[]},"parameters":[]}`,
		`{"model":"wanx2.1-imageedit","input":{"prompt":"a","function":"expand","base_image_url":["x"],"images":"y"},"parameters":{"top_scale":1e999}}`,
		`{"prompt":"a","images":[{"image_url":"data:image/png;base64,AAAA"}],"mask":{"image_url":"data:,"}}`, `{"images":[null],"mask":null,"n":"1"}`, "null", "[]", "",
	} {
		for path := range 3 {
			f.Add(body, path)
		}
	}
	f.Fuzz(func(t *testing.T, body string, path int) {
		s := newService(t, func(api *gateway.API) { api.OpenAIWait = time.Nanosecond })
		paths := []string{generationPath, editPath, "/v1/images/edits"}
		got := s.submitTo(paths[(path%3+3)%3], body)
		require.True(t, json.Valid([]byte(got.body)), got.body)
		require.LessOrEqual(t, len(got.body), 16<<10)
		require.Contains(t, []int{200, 400, 404, 413, 504}, got.status, got.body)
		queued, _, err := s.jobs.List(t.Context(), jobs.ListFilter{})
		require.NoError(t, err)
		for _, rec := range queued {
			req, err := s.jobs.RequestOf(t.Context(), rec)
			require.NoError(t, err)
			_, _, err = req.Normalize()
			require.NoError(t, err, "a worker can read it")
		}
	})
}
