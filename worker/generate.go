package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// createGrace is what a create that is on its way gets after the second
	// signal: its reply names a task that costs money.
	createGrace = 2 * time.Second
	// diskReserve is the free room below which nothing is submitted: images
	// that are on their way must find a place.
	diskReserve = 256 << 20

	// storeBacklog is how many jobs per store worker may wait for their images
	// before nothing more is bought: something is wrong with the way to them.
	storeBacklog = 8

	lanePaused = "lane paused: the account needs attention"
)

// generate takes a job as far as the lane can: until its images are being stored,
// or it is over, held, or to be tried again later. Each step moves the record on
// or fails; a record that somebody else moved is looked at again.
func (l *lane) generate(ctx context.Context, m jobs.GenerateMessage) error {
	if _, busy := l.busy.LoadOrStore(m.JobID, true); busy {
		return nil // a late redelivery: somebody here is at it
	}
	defer l.busy.Delete(m.JobID)
	for {
		rec, err := l.record(ctx, m)
		if errors.Is(err, jobs.ErrConflict) {
			continue
		}
		if err != nil {
			// Returning would send the job to the tail of its queue.
			if err := l.wait(ctx, &l.unreachable, 0, "redis does not answer, trying again", err); err != nil {
				return err
			}
			continue
		}
		switch rec.State {
		case jobs.StateQueued, jobs.StateRetrying, jobs.StateScheduled:
			err = l.submit(ctx, rec, m.Request)
		case jobs.StateSubmitting:
			err = l.holdAmbiguous(ctx, rec, "the program died while it was submitting the job")
		case jobs.StateGenerating:
			err = l.poll(ctx, rec)
		case jobs.StateStoring:
			return l.jobs.EnqueueStore(ctx, rec)
		default:
			return nil
		}
		if err != nil && !errors.Is(err, jobs.ErrConflict) {
			return err
		}
	}
}

// record reads the job's record and brings it up to what the own journal knows:
// Redis may have forgotten some of it, or all.
func (l *lane) record(ctx context.Context, m jobs.GenerateMessage) (*jobs.Record, error) {
	rec, err := l.jobs.Get(ctx, m.JobID)
	if err != nil && !errors.Is(err, jobs.ErrNotFound) {
		return nil, err
	}
	if e, ok := l.cfg.DataDir.Journal.of(m.JobID); ok && (rec == nil || behind(rec, e.Record)) {
		if err := l.recoverEntry(ctx, e); err != nil {
			return nil, err
		}
		return l.jobs.Get(ctx, m.JobID)
	}
	if rec == nil {
		return l.remember(ctx, m)
	}
	return rec, nil
}

func (l *lane) remember(ctx context.Context, m jobs.GenerateMessage) (*jobs.Record, error) {
	rec := &jobs.Record{
		ID: m.JobID, State: jobs.StateQueued, Digest: m.Digest, Model: m.Request.Model, Priority: m.Request.Priority,
		EnqueuedAt: time.Now().UTC(),
	}
	return rec, l.swap(ctx, nil, rec)
}

// submit sends the job's create once, or waits because it may not be sent now.
// The order of its steps is the promise: each is on record before the next.
func (l *lane) submit(ctx context.Context, rec *jobs.Record, req jobs.Request) error {
	ready, err := l.ready(ctx, rec)
	if err != nil || !ready {
		return err
	}
	req = req.WithSeed(rec.ID)
	body, err := l.createBody(ctx, rec, req)
	if err != nil || body == nil {
		return err
	}
	if err := l.waitPace(ctx); err != nil {
		return err
	}
	if l.Stopped() {
		return ErrStopped
	}
	intent := *rec
	intent.State, intent.Attempt, intent.Term = jobs.StateSubmitting, rec.Attempt+1, l.term
	intent.Account, intent.Request, intent.TaskID = l.cfg.Account, &req, ""
	intent.SubmittedAt, intent.Code, intent.Message = time.Now().UTC(), "", ""
	if err := l.swap(ctx, rec, &intent); err != nil {
		return err
	}
	l.note(ctx, &intent)
	if err := l.cfg.DataDir.Journal.append(entryIntent, &intent); err != nil {
		return l.takeBack(ctx, &intent, rec, &l.unreachable, 0, "nothing is submitted: the journal cannot be written", err)
	}
	if !l.lease.valid() {
		return l.takeBack(ctx, &intent, rec, &l.unreachable, 0, "nothing is submitted: the lane's lease ran out", nil)
	}
	created, err := l.create(ctx, *body)
	if err != nil {
		return l.createFailed(ctx, rec, &intent, err)
	}
	return l.created(ctx, &intent, created)
}

