package pollschedule

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

const (
	roundTrip = 30 * time.Millisecond
	// gap is the time from the answer to the next create, beside the round trip.
	gap = 2 * time.Millisecond
)

// lane is a simulated slot with a backlog: the next create is sent as soon as a task was
// seen to have ended.
type lane struct {
	durations []time.Duration // of the last tasks, newest first
	busy, all time.Duration
	queries   int
}

// run runs a task.
func (l *lane) run(takes time.Duration) {
	s := New(l.durations)
	// Ages count from the create's reply. A query sent at an age shows the task as it is
	// a round trip later: half for the reply, half for the query.
	age := time.Duration(0)
	for {
		age += s.Next(age)
		l.queries++
		if age+roundTrip >= takes {
			break
		}
		age += roundTrip // the reply: the next query is sent no sooner
	}
	noticed := age + 2*roundTrip // after the service received the create
	noticed -= roundTrip / 2
	next := noticed + gap + roundTrip/2 // the next create arrives
	l.busy += takes
	l.all += next
	l.durations = append([]time.Duration{takes - roundTrip}, l.durations...)

}

func (l *lane) share() float64 { return float64(l.busy) / float64(l.all) }

// uniform returns durations that differ by at most spread from the middle.
func uniform(middle, spread float64) func(rng *rand.Rand) time.Duration {
	return func(rng *rand.Rand) time.Duration {
		return time.Duration((middle + spread*(2*rng.Float64()-1)) * float64(time.Second))
	}
}

// normal returns normally distributed durations.
func normal(mean, deviation float64) func(rng *rand.Rand) time.Duration {
	return func(rng *rand.Rand) time.Duration {
		return time.Duration(max(mean+deviation*rng.NormFloat64(), 0.5) * float64(time.Second))
	}
}

// The slot is busy nearly all the time, at few queries a task, whatever the durations.
func TestBusyShare(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		next    func(rng *rand.Rand) time.Duration
		warmUp  int
		busy    float64
		queries float64
	}{
		"4 to 12 s":          {uniform(8, 4), 0, 0.980, 25},
		"25.5 to 28.5 s":     {uniform(27, 1.5), 10, 0.995, 20},
		"8 s, deviation 4 s": {normal(8, 4), 0, 0.970, 28},
		"lognormal 20 s": {func(rng *rand.Rand) time.Duration {
			return time.Duration(20 * math.Exp(0.5*rng.NormFloat64()) * float64(time.Second))
		}, 10, 0.980, 45},
	} {
		t.Run(name, func(t *testing.T) {
			l, rng := &lane{}, rand.New(rand.NewPCG(1, 2))
			for range c.warmUp {
				l.run(c.next(rng))
			}
			l.busy, l.all, l.queries = 0, 0, 0
			const tasks = 1000
			for range tasks {
				l.run(c.next(rng))
			}
			t.Logf("busy %.2f %%, %.1f queries a task", 100*l.share(), float64(l.queries)/tasks)
			assert.Greater(t, l.share(), c.busy)
			assert.Less(t, float64(l.queries)/tasks, c.queries)
		})
	}
}

// Five tasks after all tasks take twice or half as long, the slot is as busy, within half a
// percent, as if they had always done so.
func TestLearnsAChangeOfLevel(t *testing.T) {
	t.Parallel()
	for name, factor := range map[string]float64{"twice": 2, "half": 0.5} {
		t.Run(name, func(t *testing.T) {
			share := func(before, after float64) float64 {
				l := &lane{}
				rng := rand.New(rand.NewPCG(3, 4))
				for range 100 {
					l.run(uniform(before, before/2)(rng))
				}
				for range 5 {
					l.run(uniform(after, after/2)(rng))
				}
				l.busy, l.all = 0, 0
				for range 30 {
					l.run(uniform(after, after/2)(rng))
				}
				return l.share()
			}
			changed, steady := share(8, 8*factor), share(8*factor, 8*factor)
			t.Logf("busy %.2f %%, without the change %.2f %%", 100*changed, 100*steady)
			assert.Greater(t, changed, steady-0.005)
		})
	}
}

// A schedule never waits longer than ten seconds, nor less than nothing, whatever the
// durations.
func TestBounds(t *testing.T) {
	t.Parallel()
	for _, durations := range [][]time.Duration{nil, {0, -time.Second}, {time.Millisecond}, {24 * time.Hour}, {time.Second, time.Hour}, {5 * time.Second, 5 * time.Second, 5 * time.Second}} {
		s := New(durations)
		for age := time.Duration(0); age < 48*time.Hour; age = age*2 + time.Millisecond {
			wait := s.Next(age)
			assert.Positive(t, wait, "%v at %s", durations, age)
			assert.LessOrEqual(t, wait, longestWait, "%v at %s", durations, age)
		}
	}
}
