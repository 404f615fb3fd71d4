package recorder

import (
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// IsBehind reports whether a record is older than the journal's, which was written at the
// given time. Later decisions of an operator stand. Since clocks differ, they are
// recognized by the attempts where possible.
func IsBehind(known, journaled *jobs.Record, at time.Time) bool {
	if known.Attempt != journaled.Attempt {
		return known.Attempt < journaled.Attempt
	}
	closed := slices.ContainsFunc(known.PastAttempts, func(a jobs.Attempt) bool { return a.Attempt == known.Attempt })
	adopted := !known.ResolvedAt.IsZero() && known.TaskID != "" && journaled.State == jobs.StateHeld
	rejected := slices.Contains(known.Rejected, journaled.TaskID)
	if closed || adopted || rejected || known.RetriedAt.After(at) || known.ResolvedAt.After(at) {
		return false
	}
	if known.State == jobs.StateHeld && known.TaskID == "" && journaled.TaskID != "" {
		return true // the journal has the task that the other worker did not find
	}
	return stateRank(known.State) < stateRank(journaled.State)
}

// stateRank orders the states of one attempt.
func stateRank(s jobs.State) int {
	switch s {
	case jobs.StateScheduled, jobs.StateQueued, jobs.StatePrepared, jobs.StateRetrying:
		return 0
	case jobs.StateSubmitting:
		return 1
	case jobs.StateGenerating:
		return 2
	case jobs.StateHeld:
		return 3
	case jobs.StateStoring:
		return 4
	case jobs.StateSucceeded, jobs.StateFailed, jobs.StateCanceled:
		return 5
	}
	return 0
}
