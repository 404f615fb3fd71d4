package gateway_test

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// announce announces a worker.
func (s *service) announce(id string, status jobs.WorkerStatus) {
	s.t.Helper()
	require.NoError(s.t, jobs.NewStore(s.redis).AnnounceWorker(s.t.Context(), id, status))
}

// Both APIs know the models that are worked on, and no others: a request for another one is
// refused at once, and nothing is queued.
func TestWorkedModels(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		listed := func() (names []string) {
			var list struct{ Data []struct{ ID string } }
			require.NoError(t, json.Unmarshal([]byte(s.request(http.MethodGet, "/v1/models", "").body), &list))
			for _, m := range list.Data {
				names = append(names, m.ID)
			}
			return names
		}
		flash := `{"model":"wan2.2-t2i-flash","prompt":"a cat","input":{"prompt":"a cat"}}`
		assert.Len(t, listed(), len(jobs.Models()), "no worker has run yet")
		kept := s.create(`{"model":"qwen-image","input":{"prompt":"a cat"}}`, "Idempotency-Key", "order 17")

		s.announce("w1", jobs.WorkerStatus{Models: []string{"wanx-v1"}})
		s.announce("w2", jobs.WorkerStatus{Models: []string{"wanx-v1", "wan2.5-t2i-preview"}})
		<-time.After(2 * time.Second)
		assert.Equal(t, []string{"wanx-v1", "wan2.5-t2i-preview"}, listed())
		before := s.redis.DBSize(t.Context()).Val()
		message := s.submit(flash).requireRefused(t, http.StatusNotFound, "ModelNotFound")
		assert.Equal(t, "model: wan2.2-t2i-flash; allowed: wanx-v1, wan2.5-t2i-preview; no worker of this Danqing server works on it: nothing was queued", message)
		began := time.Now()
		got := s.generateImages(t.Context(), `{"model":"wan2.2-t2i-flash","prompt":"a cat"}`)
		assert.Equal(t, http.StatusNotFound, got.status)
		e := got.decode(t)["error"].(map[string]any)
		assert.Equal(t, []any{"model_not_found", "model", "invalid_request_error"}, []any{e["code"], e["param"], e["type"]})
		assert.Equal(t, http.StatusNotFound, s.request(http.MethodGet, "/v1/models/qwen-image", "").status)
		assert.Equal(t, http.StatusOK, s.request(http.MethodGet, "/v1/models/wanx-v1", "").status)
		assert.Zero(t, time.Since(began))
		assert.Equal(t, before, s.redis.DBSize(t.Context()).Val(), "nothing was queued")
		assert.Equal(t, kept, s.create(`{"model":"qwen-image","input":{"prompt":"a cat"}}`, "Idempotency-Key", "order 17"), "it exists")
		s.create(oneCat)

		// A worker that has just started is known at once, and one that is down for a week.
		s.announce("w3", jobs.WorkerStatus{Models: []string{"wan2.2-t2i-flash"}})
		<-time.After(time.Second)
		s.create(flash)
		<-time.After(6 * 24 * time.Hour)
		s.create(flash)
		s.announce("w1", jobs.WorkerStatus{Models: []string{"wanx-v1"}})
		<-time.After(2 * 24 * time.Hour)
		assert.Equal(t, []string{"wanx-v1"}, listed())
		s.outage.down.Store(true)
		assert.Equal(t, []string{"wanx-v1"}, listed(), "while Redis is unavailable, what was last known")
	})
}

// A callback that no worker can ever deliver is refused at the create, with what to set.
func TestUndeliverableCallback(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		create := func(callback string) answer { return s.submit(oneCat, "X-Danqing-Callback", callback) }
		assert.Equal(t, http.StatusOK, create("http://10.1.2.3/hook").status, "no worker has run yet")
		s.announce("w1", jobs.WorkerStatus{Models: []string{"wanx-v1"}, CallbackAllow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
		<-time.After(time.Minute)
		assert.Contains(t, create("https://shop.example/hook").requireRefused(t, http.StatusBadRequest, "InvalidParameter"), "set DANQING_CALLBACK_SECRET")
		s.announce("w2", jobs.WorkerStatus{Models: []string{"wanx-v1"}, Callbacks: true, CallbackAllow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
		<-time.After(time.Minute)
		for _, callback := range []string{"https://shop.example/hook", "http://127.0.0.1:9000/hook", "http://localhost/", "https://[2606:4700::1111]/"} {
			assert.Equal(t, http.StatusOK, create(callback).status, callback)
		}
		before := s.redis.DBSize(t.Context()).Val()
		for callback, address := range map[string]string{
			"http://10.1.2.3/hook": "10.1.2.3", "https://192.168.0.9:8443/": "192.168.0.9", "http://[::1]/": "::1", "http://169.254.169.254/latest": "169.254.169.254",
		} {
			message := create(callback).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
			assert.Contains(t, message, "add "+address+" to the workers' DANQING_CALLBACK_ALLOW")
		}
		assert.Equal(t, before, s.redis.DBSize(t.Context()).Val(), "nothing was queued")
	})
}
