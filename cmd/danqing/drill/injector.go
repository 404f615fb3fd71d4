package drill

import (
	"slices"
	"sync"
	"time"
)

// injector waits for requests and commands and assigns the armed faults to them.
type injector struct {
	mu    sync.Mutex
	armed []*armedFault
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
	t.armed = append(t.armed, s)
}

// disarm stops waiting for the fault and reports whether it was still armed.
func (t *injector) disarm(s *armedFault) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := len(t.armed)
	t.armed = slices.DeleteFunc(t.armed, func(armed *armedFault) bool { return armed == s })
	return len(t.armed) < before
}

// match returns the fault for a request on a route, nil if there is none. The caller
// closes done.
func (t *injector) match(route string) *armedFault {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.armed, func(armed *armedFault) bool { return armed.route == route })
	if i < 0 {
		return nil
	}
	s := t.armed[i]
	if s.skip > 0 {
		s.skip--
		return nil
	}
	t.armed = slices.Delete(t.armed, i, i+1)
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

// counters counts the faults.
type counters struct {
	mu     sync.Mutex
	hit    map[string]int // by point
	missed map[string]int
	kills  int
	exits  int // workers that ended by themselves
	// problems are broken guarantees that were seen while the faults were injected.
	problems []string
}

func (t *counters) problem(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.problems = append(t.problems, text)
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
