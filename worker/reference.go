package worker

import (
	"context"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

const (
	notUploaded = "reference image not uploaded"
	// referenceAlone is for how long that may be an outage of the service's store,
	// which keeps the job at the head; then it is taken for the job's own trouble.
	referenceAlone = time.Hour
	// referenceRetry is when it is tried again after that, behind other jobs, and
	// referenceMost how long.
	referenceRetry = 10 * time.Minute
	referenceMost  = 24 * time.Hour
)

// notTaken acts on a reference image that the service's temporary store answered
// with no, of which nothing tells whether it will ever be taken: the lane waits
// with the job, then it goes on without it, and in the end the job fails. Nothing
// was spent.
func (l *lane) referenceRejected(ctx context.Context, rec *jobs.Record, why error) error {
	first, _ := l.referenceRefusedAt.LoadOrStore(rec.ID, time.Now())
	aside := rec.State == jobs.StateRetrying && rec.Code == jobs.CodeReferenceRejected
	since, _ := first.(time.Time)
	switch {
	case aside && time.Since(rec.UpdatedAt) > referenceMost:
		l.referenceRefusedAt.Delete(rec.ID)
		return l.fail(ctx, rec, jobs.CodeReferenceRejected, withHint("the service's store did not take the reference image for a day: "+why.Error(),
			"nothing was bought: try the image in DashScope's console, or another one, under a new ID"))
	case aside:
	case time.Since(since) < referenceAlone:
		return &pauseError{backoff: &l.waits.unreachable, message: notUploaded, cause: why}
	default:
		next := *rec
		next.State, next.Code = jobs.StateRetrying, jobs.CodeReferenceRejected
		next.Message = "the service's store does not take the reference image: " + why.Error()
		l.log.Warn(notUploaded, "job_id", rec.ID, "err", why, "wait", referenceRetry)
		if err := l.transition(ctx, rec, &next); err != nil {
			return err
		}
	}
	return &jobError{retryIn: referenceRetry, message: jobs.CodeReferenceRejected + ": " + why.Error()}
}
