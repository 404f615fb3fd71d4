package worker_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/metrics"
)

// alertURL has a secret of each kind.
const alertURL = "slack+http://chat.example/services/hush-token"

// alertStack is a queue whose events are sent to a robot, in simulated time.
type alertStack struct {
	*receiver

	redis redis.UniversalClient
	store *jobs.Store
	url   string
}

// alertBubble runs a test with a robot. Its worker exists in Redis only, unless the test starts one.
func alertBubble(t *testing.T, test func(*testing.T, *alertStack)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := queue.Open()
		s := &alertStack{receiver: newReceiver(t), redis: q.Client(), store: jobs.NewStore(q.Client()), url: alertURL}
		s.server.Handler = http.HandlerFunc(s.receive)
		defer func() { s.end(); require.NoError(t, q.Close()) }()
		test(t, s)
	})
}

// receive is the robot.
func (s *alertStack) receive(w http.ResponseWriter, r *http.Request) {
	var body struct{ Text string }
	text, err := io.ReadAll(r.Body)
	assert.NoError(s.t, err)
	assert.NoError(s.t, json.Unmarshal(text, &body))
	s.mu.Lock()
	s.got = append(s.got, delivery{at: time.Now(), body: body.Text})
	answer := s.answer
	s.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	_, _ = io.WriteString(w, "ok")
}

func (s *alertStack) receivers() []*worker.AlertReceiver {
	r, err := worker.ParseAlertReceiver(s.url, "")
	require.NoError(s.t, err)
	return []*worker.AlertReceiver{r}
}

// process starts a process that sends alerts.
func (s *alertStack) process() (stop func()) {
	s.t.Helper()
	stop, err := worker.StartAlerts(s.t.Context(), worker.AlertConfig{
		Redis: s.redis, Receivers: s.receivers(), Metrics: metrics.New("test"), Log: testLogger(s.t), Dial: s.dial, QueueInterval: 5 * time.Second,
	})
	require.NoError(s.t, err)
	return stop
}

// after lets time pass, and returns the messages since the last call.
func (s *alertStack) after(d time.Duration) []string {
	s.t.Helper()
	<-time.After(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	var texts []string
	for _, d := range s.got {
		texts = append(texts, d.body)
	}
	s.got = nil
	return texts
}

// job enqueues a job and changes its record.
func (s *alertStack) job(req jobs.Request, change func(*jobs.Record)) {
	s.t.Helper()
	req.Prompt = "hush-prompt"
	_, err := jobs.NewClient(s.redis).Enqueue(s.t.Context(), req)
	require.NoError(s.t, err)
	s.change(req.ID, change)
}

func (s *alertStack) change(id string, change func(*jobs.Record)) {
	s.t.Helper()
	rec, err := s.store.Get(s.t.Context(), id)
	require.NoError(s.t, err)
	next := *rec
	change(&next)
	require.NoError(s.t, s.store.Update(s.t.Context(), rec, &next))
}

func held(rec *jobs.Record) {
	rec.State, rec.Attempt, rec.Code, rec.Message = jobs.StateHeld, 1, jobs.CodeSubmitAmbiguous, "two tasks match"
}

func ended(rec *jobs.Record) {
	rec.State, rec.FinishedAt, rec.CostMicroYuan = jobs.StateSucceeded, time.Now().UTC(), 160_000
}

// lane publishes the state of a lane that a worker holds.
func (s *alertStack) lane(status jobs.LaneStatus) {
	s.t.Helper()
	status.Account, status.Model, status.At = "east", "wanx-v1", time.Now().UTC()
	require.NoError(s.t, s.store.SetLane(s.t.Context(), status))
	s.lease("w")
}

func (s *alertStack) lease(holder string) {
	s.t.Helper()
	require.NoError(s.t, s.redis.Set(s.t.Context(), rediskey.Lane("east", "wanx-v1", rediskey.LaneLease), holder, 0).Err())
}

// A held job is alerted once, whatever number of processes there are and however often they restart; and
// once more if it is held again.
func TestAlertOfAHeldJob(t *testing.T) {
	alertBubble(t, func(t *testing.T, s *alertStack) {
		stops := []func(){s.process(), s.process(), s.process()}
		s.job(jobs.Request{ID: "cat"}, held)
		assert.Equal(t, []string{"Danqing: job cat is held for a decision: SubmitAmbiguous: two tasks match\n  → danqing jobs show cat"}, s.after(2*time.Minute))
		for _, stop := range stops {
			stop()
		}
		stop := s.process()
		assert.Empty(t, s.after(5*time.Minute))
		_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "cat", jobs.Resolution{BuyAgain: true}, jobs.Decider{})
		require.NoError(t, err)
		assert.Empty(t, s.after(4*time.Minute))
		s.change("cat", func(rec *jobs.Record) { held(rec); rec.Attempt = 2 })
		assert.Len(t, s.after(2*time.Minute), 1)
		stop()
	})
}

