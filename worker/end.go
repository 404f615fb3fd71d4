package worker

import (
	"context"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/journal"
)

// transition writes the next record and publishes it to the queue's web UI.
//
// It ignores the cancellation of ctx: the transition has already happened, so it must
// be recorded even if the message's lease has expired or the handler was canceled.
func (w *Worker) transition(ctx context.Context, old, next *jobs.Record) error {
	ctx = context.WithoutCancel(ctx)
	if err := w.updateRecord(ctx, old, next); err != nil {
		return err
	}
	if err := w.jobs.PublishResult(ctx, next); err != nil {
		w.log.Debug("result not published to the queue", "job_id", next.ID, "err", err)
	}
	return nil
}

// holdJob holds the job for an operator and frees the lane for the next one.
func (l *lane) holdJob(ctx context.Context, rec, next *jobs.Record) error {
	l.journal(journal.KindHeld, next)
	l.log.Error("job held for operator", "job_id", rec.ID, "task_id", rec.TaskID, "attempt", rec.Attempt, "err", next.Message)
	return l.transition(ctx, rec, next)
}

func heldRecord(rec *jobs.Record, code, why string) *jobs.Record {
	next := *rec
	next.State, next.Code, next.Message = jobs.StateHeld, code, why
	return &next
}

// fail ends a job that will never have an image.
func (l *lane) fail(ctx context.Context, rec *jobs.Record, code, message string) error {
	l.log.Warn("job failed", "job_id", rec.ID, "task_id", rec.TaskID, "code", code, "err", message)
	return l.finishJob(ctx, rec, endedRecord(rec, jobs.StateFailed, code, message))
}

// finishJob ends a job without an image: sidecar, journal, record, in this order.
func (l *lane) finishJob(ctx context.Context, rec, next *jobs.Record) error {
	sidecar, err := sidecarOf(next)
	if err != nil {
		return err
	}
	for {
		err := l.cfg.Bucket.PutSidecar(ctx, sidecar)
		if err == nil {
			break
		}
		wait := l.waits.unreachable.next()
		l.log.Warn(bucketUnavailable, "job_id", rec.ID, "err", err, "wait", wait)
		if err := l.sleep(ctx, wait); err != nil {
			return err
		}
	}
	l.journal(journal.KindFinished, next)
	return l.writeEnd(ctx, rec, next)
}

const bucketUnavailable = "bucket unavailable"

// endRecord ends a job in its record only: its sidecar belongs to another job.
func (l *lane) endRecord(ctx context.Context, rec *jobs.Record, state jobs.State, code, message string) error {
	return l.writeEnd(ctx, rec, endedRecord(rec, state, code, message))
}

func endedRecord(rec *jobs.Record, state jobs.State, code, message string) *jobs.Record {
	next := *rec
	next.End(state, code, message, time.Now().UTC())
	return &next
}

func (l *lane) writeEnd(ctx context.Context, rec, next *jobs.Record) error {
	if err := l.transition(ctx, rec, next); err != nil {
		return err
	}
	if next.State != jobs.StateFailed {
		return nil
	}
	return failedError(next)
}

// failedError returns the error of a failed job. asynq archives the message with this
// text.
func failedError(rec *jobs.Record) error {
	return &jobError{message: rec.Code + ": " + rec.Message}
}

// adoptFinished ends a job that is finished according to the bucket.
func (w *Worker) adoptFinished(ctx context.Context, rec, over *jobs.Record) error {
	w.journal(journal.KindFinished, over)
	over.EnqueuedAt, over.Priority = rec.EnqueuedAt, rec.Priority
	over.Producer, over.PriceMicroYuan, over.Callback, over.FollowUp = rec.Producer, rec.PriceMicroYuan, rec.Callback, rec.FollowUp
	over.SetLocation(ctx, w.cfg.Bucket, w.cfg.ServeURL)
	return w.transition(ctx, rec, over)
}
