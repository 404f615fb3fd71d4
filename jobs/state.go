package jobs

import "slices"

// State is the state of a job, spelled the same in every interface.
type State string

// The states of a job.
const (
	// StateScheduled waits for the request's NotBefore.
	StateScheduled State = "scheduled"
	// StateQueued waits for a lane. Nothing was spent.
	StateQueued State = "queued"
	// StatePrepared waits for a slot of the lane that has prepared it: its create can be
	// sent at once. Nothing was sent.
	StatePrepared State = "prepared"
	// StateSubmitting has an intent: a create may be on its way. After a crash a job in
	// this state may or may not have a task that costs money.
	StateSubmitting State = "submitting"
	// StateGenerating has a task at DashScope.
	StateGenerating State = "generating"
	// StateStoring has images that are being copied into the bucket.
	StateStoring State = "storing"
	// StateRetrying had a task that failed and cost nothing; another attempt is planned.
	StateRetrying State = "retrying"
	// StateHeld needs an operator: it is unknown whether money was spent, or for what.
	// Nothing more is bought until the operator has decided.
	StateHeld State = "held"
	// StateSucceeded has at least one image in the bucket; each image is there or says
	// why not.
	StateSucceeded State = "succeeded"
	// StateFailed has no image and will have none.
	StateFailed State = "failed"
	// StateCanceled was canceled on request before it cost anything.
	StateCanceled State = "canceled"
)

// Final reports whether the job has ended: it does not change again unless an operator
// retries it, and its sidecar is or will be in the bucket.
func (s State) Final() bool {
	return s == StateSucceeded || s == StateFailed || s == StateCanceled
}

// Waiting reports whether the job waits for a lane and has no task.
func (s State) Waiting() bool {
	return slices.Contains([]State{StateScheduled, StateQueued, StatePrepared, StateRetrying}, s)
}
