package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker"
)

// follow enqueues the other groups, and follows the jobs until all are settled and the paid
// images of earlier runs are in the bucket too.
func (r *batchRun) follow(ctx context.Context, changes *jobs.Changes, kinds []*kind) error {
	ctx, cancel := context.WithCancel(ctx)
	enqueued := make(chan error, 1)
	var group sync.WaitGroup
	group.Go(func() { enqueued <- r.enqueueAll(ctx, kinds) })
	err := r.watch(ctx, changes, enqueued)
	cancel()
	group.Wait()
	return err
}

// enqueueAll enqueues the groups of all kinds in turn, until the worker is stopped. It repeats
// one while Redis is unavailable.
func (r *batchRun) enqueueAll(ctx context.Context, kinds []*kind) error {
	for ctx.Err() == nil && !r.runtime.worker.Stopped() {
		kinds = slices.DeleteFunc(kinds, func(k *kind) bool { return len(k.waiting) == 0 })
		if len(kinds) == 0 {
			return nil
		}
		full := true
		for _, k := range kinds {
			if r.room(k) <= 0 {
				continue
			}
			full = false
			err := r.enqueueNext(ctx, k)
			switch {
			case err == nil:
			case isTransient(err):
				select {
				case <-time.After(enqueueRetry):
				case <-ctx.Done():
				}
			case ctx.Err() == nil && !errors.Is(err, worker.ErrStopped):
				return err
			}
		}
		if full {
			select {
			case <-r.progressed:
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// room returns how many lines of a kind may be enqueued now; it is negative if there are too
// many. Those for later are all scheduled.
func (r *batchRun) room(k *kind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case k.later:
		return groupSize
	case r.runtime.remote != nil:
		return sharedAhead + sharedPerSlot*r.slots[k.model] - k.open
	default:
		return queueAhead - k.open
	}
}

// countSlots counts the tasks that lanes of the configured Redis run at once, those of this
// program included, whether it holds them yet or not.
func (r *batchRun) countSlots(ctx context.Context) error {
	if r.runtime.remote == nil {
		return nil
	}
	lanes, err := jobs.NewInspector(r.runtime.redis).Lanes(ctx)
	if err != nil {
		return err
	}
	slots := map[string]int{}
	for _, account := range r.runtime.accounts {
		for _, lane := range account.Lanes {
			slots[lane.Model] += lane.Concurrency
		}
	}
	for _, lane := range lanes {
		if lane.Held {
			slots[lane.Model] += lane.Concurrency
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slots = slots
	return nil
}

// watch looks for settled jobs when a job has changed. Every while it reads some of the
// others, in case an event was lost, or Redis has lost jobs. enqueued delivers the result of
// enqueueAll.
func (r *batchRun) watch(ctx context.Context, changes *jobs.Changes, enqueued <-chan error) error {
	status, recheck := time.NewTicker(statusInterval), time.NewTicker(recheckInterval)
	defer status.Stop()
	defer recheck.Stop()
	changed := true
	for r.counts().left > 0 || r.runtime.worker.Unfinished(ctx) {
		var err error
		select {
		case err := <-enqueued:
			if err != nil {
				return err
			}
			changed = true
		case id := <-changes.IDs():
			changed = changed || id == "" || r.byID[id] != nil
		case <-status.C:
			r.progress.update(r.status(ctx))
			if changed {
				err = r.look(ctx)
				changed = err != nil
			}
		case <-recheck.C:
			err = errors.Join(r.recheck(ctx), r.countSlots(ctx))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err != nil && !isTransient(err) { // the worker logs transient errors, and retries too
			return err
		}
	}
	return nil
}

// look finds the jobs that were settled since the last look.
func (r *batchRun) look(ctx context.Context) error {
	now := time.Now()
	r.mu.Lock()
	since := r.lookedUntil.Add(-lookOverlap)
	r.lookedUntil = now
	r.mu.Unlock()
	err := r.list(ctx, since, jobs.StateSucceeded, jobs.StateFailed, jobs.StateCanceled, jobs.StateHeld)
	if err != nil {
		r.mu.Lock()
		r.lookedUntil = since.Add(lookOverlap)
		r.mu.Unlock()
	}
	return err
}

// lookAtActive notes the state of the jobs that are neither settled nor queued.
func (r *batchRun) lookAtActive(ctx context.Context) error {
	return r.list(ctx, time.Time{}, jobs.StatePrepared, jobs.StateSubmitting, jobs.StateGenerating, jobs.StateStoring, jobs.StateRetrying)
}

// list notes the jobs in these states that have changed since a time.
func (r *batchRun) list(ctx context.Context, since time.Time, states ...jobs.State) error {
	filter := jobs.ListFilter{States: states, UpdatedAfter: since}
	var found []*jobs.Job
	for first := true; first || filter.Cursor != ""; first = false {
		page, cursor, err := jobs.NewClient(r.runtime.redis).List(ctx, filter)
		if err != nil {
			return err
		}
		filter.Cursor = cursor
		for _, rec := range page {
			if l := r.byID[rec.ID]; l != nil && r.isOpen(l) {
				found = append(found, rec)
			}
		}
	}
	for _, rec := range slices.Backward(found) { // the first that changed first
		if err := r.note(ctx, r.byID[rec.ID], rec, false); err != nil {
			return err
		}
	}
	return nil
}

// isOpen reports whether a line's job is on the queue and not settled.
func (r *batchRun) isOpen(l *line) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return l.enqueued && !l.settled
}

// recheck reads some of the open jobs, and enqueues those again that Redis has lost. If it has
// lost any, all open jobs are read.
func (r *batchRun) recheck(ctx context.Context) error {
	open := r.linesThat(func(l *line) bool { return l.enqueued && !l.settled })
	if len(open) == 0 {
		return nil
	}
	r.rechecked %= len(open)
	open = slices.Concat(open[r.rechecked:], open[:r.rechecked])
	r.rechecked += recheckSize
	lost := false
	for i, lines := range groups(open) {
		if i*groupSize >= recheckSize && !lost {
			return nil
		}
		list, err := jobs.NewClient(r.runtime.redis).GetAll(ctx, ids(lines))
		if err != nil {
			return err
		}
		var missing []*line
		for i, rec := range list {
			if rec == nil {
				missing = append(missing, lines[i])
			} else if err := r.note(ctx, lines[i], rec, false); err != nil {
				return err
			}
		}
		if lost = lost || len(missing) > 0; len(missing) == 0 {
			continue
		}
		if err := r.requeueLost(ctx, missing); err != nil {
			return err
		}
	}
	return nil
}

// requeueLost enqueues a group of lines whose jobs Redis has lost, unless they are finished
// according to the worker's journal and the bucket.
func (r *batchRun) requeueLost(ctx context.Context, lines []*line) error {
	others, err := r.finished(ctx, workerSource{r.runtime}, lines, func(l *line, rec *jobs.Job, err error) error {
		if err != nil {
			return err
		}
		return r.note(ctx, l, rec, false)
	})
	if err != nil || len(others) == 0 {
		return err
	}
	// Redis has lost the batch's budget too.
	if err := setBudgets(ctx, ledger.New(r.runtime.redis), r.files, r.budget); err != nil {
		return err
	}
	return r.enqueue(ctx, others, true)
}
