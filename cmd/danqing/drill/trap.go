package drill

import (
	"log/slog"
	"sync"
	"time"
)

// trap waits for one request or command at a time.
type trap struct {
	mu  sync.Mutex
	set *sprung
	// second is what befalls the next create of a model, the other one of a pair.
	second map[string]act
}

// follow has something befall the next create of a model.
func (t *trap) follow(model string, what act) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.second == nil {
		t.second = map[string]act{}
	}
	t.second[model] = what
}

// followed returns what is to befall a create of a model, "" for nothing.
func (t *trap) followed(model string) act {
	t.mu.Lock()
	defer t.mu.Unlock()
	what := t.second[model]
	delete(t.second, model)
	return what
}

// sprung is a point that is waited for, or was met.
type sprung struct {
	point
	left int           // how many that fit go by first
	done chan struct{} // closed once what the point asks for is done
}

// arm waits for the nth that comes to a point, from 1.
func (t *trap) arm(p point, nth int) *sprung {
	s := &sprung{point: p, left: nth - 1, done: make(chan struct{})}
	t.rearm(s)
	return s
}

// rearm waits for the next one: this one was not what the point meant.
func (t *trap) rearm(s *sprung) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set = s
}

// disarm reports whether the point was still waited for, and is not any more.
func (t *trap) disarm(s *sprung) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set != s {
		return false
	}
	t.set = nil
	return true
}

// meet returns what is to be done to something on a route, nil for nothing. Who
// gets it closes done.
func (t *trap) meet(route string) *sprung {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set == nil || t.set.route != route {
		return nil
	}
	if t.set.left > 0 {
		t.set.left--
		return nil
	}
	s := t.set
	t.set = nil
	return s
}

// weather is what befalls everybody for a while.
type weather struct {
	mu    sync.Mutex
	until map[act]time.Time
}

func (w *weather) begin(a act, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.until == nil {
		w.until = map[act]time.Time{}
	}
	w.until[a] = time.Now().Add(d)
}

func (w *weather) is(a act) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Before(w.until[a])
}

// recovery measures how long after the end of a worker each model it worked is asked
// for again.
type recovery struct {
	mu      sync.Mutex
	works   map[string]*member // by model, who asked last
	dead    map[string]time.Time
	longest time.Duration
	last    time.Time // when something was done last
	log     *slog.Logger
}

// seen notes that a worker creates or queries a task of a model.
func (r *recovery) seen(m *member, model string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.works == nil {
		r.works, r.dead = map[string]*member{}, map[string]time.Time{}
	}
	r.works[model] = m
	if at, dead := r.dead[model]; dead {
		r.longest = max(r.longest, time.Since(at))
		r.log.Info("recovered", "model", model, "worker", m.name, "duration", time.Since(at))
		delete(r.dead, model)
	}
}

// disturbed notes that something was done, of which asynq may have lost a message.
func (r *recovery) disturbed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = time.Now()
}

// ended notes that a worker has died, or was told to stop.
func (r *recovery) ended(m *member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for model, by := range r.works {
		if _, dead := r.dead[model]; by == m && !dead {
			r.dead[model] = time.Now()
			r.log.Info("worker ended", "model", model, "worker", m.name)
		}
	}
}

// pending reports whether a model has not been asked for since its worker died.
func (r *recovery) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.dead) > 0
}

// quiet is how long ago something was done last, 0 if nothing was.
func (r *recovery) quiet() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last.IsZero() {
		return 0
	}
	return time.Since(r.last)
}

// over forgets who is dead: there may be no work any more that would show a
// successor.
func (r *recovery) over() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.dead)
	return r.longest
}

// tally counts what was done.
type tally struct {
	mu     sync.Mutex
	hit    map[string]int // by point
	missed map[string]int
	kills  int
	exits  int // workers that ended by themselves
}

func (t *tally) count(p point, met bool) {
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

func (t *tally) exited() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.exits++
}

func (t *tally) total() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	total := 0
	for _, n := range t.hit {
		total += n
	}
	return total
}
