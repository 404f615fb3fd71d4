package lane

import (
	"context"
	"errors"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
)

// source is why a lane works on a job.
type source struct {
	// message is the message that was drawn or will be, nil for a job that was found in
	// flight.
	message *jobs.GenerateMessage
	// session is the lane's session in which the message was drawn.
	session context.Context //nolint:containedctx // not a call's
	// ahead is set for a job that is prepared before its message is drawn.
	ahead *ahead
	// waiting handles a job found in flight that has neither a task nor an open intent.
	waiting func(context.Context, *jobs.Record) error
}

// errReread asks the driver to read the record again: this step or another writer has
// changed it.
var errReread = errors.New("the record has changed")

// errLeft tells the driver that the lane has nothing more to do for the job: its images are
// being stored.
var errLeft = errors.New("the job needs the lane no more")

// drive takes a job as far as the lane can: until its images are being stored, or it has
// ended, is held or must be retried later. Each step advances the record or fails. A
// [*pauseError] means that the lane cannot work on any job for now.
func (l *lane) drive(ctx context.Context, e *execution, id string, from source) error {
	reconciled := false // then the job is submitted again at once: its message was drawn earlier
	for {
		rec, err := l.load(ctx, id, from.message)
		switch {
		case err != nil || rec == nil:
		case rec.State.Waiting() && from.ahead.isOver() && !reconciled && !l.hasSlot(e):
			err = errLeft // to its message, which may not be drawn
		case rec.State == jobs.StatePrepared:
			err = l.takeBack(ctx, rec)
		case rec.State.Waiting() && from.ahead.waits():
			if err = l.submitAhead(ctx, e, rec, from.message.Request, from.ahead); errors.Is(err, errNotNext) {
				err = errLeft // to its message
			}
		case rec.State.Waiting() && from.message != nil && (reconciled || l.hasSlot(e)):
			err = l.submitInSlot(ctx, e, rec, from.message.Request)
		case rec.State.Waiting() && from.message != nil:
			err = l.submitDrawn(ctx, e, rec, from)
		case rec.State.Waiting() && reconciled && rec.Request != nil:
			err = l.submitInSlot(ctx, e, rec, rec.OriginalRequest())
			reconciled = mustReread(err)
		case rec.State.Waiting():
			return from.waiting(ctx, rec)
		case rec.State == jobs.StateSubmitting && !l.foreign(rec):
			reconciled = true
			err = l.reconcile(ctx, e, rec)
		case rec.State == jobs.StateGenerating && !l.foreign(rec):
			if err = l.reacquireSlot(ctx, e); err == nil {
				err = l.poll(ctx, e, rec)
			}
		default:
			err = l.leave(ctx, rec, from)
			rec = nil
		}
		if isRefused(err) {
			if err = l.refused(ctx, id, rec, from.message, err); !mustReread(err) && from.message == nil {
				return nil // the log and the journal have the reason
			}
		}
		switch {
		case errors.Is(err, errLeft):
			return nil
		case mustReread(err):
		case err != nil && from.message == nil && errors.As(err, new(*jobError)): // the record has the reason
		case from.message == nil && mustRepeat(rec, err):
			wait := l.waits.unreachable.Next()
			l.log.Warn("job not continued, retrying", "job_id", id, "err", err, "wait", wait)
			if err := loop.Sleep(ctx, wait); err != nil {
				return err
			}
		case err != nil, rec == nil:
			return err
		}
	}
}

// mustReread reports whether an error of a step means that the record has changed.
func mustReread(err error) bool {
	return errors.Is(err, errReread) || errors.Is(err, jobs.ErrConflict)
}

// mustRepeat reports whether a step of a job found in flight has failed with an error that
// is not the job's, a permanent one of Redis for example. The job may have a task, and no
// message brings it back. A job that waits is left to its message instead, after the pause.
func mustRepeat(rec *jobs.Record, err error) bool {
	paused := errors.As(err, new(*pauseError)) && (rec == nil || rec.State != jobs.StateSubmitting)
	return err != nil && !stopped(err) && !paused
}

// leave ends the lane's work on a job: it enqueues the store message, repeats why a job is held
// or has failed, or marks the job as in flight in the lane that it belongs to.
func (l *lane) leave(ctx context.Context, rec *jobs.Record, from source) error {
	switch {
	case rec.State == jobs.StateStoring:
		return l.recorder.Store.EnqueueStore(ctx, rec)
	case from.message == nil:
		return nil
	case rec.State == jobs.StateHeld && from.ahead != nil: // its message was not drawn, and is in the archive
		return nil
	case rec.State == jobs.StateHeld, rec.State == jobs.StateFailed:
		return overError(rec)
	case rec.State == jobs.StateCanceled && rec.Code == jobs.CodeArchived && rec.CostMicroYuan == 0:
		return l.runFromArchive(ctx, rec)
	case l.foreign(rec) && (rec.State == jobs.StateSubmitting || rec.State == jobs.StateGenerating):
		return l.recorder.MarkInFlight(ctx, rec.Account, rec.Model, rec.ID)
	}
	return nil
}

