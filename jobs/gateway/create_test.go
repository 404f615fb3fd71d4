package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// A request of the SDKs becomes the job that DashScope would create, with DashScope's
// default of four images.
func TestCreate(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		// The Java SDK sends the negative prompt twice.
		body := `{"model":"wanx-v1","input":{"prompt":"a cat","negative_prompt":"red","ref_img":"https://example.com/cat.png"},` +
			`"parameters":{"size":"1024*1024","style":"<auto>","ref_strength":0.0,"ref_mode":"repaint","negative_prompt":"red"}}`
		for _, path := range []string{createPath, createPath + "/"} {
			got := s.post(path, body, "X-DashScope-Async", "enable")
			require.Equal(t, http.StatusOK, got.status, got.body)
			assert.Equal(t, "0.64", got.header.Get("X-Danqing-Price"))
			assert.Equal(t, "4", got.header.Get("X-Danqing-Images"))
			assert.NotEmpty(t, got.header.Get(dashscope.HeaderGateway))
			output := got.decode(t)["output"].(map[string]any)
			assert.Equal(t, "PENDING", output["task_status"])
			rec, err := s.jobs.Get(t.Context(), output["task_id"].(string))
			require.NoError(t, err)
			req, err := s.jobs.RequestOf(t.Context(), rec)
			require.NoError(t, err)
			assert.Equal(t, jobs.Request{
				ID: rec.ID, Model: "wanx-v1", Prompt: "a cat", NegativePrompt: "red", Style: "<auto>", Size: "1024*1024", N: 4, Priority: "default",
				RefImg: "https://example.com/cat.png", RefStrength: new(0.0), RefMode: "repaint",
			}, req)
		}
		s.create(`{"model":"wanx-v1","input":{"prompt":"a cat"},"parameters":{"ref_mode":"repaint","ref_strength":0.5,"similarity":null}}`)
		got := s.submit(`{"model":"qwen-image","input":{"prompt":"a cat"}}`)
		assert.Equal(t, "1", got.header.Get("X-Danqing-Images"), "the model's maximum")
		assert.Equal(t, "0.25", got.header.Get("X-Danqing-Price"))
		for _, reference := range []string{"ref_image", "sketch_image_url"} {
			s.create(`{"model":"wanx-v1","input":{"prompt":"a cat","` + reference + `":"https://example.com/cat.png"}}`)
		}
	})
}

// Requests that DashScope would refuse are refused before anything is queued, in
// DashScope's format, with the field's name.
func TestCreateErrors(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		for name, c := range map[string]struct{ body, says string }{
			"no JSON":           {`{"model":`, "not valid JSON: unexpected end"},
			"nothing":           {``, "not valid JSON"},
			"a list":            {`[]`, "a JSON object"},
			"deep":              {strings.Repeat("[", 60_000), "not valid JSON"},
			"no UTF-8":          {"{\"model\":\"wanx-v1\",\"input\":{\"prompt\":\"\xff\"}}", "UTF-8"},
			"no model":          {`{"input":{"prompt":"a cat"}}`, "model: missing"},
			"no prompt":         {`{"model":"wanx-v1","input":{}}`, "prompt: missing"},
			"unknown model":     {`{"model":"wanx-v9","input":{"prompt":"a cat"}}`, `model: "wanx-v9"`},
			"size":              {`{"model":"wanx-v1","input":{"prompt":"a cat"},"parameters":{"size":"1*1"}}`, `size: "1*1"; allowed: 1024*1024`},
			"n":                 {`{"model":"wanx-v1","input":{"prompt":"a cat"},"parameters":{"n":5}}`, "n: 5"},
			"misspelled option": {`{"priorty":"bulk","model":"wanx-v1","input":{"prompt":"a cat"}}`, `priorty: "bulk"; did you mean "priority"?`},
			"file":              {`{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"file:///etc/passwd"}}`, `ref_img: "file:///etc/passwd"`},
			"path":              {`{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"/etc/passwd"}}`, `ref_img: "/etc/passwd"`},
			"not staged":        {`{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"sha256:` + strings.Repeat("0", 64) + `"}}`, "does not exist"},
			"no hash":           {`{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"sha256:../_jobs/a"}}`, "ref_img"},
			"its own ID":        {`{"id":"a","model":"wanx-v1","input":{"prompt":"a cat"}}`, "Idempotency-Key"},
			"others' queues":    {`{"follow_up":{"type":"t","queue":"payroll"},"model":"wanx-v1","input":{"prompt":"a cat"}}`, "follow_up"},
			"past deadline":     {`{"deadline":"1999-01-01T00:00:00Z","model":"wanx-v1","input":{"prompt":"a cat"}}`, "deadline"},
		} {
			message := s.submit(c.body).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
			assert.Contains(t, message, c.says, name)
		}
		s.post(createPath, oneCat).requireRefused(t, http.StatusForbidden, "AccessDenied")
		for _, path := range []string{"image2image/image-synthesis", "image-generation/generation", "multimodal-generation/generation"} {
			message := s.post("/api/v1/services/aigc/"+path, oneCat, "X-DashScope-Async", "enable").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
			assert.Contains(t, message, "url error, please check url!")
		}
		assertNothingQueued(t, s)
	})
}