// Many events of a minute are one message with their numbers; the next minute has another one.
func TestAlertStorm(t *testing.T) {
	alertBubble(t, func(t *testing.T, s *alertStack) {
		defer s.process()()
		<-time.After(time.Minute + time.Second)
		for i := range 40 {
			s.job(jobs.Request{ID: fmt.Sprintf("cat-%02d", i)}, held)
		}
		s.lane(jobs.LaneStatus{State: jobs.LanePaused, Reason: jobs.PauseBudget, DailyBudgetMicroYuan: 5_000_000})
		texts := s.after(90 * time.Second)
		require.Len(t, texts, 1)
		assert.Contains(t, texts[0], "Danqing: jobs held for a decision: 40\n  job cat-")
		assert.Contains(t, texts[0], "\n  … and 35 more\naccount east has reached its budget for today: 0 of 5 yuan are spent\n  → danqing spend")
		s.job(jobs.Request{ID: "dog"}, held)
		assert.Len(t, s.after(90*time.Second), 1)
		assert.Empty(t, s.after(5*time.Minute))
	})
}

// A receiver that does not answer gets the message later, as callbacks are sent again; a process that is
// killed meanwhile, with the message half queued or half sent, is followed by another one.
func TestAlertsAreDurable(t *testing.T) {
	alertBubble(t, func(t *testing.T, s *alertStack) {
		s.answers(status(http.StatusBadGateway))
		away := &scriptsAway{prefix: "asynq:{" + jobs.QueueAlert + "}:t:"}
		s.redis.AddHook(away)
		away.on.Store(true) // the message is written with the condition, and not queued
		stop := s.process()
		s.job(jobs.Request{ID: "cat"}, held)
		assert.Empty(t, s.after(5*time.Minute))
		stop()
		away.on.Store(false)
		stop = s.process()
		assert.Len(t, s.after(time.Minute), 2, "after 5 seconds again")
		stop()
		stop = s.process()
		assert.NotEmpty(t, s.after(10*time.Minute))
		s.answers(nil)
		assert.Len(t, s.after(20*time.Minute), 1)
		assert.Empty(t, s.after(20*time.Minute))
		stop()

		s.answers(status(http.StatusGone))
		defer s.process()()
		s.change("cat", func(rec *jobs.Record) { rec.Attempt = 2 })
		assert.Len(t, s.after(10*time.Minute), 1)
		archived, err := asynq.NewInspectorFromRedisClient(s.redis).ListArchivedTasks(jobs.QueueAlert)
		require.NoError(t, err)
		require.Len(t, archived, 1)
		assert.Equal(t, "slack at chat.example: the receiver answered 410 Gone: the receiver accepts no more events (danqing alert test tries the receiver)", archived[0].LastErr)
		for key := range dumpOf(t, s.redis) {
			assert.NotContains(t, key, "hush-token")
		}
	})
}

// dumpOf returns all that a Redis has of alerts.
func dumpOf(t *testing.T, rdb redis.UniversalClient) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, pattern := range []string{rediskey.Alerts, "asynq:*" + jobs.QueueAlert + "*"} {
		keys, err := rdb.Keys(t.Context(), pattern).Result()
		require.NoError(t, err)
		for _, key := range keys {
			fields, err := rdb.HGetAll(t.Context(), key).Result()
			if err == nil {
				found[fmt.Sprint(key, fields)] = true
			}
		}
	}
	require.Greater(t, len(found), 1)
	return found
}

