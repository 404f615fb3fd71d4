package bench

import (
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// Workload is a kind of task.
type Workload struct {
	// Name says how long the tasks take.
	Name string
	// takes draws a task's duration, in seconds.
	takes func(rng *rand.Rand) float64
	// bigPictures is set if pictures have pictureBytes and arrive at bytesPerSecond each.
	// Others are small.
	bigPictures bool
}

// Pictures of DashScope's models have one to three megabytes. A line of 16 Mbit/s carries two
// megabytes a second.
const pictureBytes, bytesPerSecond = 2_000_000, 2_000_000

// workloads returns the kinds of tasks on a number of slots. Only one slot's pictures are big:
// those of twenty would measure the disk.
func workloads(slots int) []Workload {
	short := Workload{Name: "1 to 4 s", takes: uniform(2.5, 1.5)}
	if slots == 1 {
		short.Name, short.bigPictures = "1 to 4 s, 2 MB", true
	}
	return []Workload{
		{Name: "8 ± 4 s", takes: uniform(8, 4)},
		{Name: "27 ± 1.5 s", takes: uniform(27, 1.5)},
		{Name: "lognormal 20 s", takes: func(rng *rand.Rand) float64 { return 20 * math.Exp(0.5*rng.NormFloat64()) }},
		{Name: "4 ± 1 or 40 ± 8 s", takes: func(rng *rand.Rand) float64 {
			if rng.IntN(2) == 0 {
				return uniform(4, 1)(rng)
			}
			return uniform(40, 8)(rng)
		}},
		short,
	}
}

// quickWorkloads are for a trial of some seconds.
func quickWorkloads() []Workload {
	return []Workload{{Name: "0.6 to 0.9 s", takes: uniform(0.75, 0.15)}}
}

// uniform returns numbers that differ by at most spread from the middle.
func uniform(middle, spread float64) func(rng *rand.Rand) float64 {
	return func(rng *rand.Rand) float64 { return middle + spread*(2*rng.Float64()-1) }
}

// durations draws the durations of the tasks of a cell. Each client gets the same ones, in the
// order of its creates.
type durations struct {
	mu    sync.Mutex
	rng   *rand.Rand
	takes func(rng *rand.Rand) float64
}

func newDurations(w Workload, stream uint64) *durations {
	return &durations{rng: rand.New(rand.NewPCG(14, stream)), takes: w.takes} //nolint:gosec // repeatable durations
}

func (d *durations) next() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Duration(d.takes(d.rng) * float64(time.Second)).Round(time.Millisecond)
}

// mean returns the mean duration, of enough tasks that it is the same as that of all.
func (w Workload) mean() time.Duration {
	const n = 100_000
	source, sum := newDurations(w, 0), time.Duration(0)
	for range n {
		sum += source.next()
	}
	return sum / n
}

// promptOf returns the prompt of a task with a duration: the service reads it there.
func promptOf(takes time.Duration) string { return takes.String() + " of work" }

// takesOf returns the duration in a prompt, 0 if there is none.
func takesOf(prompt string) time.Duration {
	text, _, _ := strings.Cut(prompt, " ")
	takes, err := time.ParseDuration(text)
	if err != nil {
		return 0
	}
	return takes
}
