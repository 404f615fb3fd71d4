package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/journal"
)

// Offline is the data directory of runs whose queue was in their memory, between two runs.
type Offline struct {
	// DataDir is opened, so that no worker uses it.
	DataDir *journal.DataDir
	// Bucket is that of the runs.
	Bucket *storage.Bucket
	// Redis is empty, and is not used for anything else.
	Redis redis.UniversalClient
}

// Resolve ends the hold of a job as an operator decided, and returns the job. The decision is in
// the journal, or in the bucket, before it returns; it may be repeated after an error.
//
//   - A task that is adopted is polled by the next run, of any file, and its images are stored.
//   - A job that is given up gets its sidecar now.
//   - A job that is to be bought again stays held, with [jobs.Job.BuyAgainAt], until it is
//     enqueued again: only the run of its own file spends money on it.
//
// It fails as [jobs.Inspector.Resolve] does, or with the bucket's or the journal's own error.
func (o *Offline) Resolve(ctx context.Context, id string, decision jobs.Resolution, by jobs.Decider) (*jobs.Job, error) {
	if err := o.Bucket.Bind(ctx, string(o.DataDir.Mode())); err != nil {
		return nil, err
	}
	held, err := o.held(ctx, id)
	if err != nil {
		return nil, err
	}
	if decision == (jobs.Resolution{BuyAgain: true}) {
		made, err := decision.Decide(by)
		if err != nil {
			return nil, fmt.Errorf("resolve %s: %w", id, err)
		}
		next := *held
		next.Decide(made)
		next.BuyAgainAt = made.At
		return &next.Job, o.DataDir.Journal.Append(journal.KindHeld, &next)
	}
	store := jobs.NewStore(o.Redis)
	if err := o.load(ctx, store, held); err != nil {
		return nil, err
	}
	if job, err := jobs.NewInspector(o.Redis).Resolve(ctx, id, decision, by); err != nil {
		return job, err
	}
	next, err := store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	switch next.State {
	case jobs.StateGenerating:
		err = o.DataDir.Journal.Append(journal.KindTask, next)
	case jobs.StateStoring:
		err = o.DataDir.Journal.Append(journal.KindResults, next)
	default:
		err = o.finish(ctx, next)
	}
	return &next.Job, err
}

func (o *Offline) recorder() *recorder.Recorder {
	return &recorder.Recorder{
		Store: jobs.NewStore(o.Redis), Data: o.DataDir, Bucket: o.Bucket, Log: slog.New(slog.DiscardHandler), Stopping: context.Background(),
		Simulated: func() bool { return o.DataDir.Mode() == jobs.ModeSimulated },
	}
}

// held returns the record of a held job.
func (o *Offline) held(ctx context.Context, id string) (*jobs.Record, error) {
	e, open := o.DataDir.Journal.OpenJob(id)
	if !open {
		if _, err := o.Bucket.Sidecar(ctx, id); !errors.Is(err, storage.ErrNotExist) {
			return nil, errors.Join(err, fmt.Errorf("resolve %s: %w: it is finished", id, jobs.ErrInvalidState))
		}
		return nil, fmt.Errorf("resolve %s: %w", id, jobs.ErrNotFound)
	}
	finished, err := o.recorder().Finished(ctx, id, e.Record.Digest)
	switch {
	case finished != nil && finished.Attempt >= e.Attempt:
		return nil, fmt.Errorf("resolve %s: %w: it is finished", id, jobs.ErrInvalidState)
	case err != nil && !recorder.IsForeign(err):
		return nil, fmt.Errorf("resolve %s: %w", id, err)
	case e.Record.State != jobs.StateHeld:
		return nil, fmt.Errorf("resolve %s: %w: it is not held (%s)", id, jobs.ErrInvalidState, e.Record.State)
	}
	return e.Record, nil
}

// load writes a job to the queue, and the owners of the tasks that another job might be taken
// to own: those in the journal, and those of finished jobs in the time for which the service
// lists tasks.
func (o *Offline) load(ctx context.Context, store *jobs.Store, held *jobs.Record) error {
	if _, err := store.Get(ctx, held.ID); errors.Is(err, jobs.ErrNotFound) {
		if err := store.Update(ctx, nil, held); err != nil {
			return err
		}
	}
	owners := map[string]string{}
	for task, e := range o.DataDir.Journal.OwnedTasks() {
		owners[task] = e.JobID
	}
	for _, e := range o.DataDir.Journal.OpenJobs() {
		if e.Record.TaskID != "" {
			owners[e.Record.TaskID] = e.JobID
		}
	}
	err := o.Bucket.RecentSidecars(ctx, time.Now().Add(-journal.TaskRetention), func(side *storage.Sidecar) error {
		for _, a := range side.Attempts {
			if a.TaskID != "" {
				owners[a.TaskID] = side.JobID
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for the owners of tasks: %w", err)
	}
	for task, job := range owners {
		if err := store.ClaimTask(ctx, task, job); err != nil && !errors.As(err, new(*jobs.TaskOwnedError)) {
			return err
		}
	}
	return nil
}

// finish writes the sidecar of a job that was given up, and then the end into the journal.
func (o *Offline) finish(ctx context.Context, rec *jobs.Record) error {
	side, err := recorder.SidecarOf(rec)
	if err != nil {
		return err
	}
	if err := o.Bucket.PutSidecar(ctx, side); err != nil {
		return err
	}
	return o.DataDir.Journal.Append(journal.KindFinished, rec)
}
