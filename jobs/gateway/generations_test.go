package gateway_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

func (s *service) jobIDs() (ids []string) {
	for _, key := range s.redis.Keys(s.t.Context(), "danqing:job:*").Val() {
		ids = append(ids, strings.TrimPrefix(key, "danqing:job:"))
	}
	return ids
}

// Equal requests at once are an image each, as the AI SDK, LangChain and Promise.all send
// them. Their retries join their jobs, each another one, also if the server has not noticed
// that they replace requests that wait.
func TestEqualRequests(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		var group sync.WaitGroup
		var mu sync.Mutex
		got := map[string]int{}
		send := func(headers ...string) {
			group.Go(func() {
				a := s.generateImages(t.Context(), openAICat, headers...)
				assert.Equal(t, http.StatusOK, a.status, a.body)
				mu.Lock()
				defer mu.Unlock()
				got[a.header.Get("X-Danqing-Job")]++
			})
		}
		for range 3 {
			send("X-Stainless-Retry-Count", "0")
		}
		synctest.Wait()
		require.Len(t, s.jobIDs(), 3)
		<-time.After(time.Minute)
		for range 3 {
			send("X-Stainless-Retry-Count", "1")
		}
		synctest.Wait()
		ids := s.jobIDs()
		require.Len(t, ids, 3, "the retries bought nothing")
		for _, id := range ids {
			s.finish(id)
		}
		group.Wait()
		assert.Equal(t, map[string]int{ids[0]: 2, ids[1]: 2, ids[2]: 2}, got)
		assert.Empty(t, s.redis.Keys(t.Context(), dedupeKeys).Val())
		send("X-Stainless-Retry-Count", "2")
		synctest.Wait()
		require.Len(t, s.jobIDs(), 4, "a retry of a request that never arrived")
		for _, id := range s.jobIDs() {
			if rec, err := s.jobs.Get(t.Context(), id); assert.NoError(t, err) && !rec.State.Final() {
				s.finish(id)
			}
		}
		group.Wait()
	})
}

// Which job a request gets is decided for all servers of a Redis. The requests of one that was
// killed no longer wait after seconds.
func TestEqualRequestsAtTwoServers(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		other := newServiceOn(t, s.redis, nil)
		continued := []string{"X-Danqing-On-Disconnect", "continue"}
		ctx, hangUp := context.WithCancel(t.Context())
		go s.generateImages(ctx, openAICat, continued...)
		synctest.Wait()
		id := s.onlyJob()
		short, end := context.WithTimeout(t.Context(), 10*time.Second)
		defer end()
		other.generateImages(short, openAICat)
		assert.Len(t, s.jobIDs(), 2, "the first one waits at the other server")
		hangUp()
		synctest.Wait()
		short, end = context.WithTimeout(t.Context(), 10*time.Second)
		defer end()
		assert.Equal(t, id, other.generateImages(short, openAICat, continued...).header.Get("X-Danqing-Job"), "it waits no more")

		// A server that was killed leaves its waiting requests behind.
		key := s.redis.Keys(t.Context(), dedupeKeys).Val()[0]
		require.NoError(t, s.redis.HSet(t.Context(), key, id+"/waiter", "killed").Err())
		require.NoError(t, s.redis.ZAdd(t.Context(), "danqing:gateways", redis.Z{Score: float64(time.Now().Add(5 * time.Second).UnixMilli()), Member: "killed"}).Err())
		<-time.After(6 * time.Second)
		short, end = context.WithTimeout(t.Context(), time.Second)
		defer end()
		assert.Equal(t, id, other.generateImages(short, openAICat, continued...).header.Get("X-Danqing-Job"))
	})
}

