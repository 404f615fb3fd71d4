package lane

import (
	"context"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

const (
	referenceNotUploaded = "reference image not uploaded"
	// referenceBlockTime is how long a rejection may be an outage of the service's store,
	// during which the job stays at the head of the queue; after that it counts as the
	// job's error.
	referenceBlockTime = time.Hour
	// referenceRetry is the retry delay after that, behind other jobs, and
	// referenceTimeout how long it is retried.
	referenceRetry   = 10 * time.Minute
	referenceTimeout = 24 * time.Hour
)

// referenceRejected handles a reference image that the service's temporary store
// rejected with an error that may be temporary. At first the lane waits
// with the job, then it continues with other jobs, and finally the job fails. Nothing
// was spent.
func (l *lane) referenceRejected(ctx context.Context, rec *jobs.Record, why error) error {
	first, _ := l.cfg.ReferenceRefusedAt.LoadOrStore(rec.ID, time.Now())
	deferred := rec.State == jobs.StateRetrying && rec.Code == jobs.CodeReferenceRejected
	since, _ := first.(time.Time)
	switch {
	case deferred && time.Since(rec.UpdatedAt) > referenceTimeout:
		l.cfg.ReferenceRefusedAt.Delete(rec.ID)
		return l.fail(ctx, rec, jobs.CodeReferenceRejected, withHint("the service's store rejected the reference image for a day: "+why.Error(),
			"nothing was bought: try the image in DashScope's console, or another one, under a new ID"))
	case deferred:
	case time.Since(since) < referenceBlockTime:
		return &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseService, message: referenceNotUploaded, cause: why}
	default:
		next := *rec
		next.State, next.Code = jobs.StateRetrying, jobs.CodeReferenceRejected
		next.Message = "the service's store rejects the reference image: " + why.Error()
		l.log.Warn(referenceNotUploaded, "job_id", rec.ID, "err", why, "wait", referenceRetry)
		if err := l.recorder.Transition(ctx, rec, &next); err != nil {
			return err
		}
	}
	return &jobError{retryIn: referenceRetry, message: jobs.CodeReferenceRejected + ": " + why.Error()}
}
