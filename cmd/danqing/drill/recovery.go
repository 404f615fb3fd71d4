package drill

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

const (
	// longRecovery is the recovery that the report explains.
	longRecovery = time.Minute
	// watchAfter is how long a recovery takes before its lane is watched, every
	// watchInterval.
	watchAfter, watchInterval = 5 * time.Second, time.Second
)

// recovery measures how long after the end of a worker each of its models gets its next
// request, and what happened meanwhile.
type recovery struct {
	mu          sync.Mutex
	lastWorker  map[string]*process // by model, the worker of the last request
	pendingOf   map[string]*waiting // by model
	longest     time.Duration
	explained   []string  // the recoveries longer than longRecovery
	lastFaultAt time.Time // when something was done last
	log         *slog.Logger
}

// waiting is a model without a request since its worker ended.
type waiting struct {
	since  time.Time
	worker *process
	events []string // faults, and what the lane reported, in order
	seen   string   // last state of the lane
}

func (w *waiting) add(event string) {
	w.events = append(w.events, fmt.Sprintf("%.0f s: %s", time.Since(w.since).Seconds(), event))
}

// requestSeen notes that a worker creates or queries a task of a model.
func (r *recovery) requestSeen(m *process, model string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lastWorker == nil {
		r.lastWorker, r.pendingOf = map[string]*process{}, map[string]*waiting{}
	}
	r.lastWorker[model] = m
	w, pending := r.pendingOf[model]
	if !pending {
		return
	}
	delete(r.pendingOf, model)
	took := time.Since(w.since)
	r.longest = max(r.longest, took)
	r.log.Info("recovered", "model", model, "worker", m.name, "duration", took)
	if took > longRecovery {
		r.explained = append(r.explained, fmt.Sprintf("%.0f s without a request for %s after the end of %s: %s",
			took.Seconds(), model, w.worker.name, strings.Join(w.events, "; ")))
	}
}

// faultInjected notes a fault, or with "" its end; asynq may have lost a message by it.
func (r *recovery) faultInjected(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastFaultAt = time.Now()
	for _, w := range r.pendingOf {
		if name != "" {
			w.add("fault " + name)
		}
	}
}

// workerEnded notes that a worker has died or was stopped.
func (r *recovery) workerEnded(m *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for model, by := range r.lastWorker {
		if w, pending := r.pendingOf[model]; pending {
			w.add(m.name + " ended")
			continue
		}
		if by == m {
			r.pendingOf[model] = &waiting{since: time.Now(), worker: m}
			r.log.Info("worker ended", "model", model, "worker", m.name)
		}
	}
}

// pending returns the models that have had no request for so long since their worker
// ended.
func (r *recovery) pending(atLeast time.Duration) (models []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for model, w := range r.pendingOf {
		if time.Since(w.since) >= atLeast {
			models = append(models, model)
		}
	}
	return models
}

// note records the state of a model's lane if it has changed.
func (r *recovery) note(model, state string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w, pending := r.pendingOf[model]; pending && w.seen != state {
		w.seen = state
		w.add(state)
	}
}

// watchRecovery records what the lanes of pending recoveries report, until ctx ends.
func (d *drill) watchRecovery(ctx context.Context) {
	for wait(ctx, watchInterval) {
		models := d.recovery.pending(watchAfter)
		if len(models) == 0 {
			continue
		}
		states, err := d.laneStates(ctx)
		for _, model := range models {
			state := states[model]
			if err != nil {
				state = "the queue does not answer"
			}
			d.recovery.note(model, state)
		}
	}
}

// laneStates returns what each model's lane does, for people.
func (d *drill) laneStates(ctx context.Context) (map[string]string, error) {
	rdb, err := d.queue.connection(ctx)
	if err != nil {
		return nil, err
	}
	lanes, err := jobs.NewInspector(rdb).Lanes(ctx)
	if err != nil {
		return nil, err
	}
	open := d.load.openStates()
	states := map[string]string{}
	for _, lane := range lanes {
		switch {
		case !lane.Held:
			states[lane.Model] = "no worker holds the lane"
		case lane.Message != "":
			states[lane.Model] = "the lane is held and " + string(lane.State) + ": " + lane.Message
		default:
			states[lane.Model] = "the lane is held and " + string(lane.State)
		}
		states[lane.Model] += ", jobs: " + open[lane.Model]
	}
	return states, nil
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

// finish returns the longest recovery and the explained ones. It drops the ended
// workers: without work left, no successor would show.
func (r *recovery) finish() (longest time.Duration, explained []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.pendingOf)
	return r.longest, slices.Clone(r.explained)
}
