package jobs

import (
	"fmt"

	"github.com/danqing-queue/danqing/jobs/ledger"
)

// Limits bound what [Client.EnqueueWithin] accepts. The zero value of a field means no
// limit.
type Limits struct {
	// Depth is how many jobs may wait in total.
	Depth int
	// Waiting is how many jobs of the request's producer may wait, and Scheduled how many of
	// these may be scheduled for later.
	Waiting   int
	Scheduled int
	// DayMicroYuan is what the producer's jobs of one day (UTC+8) may cost, in millionths
	// of a yuan. A job counts with PriceMicroYuan until it has ended, and then with its
	// cost.
	DayMicroYuan int64
	// PriceMicroYuan is the most that this job may cost, in millionths of a yuan.
	PriceMicroYuan int64
}

// The kinds of a [LimitError].
const (
	LimitDepth     = "depth"     // the queue is full: retry later
	LimitWaiting   = "waiting"   // the producer has too many waiting jobs
	LimitScheduled = "scheduled" // the producer has too many jobs that are scheduled for later
	LimitDay       = "day"       // the producer's daily budget is spent, until midnight (UTC+8)
)

// LimitError says which limit a job would exceed. Nothing of the job was queued.
type LimitError struct {
	Kind string // one of the Limit constants
	Most int64  // jobs, or millionths of a yuan
}

// Error names the limit.
func (e *LimitError) Error() string {
	switch e.Kind {
	case LimitDepth:
		return fmt.Sprintf("the queue is full: %d jobs wait, which is the limit", e.Most)
	case LimitWaiting:
		return fmt.Sprintf("%d jobs of this producer wait, which is the limit", e.Most)
	case LimitScheduled:
		return fmt.Sprintf("%d jobs of this producer are scheduled for later, which is the limit", e.Most)
	}
	return fmt.Sprintf("the job does not fit in this producer's budget of %s yuan a day (UTC+8)", ledger.FormatYuan(e.Most))
}

// limitError is the error of what updateScript returns in place of 1.
func (l Limits) limitError(answer int64) error {
	switch answer {
	case -1:
		return &LimitError{LimitDepth, int64(l.Depth)}
	case -2:
		return &LimitError{LimitWaiting, int64(l.Waiting)}
	case -4:
		return &LimitError{LimitScheduled, int64(l.Scheduled)}
	case -3:
		return &LimitError{LimitDay, l.DayMicroYuan}
	}
	return ErrConflict
}

// producerOf is the job's producer, from whichever record has it.
func producerOf(old, next *Record) string {
	if next.Producer == "" && old != nil {
		return old.Producer
	}
	return next.Producer
}

// producerCharge is what the job counts against its producer's day, in millionths of a
// yuan: what it may cost, and once it has ended, what it has cost. A nil record counts
// nothing.
func (r *Record) producerCharge() int64 {
	switch {
	case r == nil:
		return 0
	case r.State.Final():
		return r.CostMicroYuan
	}
	return max(r.PriceMicroYuan, r.CostMicroYuan)
}
