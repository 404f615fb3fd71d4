package simulator

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// counts is what is counted as it happens. It starts anew with the process.
type counts struct {
	requests          map[Route]int
	throttled, faults int
}

// Stats is what the simulator tells of itself at one moment.
type Stats struct {
	// Requests counts what arrived, by route, refused or not. It is not kept
	// in StateDir, nor are Throttled and Faults.
	Requests map[Route]int
	// Throttled counts the requests answered with 429 because of a limit, not
	// because of a [Fault].
	Throttled int
	// Faults counts the requests that met a [Fault].
	Faults int
	// Tasks counts the tasks by status.
	Tasks map[string]int
	// Images is how many images were made, ChargedMicroYuan what they cost.
	Images           int
	ChargedMicroYuan int64
	// Lanes has one entry per account and model, by their names.
	Lanes []LaneStats
}

// LaneStats tells how an account's capacity for one model was used.
type LaneStats struct {
	Account, Model string
	// Tasks is how many tasks were made.
	Tasks int
	// MaxRunning is how many were RUNNING at once at most, which the service
	// bounds; MaxOpen how many were PENDING or RUNNING, which its clients do.
	MaxRunning, MaxOpen int
	// Busy is how long tasks were RUNNING, added up.
	Busy time.Duration
	// FirstSubmitAt is the create of the first task. LastEndAt is the end of
	// the last one, or the present if some task is not over.
	FirstSubmitAt, LastEndAt time.Time
	// Utilization is Busy as a part of the time between the two, over all
	// slots: 1 is always busy, 0 if there was no time.
	Utilization float64
}

// Tasks returns all tasks in the order of their creation.
func (s *Simulator) Tasks() []Task {
	_ = s.Load() // without it there are none
	s.mu.Lock()
	defer s.mu.Unlock()
	now := wallClock()
	out := make([]Task, len(s.tasks))
	for i, t := range s.tasks {
		out[i] = t.snapshot(now)
	}
	return out
}

// Stats returns what happened so far.
func (s *Simulator) Stats() Stats {
	_ = s.Load() // without it there is nothing to tell
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
		out.ChargedMicroYuan += int64(images) * t.model.microYuan
	}
	for key, l := range s.lanes {
		out.Lanes = append(out.Lanes, l.stats(key, len(l.free), now))
	}
	slices.SortFunc(out.Lanes, func(a, b LaneStats) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Model, b.Model))
	})
	return out
}

// stats tells how the lane was used.
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

// span is a time from begin to, and without, end.
type span struct{ begin, end time.Time }

// mostAtOnce is how many of the spans share a moment at most.
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
