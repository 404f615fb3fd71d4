package simulator

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// counts holds the counters of events. They restart with the process.
type counts struct {
	requests          map[Route]int
	throttled, faults int
}

// Stats is a snapshot of the simulator's counters.
type Stats struct {
	// Requests counts all requests by route, including rejected ones. Requests,
	// Throttled and Faults are not stored in StateDir.
	Requests map[Route]int
	// Throttled counts the requests that a limit answered with 429; those of a [Fault]
	// are not included.
	Throttled int
	// Faults counts the requests that got a [Fault].
	Faults int
	// Tasks counts the tasks by status.
	Tasks map[string]int
	// Images is the number of images created, ChargedMicroYuan their cost.
	Images           int
	ChargedMicroYuan int64
	// Lanes has one entry per account and model, sorted by their names.
	Lanes []LaneStats
}

// LaneStats describes the use of an account's capacity for one model.
type LaneStats struct {
	Account, Model string
	// Tasks is the number of tasks created.
	Tasks int
	// MaxRunning is the maximum of tasks RUNNING at once, which the service limits;
	// MaxOpen the maximum PENDING or RUNNING, which its clients limit.
	MaxRunning, MaxOpen int
	// Busy is the total time that tasks were RUNNING.
	Busy time.Duration
	// FirstSubmitAt is the create of the first task. LastEndAt is the end of the last
	// one, or the current time if some task has not ended.
	FirstSubmitAt, LastEndAt time.Time
	// Utilization is Busy divided by the time between the two, over all slots: 1 means
	// always busy. It is 0 if no time has passed.
	Utilization float64
}

// Tasks returns all tasks by creation.
func (s *Simulator) Tasks() []Task {
	_ = s.Load() // on an error there are no tasks
	s.mu.Lock()
	defer s.mu.Unlock()
	now := wallClock()
	out := make([]Task, len(s.tasks))
	for i, t := range s.tasks {
		out[i] = t.snapshot(now)
	}
	return out
}

// Stats returns the current counters.
func (s *Simulator) Stats() Stats {
	_ = s.Load() // on an error there is nothing to count
	s.mu.Lock()
	defer s.mu.Unlock()
	now := wallClock()
	out := Stats{
		Requests: maps.Clone(s.counts.requests), Throttled: s.counts.throttled, Faults: s.counts.faults,
		Tasks: map[string]int{},
	}
	for _, t := range s.tasks {
		out.Tasks[t.status(now)]++
		images := t.images(now)
		out.Images += images
		out.ChargedMicroYuan += t.charged(images)
	}
	for key, l := range s.lanes {
		out.Lanes = append(out.Lanes, l.stats(key, len(l.free), now))
	}
	slices.SortFunc(out.Lanes, func(a, b LaneStats) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Model, b.Model))
	})
	return out
}

// stats returns the lane's use.
func (l *lane) stats(key laneKey, concurrency int, now time.Time) LaneStats {
	out := LaneStats{Account: key.account, Model: key.model, Tasks: len(l.tasks), FirstSubmitAt: l.tasks[0].CreatedAt}
	var open, running []span
	for _, t := range l.tasks {
		end := t.end
		if status := t.status(now); status == dashscope.StatusPending || status == dashscope.StatusRunning {
			end = now
		}
		if end.After(out.LastEndAt) {
			out.LastEndAt = end
		}
		open = append(open, span{t.CreatedAt, end})
		if t.started(now) {
			out.Busy += end.Sub(t.start)
			running = append(running, span{t.start, end})
		}
	}
	out.MaxOpen, out.MaxRunning = mostAtOnce(open), mostAtOnce(running)
	if all := out.LastEndAt.Sub(out.FirstSubmitAt); all > 0 {
		out.Utilization = float64(out.Busy) / float64(all) / float64(concurrency)
	}
	return out
}

// span is the time from begin (included) to end (excluded).
type span struct{ begin, end time.Time }

// mostAtOnce returns the maximum number of spans that overlap at one time.
func mostAtOnce(spans []span) int {
	type change struct {
		at    time.Time
		delta int
	}
	var changes []change
	for _, s := range spans {
		changes = append(changes, change{s.begin, 1}, change{s.end, -1})
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.delta, b.delta)) })
	now, most := 0, 0
	for _, c := range changes {
		now += c.delta
		most = max(most, now)
	}
	return most
}
