package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/internal/account"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/quarantine"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/journal"
)

// recovery merges a worker's data directory into a Redis that may have lost data.
type recovery struct {
	recorder   *recorder.Recorder
	accounts   *account.Set
	quarantine *quarantine.List
	// exclusive is set when no other worker uses the queue.
	exclusive bool
}

// replayDataDir writes the journal, what was spent, the api_key_ids and the owners of tasks to
// Redis.
func (r *recovery) replayDataDir(ctx context.Context) error {
	if err := r.recoverJournal(ctx); err != nil {
		return err
	}
	if err := r.republishIntents(ctx); err != nil {
		return err
	}
	if err := r.importSpend(ctx); err != nil {
		return err
	}
	for fingerprint, id := range r.recorder.Data.Journal.KeyIDs() {
		if err := r.recorder.Store.SetKeyID(ctx, fingerprint, id); err != nil {
			return err
		}
	}
	return r.claimOwnedTasks(ctx)
}

// claimOwnedTasks writes the owners of tasks that Redis lacks: a busy worker has thousands.
func (r *recovery) claimOwnedTasks(ctx context.Context) error {
	owned := r.recorder.Data.Journal.OwnedTasks()
	known, err := r.recorder.Store.TaskOwners(ctx, slices.Collect(maps.Keys(owned)))
	if err != nil && !loop.IsRefused(err) { // of one task: the others are claimed one by one
		return err
	}
	for task, e := range owned {
		if known[task].Job != "" {
			continue
		}
		err := r.recorder.Store.ClaimTask(ctx, task, e.JobID)
		if loop.IsRefused(err) {
			r.recorder.Log.Error("owner of a task not recorded", "job_id", e.JobID, "task_id", task, "err", err)
			continue
		}
		if err != nil && !errors.As(err, new(*jobs.TaskOwnedError)) {
			return err
		}
	}
	return nil
}