// runFromArchive queues a waiting job again that was canceled because somebody archived its
// message in asynq's web UI, and has run it from there now. Nothing was bought for it. errReread
// asks for the record.
func (l *lane) runFromArchive(ctx context.Context, rec *jobs.Record) error {
	_, err := l.recorder.Store.Retry(ctx, rec.ID, jobs.Decider{By: jobs.ByWebUI, Why: "its message was run from the archive"})
	switch {
	case err == nil:
		return errReread
	case errors.Is(err, jobs.ErrRequestLost), errors.Is(err, jobs.ErrFinished), errors.Is(err, jobs.ErrInvalidState), errors.Is(err, jobs.ErrNotFound):
		return nil
	}
	return l.redisPause(err)
}

// load reads a job's record, and creates it from the message m if there is none. m is nil
// for a job found in flight: load then returns nil if the record is missing or corrupt.
func (l *lane) load(ctx context.Context, id string, m *jobs.GenerateMessage) (*jobs.Record, error) {
	for {
		rec, err := l.readRecord(ctx, id)
		if errors.Is(err, jobs.ErrNotFound) {
			if m == nil {
				return nil, nil //nolint:nilnil // there is nothing to resume
			}
			rec, err = l.recreateRecord(ctx, *m)
		}
		switch {
		case errors.Is(err, jobs.ErrCorrupt):
			l.log.Error("job skipped: record corrupt", "job_id", id, "err", err)
			if m == nil {
				return nil, nil //nolint:nilnil // as above
			}
			return nil, &jobError{message: jobs.CodeRecordCorrupt + ": " + err.Error() + "; to submit the job again, delete the key danqing:job:" + id + " and enqueue it again"}
		case err == nil && m != nil && rec.Digest != m.Request.Digest():
			return nil, &jobError{message: jobs.CodeJobIDTaken + ": the job's ID belongs to another request, which is " + string(rec.State)}
		case err == nil, errors.Is(err, jobs.ErrConflict):
			return rec, err
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case loop.IsRefused(err):
			return nil, err
		case m != nil:
			return nil, l.redisPause(err)
		}
		// The job may have a task, so the slot is not free, and the in-flight mark must stay.
		wait := l.waits.unreachable.Next()
		loop.WarnRedis(l.log, err, "job_id", id, "wait", wait)
		if err := loop.Sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// readRecord reads a job's record and updates it from the worker's own journal, since Redis
// may have lost some or all of it, or may have refused the last write.
func (l *lane) readRecord(ctx context.Context, id string) (*jobs.Record, error) {
	rec, err := l.recorder.Store.Get(ctx, id)
	if err != nil && !errors.Is(err, jobs.ErrNotFound) {
		return nil, err
	}
	if e, ok := l.recorder.Data.Journal.OpenJob(id); ok && (rec == nil || recorder.IsBehind(rec, e.Record, e.At)) {
		if err := l.cfg.Recovery.RecoverEntry(ctx, e); err != nil {
			return nil, err
		}
		return l.recorder.Store.Get(ctx, id)
	}
	return rec, err
}

func (l *lane) recreateRecord(ctx context.Context, m jobs.GenerateMessage) (*jobs.Record, error) {
	rec := jobs.NewRecord(m.Request, nil)
	return rec, l.recorder.Update(ctx, nil, rec)
}

// cancelRequested reports whether cancellation of the job was requested. It adds that decision
// to the record.
func (l *lane) cancelRequested(ctx context.Context, rec *jobs.Record) bool {
	current, err := l.recorder.Store.Get(context.WithoutCancel(ctx), rec.ID)
	if err != nil || current.CancelRequestedAt.IsZero() {
		return false
	}
	rec.Decisions = current.Decisions
	return true
}

// hint returns what an operator can do about an error of the service, "" if unknown.
func hint(err error) string {
	var failure *dashscope.Error
	if errors.As(err, &failure) {
		return failure.Hint()
	}
	return ""
}

// withHint appends what an operator can do to an error message.
func withHint(what, remedy string) string {
	if remedy == "" {
		return what
	}
	return what + " (" + remedy + ")"
}
