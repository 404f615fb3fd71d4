package worker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// notice is the message of a job's notification in asynq.
func (s *stack) notice(id string, kind jobs.NotificationKind) *asynq.TaskInfo {
	s.t.Helper()
	info, err := asynq.NewInspectorFromRedisClient(s.redis).GetTaskInfo(jobs.QueueNotify, s.get(id).NotificationID(kind))
	require.NoError(s.t, err)
	return info
}

// archivedNotice waits until the callback of an ended job is archived.
func (s *stack) archivedNotice(id string) *asynq.TaskInfo {
	s.t.Helper()
	s.wait(id)
	<-time.After(time.Minute)
	info := s.notice(id, jobs.NotificationCallback)
	require.Equal(s.t, asynq.TaskStateArchived, info.State)
	return info
}

// pass lets time pass without a worker, whose polls would make the test slow, and starts
// the next worker on the same Redis.
func (s *stack) pass(d time.Duration) {
	s.t.Helper()
	s.stopKeeping()
	<-time.After(d)
	s.worker, s.data = s.newWorker("data")
	s.run()
}

// The producer's callback reports how the job ended, is signed, and has links to the
// images.
func TestCallbackReportsTheEnd(t *testing.T) {
	sim := &simulator.Simulator{Outcome: func(req dashscope.CreateRequest) simulator.Outcome {
		switch {
		case strings.Contains(req.Input.Prompt, "bad"):
			return simulator.Outcome{Code: "DataInspectionFailed", Message: "no"}
		case strings.Contains(req.Input.Prompt, "half"):
			return simulator.Outcome{Images: map[int]simulator.Failure{1: {Code: "DataInspectionFailed", Message: "no"}}}
		}
		return simulator.Outcome{}
	}}
	notifyBubble(t, sim, func(t *testing.T, s *stack, r *receiver) {
		eventOf := func(id string) jobs.Event {
			rec := s.wait(id)
			r.mu.Lock()
			before := len(r.got)
			r.mu.Unlock()
			got := r.deliveries(max(before, 1))
			for len(got) == 0 || got[len(got)-1].event.Data.JobID != id {
				got = r.deliveries(len(got) + 1)
			}
			d := got[len(got)-1]
			assert.Equal(t, rec.EventID(), d.id)
			assert.Less(t, time.Since(rec.FinishedAt), 30*time.Second)
			assert.Equal(t, rec.FinishedAt, d.event.Timestamp)
			assert.Equal(t, "job."+string(rec.State), d.event.Type)
			assert.Equal(t, rec.CostMicroYuan, d.event.Data.CostMicroYuan)
			return d.event
		}
		s.enqueue(jobs.Request{ID: "春季.7", Prompt: "a cat", Callback: callbackURL, Labels: map[string]string{"sku": "<7>"}, Batch: "春季", LineID: "7"})
		event := eventOf("春季.7")
		assert.Equal(t, jobs.StateSucceeded, event.Data.State)
		assert.Equal(t, map[string]string{"sku": "<7>"}, event.Data.Labels)
		rec := s.get("春季.7")
		assert.Equal(t, []string{"春季", "7", rec.Bucket}, []string{event.Data.Batch, event.Data.LineID, event.Data.Bucket})
		assert.NotEmpty(t, rec.Bucket)
		workers, err := jobs.NewInspector(s.redis).Workers(t.Context())
		require.NoError(t, err)
		require.Len(t, workers, 1)
		assert.Equal(t, []string{"wanx-v1"}, workers[0].Models)
		assert.True(t, workers[0].Callbacks)
		image := rec.Images[0]
		image.Link = "" // the event has it as URL
		assert.Equal(t, []jobs.EventImage{{Image: image, URL: shopURL + rec.ImagePath(image)}}, event.Data.Images)

		s.enqueue(jobs.Request{ID: "bad", Prompt: "a bad cat", Callback: callbackURL})
		event = eventOf("bad")
		assert.Equal(t, jobs.StateFailed, event.Data.State)
		assert.Equal(t, "DataInspectionFailed", event.Data.Code)
		assert.Empty(t, event.Data.Images)

		s.enqueue(jobs.Request{ID: "half", Prompt: "half a cat", N: 2, Callback: callbackURL})
		event = eventOf("half")
		require.Len(t, event.Data.Images, 2)
		assert.NotEmpty(t, event.Data.Images[0].URL)
		assert.Empty(t, event.Data.Images[1].URL)
		assert.Equal(t, "DataInspectionFailed", event.Data.Images[1].Code)

		s.enqueue(jobs.Request{ID: "gone", Prompt: "no cat", Callback: callbackURL, NotBefore: time.Now().Add(time.Hour)})
		_, err = jobs.NewClient(s.redis).Cancel(t.Context(), "gone", jobs.Decider{})
		require.NoError(t, err)
		assert.Equal(t, jobs.StateCanceled, eventOf("gone").Data.State)
		assert.Len(t, r.deliveries(4), 4, "each once")
	})
}