// recoverJournal merges the journal into the records, before anything is submitted. The
// queue may be empty after a restart, or may have lost data: an entry can only add
// spending, never remove it.
func (r *recovery) recoverJournal(ctx context.Context) error {
	for _, e := range r.recorder.Data.Journal.OpenJobs() {
		if e.Record == nil || e.Record.Request == nil {
			return fmt.Errorf("journal: entry %s of job %s has no record: restore the file from a backup", e.Kind, e.JobID)
		}
		err := r.RecoverEntry(ctx, e)
		if loop.IsRefused(err) { // the journal keeps the entry: nothing is bought for the job
			r.recorder.Log.Error("job not recovered: redis refuses its record", "job_id", e.JobID, "err", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("recover job %s: %w", e.JobID, err)
		}
	}
	return nil
}

// RecoverEntry merges one entry of the journal into its job's record.
func (r *recovery) RecoverEntry(ctx context.Context, e journal.Entry) error {
	next := e.Record
	owner, err := r.otherOwner(ctx, e)
	switch {
	case err != nil:
		return err
	case owner != "":
		// The process crashed before it knew that the create's reply named another job's task.
		rejected := *next
		rejected.State, rejected.TaskID = jobs.StateSubmitting, ""
		rejected.Rejected = append(slices.Clone(next.Rejected), next.TaskID)
		next = reconcile.AmbiguousRecord(&rejected, fmt.Sprintf("the reply names task %s, which belongs to job %s", e.Record.TaskID, owner))
		r.recorder.Journal(journal.KindAmbiguous, next)
	case e.Kind == journal.KindIntent:
		// The process crashed between the intent and the reply to its create. The lane
		// determines the end of the window on the service's clock.
		next = reconcile.AmbiguousRecord(next, reconcile.WorkerCrashed)
		r.recorder.Journal(journal.KindAmbiguous, next)
	}
	for {
		// Another worker may replay the same job, or an operator decide about it.
		if err := r.Merge(ctx, next, e.At); !errors.Is(err, jobs.ErrConflict) {
			return err
		}
	}
}

// otherOwner returns the other job that owns the task which a create's reply named, "" if none
// does.
func (r *recovery) otherOwner(ctx context.Context, e journal.Entry) (string, error) {
	if e.Kind != journal.KindTask || e.Record.Adopted {
		return "", nil
	}
	owners, err := r.recorder.Store.TaskOwners(ctx, []string{e.Record.TaskID})
	if owner := owners[e.Record.TaskID].Job; owner != e.JobID {
		return owner, err
	}
	return "", err
}

// Merge updates a job's record to its state in the journal at a given time, and ensures
// that the job is continued.
func (r *recovery) Merge(ctx context.Context, journaled *jobs.Record, at time.Time) error {
	known, err := r.recorder.Store.Get(ctx, journaled.ID)
	switch {
	case errors.Is(err, jobs.ErrNotFound):
		known = nil
		// Other workers may have finished it so long ago that its record has expired.
		switch finished, err := r.recorder.Finished(ctx, journaled.ID, journaled.Digest); {
		case finished != nil && finished.Attempt >= journaled.Attempt:
			if err := r.quarantineSuperseded(ctx, finished, journaled); err != nil {
				return err
			}
			r.recorder.Journal(journal.KindFinished, finished)
			return nil
		case err != nil && !recorder.IsForeign(err):
			return err
		}
	case err != nil:
		return err
	case !recorder.IsBehind(known, journaled, at):
		if err := r.quarantineSuperseded(ctx, known, journaled); err != nil {
			return err
		}
		if known.State.Final() {
			r.recorder.Journal(journal.KindFinished, known)
		}
		return nil
	}
	next := *journaled
	r.recorder.Log.Info("job recovered from the journal", "job_id", next.ID, "task_id", next.TaskID, "state", string(next.State))
	err = r.recorder.Update(ctx, known, &next)
	if errors.As(err, new(*jobs.TaskOwnedError)) {
		r.recorder.Log.Error("adopted task is owned by another job", "job_id", next.ID, "task_id", next.TaskID, "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // the record is not behind any more: nobody would repeat this
	switch next.State {
	case jobs.StateSubmitting, jobs.StateGenerating:
		return r.recorder.MarkInFlight(ctx, next.Account, next.Model, next.ID)
	case jobs.StateStoring:
		return r.recorder.Store.EnqueueStore(ctx, &next)
	default:
		return nil
	}
}

// quarantineSuperseded quarantines the task of a journal entry if the job has continued
// without it.
func (r *recovery) quarantineSuperseded(ctx context.Context, known, journaled *jobs.Record) error {
	task := journaled.TaskID
	if task == "" || known.TaskID == task || slices.Contains(known.Rejected, task) || slices.ContainsFunc(known.PastAttempts, func(a jobs.Attempt) bool { return a.TaskID == task }) {
		return nil
	}
	return r.quarantine.AddExtra(ctx, journaled)
}

// republishIntents writes this worker's resubmitted and held intents, and the candidate
// tasks of held jobs, to a Redis that may have lost them.
func (r *recovery) republishIntents(ctx context.Context) error {
	entries := r.recorder.Data.Journal.Resubmitted()
	for _, e := range append(r.recorder.Data.Journal.OpenJobs(), r.recorder.Data.Journal.BoughtAgain()...) {
		ambiguous := len(e.Record.Candidates) > 0 || e.Record.Code == jobs.CodeSubmitAmbiguous
		if e.Kind == journal.KindHeld && ambiguous && time.Since(e.At) < journal.TaskRetention {
			entries = append(entries, e)
		}
	}
	for _, e := range entries {
		rec := e.Record
		i := reconcile.IntentOf(rec)
		i.Resubmitted, i.Held = e.Kind == journal.KindNotCreated, e.Kind == journal.KindHeld
		var err error
		if rec.Code != jobs.CodeOrphanedTask { // such a job has no intent
			err = reconcile.IntentsOf(r.recorder.Redis, rec.Account, rec.Model).PutMissing(ctx, i)
		}
		candidates := rec.Candidates
		if rec.Code == jobs.CodeOrphanedTask { // for each other one another job is held
			candidates = candidates[:min(len(candidates), 1)]
		}
		for _, task := range candidates {
			err = errors.Join(err, r.quarantine.Add(ctx, quarantine.Task{JobID: e.JobID, Attempt: e.Attempt, Account: rec.Account, Model: rec.Model, TaskID: task, KnownAt: e.At}))
		}
		if loop.IsRefused(err) {
			r.recorder.Log.Error("intent not recorded", "job_id", e.JobID, "err", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("record intent of %s: %w", e.JobID, err)
		}
	}
	return nil
}

// importSpend imports the spend log into the ledger of a Redis that lacks it.
func (r *recovery) importSpend(ctx context.Context) error {
	if r.recorder.Data.SpendLost() {
		if err := r.restoreSpend(ctx); err != nil {
			return err
		}
	}
	return r.recorder.Data.Spend.ImportInto(ctx, r.recorder.Ledger, r.recorder.Data.WorkerID)
}

// restoreSpend restores a lost spend log from the sidecars in the bucket. On a shared queue
// it does not: other workers may have booked them, and Redis has the budgets.
func (r *recovery) restoreSpend(ctx context.Context) error {
	var settled []ledger.Settlement
	if r.exclusive {
		err := r.recorder.Bucket.RecentSidecars(ctx, time.Time{}, func(side *storage.Sidecar) error {
			rec, err := recorder.RecordOf(side)
			if err != nil || rec.TaskID == "" || rec.CostMicroYuan == 0 || rec.Simulated != r.recorder.Simulated() {
				return nil //nolint:nilerr // an unreadable one is skipped, as by the listing
			}
			charge := recorder.ChargeOf(rec, len(rec.Images)-len(rec.Missing()), rec.CostMicroYuan)
			settled = append(settled, ledger.Settlement{Charge: charge, TaskID: rec.TaskID})
			return nil
		})
		if err != nil {
			return fmt.Errorf("restore the spend log: %w", err)
		}
	}
	for _, s := range settled {
		if err := r.recorder.Data.Spend.Append(s.Charge, s.TaskID); err != nil {
			return err
		}
	}
	r.recorder.Log.Error("spend log was lost: restored what the sidecars have", "path", r.recorder.Data.Path)
	return r.recorder.Data.SpendRestored()
}

// unfinished returns the number of unfinished jobs whose last journal entry is of the given
// kind; "" is any kind. It first journals jobs that other workers have finished. Jobs that
// are held, and jobs of accounts that are not configured, are not counted.
func (r *recovery) unfinished(ctx context.Context, kind journal.Kind) int {
	n := 0
	for _, e := range r.recorder.Data.Journal.OpenJobs() {
		if kind != "" && e.Kind != kind || e.Record.State == jobs.StateHeld || r.accounts.Named(e.Record.Account) == nil {
			continue
		}
		rec, err := r.recorder.Store.Get(ctx, e.JobID)
		switch {
		case err == nil && rec.State.Final():
			r.recorder.Journal(journal.KindFinished, rec)
		case err == nil && rec.State == jobs.StateHeld && !recorder.IsBehind(rec, e.Record, e.At):
			r.recorder.Journal(journal.KindHeld, rec)
		default:
			n++
		}
	}
	return n
}

// StoreBacklog returns the number of jobs of this worker whose images are not in the
// bucket. Up to limit it counts journal entries only; above limit it checks which of the
// jobs other workers have stored.
func (r *recovery) StoreBacklog(ctx context.Context, limit int) int {
	n := 0
	for _, e := range r.recorder.Data.Journal.OpenJobs() {
		if e.Kind == journal.KindResults {
			n++
		}
	}
	if n > limit {
		n = r.unfinished(ctx, journal.KindResults)
	}
	return n
}
