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
	// yes is set if nothing is asked.
	yes bool
	// gallery is set if a page with the images is written.
	gallery bool
	// files have the lines, and budget is the budget of each.
	files  []*batchFile
	budget budgetFlag

	// plan is what the run is about to make.
	plan *plan
	// prepared is set when all jobs are valid, so that there are results.
	prepared bool
	// byID are the lines by job ID.
	byID map[string]*line

	mu sync.Mutex
	// count counts the settled lines.
	count counts
	// models counts the lines of each model.
	models map[string]*modelCount
	// lookedUntil is the time up to which settled jobs were looked for.
	lookedUntil time.Time
	// rechecked is the index among the open lines at which recheck continues.
	rechecked int

	// slots is how many tasks the lanes of each model run at once, on the configured Redis.
	slots map[string]int
	// active is what is being painted.
	active activity
	// progressed gets a value when a line of the queue was settled.
	progressed chan struct{}
	// downloads are of the images, nil without --download.
	downloads *downloads
	// printing is held while a job is printed and added to the results.
	printing sync.Mutex
}

const (
	// maxLookups is how many jobs are looked up concurrently.
	maxLookups = 16
	// recheckInterval and recheckSize limit the delay when the event of a settled job, or a
	// job itself, is lost: that many jobs are read each time, in turn.
	recheckInterval = 10 * time.Second
	recheckSize     = 1000
	statusInterval  = 200 * time.Millisecond
	// queueAhead is how many lines of a kind are in the embedded queue, which takes 4 KB of
	// this process's memory for each.
	queueAhead = 2000
	// sharedAhead and sharedPerSlot are how many are in a Redis, and how many more for each
	// task that the lanes of its model run at once. What is drawn next is the oldest job of
	// all batches: with few of each, they take turns. A lane needs one that waits and one
	// that it has prepared; the others last until this program has looked again.
	sharedAhead, sharedPerSlot = 16, 4
	// enqueueRetry is the wait between two tries to enqueue while Redis is unavailable.
	enqueueRetry = time.Second
	// lookOverlap is how much of the time that was looked at before is looked at again: a
	// job's last change has the time at which its writer began the write.
	lookOverlap = 5 * time.Second
)

// do runs the jobs. It returns errPartFailed or errInterrupted if everything else was
// already printed.
func (r *batchRun) do(ctx context.Context) error {
	r.index()
	err := r.runtime.run(ctx, r.signals, r.progress.printLine, r.workAndDownload)
	switch c := r.counts(); {
	case err == nil && c.left > 0:
		return fmt.Errorf("the worker ended with %s unfinished: run the same command again", count(c.left, "job"))
	case err == nil && c.failed+c.held+c.awaitingBudget > 0:
		return errPartFailed
	}
	return err
}

// index fills byID and counts the lines.
func (r *batchRun) index() {
	r.progressed, r.byID = make(chan struct{}, 1), map[string]*line{}
	r.models = map[string]*modelCount{}
	for _, s := range r.files {
		for _, l := range s.lines {
			r.byID[l.id] = l
			if r.models[l.model] == nil {
				r.models[l.model] = &modelCount{}
			}
			r.models[l.model].left++
		}
		r.count.total += len(s.lines)
	}
}

// workAndDownload completes the jobs, and waits for the downloads of their images.
func (r *batchRun) workAndDownload(ctx context.Context) error {
	return errors.Join(r.work(ctx), r.downloads.wait())
}