// Without a gateway the links are the bucket's, with their expiry.
func TestCallbackLinksOfTheBucket(t *testing.T) {
	notifyBubbleWith(t, &simulator.Simulator{}, func(cfg *worker.Config) { cfg.ServeURL = "" }, func(t *testing.T, s *stack, r *receiver) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		image := r.deliveries(1)[0].event.Data.Images[0]
		assert.Contains(t, image.URL, "http://bucket.embedded/")
		assert.WithinDuration(t, time.Now().Add(7*24*time.Hour), image.URLExpiresAt, time.Minute)
	})
}

// During a rotation of secrets a callback carries a signature of each.
func TestCallbackSecretsRotate(t *testing.T) {
	configure := func(cfg *worker.Config) { cfg.CallbackSecrets = []string{otherSecret, callbackSecret} }
	notifyBubbleWith(t, &simulator.Simulator{}, configure, func(t *testing.T, s *stack, r *receiver) {
		r.answers(func(_ http.ResponseWriter, req *http.Request) {
			assert.Len(t, strings.Fields(req.Header.Get("webhook-signature")), 2)
			r.mu.Lock()
			defer r.mu.Unlock()
			other, err := webhooks.NewWebhook(otherSecret)
			assert.NoError(t, err)
			assert.NoError(t, other.Verify([]byte(r.got[len(r.got)-1].body), req.Header))
		})
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		assert.Len(t, r.deliveries(1), 1)
	})
}

// A callback to a failing receiver is retried for a day, with the same body and ID, at
// growing intervals; then the log says how an operator can send it again.
func TestCallbackIsRetriedForADay(t *testing.T) {
	notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, r *receiver) {
		s.shared = true
		r.answers(status(http.StatusBadGateway))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		waits := []time.Duration{
			5 * time.Second, 30 * time.Second, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 30 * time.Minute,
			time.Hour, time.Hour, 2 * time.Hour, 2 * time.Hour, 3 * time.Hour, 4 * time.Hour, 4 * time.Hour, 6 * time.Hour,
		}
		for i, wait := range waits {
			last := r.deliveries(i + 1)[i]
			if wait > 5*time.Minute {
				s.pass(wait - time.Minute)
			}
			next := r.deliveries(i + 2)[i+1]
			assert.InDelta(t, wait.Seconds(), next.at.Sub(last.at).Seconds(), 30, "between try %d and the next", i+1)
			assert.Equal(t, last.body, next.body)
			assert.Equal(t, last.id, next.id)
		}
		info := s.archivedNotice("job-1")
		assert.Equal(t, "callback to shop.example: the receiver answered 502 Bad Gateway; abandoned after 16 attempts (danqing jobs notify job-1 sends it again)", info.LastErr)
		got := r.deliveries(16)
		require.Len(t, got, 16)

		r.answers(nil)
		_, err := jobs.NewInspector(s.redis).NotifyAgain(t.Context(), "job-1")
		require.NoError(t, err)
		again := r.deliveries(17)[16]
		assert.Equal(t, got[0].body, again.body)
		assert.Equal(t, got[0].id, again.id)
		<-time.After(time.Minute)
		assert.Equal(t, asynq.TaskStateCompleted, s.notice("job-1", jobs.NotificationCallback).State)
	})
}

