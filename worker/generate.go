package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// createGrace is what a create that is on its way gets after the second
	// signal: its reply names a task that costs money.
	createGrace = 2 * time.Second
	// createStopGrace is what it gets after the first signal: the service answers within
	// a second or two, unless it is slow, and compose kills a worker after a minute.
	createStopGrace = 30 * time.Second
	// diskReserve is the free room below which nothing is submitted: images
	// that are on their way must find a place.
	diskReserve = 256 << 20

	// storeBacklog is how many jobs per store worker may wait for their images
	// before nothing more is bought: something is wrong with the way to them.
	storeBacklog = 8

	// personPause is how often a lane looks whether its account's pause is over.
	accountPausePoll = 2 * time.Second

	accountPaused  = "lane paused: the account needs attention"
	refusedForNow  = "dashscope refused for now"
	canceledUnmade = "canceled on request before a task was made; it cost nothing"
	workerDied     = "the program died while it was submitting the job"
)

// generate takes a job as far as the lane can: until its images are being stored,
// or it is over, held, or to be tried again later. Each step moves the record on
// or fails; a record that somebody else moved is looked at again. A [*trouble]
// means that the lane can go on with no job for now.
func (l *lane) generate(ctx context.Context, e *execution, m jobs.GenerateMessage) error {
	for {
		rec, err := l.loadRecord(ctx, m)
		if errors.Is(err, jobs.ErrConflict) {
			continue
		}
		if errors.Is(err, jobs.ErrCorrupt) {
			l.log.Error("job skipped: record corrupt", "job_id", m.JobID, "err", err)
			return &jobError{message: jobs.CodeRecordCorrupt + ": " + err.Error() + "; to ask for the job anew delete the key danqing:job:" + m.JobID + " and enqueue it again"}
		}
		if err != nil {
			return &pauseError{backoff: &l.waits.unreachable, message: redisAway, cause: err}
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
			return l.jobs.EnqueueStore(ctx, rec)
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

// lastWord answers the message of a job that is over without an image: a late
// redelivery gets the same verdict once more. But if the message was run out of
// asynq's archive, by a person who wants the job again, the job is queued again,
// and [jobs.ErrConflict] asks to look at it.
func (l *lane) replayOutcome(ctx context.Context, rec *jobs.Record) error {
	info, err := asynq.NewInspectorFromRedisClient(l.cfg.Redis).GetTaskInfo(jobs.Queue(rec.Model, rec.Priority), rec.ID)
	if err == nil && (rec.Code == jobs.CodeArchived || strings.HasPrefix(info.LastErr, rec.Code+": ")) {
		if _, err = l.jobs.Retry(ctx, rec.ID); err == nil {
			return jobs.ErrConflict
		}
	}
	// A message whose record names another queue was not run from this one's archive.
	if err != nil && !errors.Is(err, asynq.ErrTaskNotFound) && !errors.Is(err, asynq.ErrQueueNotFound) {
		return &pauseError{backoff: &l.waits.unreachable, message: redisAway, cause: err}
	}
	if rec.State == jobs.StateFailed {
		return failedError(rec)
	}
	return nil
}

// follow goes on with a job that was submitted, unless it is another lane's, which
// is told of it.
func (l *lane) continueJob(ctx context.Context, e *execution, rec *jobs.Record) error {
	switch {
	case l.foreign(rec):
		return l.markInFlight(ctx, rec.Account, rec.Model, rec.ID)
	case rec.State == jobs.StateSubmitting:
		return l.reconcile(ctx, e, rec)
	}
	if err := l.reacquireSlot(ctx, e); err != nil {
		return err
	}
	return l.poll(ctx, rec)
}

// record reads the job's record and brings it up to what the own journal knows:
// Redis may have forgotten some of it, or all.
func (l *lane) loadRecord(ctx context.Context, m jobs.GenerateMessage) (*jobs.Record, error) {
	rec, err := l.jobs.Get(ctx, m.JobID)
	if err != nil && !errors.Is(err, jobs.ErrNotFound) {
		return nil, err
	}
	if e, ok := l.cfg.DataDir.Journal.OpenJob(m.JobID); ok && (rec == nil || isBehind(rec, e.Record, e.At)) {
		if err := l.recoverEntry(ctx, e); err != nil {
			return nil, err
		}
		return l.jobs.Get(ctx, m.JobID)
	}
	if rec == nil {
		return l.recreateRecord(ctx, m)
	}
	return rec, nil
}

func (l *lane) recreateRecord(ctx context.Context, m jobs.GenerateMessage) (*jobs.Record, error) {
	req := m.Request
	req.ID = m.JobID
	rec := jobs.NewRecord(req, nil)
	rec.Digest = m.Digest
	return rec, l.updateRecord(ctx, nil, rec)
}

// submit sends the job's create once, or waits because it may not be sent now.
// The order of its steps is the promise: each is on record before the next.
func (l *lane) submit(ctx context.Context, rec *jobs.Record, req jobs.Request) error {
	req = req.WithSeed(rec.ID)
	asked := *rec
	asked.Request = &req // for the sidecar, should the job end here
	body, err := l.prepare(ctx, &asked, req)
	if err != nil {
		return err
	}
	if err := l.take(ctx, l.submitSem); err != nil {
		return err
	}
	pass := sync.OnceFunc(func() { <-l.submitSem })
	defer pass()
	if err := l.awaitQuiet(ctx); err != nil {
		return err
	}
	if err := l.holdForOrphan(ctx, rec, &req); err != nil {
		return err
	}
	intent, err := l.newIntent(ctx, rec, &req)
	if err != nil {
		return &pauseError{backoff: &l.waits.unreachable, message: redisAway, cause: err}
	}
	if err := l.reserve(ctx, rec, intent, *body.Parameters.N); err != nil {
		return err
	}
	if err := l.sleep(ctx, l.pace.delay()); err != nil || l.Stopped() {
		if err := l.release(ctx, intent); err != nil {
			l.log.Warn("reservation not released", "job_id", rec.ID, "err", err)
		}
		return cmp.Or(err, ErrStopped)
	}
	if err := l.updateRecord(ctx, rec, intent); err != nil {
		return err
	}
	if err := l.cfg.DataDir.Journal.Append(journal.KindIntent, intent); err != nil {
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.unreachable, message: "nothing is submitted: the journal cannot be written", cause: err})
	}
	l.waitDurable(ctx, rec.ID)
	if !l.lease.valid() {
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.unreachable, message: "nothing is submitted: the lane's lease ran out"})
	}
	created, err := l.create(ctx, *body)
	l.pace.done()
	pass()
	if err != nil {
		return l.createFailed(ctx, rec, intent, err)
	}
	return l.created(ctx, intent, created)
}