// work prepares the jobs and runs the worker until all are finished. Nothing is spent before
// every line is valid and the question was answered; the worker begins when the first jobs are on the queue.
func (r *batchRun) work(ctx context.Context) error {
	if err := r.runtime.worker.Prepare(ctx); err != nil {
		return err
	}
	if err := r.checkFolders(); err != nil {
		return err
	}
	r.lookedUntil = time.Now()
	if err := r.lookUp(ctx, workerSource{r.runtime}, r.runtime.worker.Simulated()); err != nil {
		return err
	}
	if err := r.announce(ctx); err != nil {
		return err
	}
	for _, s := range r.files {
		if s.begin == nil {
			continue
		}
		if err := s.begin(); err != nil {
			return err
		}
	}
	if r.runtime.remote == nil { // else the queue tells of its jobs
		if err := noteBatches(r.runtime.dataPath, r.files, r.args); err != nil {
			return err
		}
	}
	if err := setBudgets(ctx, ledger.New(r.runtime.redis), r.files, r.budget); err != nil {
		return err
	}
	if err := r.stage(ctx); err != nil {
		return err
	}
	if err := r.countSlots(ctx); err != nil {
		return err
	}
	kinds := r.kinds()
	if len(kinds) > 0 {
		if err := r.enqueueNext(ctx, kinds[0]); err != nil {
			return err
		}
	}
	r.prepared = true
	r.downloads.add(ctx, r.linesThat(func(l *line) bool { return l.settled })...)
	r.progress.begin(r.counts().left)
	if r.counts().left == 0 && !r.runtime.worker.Unfinished(ctx) {
		return nil
	}
	if err := r.growResults(ctx); err != nil {
		return err
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
		err := r.follow(watching, changes, kinds)
		r.runtime.worker.Stop()
		watched <- err
	}()
	err = r.runtime.worker.Run(ctx)
	stop()
	if watchErr := <-watched; !errors.Is(watchErr, context.Canceled) {
		err = errors.Join(err, watchErr)
	}
	ctx = context.WithoutCancel(ctx)
	return errors.Join(err, r.look(ctx), r.lookAtActive(ctx))
}

// announce prints what will be made, and asks whether it may be if it is expensive. Nothing was
// written for any of the jobs before.
func (r *batchRun) announce(ctx context.Context) error {
	from := &paces{cfg: r.runtime.cfg, simulated: r.runtime.worker.Simulated(), own: true}
	var err error
	if rdb := r.runtime.remote; rdb != nil {
		from.queue = jobs.NewClient(rdb)
		from.lanes, err = jobs.NewInspector(rdb).Lanes(ctx)
	} else if r.runtime.localBucket != nil && !from.simulated {
		from.measured, err = measuredTimes(ctx, openLocalBucket(r.runtime.dataPath))
	}
	if err != nil {
		return err
	}
	if r.plan, err = planOf(r.files, r.counts(), r.budget, from.price, func(model string) (pace, error) { return from.of(ctx, model) }); err != nil {
		return err
	}
	r.plan.simulated = from.simulated
	r.progress.printLine(r.plan.head() + "; data in " + r.runtime.dataPath)
	if err := r.plan.writeModels(r.stderr); err != nil || from.simulated {
		return err
	}
	asking, release := r.runtime.worker.UntilStop(ctx)
	defer release()
	if err := r.confirmCost(asking, r.runtime.cfg, r.plan.atMost, r.yes); err != nil {
		return err
	}
	return nil
}

// linesThat returns the lines for which a condition holds.
func (r *batchRun) linesThat(holds func(*line) bool) []*line {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []*line
	for _, s := range r.files {
		for _, l := range s.lines {
			if holds(l) {
				lines = append(lines, l)
			}
		}
	}
	return lines
}

// kinds returns the kinds of the lines that are not settled, with the groups to enqueue.
func (r *batchRun) kinds() []*kind {
	var kinds []*kind
	lines := map[*kind][]*line{}
	for _, l := range r.linesThat(func(l *line) bool { return !l.settled }) {
		if lines[l.kind] == nil {
			kinds = append(kinds, l.kind)
		}
		lines[l.kind] = append(lines[l.kind], l)
	}
	for _, k := range kinds {
		k.waiting = groups(lines[k])
	}
	return kinds
}

// enqueueNext enqueues as many of a kind's next group as there is room for.
func (r *batchRun) enqueueNext(ctx context.Context, k *kind) error {
	group := k.waiting[0]
	n := min(r.room(k), len(group))
	if err := r.enqueue(ctx, group[:n], false); err != nil {
		return err
	}
	k.waiting[0] = group[n:]
	if n == len(group) {
		k.waiting = k.waiting[1:]
	}
	return nil
}