// A server that could not reach Redis for seconds comes back: the request that waited there all
// the while is not robbed of its job by an equal one that has joined it and disconnects.
func TestServerWithoutRedisForSeconds(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		other := newServiceOn(t, s.redis, nil)
		var group sync.WaitGroup
		group.Go(func() { assert.Equal(t, http.StatusOK, s.generateImages(t.Context(), openAICat).status) })
		synctest.Wait()
		id := s.onlyJob()
		require.NoError(t, s.redis.Del(t.Context(), "danqing:gateways").Err())
		ctx, hangUp := context.WithTimeout(t.Context(), 10*time.Second)
		defer hangUp()
		other.generateImages(ctx, openAICat)
		synctest.Wait()
		assert.Equal(t, id, s.onlyJob(), "it was joined")
		s.finish(id)
		group.Wait()
	})
}

// A client that goes away before its job was submitted cancels it, unless somebody else waits
// for it, or it asked otherwise.
func TestDisconnectCancels(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		n := 0
		// leave sends a request, changes its job, and hangs up.
		leave := func(change func(id string), headers ...string) *jobs.Job {
			n++
			before := s.jobIDs()
			ctx, hangUp := context.WithCancel(t.Context())
			var group sync.WaitGroup
			group.Go(func() {
				s.generateImages(ctx, strings.Replace(openAICat, "black", strings.Repeat("very ", n), 1), headers...)
			})
			synctest.Wait()
			var id string
			for _, now := range s.jobIDs() {
				if !strings.Contains(strings.Join(before, " "), now) {
					id = now
				}
			}
			if change != nil {
				change(id)
			}
			hangUp()
			group.Wait()
			rec, err := s.jobs.Get(t.Context(), id)
			require.NoError(t, err)
			return rec
		}
		rec := leave(nil)
		assert.Equal(t, jobs.StateCanceled, rec.State)
		assert.Empty(t, s.redis.Keys(t.Context(), dedupeKeys).Val())
		rec = leave(func(id string) {
			s.update(id, func(rec *jobs.Record) { rec.State = jobs.StateSubmitting; rec.Attempt = 1 })
		})
		assert.Equal(t, jobs.StateSubmitting, rec.State)
		assert.Zero(t, rec.CancelRequestedAt, "what may be paid for is not touched")
		for _, headers := range [][]string{{"X-Danqing-On-Disconnect", "continue"}, {"Idempotency-Key", "order 17"}, {"X-Danqing-Callback", "https://shop.example/hook"}} {
			assert.Equal(t, jobs.StateQueued, leave(nil, headers...).State, headers)
		}
		assert.Equal(t, http.StatusBadRequest, s.generateImages(t.Context(), openAICat, "X-Danqing-On-Disconnect", "never").status)

		// Somebody else waits.
		var group sync.WaitGroup
		rec = leave(func(id string) {
			retry := strings.Replace(openAICat, "black", strings.Repeat("very ", n), 1)
			group.Go(func() {
				assert.Equal(t, id, s.generateImages(t.Context(), retry, "X-Stainless-Retry-Count", "1").header.Get("X-Danqing-Job"))
			})
			synctest.Wait()
		})
		assert.Equal(t, jobs.StateQueued, rec.State)
		s.finish(rec.ID)
		group.Wait()

		// A client that retries by itself keeps its place for some seconds.
		rec = leave(nil, "X-Stainless-Retry-Count", "0")
		require.Equal(t, jobs.StateQueued, rec.State)
		<-time.After(8 * time.Second)
		ctx, hangUp := context.WithCancel(t.Context())
		group.Go(func() {
			s.generateImages(ctx, strings.Replace(openAICat, "black", strings.Repeat("very ", n), 1), "X-Stainless-Retry-Count", "1")
		})
		<-time.After(5 * time.Second)
		rec, err := s.jobs.Get(t.Context(), rec.ID)
		require.NoError(t, err)
		assert.Equal(t, jobs.StateQueued, rec.State, "its retry waits")
		hangUp()
		group.Wait()
		<-time.After(11 * time.Second)
		rec, err = s.jobs.Get(t.Context(), rec.ID)
		require.NoError(t, err)
		assert.Equal(t, jobs.StateCanceled, rec.State)

		// A job that an operator cancels is not made again for a request that joined it.
		leave(func(id string) {
			retry := strings.Replace(openAICat, "black", strings.Repeat("very ", n), 1)
			group.Go(func() {
				assert.Equal(t, id, s.generateImages(t.Context(), retry, "X-Stainless-Retry-Count", "1").header.Get("X-Danqing-Job"))
			})
			synctest.Wait()
			_, err := s.jobs.Cancel(t.Context(), id, jobs.Decider{})
			require.NoError(t, err)
			synctest.Wait()
		})
		group.Wait()

		// A retry that joins just before the cancel gets a new job.
		rec = leave(func(id string) {
			retry := strings.Replace(openAICat, "black", strings.Repeat("very ", n), 1)
			group.Go(func() {
				got := s.generateImages(t.Context(), retry, "X-Stainless-Retry-Count", "1")
				assert.Equal(t, http.StatusOK, got.status)
				assert.NotEqual(t, id, got.header.Get("X-Danqing-Job"))
			})
			synctest.Wait()
			_, err := s.jobs.CancelUnsubmitted(t.Context(), id)
			require.NoError(t, err)
			synctest.Wait()
			for _, now := range s.jobIDs() {
				if rec, err := s.jobs.Get(t.Context(), now); assert.NoError(t, err) && now != id && rec.State == jobs.StateQueued && rec.Callback == "" && !strings.HasPrefix(now, "key-") {
					s.finish(now)
				}
			}
		})
		group.Wait()
		assert.Equal(t, jobs.StateCanceled, rec.State)
	})
}

