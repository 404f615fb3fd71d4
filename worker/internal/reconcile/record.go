package reconcile

import "github.com/danqing-queue/danqing/jobs"

// WorkerCrashed is the reason of an ambiguous create whose worker crashed.
const WorkerCrashed = "the worker crashed while submitting the job"

// AmbiguousMessage begins the message of a record with an ambiguous create.
const AmbiguousMessage = "the create got no usable answer; reconciling with the task list before resubmitting: "

// AmbiguousRecord returns a copy of a record, marked as having a create with an unknown
// outcome.
func AmbiguousRecord(rec *jobs.Record, reason string) *jobs.Record {
	next := *rec
	next.Code, next.Message = jobs.CodeSubmitAmbiguous, AmbiguousMessage+reason
	return &next
}
