package reconcile

import (
	"slices"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Decision is what becomes of an intent.
type Decision int

const (
	Undecided  Decision = iota
	Adopt               // the first task is the intent's
	NotCreated          // no task was created
	Hold                // an operator must look at the tasks
)

// Decide decides about an intent, by the account's tasks without an owner and the other
// intents that may have created them. keyID is the api_key_id of the intent's key, "" if
// it is unknown; now is by the service's clock. It returns the tasks that the decision is
// about, if undecided those that may be the intent's.
//
// A task is the intent's only if nothing else is possible: it bears the key, it was not
// on the list before, no other job's intent may have created it, and no task of the key
// is unexplained (another program's would be). A task that another open intent may have
// created is contested until that intent is settled.
func Decide(me Intent, s *Snapshot, keyID string, t Timing, now time.Time) (Decision, []dashscope.TaskInfo) {
	var mine, contested, near []dashscope.TaskInfo
	foreign, waiting := false, now.Sub(me.From) < t.Limit || now.Sub(me.Until) < t.Settled
	for _, task := range s.Unowned {
		if me.RequestID != "" && task.RequestID == me.RequestID {
			return Adopt, []dashscope.TaskInfo{task}
		}
		if keyID != "" && task.APIKeyID != keyID {
			continue
		}
		makers := s.Creators(task, t)
		own := func(i Intent) bool { return i.JobID == me.JobID && (i.Attempt == me.Attempt || i.Resubmitted) }
		rivals := slices.DeleteFunc(slices.Clone(makers), func(i Intent) bool { return i.JobID == me.JobID })
		switch {
		case slices.Contains(me.Rejected, task.TaskID) && len(rivals) == 0:
			// No other intent explains it: its output may be this job's after all.
			contested = append(contested, task)
		case !slices.ContainsFunc(makers, own):
		case len(rivals) == 0:
			mine = append(mine, task)
			continue
		case task.Status == dashscope.StatusFailed, task.Status == dashscope.StatusCanceled:
			continue // it cost nothing
		default:
			contested = append(contested, task)
			// Once it has ended, its output may tell.
			waiting = waiting || task.Status == dashscope.StatusPending || task.Status == dashscope.StatusRunning
			waiting = waiting || slices.ContainsFunc(rivals, func(i Intent) bool { return i.Open() && now.Sub(i.From) < t.Limit })
			continue
		}
		known := slices.ContainsFunc(s.Intents, func(i Intent) bool { return i.CouldHaveCreated(task, t.Limit) })
		if !known && !s.Quarantined[task.TaskID] {
			foreign = true
			if me.justBefore(task) {
				near = append(near, task)
			}
		}
	}
	candidates := slices.Concat(mine, contested)
	switch certain := keyID != "" && me.ListWasClear && !foreign && len(mine) == 1; {
	case now.Sub(me.From) > MaxIntentAge:
		return Hold, candidates
	case certain && now.Sub(me.Until) >= t.Settled:
		return Adopt, mine
	case waiting, certain:
		return Undecided, candidates
	case len(candidates) > 0:
		return Hold, candidates
	case len(near) > 0:
		return Hold, near
	case slices.ContainsFunc(s.Unverified, func(task dashscope.TaskInfo) bool { return me.CouldHaveCreated(task, t.Limit) }):
		return Undecided, nil // another job's adoption may turn out wrong
	}
	return NotCreated, nil
}