// With stream, each image is an event of OpenAI's API, and the connection has signs of life.
func TestStream(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		body := strings.Replace(openAICat, "{", `{"stream":true,"partial_images":2,`, 1)
		time.AfterFunc(40*time.Second, func() { s.finish(s.onlyJob(), "image/png", "image/jpeg") })
		got := s.generateImages(t.Context(), body)
		assert.Equal(t, http.StatusOK, got.status)
		assert.Equal(t, "text/event-stream; charset=utf-8", got.header.Get("Content-Type"))
		assert.Equal(t, 3, strings.Count(got.body, ": the images are not ready yet\n\n"), "at 0, 15 and 30 s")
		var images int
		for event := range strings.SplitSeq(got.body, "\n\n") {
			data, ok := strings.CutPrefix(event, "event: image_generation.completed\ndata: ")
			if !ok {
				continue
			}
			images++
			var completed struct {
				Type, Size, Quality, Background string
				OutputFormat                    string `json:"output_format"`
				B64JSON                         string `json:"b64_json"`
				CreatedAt                       int64  `json:"created_at"`
			}
			require.NoError(t, json.Unmarshal([]byte(data), &completed))
			content, err := base64.StdEncoding.DecodeString(completed.B64JSON)
			require.NoError(t, err)
			_, want := writePNG(t, s.onlyJob(), images)
			assert.Equal(t, want, content)
			assert.Equal(t, []string{"image_generation.completed", "256x256", "auto", "opaque", []string{"png", "jpeg"}[images-1]}, []string{completed.Type, completed.Size, completed.Quality, completed.Background, completed.OutputFormat})
			assert.Equal(t, time.Now().Unix(), completed.CreatedAt)
		}
		assert.Equal(t, 2, images)
		assert.Empty(t, s.redis.Keys(t.Context(), dedupeKeys).Val())

		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+s.onlyJob()).Err())
		time.AfterFunc(time.Second, func() {
			s.update(s.onlyJob(), func(rec *jobs.Record) { rec.End(jobs.StateFailed, "DataInspectionFailed", "no", time.Now().UTC()) })
		})
		got = s.generateImages(t.Context(), body)
		assert.Contains(t, got.body, "event: error\ndata: {\"error\":{\"message\":\"no\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"content_policy_violation\"}}\n\n")
		got = s.generateImages(t.Context(), `{"model":"wanx-v9","prompt":"a cat","stream":true}`)
		assert.Equal(t, http.StatusNotFound, got.status, "before the first event")
	})
}