// enqueue enqueues a group of lines. again is set if Redis has lost them: whether a line whose
// deadline has passed was bought is then not certain while paid work is unfinished.
func (r *batchRun) enqueue(ctx context.Context, lines []*line, again bool) error {
	if r.runtime.worker.Stopped() {
		return worker.ErrStopped
	}
	began := time.Now()
	list, err := r.enqueueGroup(ctx, r.runtime.cfg, r.runtime.redis, lines)
	if err != nil {
		return err
	}
	wrong := &jobs.BatchError{}
	for i, got := range list {
		late := overdueRecord(got.request, got.err)
		switch {
		case late != nil && again && r.runtime.worker.Unfinished(ctx):
			continue
		case late != nil:
			got.job = late
		case errors.Is(got.err, jobs.ErrDigestConflict):
			wrong.Lines = append(wrong.Lines, jobs.LineError{Number: lines[i].number, Unit: lines[i].file.unit, Err: got.err})
			continue
		case got.err != nil:
			return fmt.Errorf("%s: %w", lines[i].position(), got.err)
		}
		if err := r.note(ctx, lines[i], got.job, late != nil && !again); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range lines {
		if !l.enqueued && !l.settled {
			l.kind.open++
		}
		l.enqueued = true
	}
	if began.Before(r.lookedUntil) { // a look left out those that were settled meanwhile
		r.lookedUntil = began
	}
	if len(wrong.Lines) > 0 {
		return wrong
	}
	return nil
}

// overdueRecord returns the failed record of a request whose deadline passed before it was
// queued, as can happen when an earlier run is continued: only that line fails, at no cost.
// It returns nil if err has another cause.
func overdueRecord(req jobs.Request, err error) *jobs.Job {
	now := time.Now().UTC()
	if invalid := (*jobs.InvalidError)(nil); !errors.As(err, &invalid) {
		return nil
	}
	rec := jobs.NewRecord(req, nil)
	if !rec.Overdue(now) {
		return nil
	}
	rec.End(jobs.StateFailed, jobs.CodeDeadlineExceeded, jobs.DeadlineMessage, now)
	return &rec.Job
}

// isSettled reports whether a job is finished or held, so that the worker does not
// continue it.
func isSettled(rec *jobs.Job) bool { return rec.State.Final() || rec.State == jobs.StateHeld }

// note records the state of a line's job, and prints it once it is settled. before is set if
// what was settled until now is of an earlier run.
func (r *batchRun) note(ctx context.Context, l *line, rec *jobs.Job, before bool) error {
	if !r.settle(l, rec, before) {
		return nil
	}
	r.printing.Lock()
	defer r.printing.Unlock()
	r.addResult(ctx, l)
	if r.prepared { // else with those that were settled before
		r.downloads.add(ctx, l)
	}
	if !rec.AwaitsBudget() { // possibly thousands: the summary counts them
		r.progress.printJob(l.position(), rec)
	}
	if r.json && !before {
		return r.printResult(ctx, l)
	}
	return nil
}

// settle records the state of a line's job, and reports whether it is settled now, and was
// not before.
func (r *batchRun) settle(l *line, rec *jobs.Job, before bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.settled {
		return false
	}
	l.result = nil // that of a queued job is made when it is written
	if rec.State != jobs.StateQueued {
		l.result = resultOf(rec)
	}
	if l.settled = isSettled(rec); !l.settled {
		return false
	}
	if l.enqueued {
		l.kind.open--
		select {
		case r.progressed <- struct{}{}:
		default:
		}
	}
	r.count.add(rec, before)
	if of := r.models[l.model]; of != nil {
		of.left--
		if !before {
			of.settled++
		}
	}
	return true
}

// stage stores the reference images of the lines that are not settled.
func (r *batchRun) stage(ctx context.Context) error {
	staged := map[string]bool{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLookups)
	for _, s := range r.files {
		for _, l := range s.lines {
			for _, name := range l.refs {
				ref := r.refs[name]
				if l.settled || ref == nil || staged[name] {
					continue
				}
				staged[name] = true
				group.Go(func() error {
					if err := r.runtime.bucket.StageReference(ctx, ref); err != nil {
						return fmt.Errorf("%s: stage reference image: %w", l.position(), err)
					}
					return nil
				})
			}
		}
	}
	return group.Wait()
}

// counts returns the numbers for the progress line and the summary.
func (r *batchRun) counts() counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.count
	c.left = c.total - c.done - c.failed - c.held - c.awaitingBudget
	return c
}

// add counts a settled job.
func (c *counts) add(rec *jobs.Job, before bool) {
	switch {
	case rec.State == jobs.StateSucceeded:
		c.done++
	case rec.State.Final():
		c.failed++
	case rec.AwaitsBudget():
		c.awaitingBudget++
	default:
		c.held++
	}
	if before {
		c.finishedBefore++
		return
	}
	for _, image := range rec.Images {
		if image.Key != "" {
			c.images++
		}
	}
	c.microYuan = ledger.Sum(c.microYuan, rec.CostMicroYuan)
}
