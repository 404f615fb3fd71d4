package reconcile

import (
	"slices"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Snapshot is the account's task list, its owners and the lane's intents at one moment.
type Snapshot struct {
	TakenAt time.Time
	// Listed is set if the list is known to show the tasks of the lane's model.
	Listed bool
	// All are the tasks of the last 24 hours by ID; Unowned are those that no record and no
	// journal owns, newest first.
	All     map[string]dashscope.TaskInfo
	Unowned []dashscope.TaskInfo
	// Quarantined marks the tasks of Unowned that are quarantined for a held job, by ID.
	Quarantined map[string]bool
	// Intents are those that may have created a task: open ones, and those of the last day
	// that were resubmitted or are held.
	Intents []Intent
	// Unverified are adopted tasks that have not succeeded yet. Outputs are the known
	// outputs of succeeded tasks, by ID.
	Unverified []dashscope.TaskInfo
	Outputs    map[string]*Output
}

// Creators returns the intents that may have created a task, by time, request ID and
// output. A settled intent can have created tasks within the limit only.
func (s *Snapshot) Creators(task dashscope.TaskInfo, t Timing) []Intent {
	var possible []Intent
	for _, i := range s.Intents {
		within := t.Limit
		if i.Open() || i.Held && s.Quarantined[task.TaskID] {
			within += clockMargin
		}
		if i.RequestID != "" && i.RequestID == task.RequestID {
			return []Intent{i}
		}
		if i.createdWithin(task, within) {
			possible = append(possible, i)
		}
	}
	output := s.Outputs[task.TaskID]
	possible = output.narrow(possible)
	if SizesDiffer(possible) && (output == nil || output.Size == "") {
		return possible // the output is better evidence than likelihood
	}
	return slices.DeleteFunc(slices.Clone(possible), func(i Intent) bool {
		return slices.ContainsFunc(possible, func(o Intent) bool { return o.JobID != i.JobID && o.likelierCreatorThan(i, task, t) })
	})
}