// Options that DashScope does not have are set by headers.
func TestCreateHeaders(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		later := time.Now().Add(time.Hour).UTC()
		id := s.create(oneCat, "X-Danqing-Priority", "bulk", "X-Danqing-Callback", "https://shop.example/hook?key=1",
			"X-Danqing-Labels", "sku=A-17, season=%E7%A7%8B", "X-Danqing-Not-Before", later.Format(time.RFC3339),
			"X-Danqing-Deadline", strconv.FormatInt(later.Add(time.Hour).Unix(), 10))
		rec, err := s.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, jobs.StateScheduled, rec.State)
		assert.Equal(t, "bulk", rec.Priority)
		assert.Equal(t, "https://shop.example/hook?key=1", rec.Callback)
		assert.Equal(t, map[string]string{"sku": "A-17", "season": "秋"}, rec.Labels)
		assert.Equal(t, later, rec.NotBefore)
		assert.Equal(t, later.Add(time.Hour), rec.Deadline)
		id = s.create(oneCat, "X-Danqing-Labels", `{"sku":"A,=17"}`)
		rec, err = s.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, map[string]string{"sku": "A,=17"}, rec.Labels)

		before := s.redis.DBSize(t.Context()).Val()
		for name, value := range map[string]string{
			"X-Danqing-Priority": "high", "X-Danqing-Callback": "ftp://h/", "X-Danqing-Labels": "sku", "X-Danqing-Not-Before": "tomorrow",
			"X-Danqing-Deadline": "2027-01-01", "X-Danqing-Stage": "perhaps", "Idempotency-Key": strings.Repeat("k", 256),
		} {
			message := s.submit(oneCat, name, value).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
			field := strings.ToLower(strings.TrimPrefix(name, "X-Danqing-"))
			assert.Contains(t, strings.ToLower(message), field)
		}
		message := s.submit(oneCat, "X-Danqing-Label", "sku=1").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, "X-Danqing-Label: unknown; allowed: X-Danqing-Priority, X-Danqing-Callback, X-Danqing-Labels")
		s.submit(`{"priority":"bulk","model":"wanx-v1","input":{"prompt":"a cat"}}`, "X-Danqing-Priority", "critical").
			requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Equal(t, before, s.redis.DBSize(t.Context()).Val())
	})
}

// Requests with the same key and body are the same job, also if they are sent
// concurrently or much later. With another body they are refused.
func TestIdempotencyKey(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		ids := make([]string, 20)
		var group sync.WaitGroup
		for i := range ids {
			group.Go(func() { ids[i] = s.create(oneCat, "Idempotency-Key", "order 17/猫") })
		}
		group.Wait()
		for _, id := range ids {
			assert.Equal(t, ids[0], id)
		}
		assert.Len(t, s.redis.Keys(t.Context(), "danqing:job:*").Val(), 1)
		other := `{"model":"wanx-v1","input":{"prompt":"a dog"}}`
		s.submit(other, "Idempotency-Key", "order 17/猫").requireRefused(t, http.StatusUnprocessableEntity, "IdempotencyKeyReused")

		rec := s.finish(ids[0])
		assert.Equal(t, "SUCCEEDED", s.submit(oneCat, "Idempotency-Key", "order 17/猫").decode(t)["output"].(map[string]any)["task_status"])
		// The job is no longer in Redis, but in the bucket.
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+rec.ID).Err())
		s.sidecars[rec.ID] = rec
		assert.Equal(t, rec.ID, s.create(oneCat, "Idempotency-Key", "order 17/猫"))
		s.submit(other, "Idempotency-Key", "order 17/猫").requireRefused(t, http.StatusUnprocessableEntity, "IdempotencyKeyReused")
		assert.Empty(t, s.redis.Keys(t.Context(), "danqing:job:*").Val())
	})
}