// A message whose receiver this process does not have is left to those that do, for a day.
func TestAlertOfAnotherReceiver(t *testing.T) {
	alertBubble(t, func(t *testing.T, s *alertStack) {
		s.url = "slack+http://other.example/hush"
		s.answers(status(http.StatusBadGateway))
		stop := s.process()
		s.job(jobs.Request{ID: "cat"}, held)
		assert.NotEmpty(t, s.after(2*time.Minute))
		stop()
		s.url = alertURL
		s.answers(nil)
		stop = s.process()
		assert.Empty(t, s.after(5*time.Minute))
		s.url = "slack+http://other.example/hush"
		other := s.process()
		assert.Len(t, s.after(20*time.Minute), 1)
		stop()
		other()
	})
}

// A lane that is paused is alerted after a minute, and once it works for a minute; not each of its probes,
// nor the pauses that nobody has to know of.
func TestAlertOfAPausedLane(t *testing.T) {
	alertBubble(t, func(t *testing.T, s *alertStack) {
		defer s.process()()
		open := jobs.LaneStatus{State: jobs.LaneOpen}
		paused := jobs.LaneStatus{State: jobs.LanePaused, Reason: jobs.PauseAccount, Message: "lane paused: Arrearage: pay"}
		s.lane(open)
		assert.Empty(t, s.after(5*time.Minute))
		s.lane(paused)
		assert.Empty(t, s.after(30*time.Second))
		s.lane(open) // for a moment
		s.lane(paused)
		assert.Equal(t, []string{"Danqing: lane east:wanx-v1 is paused: Arrearage: pay\n  → danqing jobs list"}, s.after(3*time.Minute))
		for range 5 {
			s.lane(open)
			assert.Empty(t, s.after(5*time.Second))
			s.lane(paused)
			assert.Empty(t, s.after(5*time.Minute))
		}
		s.lease("") // the worker is gone
		assert.Empty(t, s.after(5*time.Minute))
		s.lane(open)
		assert.Equal(t, []string{"Danqing: lane east:wanx-v1 works again"}, s.after(3*time.Minute))
		for _, reason := range []jobs.PauseReason{jobs.PauseOperator, jobs.PauseThrottled} {
			paused.Reason = reason
			s.lane(paused)
			assert.Empty(t, s.after(4*time.Minute))
			s.lane(open)
			assert.Empty(t, s.after(4*time.Minute))
		}
	})
}

// An account's budget is alerted at 80 % and when it is reached, each once a day.
func TestAlertOfABudget(t *testing.T) {
	alertBubble(t, func(t *testing.T, s *alertStack) {
		<-time.After(12 * time.Hour) // simulated time begins at 8:00 in UTC+8
		stop := s.process()
		s.lane(jobs.LaneStatus{State: jobs.LaneOpen, DailyBudgetMicroYuan: 1_000_000})
		n := 0
		spend := func(microYuan int64) {
			n++
			charge := ledger.Charge{Account: "east", At: time.Now(), Model: "wanx-v1", Images: 1, MicroYuan: microYuan}
			_, err := ledger.New(s.redis).Settle(t.Context(), ledger.Settlement{Charge: charge, TaskID: "task-" + strconv.Itoa(n)})
			require.NoError(t, err)
		}
		spend(790_000)
		assert.Empty(t, s.after(2*time.Minute))
		spend(10_000)
		assert.Equal(t, []string{"Danqing: account east has spent 80 % of its budget for today: 0.8 of 1 yuan\n  → danqing spend"}, s.after(2*time.Minute))
		spend(200_000)
		assert.Equal(t, []string{"Danqing: account east has reached its budget for today: 1 of 1 yuan are spent\n  → danqing spend"}, s.after(2*time.Minute))
		stop()
		assert.Empty(t, s.after(12*time.Hour))
		defer s.process()()
		assert.Empty(t, s.after(2*time.Minute), "nothing is spent on this day")
		spend(1_000_000)
		assert.Len(t, s.after(2*time.Minute), 1)
	})
}

// An image that was paid for and is not in the bucket an hour later is alerted once.
func TestAlertOfAnUnstoredImage(t *testing.T) {
	alertBubble(t, func(t *testing.T, s *alertStack) {
		s.lane(jobs.LaneStatus{State: jobs.LaneOpen})
		s.job(jobs.Request{ID: "cat"}, func(rec *jobs.Record) {
			rec.State, rec.Attempt, rec.GeneratedAt = jobs.StateStoring, 1, time.Now().UTC()
		})
		<-time.After(55 * time.Minute)
		defer s.process()()
		assert.Empty(t, s.after(4*time.Minute))
		texts := s.after(3 * time.Minute)
		require.Len(t, texts, 1)
		assert.Contains(t, texts[0], "the images of job cat are paid for and not in the bucket; they were made at 2000-01-01 00:00:00Z")
		assert.Empty(t, s.after(5*time.Minute))
	})
}

