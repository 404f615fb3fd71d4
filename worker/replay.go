package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/journal"
)

// recoverJournal merges the journal into the records, before anything is submitted. The
// queue may have died with the last process, or have lost data: an entry can only add
// spending, never remove it.
func (w *Worker) recoverJournal(ctx context.Context) error {
	for _, e := range w.cfg.DataDir.Journal.OpenJobs() {
		if e.Record == nil || e.Record.Request == nil {
			return fmt.Errorf("journal: entry %s of job %s has no record: restore the file from a backup", e.Kind, e.JobID)
		}
		if err := w.recoverEntry(ctx, e); err != nil {
			return fmt.Errorf("recover job %s: %w", e.JobID, err)
		}
	}
	return nil
}

func (w *Worker) recoverEntry(ctx context.Context, e journal.Entry) error {
	next := e.Record
	if e.Kind == journal.KindIntent {
		// The process died between the intent and the reply to its create. The lane
		// determines the end of the window on the service's clock.
		next = ambiguousRecord(next, nil, workerCrashed)
		w.journal(journal.KindAmbiguous, next)
	}
	for {
		// Another worker may replay the same job, or an operator decide about it.
		if err := w.merge(ctx, next, e.At); !errors.Is(err, jobs.ErrConflict) {
			return err
		}
	}
}

// merge updates a job's record to its state in the journal at a given time, and ensures
// that the job is continued.
func (w *Worker) merge(ctx context.Context, journaled *jobs.Record, at time.Time) error {
	known, err := w.jobs.Get(ctx, journaled.ID)
	switch {
	case errors.Is(err, jobs.ErrNotFound):
		known = nil
		// Other workers may have finished it so long ago that its record has expired.
		switch finished, err := w.Finished(ctx, journaled.ID, journaled.Digest); {
		case finished != nil && finished.Attempt >= journaled.Attempt:
			if err := w.quarantineSuperseded(ctx, finished, journaled); err != nil {
				return err
			}
			w.journal(journal.KindFinished, finished)
			return nil
		case err != nil && !errors.Is(err, jobs.ErrDigestConflict) && !errors.Is(err, ErrSimulated) && !errors.Is(err, storage.ErrUnreadable):
			return err
		}
	case err != nil:
		return err
	case !isBehind(known, journaled, at):
		if err := w.quarantineSuperseded(ctx, known, journaled); err != nil {
			return err
		}
		if known.State.Final() {
			w.journal(journal.KindFinished, known)
		}
		return nil
	}
	next := *journaled
	w.log.Info("job recovered from the journal", "job_id", next.ID, "task_id", next.TaskID, "state", string(next.State))
	err = w.updateRecord(ctx, known, &next)
	if errors.As(err, new(*jobs.TaskOwnedError)) {
		w.log.Error("adopted task is owned by another job", "job_id", next.ID, "task_id", next.TaskID, "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	switch next.State {
	case jobs.StateSubmitting, jobs.StateGenerating:
		return w.markInFlight(ctx, next.Account, next.Model, next.ID)
	case jobs.StateStoring:
		return w.jobs.EnqueueStore(ctx, &next)
	default:
		return nil
	}
}

// quarantineSuperseded quarantines the task of a journal entry if the job has continued
// without it.
func (w *Worker) quarantineSuperseded(ctx context.Context, known, journaled *jobs.Record) error {
	task := journaled.TaskID
	if task == "" || known.TaskID == task || slices.Contains(known.Rejected, task) || slices.ContainsFunc(known.PastAttempts, func(a jobs.Attempt) bool { return a.TaskID == task }) {
		return nil
	}
	return w.quarantineExtra(ctx, journaled)
}

// isBehind reports whether a record is older than the journal's, which was written at the
// given time. Later decisions of an operator stand. Since clocks differ, they are
// recognized by the attempts where possible.
func isBehind(known, journaled *jobs.Record, at time.Time) bool {
	if known.Attempt != journaled.Attempt {
		return known.Attempt < journaled.Attempt
	}
	closed := slices.ContainsFunc(known.PastAttempts, func(a jobs.Attempt) bool { return a.Attempt == known.Attempt })
	adopted := !known.ResolvedAt.IsZero() && known.TaskID != "" && journaled.State == jobs.StateHeld
	rejected := slices.Contains(known.Rejected, journaled.TaskID)
	if closed || adopted || rejected || known.RetriedAt.After(at) || known.ResolvedAt.After(at) {
		return false
	}
	if known.State == jobs.StateHeld && known.TaskID == "" && journaled.TaskID != "" {
		return true // the journal has the task that others did not find
	}
	return stateRank(known.State) < stateRank(journaled.State)
}

// stateRank orders the states of one attempt.
func stateRank(s jobs.State) int {
	switch s {
	case jobs.StateScheduled, jobs.StateQueued, jobs.StateRetrying:
		return 0
	case jobs.StateSubmitting:
		return 1
	case jobs.StateGenerating:
		return 2
	case jobs.StateHeld:
		return 3
	case jobs.StateStoring:
		return 4
	case jobs.StateSucceeded, jobs.StateFailed, jobs.StateCanceled:
		return 5
	}
	return 0
}