// Above a limit, a create gets 429 with Retry-After, and nothing is queued.
func TestLimits(t *testing.T) {
	limited := func(api *gateway.API) {
		api.Depth = 3
		api.Tokens = []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456", MaxWaiting: 1}, {Name: "blog", Secret: "blog-secret-0123456", MaxWaiting: 9, DailyBudgetMicroYuan: 320_000}}
	}
	runInBubble(t, limited, func(t *testing.T, s *service) {
		shop := []string{"Authorization", "Bearer shop-secret-0123456"}
		blog := []string{"Authorization", "Bearer blog-secret-0123456"}
		id := s.create(oneCat, shop...)
		refused := func(code string, wait int, headers []string) {
			t.Helper()
			before := len(s.redis.Keys(t.Context(), "*").Val())
			got := s.submit(oneCat, headers...)
			got.requireRefused(t, http.StatusTooManyRequests, code)
			assert.Equal(t, strconv.Itoa(wait), got.header.Get("Retry-After"))
			assert.Len(t, s.redis.Keys(t.Context(), "*").Val(), before)
		}
		refused("Throttling", 30, shop)
		for range 2 {
			s.create(oneCat, blog...)
		}
		refused("Throttling", 30, blog) // the queue is full
		s.generate(id)
		refused("Throttling.AllocationQuota", 16*3600, blog) // it is 8 o'clock in UTC+8
		message := s.submit(`{"model":"wanx-v1","input":{"prompt":"a cat"}}`, blog...).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, "may cost 0.64 yuan, and this token's daily budget is 0.32")
		<-time.After(16 * time.Hour)
		s.create(oneCat, blog...)
	})
}

// Position and estimated start are computed from measured task times.
func TestEstimate(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		got := s.submit(oneCat)
		assert.Equal(t, "0", got.header.Get("X-Danqing-Position"))
		assert.Empty(t, got.header.Get("X-Danqing-Estimated-Start"), "no task was measured yet")
		assert.Contains(t, got.header.Get("X-Danqing-Warnings"), "no%20worker%20serves%20wanx-v1")
		require.NoError(t, jobs.NewStore(s.redis).RecordDuration(t.Context(), jobs.TaskKind{Model: "wanx-v1", Size: "1024*1024", N: 1}, 20*time.Second))
		require.NoError(t, jobs.NewStore(s.redis).RecordDuration(t.Context(), jobs.TaskKind{Model: "wanx-v1", Size: "1024*1024", N: 1}, 40*time.Second))
		require.NoError(t, jobs.NewStore(s.redis).SetLane(t.Context(), jobs.LaneStatus{Account: "main", Model: "wanx-v1", Concurrency: 2, State: jobs.LaneOpen}))
		require.NoError(t, s.redis.Set(t.Context(), rediskey.Lane("main", "wanx-v1", rediskey.LaneLease), "me", 0).Err())
		<-time.After(time.Minute)
		for range 5 {
			s.create(oneCat, "X-Danqing-Priority", "bulk")
		}
		got = s.submit(oneCat)
		assert.Equal(t, "1", got.header.Get("X-Danqing-Position"), "bulk is drawn once for three of these")
		assert.Equal(t, time.Now().Add(15*time.Second).UTC().Format(time.RFC3339), got.header.Get("X-Danqing-Estimated-Start"))
		got = s.submit(oneCat, "X-Danqing-Priority", "bulk")
		assert.Equal(t, "7", got.header.Get("X-Danqing-Position"))
	})
}

// A create waits for a Redis that is unavailable for a moment, and creates one job. If
// Redis stays unavailable it gets 503, and nothing is queued later.
func TestCreateWhileRedisUnavailable(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		s.outage.down.Store(true)
		time.AfterFunc(5*time.Second, func() { s.outage.down.Store(false) })
		s.create(oneCat)
		assert.Len(t, s.redis.Keys(t.Context(), "danqing:job:*").Val(), 1)
		s.outage.down.Store(true)
		began := time.Now()
		got := s.submit(oneCat)
		got.requireRefused(t, http.StatusServiceUnavailable, "ServiceUnavailable")
		assert.Equal(t, "5", got.header.Get("Retry-After"))
		assert.InDelta(t, 20, time.Since(began).Seconds(), 5)
		s.outage.down.Store(false)
		assert.Len(t, s.redis.Keys(t.Context(), "danqing:job:*").Val(), 1)
	})
}