// The receiver's response determines whether and when the callback is retried.
func TestCallbackAnswers(t *testing.T) {
	header := func(code int, name, value string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(name, value)
			w.WriteHeader(code)
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		wait   time.Duration
		says   string
	}{
		"redirect":           {header(http.StatusFound, "Location", "http://shop.example/hush"), 5 * time.Second, "callback to shop.example: the receiver answered 302 Found: redirects are not followed (use the final address as callback)"},
		"retry after":        {header(http.StatusServiceUnavailable, "Retry-After", "600"), 10 * time.Minute, "callback to shop.example: the receiver answered 503 Service Unavailable"},
		"retry after a date": {header(http.StatusTooManyRequests, "Retry-After", "Sat, 01 Jan 2000 02:00:00 GMT"), 2 * time.Hour, "callback to shop.example: the receiver answered 429 Too Many Requests"},
		"retry after a year": {header(http.StatusTooManyRequests, "Retry-After", "31536000"), 6 * time.Hour, "callback to shop.example: the receiver answered 429 Too Many Requests"},
		"retry after hush":   {header(599, "Retry-After", "hush"), 5 * time.Second, "callback to shop.example: the receiver answered 599"},
		"silence":            {func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }, 25 * time.Second, "callback to shop.example: no response in time"},
		"no answer":          {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 5 * time.Second, "callback to shop.example: the connection was closed without a complete response"},
		"garbage": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack() //nolint:forcetypeassert // net/http's own
			assert.NoError(t, err)
			_, _ = fmt.Fprint(conn, "hush hush\r\n\r\n")
			_ = conn.Close()
		}, 5 * time.Second, "callback to shop.example: the response is not valid HTTP"},
	} {
		t.Run(name, func(t *testing.T) {
			notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, r *receiver) {
				r.answers(c.answer)
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
				first := r.deliveries(1)[0]
				info := s.notice("job-1", jobs.NotificationCallback)
				for ; info.State != asynq.TaskStateRetry; info = s.notice("job-1", jobs.NotificationCallback) {
					require.Less(t, time.Since(first.at), time.Minute)
					<-time.After(time.Second)
				}
				assert.Equal(t, c.says, info.LastErr)
				assert.InDelta(t, c.wait.Seconds(), info.NextProcessAt.Sub(first.at).Seconds(), c.wait.Seconds()/50+2)
			})
		})
	}
}

// A callback that the receiver refuses for good, or whose address is not public, is not
// retried.
func TestCallbackEndsAtOnce(t *testing.T) {
	t.Run("gone", func(t *testing.T) {
		notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, r *receiver) {
			r.answers(status(http.StatusGone))
			s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
			info := s.archivedNotice("job-1")
			assert.Equal(t, "callback to shop.example: the receiver answered 410 Gone: the receiver accepts no more events (danqing jobs notify job-1 sends it again)", info.LastErr)
			assert.Len(t, r.deliveries(1), 1)
		})
	})
	for _, host := range []string{"127.0.0.1:9", "169.254.169.254", "[::ffff:10.0.0.1]", "100.100.100.200"} {
		t.Run(host, func(t *testing.T) {
			unchanged := func(cfg *worker.Config) { cfg.DialCallback = nil }
			notifyBubbleWith(t, &simulator.Simulator{}, unchanged, func(t *testing.T, s *stack, _ *receiver) {
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: "http://" + host + "/?token=hush"})
				s.wait("job-1")
				info := s.archivedNotice("job-1")
				assert.Contains(t, info.LastErr, "DANQING_CALLBACK_ALLOW")
				assert.NotContains(t, info.LastErr, "hush")
				assert.Zero(t, info.Retried)
			})
		})
	}
}

