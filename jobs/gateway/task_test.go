package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

// The answer for every state of a job has the format of DashScope's documentation.
func TestTaskResponses(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		id := s.create(`{"model":"wanx-v1","input":{"prompt":"a cat"},"parameters":{"n":2}}`)
		response := func() map[string]any {
			return s.request(http.MethodGet, tasksPath+id, "", "Prefer", "wait=0").decode(t)
		}
		output := func(pairs ...any) map[string]any {
			out := map[string]any{"task_id": id, "submit_time": "2000-01-01 08:00:00.000"}
			for i := 0; i < len(pairs); i += 2 {
				out[pairs[i].(string)] = pairs[i+1]
			}
			return map[string]any{"output": out}
		}
		metrics := func(total, succeeded, failed float64) map[string]any {
			return map[string]any{"TOTAL": total, "SUCCEEDED": succeeded, "FAILED": failed}
		}
		assert.Equal(t, output("task_status", "PENDING"), response())

		<-time.After(1234 * time.Millisecond)
		s.update(id, func(rec *jobs.Record) {
			rec.State, rec.Attempt, rec.SubmittedAt = jobs.StateSubmitting, 1, time.Now().UTC()
		})
		submitted := "2000-01-01 08:00:01.234"
		assert.Equal(t, output("task_status", "PENDING", "scheduled_time", submitted, "task_metrics", metrics(2, 0, 0)), response())
		s.update(id, func(rec *jobs.Record) { rec.State, rec.TaskID = jobs.StateGenerating, "task" })
		assert.Equal(t, output("task_status", "PENDING", "scheduled_time", submitted, "task_metrics", metrics(2, 0, 0)), response(), "the task is pending")
		s.update(id, func(rec *jobs.Record) { rec.RunningAt = time.Now().UTC() })
		assert.Equal(t, output("task_status", "RUNNING", "scheduled_time", submitted, "task_metrics", metrics(2, 0, 0)), response())
		s.update(id, func(rec *jobs.Record) {
			rec.State, rec.Code, rec.Message = jobs.StateHeld, "SubmitAmbiguous", "secret tasks"
		})
		assert.Equal(t, output("task_status", "RUNNING", "scheduled_time", submitted, "task_metrics", metrics(2, 0, 0)), response(), "held for an operator")
		<-time.After(24 * time.Hour)
		held := response()["output"].(map[string]any)
		assert.Equal(t, "FAILED", held["task_status"])
		assert.Equal(t, "Held", held["code"])

		<-time.After(time.Second)
		s.update(id, func(rec *jobs.Record) {
			rec.State, rec.FinishedAt, rec.Code, rec.Message = jobs.StateSucceeded, time.Now().UTC(), "", ""
			image := s.store(&rec.Job, 1)
			image.ActualPrompt = "a fine cat"
			rec.Images = []jobs.Image{image, {N: 2, Code: "DataInspectionFailed", Message: "no"}}
		})
		rec, err := s.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		done := output("task_status", "SUCCEEDED", "scheduled_time", submitted, "end_time", "2000-01-02 08:00:02.234", "task_metrics", metrics(2, 1, 1), "results", []any{
			map[string]any{"url": "http://127.0.0.1:8765" + rec.ImagePath(rec.Images[0]), "orig_prompt": "a cat", "actual_prompt": "a fine cat"},
			map[string]any{"code": "DataInspectionFailed", "message": "no"},
		})
		done["usage"] = map[string]any{"image_count": 1.0}
		assert.Equal(t, done, response())

		id = s.create(oneCat)
		s.update(id, func(rec *jobs.Record) { rec.End(jobs.StateFailed, "InvalidParameter", "bad size", time.Now().UTC()) })
		failed := response()["output"].(map[string]any)
		assert.Equal(t, []any{"FAILED", "InvalidParameter", "bad size"}, []any{failed["task_status"], failed["code"], failed["message"]})
		id = s.create(oneCat)
		_, err = s.jobs.Cancel(t.Context(), id, jobs.Decider{})
		require.NoError(t, err)
		assert.Equal(t, "CANCELED", response()["output"].(map[string]any)["task_status"])

		id = "86ecf553-d340-4e21-af6e-a0c6a421c010"
		assert.Equal(t, map[string]any{"output": map[string]any{"task_id": id, "task_status": "UNKNOWN"}}, response())
		simulated := *rec
		simulated.Simulated = true
		s.sidecars[id] = &simulated
		assert.Equal(t, "SUCCEEDED", response()["output"].(map[string]any)["task_status"], "from its sidecar")
		assert.Equal(t, "true", s.request(http.MethodGet, tasksPath+id, "").header.Get("X-Danqing-Simulated"))
	})
}

