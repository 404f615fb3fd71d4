// Package pollschedule decides when a running task is queried next.
//
// A query is sent when the idle time that it is expected to find has grown to its price:
// the integral, since the last query, of the probability that the task has ended. That
// probability comes from the durations of the last tasks of the same kind. While most
// tasks take as long as the last ones, few queries are sent before the expected end and
// many around it.
package pollschedule

import (
	"math"
	"slices"
	"time"
)

const (
	// Durations is the number of durations that a schedule uses. recent of them, the
	// newest, together have at least the weight recentWeight, so that a change of level
	// is learned within a few tasks.
	Durations    = 24
	recent       = 4
	recentWeight = 0.5
	// anyWeight is the belief that a task takes any time between an eighth of the
	// shortest duration and eight times the longest, each order of magnitude being
	// equally likely.
	anyWeight = 0.02
	anySpan   = 8
	// leastSpread and mostSpread bound how far a duration is spread, as a share of it:
	// as far as its neighbors are.
	leastSpread, mostSpread = 0.015, 0.15
	// priceShare is the price of a query in idle time, as a share of the usual duration;
	// it is bounded.
	priceShare               = 0.0003
	leastPrice, highestPrice = 2500 * time.Microsecond, 5 * time.Millisecond
	// longestWait bounds the wait between two queries. DashScope's documentation advises
	// to query every ten seconds.
	longestWait = 10 * time.Second
	// A task that is older than nearly anything believed, by leastBelief, is queried at
	// intervals of unbelievedShare of its age.
	leastBelief, unbelievedShare = 1e-6, 0.08
	// unknownShortest and unknownLongest bound the durations of a kind of which no task
	// has ended yet.
	unknownShortest, unknownLongest = time.Second, 2 * time.Minute
)

// Schedule is the belief about how long a task takes, and what a query costs. The zero
// value is not usable.
type Schedule struct {
	parts []part
	price float64 // in seconds of idle time
}

// part is a share of the belief: a duration between lo and hi seconds, uniformly
// distributed, or log-uniformly if log is set.
type part struct {
	weight, lo, hi float64
	log            bool
}

// New returns the schedule for a kind of task of which the last tasks took the given
// durations, the newest first. Those that are not positive are ignored, and those after
// the first [Durations].
func New(durations []time.Duration) *Schedule {
	var seconds []float64
	for _, d := range durations[:min(len(durations), Durations)] {
		if d > 0 {
			seconds = append(seconds, d.Seconds())
		}
	}
	if len(seconds) == 0 {
		return &Schedule{
			parts: []part{{weight: 1, lo: unknownShortest.Seconds(), hi: unknownLongest.Seconds(), log: true}},
			price: highestPrice.Seconds(),
		}
	}
	sorted := slices.Sorted(slices.Values(seconds))
	usual := sorted[len(sorted)/2]
	s := &Schedule{price: min(max(priceShare*usual, leastPrice.Seconds()), highestPrice.Seconds())}
	s.parts = append(s.parts, part{weight: anyWeight, lo: sorted[0] / anySpan, hi: sorted[len(sorted)-1] * anySpan, log: true})
	for i, d := range seconds {
		w := (1 - anyWeight) / float64(len(seconds))
		if len(seconds) > recent/recentWeight { // else they have more weight anyway
			w = (1 - anyWeight) * (1 - recentWeight) / float64(len(seconds)-recent)
			if i < recent {
				w = (1 - anyWeight) * recentWeight / recent
			}
		}
		spread := neighborDistance(sorted, d)
		spread = min(max(spread, leastSpread*d), mostSpread*d)
		s.parts = append(s.parts, part{weight: w, lo: d - spread, hi: d + spread})
	}
	return s
}

// neighborDistance returns how far the nearest others of a duration lie apart from it: the
// larger of the distances to the one below and the one above, without those that are
// missing.
func neighborDistance(sorted []float64, d float64) (distance float64) {
	i, _ := slices.BinarySearch(sorted, d)
	if i > 0 {
		distance = d - sorted[i-1]
	}
	if i+1 < len(sorted) {
		distance = max(distance, sorted[i+1]-d)
	}
	if len(sorted) == 1 {
		return mostSpread * d
	}
	return distance
}

// First returns the age at which a task is queried for the first time. An older one is
// queried at once.
func (s *Schedule) First() time.Duration { return s.Next(0) }

// Next returns how long after a query that found the task running at an age the next one is
// sent.
func (s *Schedule) Next(age time.Duration) time.Duration {
	a := max(age.Seconds(), 0)
	ended, area := s.at(a)
	running := 1 - ended
	if running < leastBelief {
		return min(time.Duration(unbelievedShare*float64(age)), longestWait)
	}
	wait := smallest(longestWait.Seconds(), func(wait float64) bool {
		_, more := s.at(a + wait)
		return more-area-ended*wait >= s.price*running
	})
	return time.Duration(wait * float64(time.Second))
}

// smallest returns the smallest value up to most for which holds, which then holds for all
// larger ones too; most if it holds for none.
func smallest(most float64, holds func(float64) bool) float64 {
	least := 0.0
	for most-least > 0.0005 {
		middle := (least + most) / 2
		if holds(middle) {
			most = middle
		} else {
			least = middle
		}
	}
	return most
}

// at returns the probability that a task has ended at an age in seconds, and the integral
// of that probability from 0 to the age.
func (s *Schedule) at(age float64) (ended, area float64) {
	for _, p := range s.parts {
		e, a := p.at(age)
		ended, area = ended+p.weight*e, area+p.weight*a
	}
	return ended, area
}

func (p part) at(age float64) (ended, area float64) {
	inside := min(age, p.hi)
	switch {
	case age <= p.lo:
		return 0, 0
	case p.log:
		scale := math.Log(p.hi / p.lo)
		ended = math.Log(inside/p.lo) / scale
		area = (inside*math.Log(inside/p.lo) - inside + p.lo) / scale
	default:
		ended = (inside - p.lo) / (p.hi - p.lo)
		area = (inside - p.lo) * ended / 2
	}
	return ended, area + age - inside
}