// If the operator asked for it, a request that waits gets white space, and its error the status
// 200.
func TestKeepAlive(t *testing.T) {
	runInBubble(t, func(api *gateway.API) { api.KeepAlive, api.OpenAIWait = 20*time.Second, time.Minute+time.Second }, func(t *testing.T, s *service) {
		got := s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusOK, got.status)
		assert.True(t, strings.HasPrefix(got.body, "\n\n\n{"), got.body)
		assert.Equal(t, "timeout", got.decode(t)["error"].(map[string]any)["code"])
		time.AfterFunc(30*time.Second, func() { s.finish(s.onlyJob()) })
		got = s.generateImages(t.Context(), openAICat)
		var answer struct{ Data []map[string]any }
		require.NoError(t, json.Unmarshal([]byte(got.body), &answer), got.body)
		require.Len(t, answer.Data, 2)
		assert.NotContains(t, got.body, "revised_prompt")
		got = s.generateImages(t.Context(), `{"model":"wanx-v1","prompt":"a cat","n":9}`)
		assert.Equal(t, http.StatusBadRequest, got.status, "at once")
	})
}

// Pages of the origins that the operator named can use the API; a preflight needs no token.
func TestCORS(t *testing.T) {
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}}
	for name, own := range map[string][]gateway.Token{"tokens": tokens, "no tokens": nil} {
		t.Run(name, func(t *testing.T) {
			runInBubble(t, func(api *gateway.API) { api.Tokens, api.CORSOrigins = own, []string{"https://studio.example.com"} }, func(t *testing.T, s *service) {
				page := []string{"Origin", "https://studio.example.com", "Sec-Fetch-Site", "cross-site"}
				preflight := append([]string{"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type,x-stainless-os"}, page...)
				for _, path := range []string{"/v1/images/generations", "/v1/models", createPath, tasksPath + "x", "/images/x"} {
					got := s.request(http.MethodOptions, path, "", preflight...)
					assert.Equal(t, http.StatusNoContent, got.status, path)
					assert.Equal(t, "https://studio.example.com", got.header.Get("Access-Control-Allow-Origin"))
					assert.Equal(t, "authorization,content-type,x-stainless-os", got.header.Get("Access-Control-Allow-Headers"))
					assert.Contains(t, got.header.Get("Access-Control-Allow-Methods"), "POST")
					assert.Empty(t, got.header.Get("Access-Control-Allow-Credentials"))
				}
				got := s.submit(oneCat, append([]string{"Authorization", "Bearer shop-secret-0123456"}, page...)...)
				assert.Equal(t, http.StatusOK, got.status, got.body)
				assert.Equal(t, "https://studio.example.com", got.header.Get("Access-Control-Allow-Origin"))
				assert.Contains(t, got.header.Get("Access-Control-Expose-Headers"), "X-Danqing-Price")
				assert.Equal(t, "Origin", got.header.Get("Vary"))

				got = s.request(http.MethodOptions, "/v1/models", "", "Origin", "https://evil.example", "Access-Control-Request-Method", "POST")
				assert.NotEqual(t, http.StatusNoContent, got.status)
				assert.Empty(t, got.header.Get("Access-Control-Allow-Origin"))
				if own == nil {
					assert.Equal(t, http.StatusForbidden, s.submit(oneCat, "Origin", "https://evil.example").status)
				}
			})
		})
	}
}

// A path of no API gets an error that programs can read.
func TestNoSuchPath(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		message := s.request(http.MethodGet, "/nope", "").requireRefused(t, http.StatusNotFound, "NotFound")
		assert.Contains(t, message, "/v1/images/generations")
	})
}