// intend is the record of a create that is about to be sent, with all by which its
// task is known should the answer get lost.
func (l *lane) newIntent(ctx context.Context, rec *jobs.Record, req *jobs.Request) (*jobs.Record, error) {
	listed, err := l.lastClearSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	intent := *rec
	intent.ClearIntent()
	intent.State, intent.Attempt, intent.Term = jobs.StateSubmitting, rec.Attempt+1, l.term
	intent.Account, intent.Request, intent.TaskID = l.account.name, req, ""
	intent.TaskImages, intent.TaskMicroYuan, intent.RunningAt = 0, 0, time.Time{}
	intent.SubmittedAt, intent.Code, intent.Message, intent.Simulated = time.Now().UTC(), "", "", l.Simulated()
	intent.KeyFingerprint, intent.ListedAt = l.account.remote.KeyMark(), listed
	if at, known := l.account.serviceNow(); known {
		intent.ServiceAt = at
	}
	return &intent, nil
}

// prepare makes the create's body if the job may be submitted now. A stop does not
// wait for what it asks of the bucket.
func (l *lane) prepare(ctx context.Context, rec *jobs.Record, req jobs.Request) (*dashscope.CreateRequest, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		select {
		case <-l.stopping:
		case <-l.lease.done:
		case <-ctx.Done():
		}
		cancel(ErrStopped)
	})
	body, err := (*dashscope.CreateRequest)(nil), l.checkPreconditions(ctx, rec)
	switch {
	case err != nil:
	case !rec.CancelRequestedAt.IsZero(): // while an earlier intent was taken back
		err = l.finishJob(ctx, rec, endedRecord(rec, jobs.StateCanceled, jobs.CodeCanceled, canceledUnmade))
		if err == nil {
			err = jobs.ErrConflict // look again
		}
	case rec.Overdue(time.Now()):
		err = l.finishJob(ctx, rec, endedRecord(rec, jobs.StateFailed, jobs.CodeDeadlineExceeded, jobs.DeadlineMessage))
		if err == nil { // it has images of an earlier attempt
			err = jobs.ErrConflict
		}
	default:
		body, err = l.createBody(ctx, rec, req)
	}
	if err != nil && errors.Is(context.Cause(ctx), ErrStopped) {
		return nil, ErrStopped
	}
	return body, err
}

