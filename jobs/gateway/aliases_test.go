package gateway_test

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

func aliased(api *gateway.API) {
	api.OpenAIWait = time.Minute
	api.Aliases = map[string]string{"gpt-image-1": "wan2.7-image", "dall-e-3": "wanx-v1"}
}

// An alias is a model of OpenAI's API: its job is of the model that it stands for, and it is listed. A
// GPT image model answers in base64 with what its clients read; for others response_format decides.
func TestAliases(t *testing.T) {
	runInBubble(t, aliased, func(t *testing.T, s *service) {
		send := func(path, body string) (answer, jobs.Request) {
			require.NoError(t, s.redis.Del(t.Context(), append(s.redis.Keys(t.Context(), "danqing:job:*").Val(), "none")...).Err())
			var req jobs.Request
			time.AfterFunc(time.Second, func() { req = s.requestOf(s.onlyJob()); s.finish(req.ID) })
			got := s.post(path, body, "Content-Type", "application/json")
			require.Equal(t, http.StatusOK, got.status, got.body)
			return got, req
		}
		const image = `,"images":[{"image_url":"https://e.com/a.png"}]`
		for path, more := range map[string]string{"/v1/images/generations": "", "/v1/images/edits": image} {
			got, req := send(path, `{"model":"gpt-image-1","prompt":"a cat","quality":"low","response_format":"url"`+more+`}`)
			assert.Equal(t, "wan2.7-image", req.Model)
			assert.Contains(t, got.header.Get("X-Danqing-Ignored-Parameters"), "response_format")
			var answer map[string]any
			require.NoError(t, json.Unmarshal([]byte(got.body), &answer), got.body)
			assert.ElementsMatch(t, []string{"created", "data", "background", "output_format", "quality", "size", "usage"}, slices.Collect(maps.Keys(answer)))
			assert.Equal(t, []any{"opaque", "png", "high", "256x256"}, []any{answer["background"], answer["output_format"], answer["quality"], answer["size"]})
			assert.Equal(t, map[string]any{
				"input_tokens": 0.0, "input_tokens_details": map[string]any{"image_tokens": 0.0, "text_tokens": 0.0}, "output_tokens": 0.0,
				"output_tokens_details": map[string]any{"image_tokens": 0.0, "text_tokens": 0.0}, "total_tokens": 0.0,
			}, answer["usage"])
			assert.NotEmpty(t, answer["data"].([]any)[0].(map[string]any)["b64_json"])

			got, _ = send(path, `{"model":"gpt-image-1","prompt":"a cat","stream":true`+more+`}`)
			_, data, _ := strings.Cut(got.body, "\ndata: ")
			require.NoError(t, json.Unmarshal([]byte(strings.TrimSpace(data)), &answer), got.body)
			assert.Contains(t, answer, "usage")
		}
		got, req := send("/v1/images/generations", `{"model":" dall-e-3","prompt":"a cat","style":"vivid"}`)
		assert.Equal(t, "wanx-v1", req.Model)
		assert.Contains(t, got.body, `"url":"http`)
		assert.NotContains(t, got.body, "usage")

		list := s.request(http.MethodGet, "/v1/models", "").body
		assert.Contains(t, list, `{"id":"dall-e-3","object":"model","created":0,"owned_by":"alibaba"},{"id":"gpt-image-1",`)
		assert.Contains(t, s.request(http.MethodGet, "/v1/models/gpt-image-1", "").body, `{"id":"gpt-image-1"`)
		require.NoError(t, jobs.NewStore(s.redis).AnnounceWorker(t.Context(), "w", jobs.WorkerStatus{Models: []string{"wanx-v1"}}))
		<-time.After(time.Minute)
		list = s.request(http.MethodGet, "/v1/models", "").body
		assert.Contains(t, list, "dall-e-3")
		assert.NotContains(t, list, "gpt-image-1", "no worker works on its model")
		assert.Equal(t, http.StatusNotFound, s.request(http.MethodGet, "/v1/models/gpt-image-1", "").status)

		got = s.generateImages(t.Context(), `{"model":"gpt-image-9","prompt":"a cat"}`)
		assert.Equal(t, http.StatusNotFound, got.status)
		assert.Contains(t, got.body, "DANQING_MODEL_ALIASES")
		message := s.submit(`{"model":"dall-e-3","input":{"prompt":"a cat"}}`).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, `model: "dall-e-3"`, "DashScope's API has DashScope's names")
	})
}

// A retry of a request with an alias joins its job, also once the alias stands for another model.
func TestAliasRetries(t *testing.T) {
	runInBubble(t, aliased, func(t *testing.T, s *service) {
		const body = `{"model":"dall-e-3","prompt":"a cat"}`
		require.Equal(t, http.StatusGatewayTimeout, s.generateImages(t.Context(), body).status)
		id := s.onlyJob()
		s.finish(id)
		other := newServiceOn(t, s.redis, func(api *gateway.API) { api.Aliases = map[string]string{"dall-e-3": "wan2.6-t2i"} })
		other.bucket = s.bucket
		got := other.generateImages(t.Context(), body, "X-Stainless-Retry-Count", "1")
		assert.Equal(t, http.StatusOK, got.status, got.body)
		assert.Equal(t, id, got.header.Get("X-Danqing-Job"))
		assert.Equal(t, id, s.onlyJob())
	})
}

// An alias of no model is refused at the start.
func TestAliasOfNoModel(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	_, err := gateway.New(gateway.Config{Redis: s.redis, API: &gateway.API{
		Bucket: s.bucket, Aliases: map[string]string{"a": "wanx-v9"}, Price: func(jobs.Model, int) int64 { return 0 },
		LoadSidecar: func(context.Context, string) (*jobs.Job, error) { return nil, jobs.ErrNotFound },
	}})
	assert.ErrorContains(t, err, `gateway: alias a: model: "wanx-v9"`)
}
