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

// run takes a set of jobs to completion with the engine's worker.
type run struct {
	*program
	engine   *engine
	progress *progress
	refs     references
	json     bool
	lines    []jobs.Line
	// sheets are the files that the lines are from, and budget bounds what each may
	// cost.
	sheets []sheet
	budget budgetFlag

	// prepared says that records can be told: nothing was wrong with the jobs.
	prepared bool

	mu sync.Mutex
	// records are the jobs by ID; over are those that need no more work.
	records map[string]*jobs.Job
	open    map[string]jobs.Line
	before  map[string]bool // over before this run
}

const (
	// lookups is how many jobs are looked up in the bucket at once.
	lookups = 16
	// recheckInterval bounds how long a lost change can hide that a job is over.
	recheckInterval = 10 * time.Second
	statusInterval  = 200 * time.Millisecond
)

// do runs the jobs. It returns errPartFailed or errInterrupted when it has said
// all there is to say.
func (r *run) do(ctx context.Context) error {
	r.records, r.open, r.before = map[string]*jobs.Job{}, map[string]jobs.Line{}, map[string]bool{}
	err := r.engine.run(ctx, r.signals, r.progress.line, r.work)
	switch c := r.counts(); {
	case err == nil && c.left > 0:
		return fmt.Errorf("the worker ended with %s unfinished: run the same command again", count(c.left, "job"))
	case err == nil && c.failed+c.held+c.unfunded > 0:
		return errPartFailed
	}
	return err
}

// work prepares, enqueues what is not over, and works until all is.
func (r *run) work(ctx context.Context) error {
	if err := r.engine.worker.Prepare(ctx); err != nil {
		return err
	}
	if err := r.lookUp(ctx); err != nil {
		return err
	}
	if err := setBudgets(ctx, ledger.New(r.engine.redis), r.sheets, r.budget); err != nil {
		return err
	}
	if err := r.enqueue(ctx); err != nil {
		return err
	}
	r.prepared = true
	r.announce()
	if len(r.open) == 0 && !r.engine.worker.Unfinished(ctx) {
		return nil
	}
	// Nothing changes before the worker runs.
	changes, err := jobs.NewClient(r.engine.redis).Subscribe(ctx)
	if err != nil {
		return err
	}
	defer changes.Close() //nolint:errcheck // nobody listens any more
	watching, stop := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() {
		err := r.watch(watching, changes)
		r.engine.worker.Stop()
		watched <- err
	}()
	err = r.engine.worker.Run(ctx)
	stop()
	if watchErr := <-watched; !errors.Is(watchErr, context.Canceled) {
		err = errors.Join(err, watchErr)
	}
	return errors.Join(err, r.refresh(context.WithoutCancel(ctx)))
}