// A status never goes back: clients that poll in a loop see PENDING, then RUNNING, then the
// end, also if the task fails and is submitted again, or the job is held in between.
func TestStatusNeverGoesBack(t *testing.T) {
	running := func(rec *jobs.Record) { rec.State, rec.RunningAt = jobs.StateGenerating, time.Now().UTC() }
	to := func(state jobs.State) func(*jobs.Record) {
		return func(rec *jobs.Record) { rec.State, rec.RunningAt = state, time.Time{} }
	}
	again := func(rec *jobs.Record) { to(jobs.StateSubmitting)(rec); rec.Attempt++ }
	for name, life := range map[string][]func(*jobs.Record){
		"at once":       {again, to(jobs.StateGenerating), running},
		"refused":       {again, to(jobs.StateQueued), again, to(jobs.StateGenerating), running},
		"task failed":   {again, to(jobs.StateGenerating), running, to(jobs.StateRetrying), again, to(jobs.StateGenerating), running},
		"task pending":  {again, to(jobs.StateGenerating), to(jobs.StateRetrying), again, to(jobs.StateGenerating), running},
		"held":          {again, to(jobs.StateHeld), to(jobs.StateQueued), again, to(jobs.StateGenerating), running},
		"held, adopted": {again, to(jobs.StateHeld), to(jobs.StateGenerating), running},
		"rejected":      {again, to(jobs.StateGenerating), running, to(jobs.StateSubmitting), to(jobs.StateGenerating)},
		"stored":        {again, to(jobs.StateGenerating), to(jobs.StateStoring), to(jobs.StateHeld), to(jobs.StateGenerating), to(jobs.StateStoring)},
	} {
		t.Run(name, func(t *testing.T) {
			runInBubble(t, nil, func(t *testing.T, s *service) {
				id := s.create(oneCat)
				order := []string{"PENDING", "RUNNING", "SUCCEEDED"}
				at := 0
				for step := range len(life) + 2 {
					for _, agent := range []string{pythonSDK, "curl"} {
						is := s.query(id, "User-Agent", agent, "Prefer", "wait=0").Output.TaskStatus
						now := slices.Index(order, is)
						assert.GreaterOrEqual(t, now, at, "step %d: %s", step, is)
						at = now
						listed := s.request(http.MethodGet, "/api/v1/tasks?status="+is, "").decode(t)
						assert.Len(t, listed["data"], 1, "step %d: %s", step, is)
					}
					switch {
					case step < len(life):
						s.update(id, life[step])
					case step == len(life):
						assert.Equal(t, 1, at)
						s.finish(id)
					}
				}
				assert.Equal(t, 2, at)
			})
		})
	}
}

// A client that polls slowly, like the SDKs, gets the end of a job at the moment when it is
// written, also if the job waited in a long backlog.
func TestSlowPollerGetsEndAtOnce(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		const s1, s2, s4, s5 = time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second
		pauses := []time.Duration{0, s1, s1, s2, s2, s2, s4, s4, s4, s5} // the last one repeats
		const clients = 40
		ends := make([]time.Time, clients)
		var group sync.WaitGroup
		for i := range clients {
			id := s.create(oneCat)
			group.Go(func() {
				for polls := 0; ; polls++ {
					<-time.After(pauses[min(polls, len(pauses)-1)])
					asked := time.Now()
					status := s.query(id).Output.TaskStatus
					assert.LessOrEqual(t, time.Since(asked), 50*time.Second)
					if status == "SUCCEEDED" {
						// A change during the client's pause is in the answer to its next query.
						if time.Since(asked) > 0 {
							assert.Equal(t, ends[i], time.Now())
						}
						return
					}
				}
			})
			group.Go(func() {
				<-time.After(time.Duration(i) * 7777 * time.Millisecond)
				s.generate(id)
				<-time.After(31 * time.Second)
				ends[i] = time.Now()
				s.finish(id)
			})
		}
		group.Wait()
	})
}

