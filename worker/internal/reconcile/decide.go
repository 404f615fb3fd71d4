package reconcile

import (
	"slices"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Decision is the outcome of an intent.
type Decision int

// The decisions.
const (
	Undecided  Decision = iota // decide again later
	Adopt                      // the first task is the intent's
	NotCreated                 // no task was created
	Hold                       // an operator must decide
)

// Decide decides about an intent, given the account's tasks without an owner and the other
// intents that may have created them. keyID is the api_key_id of the intent's key, "" if it
// is unknown; now is the time on the service's clock. It returns the tasks that the
// decision is about; if undecided, those that may be the intent's.
//
// A task is the intent's only if nothing else is possible: it was created with the key, it
// was not on the list before, no other job's intent may have created it, and no task of the
// key is unexplained, as another program's would be. A task that another open intent may
// have created is contested until that intent is settled.
//
// Unless the list is known to show the model's tasks, it proves nothing: the intent is held, but
// for a task with the create's request ID.
func Decide(intent Intent, s *Snapshot, keyID string, t Timing, now time.Time) (Decision, []dashscope.TaskInfo) {
	var mine, contested, near []dashscope.TaskInfo
	foreign, kept, waiting := false, false, now.Before(intent.LimitOver(t)) || now.Sub(intent.Until) < t.Settled
	for _, task := range s.Unowned {
		if intent.RequestID != "" && task.RequestID == intent.RequestID {
			return Adopt, []dashscope.TaskInfo{task}
		}
		if keyID != "" && task.APIKeyID != keyID {
			continue
		}
		creators := s.Creators(task, t)
		own := func(i Intent) bool { return i.JobID == intent.JobID && (i.Attempt == intent.Attempt || i.Resubmitted) }
		rivals := slices.DeleteFunc(slices.Clone(creators), func(i Intent) bool { return i.JobID == intent.JobID })
		switch {
		case slices.Contains(intent.Rejected, task.TaskID) && len(rivals) == 0:
			// No other intent explains the task: its output may be this job's after all.
			contested = append(contested, task)
		case !slices.ContainsFunc(creators, own):
		case len(rivals) == 0:
			mine = append(mine, task)
			kept = kept || s.Quarantined[task.TaskID] // for a job that had rejected it
			continue
		case task.Status == dashscope.StatusFailed, task.Status == dashscope.StatusCanceled:
			continue // it was not charged
		default:
			contested = append(contested, task)
			// Once the task has ended, its output may identify its creator.
			waiting = waiting || task.Status == dashscope.StatusPending || task.Status == dashscope.StatusRunning
			waiting = waiting || slices.ContainsFunc(rivals, func(i Intent) bool { return i.Open() && now.Before(i.LimitOver(t)) })
			continue
		}
		explained := slices.ContainsFunc(s.Intents, func(i Intent) bool { return i.CouldHaveCreated(task, t.Limit) })
		if !explained && !s.Quarantined[task.TaskID] {
			foreign = true
			if intent.justBefore(task) {
				near = append(near, task)
			}
		}
	}
	candidates := slices.Concat(mine, contested)
	switch certain := keyID != "" && intent.ListWasClear && !foreign && !kept && len(mine) == 1; {
	case now.Sub(intent.From) > MaxIntentAge:
		return Hold, candidates
	case !s.Listed && waiting:
		return Undecided, candidates
	case !s.Listed:
		return Hold, slices.Concat(candidates, near)
	case certain && now.Sub(intent.Until) >= t.Settled:
		return Adopt, mine
	case waiting, certain:
		return Undecided, candidates
	case len(candidates) > 0:
		return Hold, candidates
	case len(near) > 0:
		return Hold, near
	case slices.ContainsFunc(s.Unverified, func(task dashscope.TaskInfo) bool { return intent.CouldHaveCreated(task, t.Limit) }):
		return Undecided, nil // another job's adoption may be rejected
	}
	return NotCreated, nil
}
