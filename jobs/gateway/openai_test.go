package gateway_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

const dedupeKeys = "danqing:dedupe:*"

// dedupeObserver is a ResponseWriter that records whether the dedupe key exists when an
// answer is sent.
type dedupeObserver struct {
	*httptest.ResponseRecorder
	// most is how many bytes the connection accepts.
	most int
	// whole is set if all announced bytes were written before the flush.
	whole bool
}

var errGone = errors.New("the client has gone")

func (m *dedupeObserver) Write(p []byte) (int, error) {
	if m.Body.Len()+len(p) > m.most {
		return 0, errGone
	}
	return m.ResponseRecorder.Write(p)
}

func (m *dedupeObserver) FlushError() error {
	announced, err := strconv.Atoi(m.Header().Get("Content-Length"))
	m.whole = err == nil && announced == m.Body.Len()
	return nil
}

// An answer is complete before its dedupe key is released, so that a crash in between does
// not make a client pay for new images.
func TestOpenAIAnswerIsCompleteBeforeRelease(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"url", "b64_json"} {
		t.Run(format, func(t *testing.T) {
			runInBubble(t, nil, func(t *testing.T, s *service) {
				time.AfterFunc(time.Second, func() {
					id := s.onlyJob()
					s.finish(id)
				})
				body := strings.Replace(openAICat, "{", `{"response_format":"`+format+`",`, 1)
				w := &dedupeObserver{ResponseRecorder: httptest.NewRecorder(), most: 1 << 20}
				s.gateway.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/v1/images/generations", strings.NewReader(body)))
				require.Equal(t, http.StatusOK, w.Code)
				assert.True(t, json.Valid(w.Body.Bytes()), w.Body.String())
				assert.True(t, w.whole, "announced %s of %d bytes", w.Header().Get("Content-Length"), w.Body.Len())
				assert.Empty(t, s.redis.Keys(t.Context(), dedupeKeys).Val())
			})
		})
	}
}

// When an answer is aborted in the middle, the repeated request gets the same images.
func TestOpenAIAnswerAborted(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		body := strings.Replace(openAICat, "{", `{"response_format":"b64_json",`, 1)
		time.AfterFunc(time.Second, func() { s.finish(s.onlyJob()) })
		w := &dedupeObserver{ResponseRecorder: httptest.NewRecorder(), most: 500}
		assert.PanicsWithValue(t, http.ErrAbortHandler, func() {
			s.gateway.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/v1/images/generations", strings.NewReader(body)))
		})
		got := s.generateImages(t.Context(), body)
		assert.Equal(t, http.StatusOK, got.status)
		assert.Equal(t, s.onlyJob(), got.header.Get("X-Danqing-Job"))
	})
}

// When the images were deleted from the bucket, the next request creates a new job.
func TestOpenAIImagesRemoved(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		body := strings.Replace(openAICat, "{", `{"response_format":"b64_json",`, 1)
		time.AfterFunc(time.Second, func() {
			s.update(s.onlyJob(), func(rec *jobs.Record) {
				rec.State, rec.FinishedAt = jobs.StateSucceeded, time.Now().UTC()
				rec.Images = []jobs.Image{{N: 1, Key: "2026/gone-1.png", SHA256: fmt.Sprintf("%064d", 1)}}
			})
		})
		got := s.generateImages(t.Context(), body)
		assert.Equal(t, http.StatusGone, got.status)
		assert.Contains(t, got.body, `"code":"image_removed"`)
		assert.Empty(t, s.redis.Keys(t.Context(), dedupeKeys).Val())
	})
}

// A wrong key gets OpenAI's error, and a request joins no job of another token.
func TestOpenAITokens(t *testing.T) {
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}, {Name: "blog", Secret: "blog-secret-0123456"}}
	runInBubble(t, func(api *gateway.API) { api.Tokens, api.OpenAIWait = tokens, time.Second }, func(t *testing.T, s *service) {
		for _, headers := range [][]string{nil, {"Authorization", "Bearer sk-wrong"}} {
			got := s.generateImages(t.Context(), openAICat, headers...)
			assert.Equal(t, http.StatusUnauthorized, got.status)
			e := got.decode(t)["error"].(map[string]any)
			assert.Equal(t, "invalid_api_key", e["code"])
			assert.Equal(t, "invalid_request_error", e["type"])
		}
		assertNothingQueued(t, s)
		ids := map[string]bool{}
		for _, token := range []string{"shop", "blog", "shop"} {
			got := s.generateImages(t.Context(), openAICat, "Authorization", "Bearer "+token+"-secret-0123456")
			ids[got.header.Get("X-Danqing-Job")] = true
		}
		assert.Len(t, ids, 2)
	})
}