// ready reports whether the job may be submitted now: it is not over already, the
// bucket answers, and the disk has room. If not, it has waited or ended the job.
func (l *lane) ready(ctx context.Context, rec *jobs.Record) (bool, error) {
	over, err := l.Finished(ctx, rec.ID, rec.Digest)
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, ErrSimulated):
		// The sidecar is another job's: it stays as it is.
		return false, l.end(ctx, rec, jobs.StateFailed, "JobIDTaken", err.Error())
	case errors.Is(err, storage.ErrUnreadable):
		return false, l.end(ctx, rec, jobs.StateFailed, "SidecarUnreadable", err.Error())
	case err != nil:
		return false, l.wait(ctx, &l.unreachable, 0, "the bucket does not answer", err)
	case over != nil:
		return false, l.adoptFinished(ctx, rec, over)
	}
	if waiting := l.toBeStored(); waiting > storeBacklog*l.cfg.StoreConcurrency {
		return false, l.wait(ctx, &l.unreachable, 0, "nothing is submitted: finished images cannot be stored", fmt.Errorf("%d jobs wait for their images", waiting))
	}
	free, err := l.cfg.Spool.FreeBytes()
	if errors.Is(err, errors.ErrUnsupported) {
		free, err = diskReserve, nil
	}
	if err == nil && free < diskReserve {
		err = fmt.Errorf("%d MiB free, %d MiB wanted: free some space", free>>20, diskReserve>>20)
	}
	if err != nil {
		return false, l.wait(ctx, &l.unreachable, 0, "the data directory has no room", err)
	}
	return true, nil
}

// create sends the POST, which is never cut short by a graceful stop.
func (l *lane) create(ctx context.Context, body dashscope.CreateRequest) (*dashscope.Created, error) {
	sending, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(createGrace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cut()
		case <-sending.Done():
		}
	})
	defer stop()
	return l.cfg.DashScope.Create(sending, body)
}

// created puts the task's name where it cannot be lost, the journal first.
func (l *lane) created(ctx context.Context, intent *jobs.Record, created *dashscope.Created) error {
	next := *intent
	next.State, next.TaskID, next.Simulated = jobs.StateGenerating, created.TaskID, created.Simulated
	l.journal(entryTask, &next)
	l.unreachable.reset()
	l.throttled.reset()
	l.account.reset()
	l.log.Info("task submitted", "job_id", next.ID, "task_id", next.TaskID, "attempt", next.Attempt, "request_id", created.RequestID)
	err := l.advance(ctx, intent, &next)
	if errors.Is(err, jobs.ErrConflict) {
		// Whoever has the lane now holds the job as ambiguous; it is not any more.
		return l.merge(context.WithoutCancel(ctx), &next)
	}
	return err
}

// createFailed acts on a create without a task: ambiguous ones are held, never
// sent again; after a certain refusal the intent is taken back.
func (l *lane) createFailed(ctx context.Context, rec, intent *jobs.Record, err error) error {
	var refusal *dashscope.Error
	if !errors.As(err, &refusal) {
		return l.holdAmbiguous(ctx, intent, err.Error())
	}
	switch refusal.Kind {
	case dashscope.KindThrottled:
		return l.takeBack(ctx, intent, rec, &l.throttled, refusal.RetryAfter, "dashscope refused for now", err)
	case dashscope.KindRefused:
		return l.takeBack(ctx, intent, rec, &l.unreachable, refusal.RetryAfter, "dashscope refused for now", err)
	case dashscope.KindAccount:
		return l.takeBack(ctx, intent, rec, &l.account, refusal.RetryAfter, lanePaused, err)
	case dashscope.KindTerminal:
		l.journal(entryRefused, intent)
		return l.fail(ctx, intent, refusal.Code, sentence(refusal.Message, refusal.Hint()))
	case dashscope.KindRetry:
		return l.taskFailed(ctx, intent, refusal.Code, refusal.Message)
	case dashscope.KindAmbiguous, dashscope.KindTemporary:
	}
	return l.holdAmbiguous(ctx, intent, err.Error())
}

// takeBack undoes an intent of which nothing came, and waits. The job keeps its
// place: it is the next to be submitted.
func (l *lane) takeBack(ctx context.Context, intent, rec *jobs.Record, trouble *backoff, atLeast time.Duration, message string, why error) error {
	l.journal(entryRefused, intent)
	next := *rec
	if err := l.advance(ctx, intent, &next); err != nil {
		return err
	}
	l.clearNote(ctx, &next)
	return l.wait(ctx, trouble, atLeast, message, why)
}

// wait holds the lane back, says why, and returns nil when it may try again.
func (l *lane) wait(ctx context.Context, trouble *backoff, atLeast time.Duration, message string, why error) error {
	d := max(trouble.next(), atLeast)
	l.log.Warn(message, "err", why, "wait", d, "hint", hint(why)) //nolint:sloglint // every caller gives a constant
	return l.sleep(ctx, d)
}

// waitPace waits until the documented rate allows the next create.
func (l *lane) waitPace(ctx context.Context) error {
	if d := l.pace.Reserve().Delay(); d > 0 {
		return l.sleep(ctx, d)
	}
	return nil
}

// hint says what a person can do about an error of the service.
func hint(err error) string {
	var failure *dashscope.Error
	if errors.As(err, &failure) {
		return failure.Hint()
	}
	return ""
}