// ready fails unless the job may be submitted now: it is not over already, the
// account is not paused, the bucket answers, and the disk has room. Where the job
// is over it ends it, and fails with [jobs.ErrConflict]: look again.
func (l *lane) checkPreconditions(ctx context.Context, rec *jobs.Record) error {
	if err := l.assertSameDataset(ctx); err != nil {
		return err
	}
	if err := l.checkAccountPause(ctx); err != nil {
		return err
	}
	if _, unfit := l.account.usable(); unfit != nil {
		return &pauseError{backoff: &l.waits.account, message: accountPaused, cause: unfit}
	}
	over, err := l.Finished(ctx, rec.ID, rec.Digest)
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, ErrSimulated):
		// The sidecar is another job's: it stays as it is.
		return l.endRecord(ctx, rec, jobs.StateFailed, jobs.CodeJobIDTaken, err.Error())
	case errors.Is(err, storage.ErrUnreadable):
		return l.endRecord(ctx, rec, jobs.StateFailed, jobs.CodeSidecarUnreadable, err.Error())
	case err != nil:
		return &pauseError{backoff: &l.waits.unreachable, message: bucketAway, cause: err}
	case over != nil && !retriedSince(rec, over):
		if err := l.adoptFinished(ctx, rec, over); err != nil {
			return err
		}
		return jobs.ErrConflict
	}
	if limit := storeBacklog * l.cfg.StoreConcurrency; l.storeBacklogSize(ctx, limit) > limit {
		return &pauseError{
			backoff: &l.waits.unreachable, message: "nothing is submitted: finished images cannot be stored",
			cause: fmt.Errorf("more than %d jobs wait for their images", limit),
		}
	}
	free, err := l.cfg.Spool.FreeBytes()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err == nil && free < diskReserve {
		err = fmt.Errorf("%d MiB free, %d MiB wanted: free some space", free>>20, diskReserve>>20)
	}
	if err != nil {
		return &pauseError{backoff: &l.waits.unreachable, message: "nothing is submitted: the data directory has no room, or is gone", cause: err}
	}
	return nil
}

// paused fails while a person has stopped the account.
func (l *lane) checkAccountPause(ctx context.Context) error {
	pause, err := l.jobs.AccountPause(ctx, l.account.name)
	switch {
	case err != nil:
		return &pauseError{backoff: &l.waits.unreachable, message: redisAway, cause: err}
	case pause == nil:
		return nil
	}
	return &pauseError{
		backoff: &backoff{first: accountPausePoll, most: accountPausePoll}, recheck: l.checkAccountPause,
		message: "lane paused by a person", cause: errors.New(cmp.Or(pause.Reason, "no reason was given")),
	}
}

// wantedAgain reports whether a person has asked for a job again after the end
// that its sidecar tells of: the record has closed that attempt, whatever the
// clocks say, or has one after it.
//
// Of a job that has images the clocks are not asked: it would be bought twice.
func retriedSince(rec, over *jobs.Record) bool {
	if len(over.Missing()) == 0 {
		return false
	}
	closed := over.Attempt > 0 && slices.ContainsFunc(rec.PastAttempts, func(a jobs.Attempt) bool { return a.Attempt == over.Attempt })
	made := over.State == jobs.StateSucceeded
	return closed || rec.Attempt > over.Attempt || !made && rec.RetriedAt.After(over.FinishedAt)
}

