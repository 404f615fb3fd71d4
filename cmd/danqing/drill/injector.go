package drill

import (
	"log/slog"
	"sync"
	"time"
)

// trap waits for one request or command at a time.
type injector struct {
	mu  sync.Mutex
	armed *armedFault
	// second is what befalls the next create of a model, the other one of a pair.
	secondActions map[string]action
}

// follow has something befall the next create of a model.
func (t *injector) armSecond(model string, what action) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.secondActions == nil {
		t.secondActions = map[string]action{}
	}
	t.secondActions[model] = what
}

// followed returns what is to befall a create of a model, "" for nothing.
func (t *injector) takeSecond(model string) action {
	t.mu.Lock()
	defer t.mu.Unlock()
	what := t.secondActions[model]
	delete(t.secondActions, model)
	return what
}

// sprung is a point that is waited for, or was met.
type armedFault struct {
	point
	skip int           // how many that fit go by first
	done chan struct{} // closed once what the point asks for is done
}

// arm waits for the nth that comes to a point, from 1.
func (t *injector) arm(p point, nth int) *armedFault {
	s := &armedFault{point: p, skip: nth - 1, done: make(chan struct{})}
	t.rearm(s)
	return s
}

// rearm waits for the next one: this one was not what the point meant.
func (t *injector) rearm(s *armedFault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed = s
}

// disarm reports whether the point was still waited for, and is not any more.
func (t *injector) disarm(s *armedFault) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.armed != s {
		return false
	}
	t.armed = nil
	return true
}

// meet returns what is to be done to something on a route, nil for nothing. Who
// gets it closes done.
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

// weather is what befalls everybody for a while.
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

// recovery measures how long after the end of a worker each model it worked is asked
// for again.
type recovery struct {
	mu      sync.Mutex
	lastWorker   map[string]*process // by model, who asked last
	endedAt    map[string]time.Time
	longest time.Duration
	lastFaultAt    time.Time // when something was done last
	log     *slog.Logger
}

// seen notes that a worker creates or queries a task of a model.
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

// disturbed notes that something was done, of which asynq may have lost a message.
func (r *recovery) faultInjected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastFaultAt = time.Now()
}

// ended notes that a worker has died, or was told to stop.
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

// pending reports whether a model has not been asked for since its worker died.
func (r *recovery) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.endedAt) > 0
}

// quiet is how long ago something was done last, 0 if nothing was.
func (r *recovery) sinceLastFault() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lastFaultAt.IsZero() {
		return 0
	}
	return time.Since(r.lastFaultAt)
}

// over forgets who is dead: there may be no work any more that would show a
// successor.
func (r *recovery) finish() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.endedAt)
	return r.longest
}

// tally counts what was done.
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