// Without a secret no callback is sent, since no receiver could verify it; an operator
// may set one later.
func TestCallbackWithoutASecret(t *testing.T) {
	configure := func(cfg *worker.Config) { cfg.CallbackSecrets = nil }
	notifyBubbleWith(t, &simulator.Simulator{}, configure, func(t *testing.T, s *stack, r *receiver) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		s.wait("job-1")
		<-time.After(10 * time.Minute)
		info := s.notice("job-1", jobs.NotificationCallback)
		assert.Equal(t, asynq.TaskStateRetry, info.State)
		assert.Equal(t, "callback to shop.example: no secret is configured to sign it (set DANQING_CALLBACK_SECRET)", info.LastErr)
		s.shared = true
		s.stopKeeping()
		s.configure = func(cfg *worker.Config) { cfg.CallbackSecrets, cfg.DialCallback = []string{callbackSecret}, r.dial }
		s.worker, s.data = s.newWorker("data")
		s.run()
		assert.Len(t, r.deliveries(1), 1)
	})
}

// scriptsAway fails, while it is on, the scripts whose first key has a prefix.
type scriptsAway struct {
	outage
	prefix string
}

func (o *scriptsAway) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if o.on.Load() && len(cmd.Args()) > 3 && strings.HasPrefix(fmt.Sprint(cmd.Args()[3]), o.prefix) {
			<-time.After(100 * time.Millisecond)
			cmd.SetErr(errOutage)
			return errOutage
		}
		return next(ctx, cmd)
	}
}

func (o *scriptsAway) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The process that ended a job crashes before it enqueues the callback: another worker
// sends it within seconds.
func TestCallbackAfterACrash(t *testing.T) {
	notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, r *receiver) {
		away := &scriptsAway{prefix: "asynq:{" + jobs.QueueNotify + "}:t:"}
		away.on.Store(true)
		s.queue.Client().AddHook(away)
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		s.wait("job-1")
		<-time.After(time.Minute)
		r.mu.Lock()
		require.Empty(t, r.got)
		r.mu.Unlock()
		away.on.Store(false)
		back := time.Now()
		assert.WithinDuration(t, back, r.deliveries(1)[0].at, 15*time.Second)
		<-time.After(time.Minute)
		assert.Len(t, r.deliveries(1), 1)
	})
}

// A worker is killed after the receiver has accepted the event: it is sent again, under
// the same ID, and this does not count as an attempt.
func TestKilledWhileSendingACallback(t *testing.T) {
	notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, r *receiver) {
		s.shared = true
		away := &outage{}
		s.queue.Client().AddHook(away)
		s.stopKeeping()
		ctx, kill := context.WithCancel(context.Background())
		s.ended = make(chan error, 1)
		s.worker, s.data = s.newWorker("data")
		go func() { s.ended <- s.worker.Run(ctx) }()
		asked := make(chan struct{})
		r.answers(func(_ http.ResponseWriter, req *http.Request) {
			away.on.Store(true)
			close(asked)
			<-req.Context().Done()
		})
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		<-asked
		kill()
		require.ErrorIs(t, <-s.ended, context.Canceled)
		require.NoError(t, s.data.Close())
		r.answers(nil)
		away.on.Store(false)
		s.worker, s.data = s.newWorker("data")
		s.run()
		got := r.deliveries(2)
		assert.Equal(t, got[0].id, got[1].id)
		assert.Less(t, got[1].at.Sub(got[0].at), 3*time.Minute)
		<-time.After(time.Minute)
		info := s.notice("job-1", jobs.NotificationCallback)
		assert.Equal(t, asynq.TaskStateCompleted, info.State)
		assert.Zero(t, info.Retried)
	})
}

// stopKeeping stops the worker and keeps its queue.
func (s *stack) stopKeeping() {
	s.t.Helper()
	s.worker.Stop()
	require.NoError(s.t, <-s.ended)
	require.NoError(s.t, s.data.Close())
}

