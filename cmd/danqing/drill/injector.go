package drill

import (
	"log/slog"
	"sync"
	"time"
)

// injector waits for one request or command at a time and assigns the armed fault to
// it.
type injector struct {
	mu    sync.Mutex
	armed *armedFault
	// secondActions is the second action of a pair, by model.
	secondActions map[string]action
}

// armSecond applies an action to the next create of a model.
func (t *injector) armSecond(model string, what action) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.secondActions == nil {
		t.secondActions = map[string]action{}
	}
	t.secondActions[model] = what
}

// takeSecond returns the action for a create of a model, "" if there is none.
func (t *injector) takeSecond(model string) action {
	t.mu.Lock()
	defer t.mu.Unlock()
	what := t.secondActions[model]
	delete(t.secondActions, model)
	return what
}

// armedFault is a point that is waited for or was hit.
type armedFault struct {
	point
	skip int           // matches to let pass first
	done chan struct{} // closed once the action is done
}

// arm waits for the nth match of a point, counted from 1.
func (t *injector) arm(p point, nth int) *armedFault {
	s := &armedFault{point: p, skip: nth - 1, done: make(chan struct{})}
	t.rearm(s)
	return s
}

// rearm waits for the next match: this one was not meant by the point.
func (t *injector) rearm(s *armedFault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed = s
}

// disarm stops waiting for the fault and reports whether it was still armed.
func (t *injector) disarm(s *armedFault) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.armed != s {
		return false
	}
	t.armed = nil
	return true
}

// match returns the fault for a request on a route, nil if there is none. The caller
// closes done.
func (t *injector) match(route string) *armedFault {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.armed == nil || t.armed.route != route {
		return nil
	}
	if t.armed.skip > 0 {
		t.armed.skip--
		return nil
	}
	s := t.armed
	t.armed = nil
	return s
}

// outages are the failures that affect all workers for a while.
type outages struct {
	mu    sync.Mutex
	until map[action]time.Time
}

func (w *outages) begin(a action, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.until == nil {
		w.until = map[action]time.Time{}
	}
	w.until[a] = time.Now().Add(d)
}

func (w *outages) active(a action) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Before(w.until[a])
}

// recovery measures how long after the end of a worker each of its models gets its next
// request.
type recovery struct {
	mu          sync.Mutex
	lastWorker  map[string]*process // by model, the worker of the last request
	endedAt     map[string]time.Time
	longest     time.Duration
	lastFaultAt time.Time // when something was done last
	log         *slog.Logger
}

// requestSeen notes that a worker creates or queries a task of a model.
func (r *recovery) requestSeen(m *process, model string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lastWorker == nil {
		r.lastWorker, r.endedAt = map[string]*process{}, map[string]time.Time{}
	}
	r.lastWorker[model] = m
	if at, dead := r.endedAt[model]; dead {
		r.longest = max(r.longest, time.Since(at))
		r.log.Info("recovered", "model", model, "worker", m.name, "duration", time.Since(at))
		delete(r.endedAt, model)
	}
}

// faultInjected notes the time of a fault; asynq may have lost a message by it.
func (r *recovery) faultInjected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastFaultAt = time.Now()
}

// workerEnded notes that a worker has died or was stopped.
func (r *recovery) workerEnded(m *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for model, by := range r.lastWorker {
		if _, dead := r.endedAt[model]; by == m && !dead {
			r.endedAt[model] = time.Now()
			r.log.Info("worker ended", "model", model, "worker", m.name)
		}
	}
}

// pending reports whether a model has had no request since its worker ended.
func (r *recovery) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.endedAt) > 0
}

// sinceLastFault returns the time since the last fault, 0 if there was none.
func (r *recovery) sinceLastFault() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lastFaultAt.IsZero() {
		return 0
	}
	return time.Since(r.lastFaultAt)
}

// finish returns the longest recovery. It drops the ended workers: without work left,
// no successor would show.
func (r *recovery) finish() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.endedAt)
	return r.longest
}

// counters counts the faults.
type counters struct {
	mu     sync.Mutex
	hit    map[string]int // by point
	missed map[string]int
	kills  int
	exits  int // workers that ended by themselves
}

func (t *counters) count(p point, met bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hit == nil {
		t.hit, t.missed = map[string]int{}, map[string]int{}
	}
	if !met {
		t.missed[p.name]++
		return
	}
	t.hit[p.name]++
	if p.kills() {
		t.kills++
	}
}

func (t *counters) exited() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.exits++
}

func (t *counters) total() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	total := 0
	for _, n := range t.hit {
		total += n
	}
	return total
}
