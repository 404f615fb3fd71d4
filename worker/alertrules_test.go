package worker_test

import (
	"flag"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/metrics"
)

// monitored restarts the stack's worker with metrics, and returns what scrapes it and a "danqing
// serve" beside it.
func (s *stack) monitored() *recording {
	s.t.Helper()
	s.stop()
	r := &recording{targets: []*target{{instance: "worker:9464"}, {instance: "serve:9464"}}}
	s.shared = true
	configure := s.configure
	s.configure = func(cfg *worker.Config) {
		if configure != nil {
			configure(cfg)
		}
		r.ofWorker = metrics.New("test")
		cfg.Metrics = r.ofWorker
	}
	s.start()
	ofServe := metrics.New("test")
	ofServe.WatchQueue(s.redis)
	r.targets[1].registry = ofServe.Registry()
	r.answer(s)
	return r
}

// answer makes the stack's worker answer scrapes.
func (r *recording) answer(s *stack) {
	r.ofWorker.WatchQueue(s.redis)
	r.targets[0].registry = r.ofWorker.Registry()
}

// hours is how long the healthy day is: the whole one takes 20 s.
var hours = flag.Int("hours", 3, "simulated hours without trouble in which no alert may fire")

// No alert fires on a day on which nothing is wrong: batches, single jobs, an hour with nothing to
// do, a pause by an operator, and a restart of the worker and of Prometheus's target.
func TestAlertsAreSilentOnAHealthyDay(t *testing.T) {
	var r *recording
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.budget = 1000 * simulator.MicroYuanPerImage
		r = s.monitored()
		made := 0
		for hour := range unlessRaced(*hours, 1) {
			for range []int{30, 2, 0}[hour%3] {
				made++
				s.enqueue(jobs.Request{ID: fmt.Sprintf("job-%d", made), Prompt: fmt.Sprintf("prompt %d", made)})
			}
			r.watch(t, 20*time.Minute)
			switch hour {
			case 1:
				s.pause(true)
				s.enqueue(jobs.Request{ID: "paused", Prompt: "paused"})
				made++
				r.watch(t, 30*time.Minute)
				s.pause(false)
			case 2:
				s.leave()
				r.targets[0].registry = nil
				r.watch(t, 2*time.Minute)
				s.comeBack("data")
				r.answer(s)
				r.watch(t, 28*time.Minute)
			default:
				r.watch(t, 30*time.Minute)
			}
			r.watch(t, 10*time.Minute)
		}
		require.Len(t, s.sim.Tasks(), made)
	})
	r.requireAlerts(t, nil)
}

// pause pauses the account as an operator does, or resumes it.
func (s *stack) pause(is bool) {
	s.t.Helper()
	change := jobs.NewInspector(s.redis).ResumeAccount
	if is {
		change = jobs.NewInspector(s.redis).PauseAccount
	}
	require.NoError(s.t, change(s.t.Context(), "default", jobs.Decider{}))
}

