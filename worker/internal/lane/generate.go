package lane

import (
	"context"
	"errors"
	"strings"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
)

// generate drives a job as far as the lane can: until its images are being stored, or it
// has ended, is held or must be retried later. Each step advances the record or fails. If
// another writer changed the record meanwhile, it is read again. A [*pauseError] means that
// the lane cannot work on any job for now.
func (l *lane) generate(ctx context.Context, e *execution, m jobs.GenerateMessage) error {
	for {
		rec, err := l.loadRecord(ctx, m)
		if errors.Is(err, jobs.ErrConflict) {
			continue
		}
		if errors.Is(err, jobs.ErrCorrupt) {
			l.log.Error("job skipped: record corrupt", "job_id", m.JobID, "err", err)
			return &jobError{message: jobs.CodeRecordCorrupt + ": " + err.Error() + "; to submit the job again, delete the key danqing:job:" + m.JobID + " and enqueue it again"}
		}
		if err != nil {
			return &pauseError{backoff: &l.waits.unreachable, message: loop.RedisUnavailable, cause: err}
		}
		if rec.Digest != m.Digest {
			return &jobError{message: jobs.CodeJobIDTaken + ": the job's ID belongs to another request, which is " + string(rec.State)}
		}
		switch rec.State {
		case jobs.StateQueued, jobs.StateRetrying, jobs.StateScheduled:
			if err = l.reacquireSlot(ctx, e); err == nil {
				err = l.submit(ctx, rec, m.Request)
			}
		case jobs.StateSubmitting, jobs.StateGenerating:
			err = l.continueJob(ctx, e, rec)
			if err == nil && l.foreign(rec) {
				return nil
			}
		case jobs.StateStoring:
			return l.recorder.Store.EnqueueStore(ctx, rec)
		case jobs.StateFailed, jobs.StateCanceled:
			err = l.replayOutcome(ctx, rec)
			if err == nil {
				return nil
			}
		default:
			return nil
		}
		if err != nil && !errors.Is(err, jobs.ErrConflict) {
			return err
		}
	}
}

// replayOutcome answers a late redelivery of the message of a job that ended without an
// image: it returns the same error again. If an operator ran the message from asynq's
// archive to retry the job, the job is queued again, and [jobs.ErrConflict] asks the caller
// to read the record again.
func (l *lane) replayOutcome(ctx context.Context, rec *jobs.Record) error {
	info, err := asynq.NewInspectorFromRedisClient(l.recorder.Redis).GetTaskInfo(jobs.Queue(rec.Model, rec.Priority), rec.ID)
	if err == nil && (rec.Code == jobs.CodeArchived || strings.HasPrefix(info.LastErr, rec.Code+": ")) {
		if _, err = l.recorder.Store.Retry(ctx, rec.ID); err == nil {
			return jobs.ErrConflict
		}
	}
	// If the record names another queue, the message was not run from this queue's archive.
	if err != nil && !errors.Is(err, asynq.ErrTaskNotFound) && !errors.Is(err, asynq.ErrQueueNotFound) {
		return &pauseError{backoff: &l.waits.unreachable, message: loop.RedisUnavailable, cause: err}
	}
	if rec.State == jobs.StateFailed {
		return failedError(rec)
	}
	return nil
}

// continueJob continues a submitted job. If the job belongs to another lane, it sets that
// lane's in-flight mark instead.
func (l *lane) continueJob(ctx context.Context, e *execution, rec *jobs.Record) error {
	switch {
	case l.foreign(rec):
		return l.recorder.MarkInFlight(ctx, rec.Account, rec.Model, rec.ID)
	case rec.State == jobs.StateSubmitting:
		return l.reconcile(ctx, e, rec)
	}
	if err := l.reacquireSlot(ctx, e); err != nil {
		return err
	}
	return l.poll(ctx, rec)
}

// loadRecord reads the record of a message's job, and creates it if there is none.
func (l *lane) loadRecord(ctx context.Context, m jobs.GenerateMessage) (*jobs.Record, error) {
	rec, err := l.readRecord(ctx, m.JobID)
	if errors.Is(err, jobs.ErrNotFound) {
		return l.recreateRecord(ctx, m)
	}
	return rec, err
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
	req := m.Request
	req.ID = m.JobID
	rec := jobs.NewRecord(req, nil)
	rec.Digest = m.Digest
	return rec, l.recorder.Update(ctx, nil, rec)
}

// cancelRequested reports whether cancellation of the job was requested.
func (l *lane) cancelRequested(ctx context.Context, rec *jobs.Record) bool {
	current, err := l.recorder.Store.Get(context.WithoutCancel(ctx), rec.ID)
	return err == nil && !current.CancelRequestedAt.IsZero()
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