// lookUp finds the jobs that are finished already, and the IDs that are taken.
func (r *run) lookUp(ctx context.Context) error {
	taken := make([]error, len(r.lines))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(lookups)
	for i, line := range r.lines {
		group.Go(func() error {
			if r.engine.worker.Stopped() {
				return worker.ErrStopped
			}
			over, err := jobOf(r.engine.worker.Finished(gctx, line.ID, line.Digest))
			switch {
			case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, worker.ErrSimulated):
				taken[i] = err
			case err != nil:
				return fmt.Errorf("look up what is done already: %w", err)
			case over != nil:
				r.mu.Lock()
				r.records[line.ID] = over
				r.before[line.ID] = true
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

// batchError names the lines of those errors that are not nil.
func (r *run) batchError(errs []error) error {
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

// enqueue puts the rest on the queue. No lane runs yet: nothing is spent before
// every line is known to be right.
func (r *run) enqueue(ctx context.Context) error {
	taken := make([]error, len(r.lines))
	for i, line := range r.lines {
		if r.engine.worker.Stopped() {
			return worker.ErrStopped
		}
		if r.records[line.ID] != nil {
			continue
		}
		if err := r.refs.stage(ctx, r.engine.bucket, line); err != nil {
			return fmt.Errorf("line %d: stage reference image: %w", line.Number, err)
		}
		rec, err := enqueueFunded(ctx, r.engine.redis, line.Request)
		if late := tooLate(line, err); late != nil {
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
		if settled(rec) {
			r.before[line.ID] = true
			r.progress.job(line.Number, rec) // held by an earlier run, or too late: say which, and why
			continue
		}
		r.open[line.ID] = line
	}
	return r.batchError(taken)
}

// tooLate is what becomes of a line whose deadline has passed before it was queued, as
// in a run that goes on with an earlier one: it alone fails, at no cost. Nil if err has
// another reason.
func tooLate(line jobs.Line, err error) *jobs.Job {
	now := time.Now().UTC()
	rec := jobs.NewRecord(line.Request, line.Warnings)
	if invalid := (*jobs.InvalidError)(nil); !errors.As(err, &invalid) || !rec.Overdue(now) {
		return nil
	}
	rec.End(jobs.StateFailed, jobs.CodeDeadlineExceeded, jobs.DeadlineMessage, now)
	return &rec.Job
}

// settled reports whether no more work can be done on a job.
func settled(rec *jobs.Job) bool { return rec.State.Final() || rec.State == jobs.StateHeld }

// watch follows the jobs until none is open, and until what earlier runs paid for
// and did not finish is in the bucket too.
func (r *run) watch(ctx context.Context, changes *jobs.Changes) error {
	status, recheck := time.NewTicker(statusInterval), time.NewTicker(recheckInterval)
	defer status.Stop()
	defer recheck.Stop()
	for len(r.open) > 0 || r.engine.worker.Unfinished(ctx) {
		var err error
		select {
		case id := <-changes.IDs():
			if _, mine := r.open[id]; mine {
				err = r.look(ctx, id)
			}
		case <-status.C:
			r.progress.update(r.counts())
		case <-recheck.C:
			err = r.refresh(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err != nil && !passes(err) { // the worker says what is away, and waits too
			return err
		}
	}
	return nil
}

// refresh looks at every open job.
func (r *run) refresh(ctx context.Context) error {
	for id := range r.open {
		if err := r.look(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// look reads a job's record and says so if it is over.
func (r *run) look(ctx context.Context, id string) error {
	line := r.open[id]
	rec, err := jobs.NewClient(r.engine.redis).Get(ctx, id)
	if errors.Is(err, jobs.ErrNotFound) {
		rec, err = r.again(ctx, line)
	}
	if err != nil || rec == nil {
		return err
	}
	r.mu.Lock()
	r.records[id] = rec
	if settled(rec) {
		delete(r.open, id)
	}
	r.mu.Unlock()
	if !settled(rec) {
		return nil
	}
	if !unfunded(rec) { // there may be thousands: the summary counts them
		r.progress.job(line.Number, rec)
	}
	if r.json {
		return r.printResult(ctx, line, rec)
	}
	return nil
}

// again asks for a job that Redis has lost. The worker's journal and the bucket know
// what was made of it. It returns nil if that is not certain yet.
func (r *run) again(ctx context.Context, line jobs.Line) (*jobs.Job, error) {
	over, err := jobOf(r.engine.worker.Finished(ctx, line.ID, line.Digest))
	if over != nil || err != nil {
		return over, err
	}
	// It has lost the batch's bound too.
	if err := setBudgets(ctx, ledger.New(r.engine.redis), r.sheets, r.budget); err != nil {
		return nil, err
	}
	rec, err := jobs.NewClient(r.engine.redis).Enqueue(ctx, line.Request)
	if late := tooLate(line, err); late != nil {
		if r.engine.worker.Unfinished(ctx) { // this line may be what was bought
			return nil, nil //nolint:nilnil // the worker will tell
		}
		return late, nil
	}
	return rec, err
}

// counts adds up what the progress line and the summary tell.
func (r *run) counts() counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := counts{total: len(r.lines), before: len(r.before)}
	for id, rec := range r.records {
		switch {
		case rec.State == jobs.StateSucceeded:
			c.done++
		case rec.State == jobs.StateFailed, rec.State == jobs.StateCanceled:
			c.failed++
		case unfunded(rec):
			c.unfunded++
		case rec.State == jobs.StateHeld:
			c.held++
		default:
			c.left++
		}
		if r.before[id] {
			continue
		}
		for _, image := range rec.Images {
			if image.Key != "" {
				c.images++
			}
		}
		c.microYuan += rec.CostMicroYuan
	}
	return c
}
