package jobs

import "slices"

// State is where a job stands, as every interface spells it.
type State string

// The states of a job.
const (
	// StateScheduled waits for a moment that the producer named.
	StateScheduled State = "scheduled"
	// StateQueued waits for its turn. Nothing was spent.
	StateQueued State = "queued"
	// StateSubmitting has an intent: a create may be on its way. A job found in
	// this state after a crash may or may not have a task that costs money.
	StateSubmitting State = "submitting"
	// StateGenerating has a task at DashScope.
	StateGenerating State = "generating"
	// StateStoring has images that are being copied into the bucket.
	StateStoring State = "storing"
	// StateRetrying had a task that failed and cost nothing; a later try is planned.
	StateRetrying State = "retrying"
	// StateHeld needs a person: whether money was spent, or what for, is unknown.
	// Nothing of it is bought again until somebody decides.
	StateHeld State = "held"
	// StateSucceeded has at least one image in the bucket; each image says that
	// it is there or why not.
	StateSucceeded State = "succeeded"
	// StateFailed will never have an image.
	StateFailed State = "failed"
	// StateCanceled was given up on request before it cost anything.
	StateCanceled State = "canceled"
)

// Final reports whether the job is over: it will never change again, and its
// sidecar is in the bucket.
func (s State) Final() bool {
	return s == StateSucceeded || s == StateFailed || s == StateCanceled
}

// Waiting reports whether the job waits for a worker and owns no task.
func (s State) Waiting() bool {
	return slices.Contains([]State{StateScheduled, StateQueued, StateRetrying}, s)
}