// create sends the POST. A stop waits for its answer for a while; what is cut short then
// is looked for by the next run.
func (l *lane) create(ctx context.Context, body dashscope.CreateRequest) (*dashscope.Created, error) {
	sending, cut := context.WithCancel(context.WithoutCancel(ctx))
	cutAfter := func(grace time.Duration) {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cut()
		case <-sending.Done():
		}
	}
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cut()
	watch.Go(func() {
		select {
		case <-l.stopping:
			cutAfter(createStopGrace)
		case <-sending.Done():
		}
	})
	defer context.AfterFunc(ctx, func() { cutAfter(createGrace) })()
	return l.account.remote.Create(sending, body)
}

// created puts the task's name where it cannot be lost, the journal first.
func (l *lane) created(ctx context.Context, intent *jobs.Record, created *dashscope.Created) error {
	next := *intent
	next.State, next.TaskID, next.Simulated = jobs.StateGenerating, created.TaskID, created.Simulated
	l.journal(journal.KindTask, &next)
	l.tasks.Store(next.TaskID, true)
	l.account.clock(created.Date)
	l.waits.unreachable.reset()
	l.waits.throttled.reset()
	l.waits.account.reset()
	l.log.Info("task submitted", "job_id", next.ID, "task_id", next.TaskID, "attempt", next.Attempt, "request_id", created.RequestID)
	l.setLastCreated(ctx, next.TaskID)
	err := l.transition(ctx, intent, &next)
	if errors.Is(err, jobs.ErrConflict) {
		// Whoever has the lane now is in doubt about the job; or was, and bought it again.
		return l.merge(context.WithoutCancel(ctx), &next, time.Now())
	}
	return err
}

// createFailed acts on a create without a task: ambiguous ones are held, never
// sent again; after a certain refusal the intent is taken back.
func (l *lane) createFailed(ctx context.Context, rec, intent *jobs.Record, err error) error {
	var refusal *dashscope.Error
	if !errors.As(err, &refusal) {
		refusal = &dashscope.Error{Kind: dashscope.KindAmbiguous}
	}
	switch refusal.Kind {
	case dashscope.KindThrottled:
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.throttled, minWait: refusal.RetryAfter, message: refusedForNow, cause: err})
	case dashscope.KindRefused:
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.unreachable, minWait: refusal.RetryAfter, message: refusedForNow, cause: err})
	case dashscope.KindAccount:
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.account, minWait: refusal.RetryAfter, message: accountPaused, cause: err})
	case dashscope.KindTerminal:
		if err := l.release(ctx, intent); err != nil {
			l.log.Warn("reservation not released", "job_id", intent.ID, "err", err)
		}
		l.journal(journal.KindRefused, intent)
		return l.fail(ctx, intent, refusal.Code, withHint(refusal.Message, refusal.Hint()))
	case dashscope.KindRetry:
		return l.taskFailed(ctx, intent, refusal.Code, refusal.Message)
	case dashscope.KindAmbiguous, dashscope.KindTemporary:
	}
	// The effort looks for what became of it.
	_, err = l.markAmbiguous(ctx, intent, err.Error(), refusal.RequestID)
	return err
}

// takeBack undoes an intent of which nothing came, and fails with the trouble. The
// job keeps its place, unless somebody asked to cancel it meanwhile.
func (l *lane) rollbackIntent(ctx context.Context, intent, rec *jobs.Record, why *pauseError) error {
	l.journal(journal.KindRefused, intent)
	if err := l.release(ctx, intent); err != nil {
		l.log.Warn("reservation not released", "job_id", intent.ID, "err", err)
	}
	if l.cancelRequested(ctx, intent) {
		if err := l.finishJob(ctx, intent, endedRecord(intent, jobs.StateCanceled, jobs.CodeCanceled, canceledUnmade)); err != nil {
			return err
		}
		return why
	}
	next := *rec
	if err := l.transition(ctx, intent, &next); err != nil {
		return err
	}
	return why
}

// cancelRequested reports whether somebody has asked to cancel the job.
func (l *lane) cancelRequested(ctx context.Context, rec *jobs.Record) bool {
	known, err := l.jobs.Get(context.WithoutCancel(ctx), rec.ID)
	return err == nil && !known.CancelRequestedAt.IsZero()
}

// hint says what a person can do about an error of the service.
func hint(err error) string {
	var failure *dashscope.Error
	if errors.As(err, &failure) {
		return failure.Hint()
	}
	return ""
}