// When the client disconnects, there is a complete job or none.
func TestCreateClientDisconnects(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		ctx, hangUp := context.WithCancel(t.Context())
		hangUp()
		got := s.call(ctx, http.MethodPost, createPath, oneCat, "X-DashScope-Async", "enable")
		assert.Equal(t, http.StatusOK, got.status, got.body)
		assert.Len(t, s.redis.Keys(t.Context(), "danqing:job:*").Val(), 1)
		assert.Len(t, s.redis.Keys(t.Context(), "asynq:*:t:*").Val(), 1)
	})
}

// A job can be canceled while it waits in the queue or at DashScope. Otherwise the cancel
// fails like DashScope's.
func TestCancel(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		cancel := func(id string) answer { return s.post(tasksPath+id+"/cancel", "{}") }
		refused := func(id string) {
			t.Helper()
			message := cancel(id).requireRefused(t, http.StatusBadRequest, "UnsupportedOperation")
			assert.Equal(t, "Failed to cancel the task, please confirm if the task is in PENDING status.", message)
		}
		id := s.create(oneCat)
		assert.Empty(t, cancel(id+"").decode(t))
		assert.Equal(t, "CANCELED", s.query(id).Output.TaskStatus)
		refused(id)
		refused("never")

		// Its lane cancels the task at DashScope.
		waits := func() string {
			id := s.create(oneCat)
			s.update(id, func(rec *jobs.Record) { rec.State, rec.Attempt, rec.TaskID = jobs.StateGenerating, 1, "task-of-"+id })
			return id
		}
		id = waits()
		time.AfterFunc(3*time.Second, func() {
			s.update(id, func(rec *jobs.Record) {
				assert.False(t, rec.CancelRequestedAt.IsZero())
				rec.End(jobs.StateCanceled, jobs.CodeCanceled, "canceled there", time.Now().UTC())
			})
		})
		assert.Equal(t, http.StatusOK, cancel(id).status)
		// Or it finds the task running, or does not answer in time.
		id = waits()
		time.AfterFunc(3*time.Second, func() { s.update(id, func(rec *jobs.Record) { rec.RunningAt = time.Now() }) })
		began := time.Now()
		refused(id)
		assert.Equal(t, 3*time.Second, time.Since(began))
		id = waits()
		refused(id)

		id = s.create(oneCat)
		s.generate(id)
		refused(id)
		rec, err := s.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		assert.Zero(t, rec.CancelRequestedAt, "a refused cancel is not recorded")
		s.finish(id)
		refused(id)
	})
}

func TestList(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		var ids []string
		for i := range 25 {
			model := []string{"wanx-v1", "wan2.2-t2i-flash"}[i%2]
			ids = append(ids, s.create(fmt.Sprintf(`{"model":"%s","input":{"prompt":"a cat"}}`, model)))
			<-time.After(time.Second)
		}
		s.finish(ids[0]) // updated last, created first
		list := func(query string) dashscope.ListResponse {
			t.Helper()
			got := s.request(http.MethodGet, "/api/v1/tasks"+query, "")
			require.Equal(t, http.StatusOK, got.status, got.body)
			assert.NotContains(t, got.body, `"output"`)
			var page dashscope.ListResponse
			require.NoError(t, json.Unmarshal([]byte(got.body), &page))
			return page
		}
		page := list("")
		assert.Equal(t, []int{25, 3, 1, 10}, []int{page.Total, page.TotalPage, page.PageNo, page.PageSize})
		assert.Equal(t, ids[24], page.Data[0].TaskID)
		page = list("/?page_no=3")
		require.Len(t, page.Data, 5)
		assert.Equal(t, dashscope.TaskInfo{
			TaskID: ids[0], Status: "SUCCEEDED", ModelName: "wanx-v1", GmtCreate: 946684800000, EndTime: 946684825000,
			UserAPIUniqueKey: "apikey:v1:aigc:text2image:image-synthesis:wanx-v1",
		}, page.Data[4])
		assert.Empty(t, list("?page_no=4").Data)
		assert.Equal(t, 13, list("?model_name=wanx-v1").Total)
		assert.Equal(t, 24, list("?status=PENDING").Total)
		assert.Equal(t, 1, list("?status=SUCCEEDED&page_size=100").Total)
		assert.Equal(t, 1, list("?task_id="+ids[7]).Total)
		assert.Zero(t, list("?task_id=../etc").Total)
		assert.Equal(t, 11, list("?start_time=20000101080005&end_time=20000101080015").Total)
		assert.Equal(t, 25, list("?end_time=946684900000").Total)
		for _, query := range []string{"page_no=0", "page_size=101", "page_size=x", "start_time=yesterday", "start_time=20000101000000&end_time=20000103000000"} {
			s.request(http.MethodGet, "/api/v1/tasks?"+query, "").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		}
		<-time.After(25 * time.Hour)
		assert.Zero(t, list("").Total)
	})
}