// A service that uses asynq finds the event in its own queue, once.
func TestFollowUpReachesTheProducer(t *testing.T) {
	notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, r *receiver) {
		follow := &jobs.FollowUp{Type: "image:ready", Queue: "shop"}
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL, FollowUp: follow})
		called := r.deliveries(1)[0]
		<-time.After(time.Minute)
		inspector := asynq.NewInspectorFromRedisClient(s.redis)
		info, err := inspector.GetTaskInfo("shop", called.id)
		require.NoError(t, err)
		assert.Equal(t, "image:ready", info.Type)
		assert.JSONEq(t, called.body, string(info.Payload))
		_, err = jobs.NewInspector(s.redis).NotifyAgain(t.Context(), "job-1")
		require.NoError(t, err)
		<-time.After(time.Minute)
		queue, err := inspector.GetQueueInfo("shop")
		require.NoError(t, err)
		assert.Equal(t, 1, queue.Size)
		assert.Equal(t, asynq.TaskStateCompleted, s.notice("job-1", jobs.NotificationFollowUp).State)
	})
}

// A job that was retried sends an event with another ID when it ends; the event of the
// earlier end is dropped.
func TestRetriedJobSendsAnotherEvent(t *testing.T) {
	sim := &simulator.Simulator{Outcome: func(dashscope.CreateRequest) simulator.Outcome {
		return simulator.Outcome{Code: "DataInspectionFailed", Message: "no"}
	}}
	notifyBubble(t, sim, func(t *testing.T, s *stack, r *receiver) {
		r.answers(status(http.StatusInternalServerError))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		s.wait("job-1")
		got := r.deliveries(4) // the next attempt follows in five minutes
		first := got[0].id
		_, err := jobs.NewInspector(s.redis).Retry(t.Context(), "job-1", jobs.Decider{})
		require.NoError(t, err)
		r.answers(nil)
		require.Equal(t, jobs.StateFailed, s.wait("job-1").State)
		got = r.deliveries(5)
		assert.NotEqual(t, first, got[4].id)
		assert.Equal(t, s.get("job-1").EventID(), got[4].id)
		<-time.After(10 * time.Minute)
		assert.Len(t, r.deliveries(5), 5)
	})
}

// An invalid message in the notification queue is archived with a reason, and a
// notification of a deleted job is dropped.
func TestInvalidNotifications(t *testing.T) {
	notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, r *receiver) {
		client := asynq.NewClientFromRedisClient(s.redis)
		for id, payload := range map[string]string{
			"text": "hush", "name": `{"job_id":"../x"}`, "gone": `{"job_id":"gone","event_id":"gone.1","kind":"callback"}`,
		} {
			_, err := client.EnqueueContext(t.Context(), asynq.NewTask(jobs.TypeNotify, []byte(payload), asynq.TaskID(id), asynq.Queue(jobs.QueueNotify)))
			require.NoError(t, err)
		}
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1"})
		s.wait("job-1")
		encoded, err := json.Marshal(jobs.NotifyMessage{JobID: "job-1", EventID: s.get("job-1").EventID(), Kind: "pigeon"})
		require.NoError(t, err)
		_, err = client.EnqueueContext(t.Context(), asynq.NewTask(jobs.TypeNotify, encoded, asynq.TaskID("pigeon"), asynq.Queue(jobs.QueueNotify)))
		require.NoError(t, err)
		<-time.After(time.Minute)
		inspector := asynq.NewInspectorFromRedisClient(s.redis)
		for id, want := range map[string]string{"text": "the payload is not a danqing notification", "name": `id: "../x"`, "pigeon": "the job has no pigeon"} {
			info, err := inspector.GetTaskInfo(jobs.QueueNotify, id)
			require.NoError(t, err)
			assert.Equal(t, asynq.TaskStateArchived, info.State)
			assert.Contains(t, info.LastErr, want)
		}
		_, err = inspector.GetTaskInfo(jobs.QueueNotify, "gone")
		require.ErrorIs(t, err, asynq.ErrTaskNotFound)
		r.mu.Lock()
		defer r.mu.Unlock()
		assert.Empty(t, r.got)
	})
}

var _ net.Listener = (*receiver)(nil)
