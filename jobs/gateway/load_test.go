package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/gateway"
)

// distance is a hook that makes every Redis command take a millisecond.
type distance struct{}

var _ redis.Hook = distance{}

func (distance) DialHook(next redis.DialHook) redis.DialHook { return next }

func (distance) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		<-time.After(time.Millisecond)
		return next(ctx, cmd)
	}
}

func (distance) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		<-time.After(time.Millisecond)
		return next(ctx, cmds)
	}
}

// What a hostile token does at once (it holds requests, lists and probes in loops, fills its
// share of the queue, and uploads without an end) leaves the create, the query, the list and
// the upload of another token within twice their undisturbed times. The time is simulated:
// it counts round trips and waiting. Callbacks are in TestCallbacksAreSharedFairly.
func TestHostileTokenDelaysNobody(t *testing.T) {
	shared := func(api *gateway.API) {
		api.Depth = 300
		api.Tokens = []gateway.Token{{Name: "hostile", Secret: "host-secret-0123456"}, {Name: "shop", Secret: "shop-secret-0123456"}}
	}
	runInBubble(t, shared, func(t *testing.T, s *service) {
		s.redis.AddHook(distance{})
		_, content := writePNG(t, "girl", 1)
		s.measure(content) // loads the scripts
		undisturbed := s.measure(content)

		ctx, cease := context.WithCancel(t.Context())
		var group sync.WaitGroup
		s.beHostile(ctx, &group, content)
		<-time.After(100 * time.Millisecond)
		disturbed := s.measure(content)
		cease()
		group.Wait()
		synctest.Wait()
		for name, alone := range undisturbed {
			require.Positive(t, alone, name)
			assert.LessOrEqual(t, disturbed[name], 2*alone, name)
		}
	})
}

// measure returns how long the requests of an honest token take.
func (s *service) measure(content []byte) map[string]time.Duration {
	s.t.Helper()
	shop := []string{"Authorization", "Bearer shop-secret-0123456"}
	took := map[string]time.Duration{}
	timed := func(name string, do func()) {
		began := time.Now()
		do()
		took[name] = time.Since(began)
	}
	id := ""
	timed("create", func() { id = s.create(oneCat, shop...) })
	timed("query", func() { s.query(id, shop...) })
	timed("list", func() {
		assert.Equal(s.t, http.StatusOK, s.request(http.MethodGet, "/api/v1/tasks", "", shop...).status)
	})
	timed("upload", func() {
		p := s.policy(shop...)
		assert.Equal(s.t, http.StatusOK, s.sendForm(p, formParts(p, p.UploadDir+"/a.png"), content).status)
	})
	timed("cancel", func() { assert.Equal(s.t, http.StatusOK, s.post(tasksPath+id+"/cancel", "", shop...).status) })
	return took
}

// beHostile starts everything that a hostile token can do, until ctx ends.
func (s *service) beHostile(ctx context.Context, group *sync.WaitGroup, content []byte) {
	s.t.Helper()
	loop := func(many int, do func(i int)) {
		for i := range many {
			group.Go(func() {
				for ctx.Err() == nil {
					do(i)
					select {
					case <-time.After(time.Millisecond):
					case <-ctx.Done():
					}
				}
			})
		}
	}
	call := func(method, path, body string, headers ...string) {
		s.call(ctx, method, path, body, append([]string{"Authorization", "Bearer host-secret-0123456"}, headers...)...)
	}
	loop(60, func(i int) {
		call(http.MethodPost, "/v1/images/generations", fmt.Sprintf(`{"model":"wanx-v1","prompt":"cat %d"}`, i))
	})
	loop(50, func(int) { call(http.MethodGet, "/api/v1/tasks", "") })
	loop(20, func(i int) { call(http.MethodGet, tasksPath+fmt.Sprint("probe-", i), "", "User-Agent", pythonSDK) })
	loop(20, func(int) { call(http.MethodPost, createPath, oneCat, "X-DashScope-Async", "enable") })
	p := s.policy("Authorization", "Bearer host-secret-0123456")
	half, contentType := form(s.t, formParts(p, p.UploadDir+"/a.png"), content)
	loop(10, func(int) {
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, p.UploadHost, &stallingReader{half[:len(half)/2], ctx})
		r.Header.Set("Content-Type", contentType)
		s.gateway.ServeHTTP(httptest.NewRecorder(), r)
	})
}