// Each trouble fires its alert while it lasts, and no other.
func TestAlertsFire(t *testing.T) {
	const lane = "wanx-v1"
	ofLane := map[string]string{"account": "default", "model": lane}
	with := func(labels map[string]string, more ...string) map[string]string {
		all := maps.Clone(labels)
		if all == nil {
			all = map[string]string{}
		}
		for i := 0; i < len(more); i += 2 {
			all[more[i]] = more[i+1]
		}
		return all
	}
	for name, c := range map[string]struct {
		budget  int64
		trouble func(*testing.T, *stack, *recording)
		want    firing
	}{
		"held": {
			trouble: func(t *testing.T, s *stack, r *recording) {
				t.Helper()
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
				s.requireMadeOnce("first")
				s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Times: -1, Reset: simulator.ResetBefore})
				s.enqueueMany(1)
				require.Equal(t, jobs.StateHeld, s.wait("job-1").State)
				r.watch(t, 5*time.Minute)
			},
			want: firing{"DanqingJobHeld": {{with(nil, "severity", "warning", "code", "SubmitAmbiguous"), "jobs that wait for a decision, by code SubmitAmbiguous: 1"}}},
		},
		"no worker": {
			trouble: func(t *testing.T, s *stack, r *recording) {
				t.Helper()
				s.leave()
				r.targets = r.targets[1:]
				s.enqueueMany(3)
				r.watch(t, 10*time.Minute)
				s.comeBack("data")
			},
			want: firing{"DanqingNoWorker": {{map[string]string{"severity": "critical", "model": lane}, "wanx-v1: no worker for waiting jobs: 3"}}},
		},
		"slot idle": {
			trouble: func(t *testing.T, _ *stack, r *recording) {
				t.Helper()
				for range 25 { // as a lane counts that starts nothing
					r.watch(t, time.Minute)
					r.ofWorker.Used("default", lane, 0, map[jobs.PauseReason]time.Duration{"": 30 * time.Second})
				}
			},
			want: firing{"DanqingSlotIdle": {{with(ofLane, "severity", "warning"), "wanx-v1 of account default: idle slots while jobs wait: 0.5"}}},
		},
		"budget nearly spent": {
			budget: 10 * simulator.MicroYuanPerImage,
			trouble: func(t *testing.T, s *stack, r *recording) {
				t.Helper()
				for _, id := range s.enqueueMany(9) {
					s.requireMadeOnce(id)
				}
				r.watch(t, 5*time.Minute)
			},
			want: firing{"DanqingBudgetNearlySpent": {{map[string]string{"severity": "warning", "account": "default"}, "account default: left of its budget of today, in yuan: 0.16"}}},
		},
		"lane paused": {
			trouble: func(t *testing.T, s *stack, r *recording) {
				t.Helper()
				s.sim.Revoke("sk-test")
				s.enqueueMany(1)
				r.watch(t, 15*time.Minute)
			},
			want: firing{"DanqingLanePaused": {{with(ofLane, "severity", "warning", "reason", "account"), "wanx-v1 of account default starts no jobs: account"}}},
		},
		"image not stored": {
			trouble: func(t *testing.T, s *stack, r *recording) {
				t.Helper()
				s.enqueueMany(1)
				s.state("job-1", jobs.StateGenerating)
				s.away.Store(true)
				s.state("job-1", jobs.StateStoring)
				<-time.After(time.Minute)
				s.leave()
				r.targets = r.targets[1:]
				<-time.After(11 * time.Hour)
				r.watch(t, 2*time.Hour-time.Minute)
				s.away.Store(false)
				s.comeBack("data")
			},
			want: firing{
				"DanqingImageNotStored":  {{map[string]string{"severity": "warning"}, "an image that is paid for has not been stored for 13.0 hours"}},
				"DanqingImageNearlyLost": {{map[string]string{"severity": "critical"}, "an image that is paid for has not been stored for 13.0 hours"}},
			},
		},
		"callback abandoned": {
			trouble: func(t *testing.T, _ *stack, r *recording) {
				t.Helper()
				r.ofWorker.Notified(jobs.NotificationCallback, "abandoned")
				r.watch(t, 10*time.Minute)
			},
			want: firing{"DanqingNotificationAbandoned": {{map[string]string{"severity": "warning", "kind": "callback"}, "given up, as the receiver does not take it: callback"}}},
		},
		"throttled": {
			trouble: func(t *testing.T, s *stack, r *recording) {
				t.Helper()
				s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Times: -1, Status: http.StatusTooManyRequests, Code: "Throttling.RateQuota"})
				s.enqueueMany(1)
				r.watch(t, 40*time.Minute)
			},
			want: firing{"DanqingThrottled": {{with(ofLane, "severity", "warning"), "wanx-v1 of account default: DashScope throttles more than a fifth of the creates"}}},
		},
		"down": {
			trouble: func(t *testing.T, _ *stack, r *recording) {
				t.Helper()
				r.targets[0].registry = nil
				away := queue.Open()
				without := metrics.New("test")
				without.WatchQueue(away.Client())
				require.NoError(t, away.Close())
				r.targets[1].registry = without.Registry()
				r.watch(t, 10*time.Minute)
			},
			want: firing{
				"DanqingDown":             {{map[string]string{"severity": "critical", "job": "danqing", "instance": "worker:9464"}, "worker:9464 does not answer"}},
				"DanqingRedisUnavailable": {{map[string]string{"severity": "critical", "job": "danqing", "instance": "serve:9464"}, "serve:9464 cannot read the queue from Redis"}},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r *recording
			bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
				s.budget = c.budget
				r = s.monitored()
				r.watch(t, 2*time.Minute)
				c.trouble(t, s, r)
			})
			r.requireAlerts(t, c.want, slices.Collect(maps.Keys(c.want))...)
		})
	}
}
