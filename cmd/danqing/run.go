package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker"
)

// batchRun completes a set of jobs with its own worker.
type batchRun struct {
	*program
	runtime  *runtime
	progress *progress
	refs     references
	json     bool
	lines    []jobs.Line
	// files are the files of the lines, and budget is the budget of each.
	files  []batchFile
	budget budgetFlag

	// prepared is set when all jobs are valid and queued, so that there are results.
	prepared bool

	mu sync.Mutex
	// records are the jobs by ID, unfinished the lines of those that need more work.
	records        map[string]*jobs.Job
	unfinished     map[string]jobs.Line
	finishedBefore map[string]bool // IDs of jobs that had finished before this run
}

const (
	// maxLookups is how many jobs are looked up concurrently.
	maxLookups = 16
	// recheckInterval limits the delay when the event of a finished job is lost.
	recheckInterval = 10 * time.Second
	statusInterval  = 200 * time.Millisecond
)

// do runs the jobs. It returns errPartFailed or errInterrupted if everything else was
// already printed.
func (r *batchRun) do(ctx context.Context) error {
	r.records, r.unfinished, r.finishedBefore = map[string]*jobs.Job{}, map[string]jobs.Line{}, map[string]bool{}
	err := r.runtime.run(ctx, r.signals, r.progress.printLine, r.work)
	switch c := r.counts(); {
	case err == nil && c.left > 0:
		return fmt.Errorf("the worker ended with %s unfinished: run the same command again", count(c.left, "job"))
	case err == nil && c.failed+c.held+c.awaitingBudget > 0:
		return errPartFailed
	}
	return err
}

// work prepares the jobs, enqueues the unfinished ones, and runs the worker until all are
// finished.
func (r *batchRun) work(ctx context.Context) error {
	if err := r.runtime.worker.Prepare(ctx); err != nil {
		return err
	}
	if err := r.findFinished(ctx); err != nil {
		return err
	}
	if err := setBudgets(ctx, ledger.New(r.runtime.redis), r.files, r.budget); err != nil {
		return err
	}
	if err := r.enqueue(ctx); err != nil {
		return err
	}
	r.prepared = true
	r.printPlan()
	if len(r.unfinished) == 0 && !r.runtime.worker.Unfinished(ctx) {
		return nil
	}
	// Subscribe before the worker runs, so that no event is lost.
	changes, err := jobs.NewClient(r.runtime.redis).Subscribe(ctx)
	if err != nil {
		return err
	}
	defer changes.Close() //nolint:errcheck // read only
	watching, stop := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() {
		err := r.watch(watching, changes)
		r.runtime.worker.Stop()
		watched <- err
	}()
	err = r.runtime.worker.Run(ctx)
	stop()
	if watchErr := <-watched; !errors.Is(watchErr, context.Canceled) {
		err = errors.Join(err, watchErr)
	}
	return errors.Join(err, r.refresh(context.WithoutCancel(ctx)))
}

