package worker_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// Creates whose outcome is unknown are counted when that begins, and by how it ends.
func TestAmbiguousCreatesAreCounted(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		r := s.monitored()
		count := func() map[string]string {
			r.scrape(t)
			counts := map[string]string{}
			for _, outcome := range []string{"open", "adopted", "not_created", "held"} {
				counts[outcome] = r.value("danqing_ambiguous_creates_total", `account="default",model="wanx-v1",outcome="`+outcome+`"`)
			}
			return counts
		}
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		assert.Equal(t, map[string]string{"open": "0", "adopted": "0", "not_created": "0", "held": "0"}, count())
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1"})
		s.requireMadeOnce("job-1")
		assert.Equal(t, map[string]string{"open": "1", "adopted": "1", "not_created": "0", "held": "0"}, count())
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetBefore})
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		s.requireMadeOnce("job-2")
		assert.Equal(t, map[string]string{"open": "2", "adopted": "1", "not_created": "1", "held": "0"}, count())
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Times: -1, Reset: simulator.ResetBefore})
		s.enqueue(jobs.Request{ID: "job-3", Prompt: "prompt of job-3"})
		require.Equal(t, jobs.StateHeld, s.wait("job-3").State)
		assert.Equal(t, map[string]string{"open": "5", "adopted": "1", "not_created": "3", "held": "1"}, count(), "three creates were lost")
	})
}

// Callbacks are counted by what became of each attempt.
func TestCallbacksAreCounted(t *testing.T) {
	notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, to *receiver) {
		r := s.monitored()
		count := func() map[string]string {
			r.scrape(t)
			counts := map[string]string{}
			for _, result := range []string{"delivered", "failed", "abandoned", "dropped"} {
				counts[result] = r.value("danqing_notifications_total", `kind="callback",result="`+result+`"`)
			}
			return counts
		}
		to.answers(status(http.StatusBadGateway))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		to.deliveries(1)
		to.answers(nil)
		to.deliveries(2)
		<-time.After(time.Second)
		assert.Equal(t, map[string]string{"delivered": "1", "failed": "1", "abandoned": "0", "dropped": "0"}, count())
		to.answers(status(http.StatusGone))
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2", Callback: callbackURL})
		s.archivedNotice("job-2")
		assert.Equal(t, map[string]string{"delivered": "1", "failed": "1", "abandoned": "1", "dropped": "0"}, count())
		to.answers(status(http.StatusBadGateway))
		s.enqueue(jobs.Request{ID: "job-3", Prompt: "prompt of job-3", Callback: callbackURL})
		to.deliveries(4)
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:job-3").Err())
		<-time.After(time.Minute)
		assert.Equal(t, map[string]string{"delivered": "1", "failed": "2", "abandoned": "1", "dropped": "1"}, count())
	})
}