// A query waits only as long as its answer would be equal to the client's last one.
func TestLongPoll(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		id := s.create(oneCat)
		took := func(headers ...string) (time.Duration, string) {
			began := time.Now()
			return time.Since(began), s.query(id, headers...).Output.TaskStatus
		}
		timed := func(headers ...string) time.Duration {
			began := time.Now()
			_, _ = took(headers...)
			return time.Since(began)
		}
		assert.Zero(t, timed(), "the first query")
		assert.Equal(t, 50*time.Second, timed())
		assert.Zero(t, timed("User-Agent", "python-requests/2.32"))
		assert.Equal(t, 3*time.Second, timed("User-Agent", "python-requests/2.32"), "it may give up after 5 s")
		assert.Equal(t, 50*time.Second, timed("User-Agent", "python-requests/2.32", "Prefer", "wait=50"))
		assert.Zero(t, timed("Prefer", "wait=0"))
		assert.Equal(t, 3*time.Second, timed("Prefer", "respond-async, wait=3"))
		assert.Equal(t, 50*time.Second, timed("Prefer", "wait=300"))

		done := make(chan time.Duration)
		go func() { done <- timed() }()
		<-time.After(10 * time.Second)
		s.update(id, func(rec *jobs.Record) { rec.Request = nil }) // not visible to a client
		<-time.After(10 * time.Second)
		s.generate(id)
		assert.Equal(t, 20*time.Second, <-done)
		assert.Equal(t, 50*time.Second, timed())
		s.finish(id)
		assert.Zero(t, timed())
		assert.Zero(t, timed(), "a finished job's query never waits")
	})
}

// A query gets no error while Redis is unavailable: it waits, and then repeats the last
// answer.
func TestQueryWhileRedisUnavailable(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		id, other := s.create(oneCat), s.create(oneCat)
		s.generate(id)
		assert.Equal(t, "RUNNING", s.query(id).Output.TaskStatus)
		s.outage.down.Store(true)
		before := s.outage.calls.Load()
		for agent, want := range map[string]string{pythonSDK: `"RUNNING"`, "dashscope/0.0.1 of another client": `"RUNNING"`, "dashscope/0.0.2 of a new job": `"PENDING"`} {
			asked := id
			if want == `"PENDING"` {
				asked = other
			}
			began := time.Now()
			got := s.request(http.MethodGet, tasksPath+asked, "", "User-Agent", agent)
			assert.Equal(t, http.StatusOK, got.status)
			assert.Contains(t, got.body, want)
			assert.InDelta(t, 50, time.Since(began).Seconds(), 1)
		}
		assert.Less(t, s.outage.calls.Load()-before, int64(450), "few commands: twice a second for the subscription")
		// Redis is available again, and the job has finished in the meantime.
		done := make(chan string)
		go func() { done <- s.query(id).Output.TaskStatus }()
		<-time.After(20 * time.Second)
		s.outage.down.Store(false)
		s.finish(id)
		assert.Equal(t, "SUCCEEDED", <-done)
	})
}

// A change whose event was lost is found before the long poll ends.
func TestLostEvent(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		id := s.create(oneCat)
		s.query(id)
		began := time.Now()
		done := make(chan string)
		go func() { done <- s.query(id).Output.TaskStatus }()
		<-time.After(time.Second)
		rec, err := s.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		rec.State = jobs.StateCanceled
		encoded, err := json.Marshal(rec)
		require.NoError(t, err)
		require.NoError(t, s.redis.HSet(t.Context(), "danqing:job:"+id, "state", "canceled", "record", encoded).Err())
		assert.Equal(t, "CANCELED", <-done)
		assert.Less(t, time.Since(began), 31*time.Second)
	})
}

