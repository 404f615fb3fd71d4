package lane

import (
	"context"
	"errors"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/quarantine"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/journal"
)

// isRefused reports whether a step failed because Redis refuses what is to be recorded of this
// job. A [*pauseError] is not about the job.
func isRefused(err error) bool {
	return loop.IsRefused(err) && !errors.As(err, new(*pauseError))
}

// refused handles a step that Redis refuses. A script may have written the record all the same
// before it failed at another key: then the job goes on from there. Otherwise the step would
// fail for ever: the job is held, with the images of its task quarantined. In both cases refused
// fails with errReread. If Redis refuses the hold too, the journal has it, and the error
// archives the job's message.
func (l *lane) refused(ctx context.Context, id string, rec *jobs.Record, message *jobs.GenerateMessage, cause error) error {
	ctx = context.WithoutCancel(ctx)
	known, err := l.recorder.Store.Get(ctx, id)
	if err != nil {
		known = nil
	}
	if rec != nil && known != nil && known.State != jobs.StateSubmitting && !known.State.Waiting() && (known.State != rec.State || known.Attempt != rec.Attempt) {
		return errReread
	}
	last := known
	if e, open := l.recorder.Data.Journal.OpenJob(id); open && e.Record != nil && (last == nil || recorder.IsBehind(last, e.Record, e.At)) {
		last = e.Record
	}
	verdict := &jobError{message: jobs.CodeRecordRefused + ": redis refuses what must be recorded of the job: " + cause.Error()}
	switch {
	case last == nil:
		l.log.Error("job skipped: redis refuses its record", "job_id", id, "err", cause)
		return verdict
	case last.State == jobs.StateHeld || last.State.Final():
		return verdict
	}
	next := recorder.Held(last, jobs.CodeRecordRefused, "redis refuses what must be recorded of the job: "+cause.Error())
	if next.Request == nil && message != nil { // the message may be deleted
		next.Request = &message.Request
	}
	if next.TaskID != "" {
		task := quarantine.Task{JobID: id, Attempt: next.Attempt, Account: next.Account, Model: next.Model, TaskID: next.TaskID}
		if err := l.recorder.Retry(ctx, id, func(ctx context.Context) error { return l.cfg.Quarantine.Add(ctx, task) }); err != nil {
			l.log.Error("task not quarantined", "job_id", id, "task_id", next.TaskID, "err", err)
		}
	}
	if !last.State.Waiting() {
		l.recorder.Journal(journal.KindHeld, next)
	}
	l.log.Error("job held for operator", "job_id", id, "task_id", next.TaskID, "attempt", next.Attempt, "err", next.Message)
	err = l.recorder.Transition(ctx, known, next)
	if now, readErr := l.recorder.Store.Get(ctx, id); readErr == nil && now.State == jobs.StateHeld {
		return errReread
	}
	l.log.Error("hold not recorded", "job_id", id, "err", err)
	return verdict
}

// intentRefused handles an intent that Redis refuses. Nothing was sent. If a key is broken that
// all jobs share, the lane pauses, and the job keeps its place.
func (l *lane) intentRefused(ctx context.Context, intent, rec *jobs.Record, cause error) error {
	shared := l.recorder.Store.CheckKeys(ctx, intent.Account, intent.Model)
	if shared == nil {
		if err := l.recorder.Release(ctx, intent); err != nil {
			l.log.Warn("reservation not released", "job_id", intent.ID, "err", err)
		}
		return cause
	}
	pause := &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseRedis, message: "submissions paused: redis refuses records", cause: shared}
	if err := l.rollbackIntent(ctx, intent, rec, pause); !errors.As(err, new(*pauseError)) {
		l.log.Debug("intent not rolled back", "job_id", intent.ID, "err", err)
	}
	return pause
}