// OpenAI's clients get links, or the images in base64, as soon as they are ready.
func TestOpenAI(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		for _, format := range []string{"url", "b64_json"} {
			require.NoError(t, s.redis.Del(t.Context(), append(s.redis.Keys(t.Context(), "danqing:job:*").Val(), "none")...).Err())
			simulated := map[string]string{"url": "true"}[format]
			time.AfterFunc(30*time.Second, func() {
				id := s.onlyJob()
				s.update(id, func(rec *jobs.Record) { rec.Simulated = simulated != "" })
				s.finish(id)
			})
			began := time.Now()
			got := s.generateImages(t.Context(), strings.Replace(openAICat, "{", `{"response_format":"`+format+`",`, 1))
			require.Equal(t, http.StatusOK, got.status, got.body)
			assert.Equal(t, 30*time.Second, time.Since(began))
			assert.Equal(t, simulated, got.header.Get("X-Danqing-Simulated"))
			var answer struct {
				Created int64
				Data    []struct {
					URL string
					B64 string `json:"b64_json"`
				}
			}
			require.NoError(t, json.Unmarshal([]byte(got.body), &answer), got.body)
			require.Len(t, answer.Data, 2)
			assert.Equal(t, time.Now().Unix(), answer.Created)
			id := got.header.Get("X-Danqing-Job")
			for i, image := range answer.Data {
				_, want := writePNG(t, id, i+1)
				content, err := base64.StdEncoding.DecodeString(image.B64)
				require.NoError(t, err)
				if format == "url" {
					link, err := url.Parse(image.URL)
					require.NoError(t, err)
					content = []byte(s.request(http.MethodGet, link.RequestURI(), "").body)
				}
				assert.Equal(t, string(want), string(content))
			}
		}
	})
}

// A repeated request joins the job until a complete answer was sent. After that the same
// request is a new job.
func TestOpenAIRetries(t *testing.T) {
	runInBubble(t, func(api *gateway.API) { api.OpenAIWait = time.Minute }, func(t *testing.T, s *service) {
		jobsNow := func() int { return len(s.redis.Keys(t.Context(), "danqing:job:*").Val()) }
		got := s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusGatewayTimeout, got.status)
		assert.Contains(t, got.body, `"code":"timeout"`)
		id := s.onlyJob()

		// The client disconnects while its job is worked on, and gets no answer.
		s.generate(id)
		ctx, hangUp := context.WithTimeout(t.Context(), time.Second)
		defer hangUp()
		s.generateImages(ctx, openAICat)
		s.finish(id)
		got = s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusOK, got.status)
		assert.Equal(t, id, got.header.Get("X-Danqing-Job"))
		assert.Equal(t, 1, jobsNow())

		got = s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusGatewayTimeout, got.status)
		assert.Equal(t, 2, jobsNow(), "a new request")
		s.generateImages(t.Context(), strings.Replace(openAICat, "black", "white", 1))
		assert.Equal(t, 3, jobsNow(), "another body")

		// An idempotency key is the same job, also after the images were sent.
		key := []string{"Idempotency-Key", "order 17"}
		kept := s.generateImages(t.Context(), openAICat, key...).header.Get("X-Danqing-Job")
		s.finish(kept)
		for range 2 {
			got = s.generateImages(t.Context(), openAICat, key...)
			assert.Equal(t, http.StatusOK, got.status)
			assert.Equal(t, kept, got.header.Get("X-Danqing-Job"))
		}
		assert.Equal(t, 4, jobsNow())
	})
}

// After a crash between the dedupe key and the job, the repeated request creates the job,
// once.
func TestOpenAICrashBeforeEnqueue(t *testing.T) {
	runInBubble(t, func(api *gateway.API) { api.OpenAIWait = time.Minute }, func(t *testing.T, s *service) {
		s.generateImages(t.Context(), openAICat)
		id := s.onlyJob()
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+id, "asynq:{"+queue+"}:t:"+id).Err())
		require.NoError(t, s.redis.Del(t.Context(), "asynq:{"+queue+"}:pending").Err())
		got := s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusGatewayTimeout, got.status)
		assert.Equal(t, id, s.onlyJob())
	})
}

