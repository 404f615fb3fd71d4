package lane

import (
	"context"
	"errors"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
)

const bucketUnavailable = "bucket unavailable"

// fail ends a job that will never have an image.
func (l *lane) fail(ctx context.Context, rec *jobs.Record, code, message string) error {
	l.log.Warn("job failed", "job_id", rec.ID, "task_id", rec.TaskID, "code", code, "err", message)
	return l.finishJob(ctx, rec, recorder.Ended(rec, jobs.StateFailed, code, message))
}

// finishJob ends a job without an image. It repeats that while the bucket is unavailable,
// until the term ends.
func (l *lane) finishJob(ctx context.Context, rec, next *jobs.Record) error {
	writing := l.hard
	if rec.State.Waiting() {
		writing = ctx // no create has begun: a stop need not wait for the bucket
	}
	for {
		err := l.recorder.Finish(writing, rec, next)
		if !errors.As(err, new(*recorder.SidecarError)) {
			return outcome(next, err)
		}
		wait := l.waits.unreachable.Next()
		l.log.Warn(bucketUnavailable, "job_id", rec.ID, "err", err, "wait", wait)
		if err := loop.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// endRecord ends a job in its record only: its sidecar belongs to another job.
func (l *lane) endRecord(ctx context.Context, rec *jobs.Record, state jobs.State, code, message string) error {
	next := recorder.Ended(rec, state, code, message)
	return outcome(next, l.recorder.Transition(ctx, rec, next))
}

// outcome returns the error of the message of a job that has ended, unless that failed.
func outcome(rec *jobs.Record, err error) error {
	if err == nil && rec.State == jobs.StateFailed {
		return overError(rec)
	}
	return err
}

// overError returns the error of a job that is held or has failed. asynq archives the message
// with this text, also if it was run from the archive.
func overError(rec *jobs.Record) error { return &jobError{message: rec.MessageError()} }
