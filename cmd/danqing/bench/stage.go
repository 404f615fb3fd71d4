package bench

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// mostSlots is the number of tasks that all models of the catalog together run at once.
const mostSlots = 20

// accountsOfFew is the number of accounts that a client has at once, so that there are enough
// tasks to count, where an account has one slot.
const accountsOfFew = 6

// accountsOfBig is their number with big pictures, which fill the disk.
const accountsOfBig = 2

// stage is what every client gets for a kind of tasks: accounts of its own, each with the same
// number of slots.
type stage struct {
	workload Workload
	slots    int // of an account
	accounts []string
	lanes    []slots
	stream   uint64 // of the durations
	// earlier is the kind of the tasks whose durations the worker knows at the start, and skip how
	// many tasks of an account are not measured.
	earlier  Workload
	skip     int
	duration time.Duration
	dir      string
}

// slots is the capacity of an account for a model.
type slots struct {
	model string
	slots int
}

// newStage returns a stage. Accounts of few slots are as many as have together six or more.
func newStage(w Workload, count int, duration time.Duration, dir string, stream uint64) *stage {
	s := &stage{workload: w, earlier: w, slots: count, duration: duration, dir: filepath.Join(dir, fmt.Sprint("stage-", stream)), stream: stream, lanes: lanesOf(count)}
	accounts := max(accountsOfFew/count, 1)
	if w.bigPictures {
		accounts = min(accounts, accountsOfBig)
	}
	for i := range accounts {
		s.accounts = append(s.accounts, accountName(i))
	}
	return s
}

// lanesOf returns the lanes of an account with a number of slots: as many models as necessary.
func lanesOf(count int) []slots {
	var lanes []slots
	for _, model := range jobs.Models() {
		if n := min(model.Concurrency, count); n > 0 {
			lanes = append(lanes, slots{model.Name, n})
			count -= n
		}
	}
	return lanes
}

// sources returns the durations of the tasks of each model, from their beginning.
func (s *stage) sources() map[string]*durations {
	sources := map[string]*durations{}
	for i, lane := range s.lanes {
		sources[lane.model] = newDurations(s.workload, s.stream*mostSlots+uint64(i))
	}
	return sources
}

// tasks returns more than the number of tasks that a lane's slots can work on.
func (s *stage) tasks(lane slots) int {
	source, taken, n := newDurations(s.workload, s.stream), time.Duration(0), 0
	for ; taken < s.duration; n++ {
		taken += source.next()
	}
	return (n*5/4 + 5) * lane.slots * len(s.accounts)
}

func accountName(i int) string { return fmt.Sprint("account-", i+1) }

func keyOf(account string) string { return "sk-bench-" + account }

// accountKeys are the keys that a service accepts.
func accountKeys() map[string]simulator.Key {
	keys := map[string]simulator.Key{}
	for i := range accountsOfFew {
		keys[keyOf(accountName(i))] = simulator.Key{Account: accountName(i)}
	}
	return keys
}