func TestOpenAIErrors(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		requireError := func(got answer, status int, code, param string) {
			t.Helper()
			require.Equal(t, status, got.status, got.body)
			e := got.decode(t)["error"].(map[string]any)
			assert.Equal(t, code, e["code"], got.body)
			if param == "" {
				assert.Nil(t, e["param"])
			} else {
				assert.Equal(t, param, e["param"])
			}
			assert.NotEmpty(t, e["message"])
			assert.NotEmpty(t, e["type"])
		}
		for body, want := range map[string][2]string{
			`{"model":"dall-e-3","prompt":"a cat"}`:             {"model_not_found", "model"},
			`{"prompt":""}`:                                     {"InvalidParameter", "prompt"},
			`{"prompt":"a cat","n":9}`:                          {"InvalidParameter", "n"},
			`{"prompt":"a cat","size":"1x1"}`:                   {"InvalidParameter", "size"},
			`{"prompt":"a cat","response_format":"gif"}`:        {"InvalidParameter", "response_format"},
			`{"prompt":"a cat","response_format":["b64_json"]}`: {"InvalidParameter", "response_format"},
			`{"prompt":"a cat","output_format":"webp"}`:         {"InvalidParameter", "output_format"},
			`{"prompt":"a cat","stream":"yes"}`:                 {"InvalidParameter", "stream"},
			`{"prompt":"a cat","images":[]}`:                    {"InvalidParameter", "images"},
			`{"prompt":"a cat","ref_img":"file:///etc/passwd"}`: {"InvalidParameter", "ref_img"},
			`{"prompt":"a cat","input":{"prompt":"b"}}`:         {"InvalidParameter", "input"},
			`[]`: {"InvalidParameter", ""},
		} {
			status := http.StatusBadRequest
			if want[0] == "model_not_found" {
				status = http.StatusNotFound
			}
			requireError(s.generateImages(t.Context(), body), status, want[0], want[1])
		}
		requireError(s.request(http.MethodGet, "/v1/images/generations", ""), http.StatusMethodNotAllowed, "MethodNotAllowed", "")
		requireError(s.request(http.MethodGet, "/v1/files", ""), http.StatusNotFound, "NotFound", "")
		assertNothingQueued(t, s)
		assert.Empty(t, s.redis.Keys(t.Context(), "danqing:dedupe:*").Val())

		time.AfterFunc(time.Second, func() {
			s.update(s.onlyJob(), func(rec *jobs.Record) { rec.End(jobs.StateFailed, "DataInspectionFailed", "no", time.Now().UTC()) })
		})
		requireError(s.generateImages(t.Context(), openAICat), http.StatusBadRequest, "content_policy_violation", "")
		assert.Empty(t, s.redis.Keys(t.Context(), "danqing:dedupe:*").Val())
		models := s.request(http.MethodGet, "/v1/models", "")
		assert.Contains(t, models.body, `"id":"wanx-v1"`)
		assert.Contains(t, s.request(http.MethodGet, "/v1/models/wanx-v1", "").body, `"object":"model"`)
		requireError(s.request(http.MethodGet, "/v1/models/gpt-9", ""), http.StatusNotFound, "model_not_found", "model")
	})
}

const openAICat = `{"model":"wanx-v1","prompt":"a black cat","n":2,"size":"1024x1024","quality":"standard","style":"vivid","user":"u-1"}`

func (s *service) generateImages(ctx context.Context, body string, headers ...string) answer {
	return s.call(ctx, http.MethodPost, "/v1/images/generations", body, append([]string{"Content-Type", "application/json"}, headers...)...)
}

// onlyJob waits until there is exactly one job.
func (s *service) onlyJob() string {
	s.t.Helper()
	for range 1000 {
		if keys := s.redis.Keys(s.t.Context(), "danqing:job:*").Val(); len(keys) == 1 {
			return strings.TrimPrefix(keys[0], "danqing:job:")
		}
		<-time.After(10 * time.Millisecond)
	}
	require.FailNow(s.t, "there is not exactly one job")
	return ""
}
