package lane

import (
	"context"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// usageInterval is how often a lane adds to its hours how busy it was. What it was since is lost
// in a crash.
const usageInterval = 10 * time.Second

// Why slots are idle although the lane is not paused.
const (
	idleStarting    jobs.PauseReason = "starting"    // the term begins: tasks of earlier ones are looked up
	idleReconciling jobs.PauseReason = "reconciling" // the outcome of a create is unknown
)

// usage measures for how long the lane's slots have a task, and for how long they have none.
type usage struct {
	slots int

	mu sync.Mutex
	// working is the number of slots with a task, or whose create is on its way.
	working int
	// reason is why the lane is paused, "" if it is not. quiet is how many jobs wait for the
	// outcome of another one's create.
	reason jobs.PauseReason
	quiet  int
	// since is the time up to which busy, and idle by reason, are measured.
	since time.Time
	busy  time.Duration
	idle  map[jobs.PauseReason]time.Duration
	// waited is set if jobs waited at the end of the last interval.
	waited bool
}

func newUsage(slots int) *usage {
	return &usage{slots: slots, reason: idleStarting, since: time.Now(), idle: map[jobs.PauseReason]time.Duration{}}
}

// change measures up to now and then changes what is the case.
func (u *usage) change(do func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	passed := now.Sub(u.since)
	reason := u.reason
	if reason == "" && u.quiet > 0 {
		reason = idleReconciling
	}
	u.since = now
	u.busy += passed * time.Duration(u.working)
	u.idle[reason] += passed * time.Duration(max(u.slots-u.working, 0))
	do()
}

func (u *usage) setReason(reason jobs.PauseReason) { u.change(func() { u.reason = reason }) }

// take returns what was measured since the last call: idle is empty unless jobs wait, and waited
// at that call.
func (u *usage) take(waiting bool) (busy time.Duration, idle map[jobs.PauseReason]time.Duration) {
	u.change(func() {
		busy, u.busy = u.busy, 0
		if waiting && u.waited {
			idle = u.idle
		}
		u.idle, u.waited = map[jobs.PauseReason]time.Duration{}, waiting
	})
	return busy, idle
}

// setWorking records that an execution's slot has a task, or is about to have one.
func (l *lane) setWorking(e *execution) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !e.slotReleased && !e.working {
		e.working = true
		l.usage.change(func() { l.usage.working++ })
	}
}

// endWorking records that an execution's slot has no task. The caller must hold mu.
func (l *lane) endWorking(e *execution) {
	if e.working {
		e.working = false
		l.usage.change(func() { l.usage.working-- })
	}
}

// recordUsage adds what was measured to the current hour of the lane.
func (l *lane) recordUsage(ctx context.Context) {
	busy, byReason := l.usage.take(l.hasWork(ctx))
	l.recorder.Metrics.Used(l.cfg.Account.Name, l.cfg.Model.Name, busy, byReason)
	idle := time.Duration(0)
	for _, passed := range byReason {
		idle += passed
	}
	if busy == 0 && idle == 0 {
		return
	}
	if err := l.recorder.Store.RecordLaneUsage(ctx, l.cfg.Account.Name, l.cfg.Model.Name, time.Now(), busy, idle); err != nil && ctx.Err() == nil {
		l.log.Debug("lane usage not recorded", "err", err)
	}
}

// hasWork reports whether jobs of the lane's model wait in its queues.
func (l *lane) hasWork(ctx context.Context) bool {
	queues := jobs.LaneQueues(l.cfg.Model.Name)
	if l.cfg.DrainOnly || !l.cfg.Watcher.MayHaveMessages(queues) {
		return false
	}
	upcoming, err := l.recorder.Store.Upcoming(ctx, l.cfg.Model.Name, 1)
	return err == nil && len(upcoming) > 0
}