// Ten thousand queries can wait at once, and a change wakes only those of its job.
func TestManyLongPolls(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		clients := 10_000
		if testing.Short() {
			clients = 1_000
		}
		ids := make([]string, 10)
		for i := range ids {
			ids[i] = s.create(oneCat)
		}
		ctx, hangUp := context.WithCancel(t.Context())
		var group sync.WaitGroup
		var mu sync.Mutex
		answered := map[string]int{}
		for i := range clients {
			group.Go(func() {
				id, agent := ids[i%len(ids)], fmt.Sprint("client ", i)
				s.call(ctx, http.MethodGet, tasksPath+id, "", "User-Agent", agent)
				got := s.call(ctx, http.MethodGet, tasksPath+id, "", "User-Agent", agent)
				mu.Lock()
				defer mu.Unlock()
				answered[id+" "+fmt.Sprint(len(got.body) > 0 && ctx.Err() == nil)]++
			})
		}
		synctest.Wait()
		before := s.outage.calls.Load()
		_, err := s.jobs.Cancel(t.Context(), ids[3], jobs.Decider{})
		require.NoError(t, err)
		synctest.Wait()
		mu.Lock()
		assert.Equal(t, map[string]int{ids[3] + " true": clients / len(ids)}, answered)
		mu.Unlock()
		assert.Less(t, s.outage.calls.Load()-before, int64(clients/len(ids)+50), "one read for each query of the job")
		hangUp()
		group.Wait()
	})
}

// Close answers waiting queries.
func TestCloseAnswersLongPolls(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		id := s.create(oneCat)
		s.query(id)
		done := make(chan string)
		go func() { done <- s.query(id).Output.TaskStatus }()
		synctest.Wait()
		began := time.Now()
		require.NoError(t, s.gateway.Close())
		assert.Equal(t, "PENDING", <-done)
		assert.Zero(t, time.Since(began))
	})
}

// For another token, a token's jobs do not exist, in any kind of request.
func TestTokensCannotSeeOthersJobs(t *testing.T) {
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}, {Name: "blog", Secret: "blog-secret-0123456"}}
	runInBubble(t, func(api *gateway.API) { api.Tokens = tokens }, func(t *testing.T, s *service) {
		shop := []string{"Authorization", "Bearer shop-secret-0123456"}
		blog := []string{"Authorization", "Bearer blog-secret-0123456"}
		id := s.create(oneCat, shop...)
		rec, err := s.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, "shop", rec.Producer)

		unknown := func(id string) {
			began := time.Now()
			for range 2 {
				assert.Equal(t, map[string]any{"output": map[string]any{"task_id": id, "task_status": "UNKNOWN"}}, s.request(http.MethodGet, tasksPath+id, "", blog...).decode(t))
			}
			s.post(tasksPath+id+"/cancel", "", blog...).requireRefused(t, http.StatusBadRequest, "UnsupportedOperation")
			for _, query := range []string{"", "?task_id=" + id} {
				list := s.request(http.MethodGet, "/api/v1/tasks"+query, "", blog...).decode(t)
				assert.Empty(t, list["data"])
				assert.InDelta(t, 0, list["total"], 0)
			}
			assert.Equal(t, 4*200*time.Millisecond, time.Since(began), "it is not held, and takes as long for every ID")
		}
		unknown(id)
		s.sidecars["long-ago"] = &jobs.Job{ID: "long-ago", State: jobs.StateSucceeded, Producer: "shop"}
		unknown("long-ago")
		unknown("never")
		enqueued, err := s.jobs.Enqueue(t.Context(), jobs.Request{Prompt: "a cat"})
		require.NoError(t, err)
		unknown(enqueued.ID)
		assert.Equal(t, "PENDING", s.query(id, shop...).Output.TaskStatus)

		// The same key is another job for another token.
		key := []string{"Idempotency-Key", "order 17"}
		one, two := s.create(oneCat, append(key, shop...)...), s.create(oneCat, append(key, blog...)...)
		assert.NotEqual(t, one, two)
	})
}