// Without a worker whoever is left says that jobs wait; a worker that restarts is no news.
func TestAlertOfNoWorker(t *testing.T) {
	alertBubble(t, func(t *testing.T, s *alertStack) {
		defer s.process()()
		s.lane(jobs.LaneStatus{State: jobs.LaneOpen})
		s.job(jobs.Request{ID: "cat"}, func(*jobs.Record) {})
		s.job(jobs.Request{ID: "dog"}, func(*jobs.Record) {})
		assert.Empty(t, s.after(5*time.Minute))
		s.lease("")
		assert.Empty(t, s.after(3*time.Minute))
		s.lease("w")
		assert.Empty(t, s.after(3*time.Minute))
		s.lease("")
		assert.Equal(t, []string{"Danqing: no worker has a lane for wanx-v1, and jobs of it wait: 2\n  → DANQING_MODELS=wanx-v1 danqing worker"}, s.after(8*time.Minute))
		assert.Empty(t, s.after(5*time.Minute))
	})
}

// A batch is over once none of its jobs is open, also if it ended while no round was run; a batch with a job
// that waits or is held is not over. If it is continued it is over once more.
func TestAlertOfABatch(t *testing.T) {
	alertBubble(t, func(t *testing.T, s *alertStack) {
		stop := s.process()
		for _, id := range []string{"1", "2", "3"} {
			s.job(jobs.Request{ID: "spring." + id, Batch: "spring"}, func(*jobs.Record) {})
		}
		s.job(jobs.Request{ID: "fall.1", Batch: "fall"}, func(*jobs.Record) {})
		s.lane(jobs.LaneStatus{State: jobs.LaneOpen})
		s.change("spring.1", ended)
		assert.Empty(t, s.after(5*time.Minute))
		s.change("spring.2", func(rec *jobs.Record) { held(rec) })
		assert.Len(t, s.after(5*time.Minute), 1, "held")
		s.change("spring.3", func(rec *jobs.Record) { ended(rec); rec.State = jobs.StateFailed })
		assert.Empty(t, s.after(5*time.Minute))
		s.change("spring.2", ended)
		over := "Danqing: batch spring is over: 2 jobs succeeded, 1 failed, 0 were canceled; it cost 0.48 yuan"
		assert.Equal(t, []string{over}, s.after(5*time.Minute))
		assert.Empty(t, s.after(5*time.Minute))
		stop()
		s.change("fall.1", ended)
		assert.Empty(t, s.after(3*time.Hour))
		stop = s.process()
		assert.Equal(t, []string{"Danqing: batch fall is over: 1 jobs succeeded, 0 failed, 0 were canceled; it cost 0.16 yuan"}, s.after(5*time.Minute))
		s.job(jobs.Request{ID: "spring.4", Batch: "spring"}, ended)
		assert.Equal(t, []string{"Danqing: batch spring is over: 3 jobs succeeded, 1 failed, 0 were canceled; it cost 0.64 yuan"}, s.after(5*time.Minute))
		stop()
		defer s.process()()
		assert.Empty(t, s.after(5*time.Minute))
	})
}

// A worker tells of a callback that it gives up, and of nothing else on a good day; what arrives does not
// have what is secret in the callback.
func TestAlertOfAWorker(t *testing.T) {
	robot := &alertStack{url: alertURL}
	notifyBubbleWith(t, &simulator.Simulator{}, func(cfg *worker.Config) {
		robot.receiver = newReceiver(t)
		robot.server.Handler = http.HandlerFunc(robot.receive)
		cfg.Alerts, cfg.DialAlert = robot.receivers(), robot.dial
	}, func(t *testing.T, s *stack, r *receiver) {
		defer robot.end()
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		s.wait("job-1")
		assert.Empty(t, robot.after(5*time.Minute))
		r.answers(status(http.StatusGone))
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2", Callback: callbackURL})
		s.wait("job-2")
		texts := robot.after(3 * time.Minute)
		require.Len(t, texts, 1)
		assert.Equal(t, "Danqing (simulated): the callback of job job-2 was given up: callback to shop.example: the receiver answered 410 Gone: the receiver accepts no more events (danqing jobs notify job-2 sends it again)", texts[0])
	})
}
