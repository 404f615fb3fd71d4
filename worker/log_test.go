package worker_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// testLogger writes to the test's log, which is shown if it fails.
func testLogger(tb testing.TB) *slog.Logger {
	tb.Helper()
	return slog.New(slog.NewTextHandler(tb.Output(), nil))
}

// logText is a log that a test reads.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// messages returns how often each message is in the log.
func (l *logText) messages() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counted := map[string]int{}
	for _, m := range regexp.MustCompile(`msg=("[^"]*"|\S*)`).FindAllStringSubmatch(l.text.String(), -1) {
		counted[m[1]]++
	}
	return counted
}

// What goes away has one line in the log when it goes and one when it is back. The line of a task
// has its cost, and a callback is delivered or failed.
func TestLog(t *testing.T) {
	var log logText
	sim := &simulator.Simulator{}
	sim.Script(
		simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusBadRequest, Code: "Arrearage", Times: 3},
		simulator.Fault{Route: simulator.RouteQuery, Status: http.StatusServiceUnavailable, Code: "ModelUnavailable", Times: 3},
	)
	notifyBubbleWith(t, sim, func(cfg *worker.Config) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) }, func(t *testing.T, s *stack, r *receiver) {
		r.answers(status(http.StatusBadGateway))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", Callback: callbackURL})
		s.state("job-1", jobs.StateGenerating)
		s.away.Store(true)
		<-time.After(10 * time.Minute)
		s.away.Store(false)
		s.wait("job-1")
		r.deliveries(2)
		r.answers(nil)
		r.deliveries(3)
		s.stop()
		assert.Equal(t, map[string]int{
			`"lane opened"`: 1, `"lane paused: the account needs attention"`: 1, `"lane working again"`: 1, `"task submitted"`: 1,
			`"task query failed, retrying"`: 1, `"task query answered again"`: 1, `"task succeeded"`: 1,
			`"image not stored, retrying"`: 1, `"job stored"`: 1, `"callback failed"`: 2, `"callback delivered"`: 1, `"lane closed"`: 1,
		}, log.messages(), log.text.String())
		assert.Regexp(t, `msg="task succeeded" .* images=1 cost_yuan=0.16\n`, log.text.String())
	})
}
