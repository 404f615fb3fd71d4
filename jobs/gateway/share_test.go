package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

// A token has its own share of open requests and of lists, so that it cannot delay others.
// Beyond it a query is not held, because the SDKs drop a job on any error, and all else is
// refused.
func TestOpenRequestsAreLimitedByToken(t *testing.T) {
	tokens := []gateway.Token{{Name: "hostile", Secret: "host-secret-0123456", MaxRequests: 2}, {Name: "shop", Secret: "shop-secret-0123456"}}
	runInBubble(t, func(api *gateway.API) { api.Tokens = tokens }, func(t *testing.T, s *service) {
		hostile, shop := []string{"Authorization", "Bearer host-secret-0123456"}, []string{"Authorization", "Bearer shop-secret-0123456"}
		id := s.create(oneCat, hostile...)
		s.query(id, hostile...)
		ctx, hangUp := context.WithCancel(t.Context())
		ended := make(chan struct{})
		for range 2 {
			go func() {
				s.call(ctx, http.MethodPost, "/v1/images/generations", `{"model":"wanx-v1","prompt":"a cat"}`, hostile...)
				ended <- struct{}{}
			}()
		}
		synctest.Wait()
		for _, got := range []answer{
			s.submit(oneCat, hostile...), s.request(http.MethodGet, "/api/v1/tasks", "", hostile...), s.post(tasksPath+"x/cancel", "", hostile...),
		} {
			message := got.requireRefused(t, http.StatusTooManyRequests, "Throttling")
			assert.Equal(t, "this token has 2 open requests, which is the limit (DANQING_TOKEN_MAX_REQUESTS): retry when one of them has ended", message)
			assert.Equal(t, "1", got.header.Get("Retry-After"))
		}
		began := time.Now()
		s.query(id, hostile...)
		assert.Zero(t, time.Since(began), "it has nothing to report, and is not held")
		id = s.create(oneCat, shop...)
		s.query(id, shop...)
		assert.Equal(t, http.StatusOK, s.request(http.MethodGet, "/api/v1/tasks", "", shop...).status)
		assert.Zero(t, time.Since(began), "the other token does not wait")
		hangUp()
		<-ended
		<-ended
		id = s.create(oneCat, hostile...)
		began = time.Now()
		s.query(id, hostile...)
		assert.Zero(t, time.Since(began), "the first query has something to report")
		s.query(id, hostile...)
		assert.Positive(t, time.Since(began), "it is held")
	})
}

// Without limits of their own the tokens share the queue equally, and may have half of their
// share scheduled for later, but for 30 days at most: no token fills the queue for the others.
func TestDefaultShareOfTheQueue(t *testing.T) {
	shared := func(api *gateway.API) {
		api.Depth = 7
		api.Tokens = []gateway.Token{{Name: "hostile", Secret: "host-secret-0123456"}, {Name: "shop", Secret: "shop-secret-0123456"}}
	}
	runInBubble(t, shared, func(t *testing.T, s *service) {
		hostile, shop := []string{"Authorization", "Bearer host-secret-0123456"}, []string{"Authorization", "Bearer shop-secret-0123456"}
		later := append([]string{"X-Danqing-Not-Before", time.Now().Add(29 * 24 * time.Hour).Format(time.RFC3339)}, hostile...)
		message := s.submit(oneCat, "X-Danqing-Not-Before", "9999-01-01T00:00:00Z", "Authorization", hostile[1]).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Equal(t, `not_before: "9999-01-01T00:00:00Z"; allowed: a time within the next 30 days`, message)
		assertNothingQueued(t, s)
		var ids []string
		for range 2 {
			ids = append(ids, s.create(oneCat, later...))
		}
		message = s.submit(oneCat, later...).requireRefused(t, http.StatusTooManyRequests, "Throttling")
		assert.Equal(t, "2 jobs of this producer are scheduled for later, which is the limit (half of DANQING_TOKEN_MAX_QUEUED)", message)
		for range 2 {
			ids = append(ids, s.create(oneCat, hostile...))
		}
		message = s.submit(oneCat, hostile...).requireRefused(t, http.StatusTooManyRequests, "Throttling")
		assert.Equal(t, "4 jobs of this producer wait, which is the limit (DANQING_TOKEN_MAX_QUEUED)", message)
		for range 3 {
			s.create(oneCat, shop...)
		}
		assert.Equal(t, http.StatusOK, s.post(tasksPath+ids[0]+"/cancel", "", hostile...).status)
		s.create(oneCat, later...) // a canceled job makes room
	})
}

// A token's list reads its own jobs alone: it takes as long with a thousand jobs of another
// token as without them, and shows none of them.
func TestListCostsOwnJobsAlone(t *testing.T) {
	tokens := []gateway.Token{{Name: "hostile", Secret: "host-secret-0123456"}, {Name: "shop", Secret: "shop-secret-0123456"}}
	runInBubble(t, func(api *gateway.API) { api.Tokens = tokens }, func(t *testing.T, s *service) {
		shop := []string{"Authorization", "Bearer shop-secret-0123456"}
		first := s.create(oneCat, shop...)
		list := func() (calls int64, total float64) {
			before := s.outage.calls.Load()
			got := s.request(http.MethodGet, "/api/v1/tasks", "", shop...)
			require.Equal(t, http.StatusOK, got.status, got.body)
			return s.outage.calls.Load() - before, got.decode(t)["total"].(float64)
		}
		list() // loads the script
		calls, total := list()
		assert.InDelta(t, 1, total, 0)
		for i := range 1000 {
			_, err := s.jobs.Enqueue(t.Context(), jobs.Request{ID: fmt.Sprint("hostile-", i), Prompt: "a cat", Producer: "hostile"})
			require.NoError(t, err)
		}
		again, total := list()
		assert.InDelta(t, 1, total, 0)
		assert.Equal(t, calls, again)
		// A job that is gone leaves the index, and one that ended a week ago is not shown.
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+first).Err())
		second := s.create(oneCat, shop...)
		_, total = list()
		assert.InDelta(t, 1, total, 0)
		assert.Equal(t, []string{second}, s.redis.ZRange(t.Context(), "danqing:producer:shop:jobs", 0, -1).Val())
	})
}