// findFinished finds jobs that have finished already, and reports IDs that belong to other
// requests.
func (r *batchRun) findFinished(ctx context.Context) error {
	taken := make([]error, len(r.lines))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLookups)
	for i, line := range r.lines {
		group.Go(func() error {
			if r.runtime.worker.Stopped() {
				return worker.ErrStopped
			}
			finished, err := jobOf(r.runtime.worker.Finished(gctx, line.ID, line.Digest))
			switch {
			case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, worker.ErrSimulated):
				taken[i] = err
			case err != nil:
				return fmt.Errorf("look up what is done already: %w", err)
			case finished != nil:
				r.mu.Lock()
				r.records[line.ID] = finished
				r.finishedBefore[line.ID] = true
				r.mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return r.batchError(taken)
}

// batchError returns the errors that are not nil, with the numbers of their lines.
func (r *batchRun) batchError(errs []error) error {
	wrong := &jobs.BatchError{}
	for i, err := range errs {
		if err != nil {
			wrong.Lines = append(wrong.Lines, jobs.LineError{Number: r.lines[i].Number, Err: err})
		}
	}
	if len(wrong.Lines) == 0 {
		return nil
	}
	return wrong
}

// enqueue enqueues the unfinished jobs. No lane runs yet, so nothing is spent before every
// line is valid.
func (r *batchRun) enqueue(ctx context.Context) error {
	taken := make([]error, len(r.lines))
	for i, line := range r.lines {
		if r.runtime.worker.Stopped() {
			return worker.ErrStopped
		}
		if r.records[line.ID] != nil {
			continue
		}
		if err := r.refs.stage(ctx, r.runtime.bucket, line); err != nil {
			return fmt.Errorf("line %d: stage reference image: %w", line.Number, err)
		}
		rec, err := enqueueWithinBudget(ctx, r.runtime.redis, line.Request)
		if late := overdueRecord(line, err); late != nil {
			rec, err = late, nil
		}
		if errors.Is(err, jobs.ErrDigestConflict) {
			taken[i] = err
			continue
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", line.Number, err)
		}
		r.records[line.ID] = rec
		if isSettled(rec) {
			r.finishedBefore[line.ID] = true
			r.progress.printJob(line.Number, rec) // held by an earlier run, or past its deadline
			continue
		}
		r.unfinished[line.ID] = line
	}
	return r.batchError(taken)
}

// overdueRecord returns the failed record of a line whose deadline passed before it was
// queued, as can happen when an earlier run is continued: only that line fails, at no cost.
// It returns nil if err has another cause.
func overdueRecord(line jobs.Line, err error) *jobs.Job {
	now := time.Now().UTC()
	rec := jobs.NewRecord(line.Request, line.Warnings)
	if invalid := (*jobs.InvalidError)(nil); !errors.As(err, &invalid) || !rec.Overdue(now) {
		return nil
	}
	rec.End(jobs.StateFailed, jobs.CodeDeadlineExceeded, jobs.DeadlineMessage, now)
	return &rec.Job
}

// isSettled reports whether a job is finished or held, so that the worker does not
// continue it.
func isSettled(rec *jobs.Job) bool { return rec.State.Final() || rec.State == jobs.StateHeld }

// watch follows the jobs until all are settled, and the paid images of earlier runs are in
// the bucket too.
func (r *batchRun) watch(ctx context.Context, changes *jobs.Changes) error {
	status, recheck := time.NewTicker(statusInterval), time.NewTicker(recheckInterval)
	defer status.Stop()
	defer recheck.Stop()
	for len(r.unfinished) > 0 || r.runtime.worker.Unfinished(ctx) {
		var err error
		select {
		case id := <-changes.IDs():
			if _, ok := r.unfinished[id]; ok {
				err = r.refreshJob(ctx, id)
			}
		case <-status.C:
			r.progress.update(r.counts())
		case <-recheck.C:
			err = r.refresh(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err != nil && !isTransient(err) { // the worker logs transient errors, and retries too
			return err
		}
	}
	return nil
}

// refresh reads the records of all unfinished jobs.
func (r *batchRun) refresh(ctx context.Context) error {
	for id := range r.unfinished {
		if err := r.refreshJob(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// refreshJob reads a job's record, and prints the job if it is settled.
func (r *batchRun) refreshJob(ctx context.Context, id string) error {
	line := r.unfinished[id]
	rec, err := jobs.NewClient(r.runtime.redis).Get(ctx, id)
	if errors.Is(err, jobs.ErrNotFound) {
		rec, err = r.requeueLost(ctx, line)
	}
	if err != nil || rec == nil {
		return err
	}
	r.mu.Lock()
	r.records[id] = rec
	if isSettled(rec) {
		delete(r.unfinished, id)
	}
	r.mu.Unlock()
	if !isSettled(rec) {
		return nil
	}
	if !awaitsBudget(rec) { // possibly thousands: the summary counts them
		r.progress.printJob(line.Number, rec)
	}
	if r.json {
		return r.printResult(ctx, line, rec)
	}
	return nil
}

// requeueLost enqueues a job that Redis has lost, unless it is finished according to the
// worker's journal and the bucket. It returns nil if that is not certain yet.
func (r *batchRun) requeueLost(ctx context.Context, line jobs.Line) (*jobs.Job, error) {
	finished, err := jobOf(r.runtime.worker.Finished(ctx, line.ID, line.Digest))
	if finished != nil || err != nil {
		return finished, err
	}
	// Redis has lost the batch's budget too.
	if err := setBudgets(ctx, ledger.New(r.runtime.redis), r.files, r.budget); err != nil {
		return nil, err
	}
	rec, err := jobs.NewClient(r.runtime.redis).Enqueue(ctx, line.Request)
	if late := overdueRecord(line, err); late != nil {
		if r.runtime.worker.Unfinished(ctx) { // a paid task may be this line's
			return nil, nil //nolint:nilnil // not certain yet
		}
		return late, nil
	}
	return rec, err
}

// counts returns the numbers for the progress line and the summary.
func (r *batchRun) counts() counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := counts{total: len(r.lines), finishedBefore: len(r.finishedBefore)}
	for id, rec := range r.records {
		switch {
		case rec.State == jobs.StateSucceeded:
			c.done++
		case rec.State == jobs.StateFailed, rec.State == jobs.StateCanceled:
			c.failed++
		case awaitsBudget(rec):
			c.awaitingBudget++
		case rec.State == jobs.StateHeld:
			c.held++
		default:
			c.left++
		}
		if r.finishedBefore[id] {
			continue
		}
		for _, image := range rec.Images {
			if image.Key != "" {
				c.images++
			}
		}
		c.microYuan = ledger.Sum(c.microYuan, rec.CostMicroYuan)
	}
	return c
}