// A wrong key gets DashScope's error, and the right ones are accepted.
func TestTokens(t *testing.T) {
	runInBubble(t, func(api *gateway.API) { api.Tokens = []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}} }, func(t *testing.T, s *service) {
		for _, value := range []string{"", "Bearer", "Bearer ", "shop-secret-0123456", "Basic shop-secret-0123456", "Bearer shop-secret-012345", "Bearer shop-secret-01234567", "Bearer shop"} {
			for _, path := range []string{createPath, "/api/v1/tasks", "/api/v1/nothing"} {
				got := s.post(path, oneCat, "Authorization", value, "X-DashScope-Async", "enable")
				message := got.requireRefused(t, http.StatusUnauthorized, "InvalidApiKey")
				assert.NotContains(t, message, "shop")
			}
		}
		s.create(oneCat, "Authorization", "bearer  shop-secret-0123456", "Host", "danqing.example.com")
		assert.Len(t, s.redis.Keys(t.Context(), "danqing:job:*").Val(), 1)
	})
}

// Without tokens the API is for programs on this machine only.
func TestNoTokens(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		assert.Equal(t, http.StatusMisdirectedRequest, s.submit(oneCat, "Host", "evil.example").status)
		assert.Equal(t, http.StatusForbidden, s.submit(oneCat, "Sec-Fetch-Site", "cross-site").status)
		assert.Equal(t, http.StatusForbidden, s.submit(oneCat, "Origin", "https://evil.example").status)
		assertNothingQueued(t, s)
		s.create(oneCat, "Authorization", "Bearer whatever")
	})
}

// Wrong methods, odd paths and endless bodies get the right error, and queue nothing.
func TestInvalidRequests(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		for path, allow := range map[string]string{createPath: "POST", "/api/v1/tasks": "GET", tasksPath + "x": "GET", tasksPath + "x/cancel": "POST"} {
			for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodPatch, "BREW"} {
				got := s.request(method, path, "")
				got.requireRefused(t, http.StatusMethodNotAllowed, "MethodNotAllowed")
				assert.Equal(t, allow, got.header.Get("Allow"))
			}
		}
		for _, id := range []string{"..%2f..%2fetc", "%00", "a%2fb", strings.Repeat("a", 5000), "%E7%8C%AB", "*", "a%20b", "danqing:job:x"} {
			got := s.request(http.MethodGet, tasksPath+id, "")
			assert.Equal(t, http.StatusOK, got.status, id)
			assert.Contains(t, got.body, `"UNKNOWN"`)
		}
		for _, path := range []string{"/api/v1/services/aigc/text2image", "/api/v1/tasks/a/b", "/api/", "/api/v2/tasks"} {
			s.request(http.MethodGet, path, "").requireRefused(t, http.StatusNotFound, "NotFound")
		}
		assert.Equal(t, http.StatusNotFound, s.request(http.MethodGet, "/ui/", "").status, "there is none")

		body := &endless{}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1"+createPath, body)
		r.Header.Set("X-DashScope-Async", "enable")
		w := httptest.NewRecorder()
		s.gateway.ServeHTTP(w, r)
		assert.Equal(t, http.StatusRequestEntityTooLarge, w.Code)
		assert.Less(t, body.read.Load(), int64(4<<20))
		assertNothingQueued(t, s)
	})
}
