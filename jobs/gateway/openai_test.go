package gateway_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
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
