package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// createGrace is how long a create in progress may continue after the second signal:
	// its reply names a task that costs money.
	createGrace = 2 * time.Second
	// createStopGrace is how long it may continue after the first signal. The service
	// usually answers within a second or two, and compose kills a worker after a minute.
	createStopGrace = 30 * time.Second
	// diskReserve is the free disk space in bytes below which nothing is submitted: images
	// in progress need room.
	diskReserve = 256 << 20

	// storeBacklog is the number of jobs per store worker that may wait for their images.
	// Above it nothing is submitted, since the download or the upload is failing.
	storeBacklog = 8

	// accountPausePoll is how often a lane checks whether its account's pause is finished.
	accountPausePoll = 2 * time.Second

	accountPaused        = "lane paused: the account needs attention"
	temporarilyRefused   = "dashscope temporarily refused the request"
	canceledBeforeCreate = "canceled on request before a task was created; no cost"
	workerCrashed        = "the worker died while submitting the job"
)

// submit sends the job's create once, or waits while it may not be sent. The order of the
// steps is essential: each is recorded before the next begins.
func (l *lane) submit(ctx context.Context, rec *jobs.Record, req jobs.Request) error {
	req = req.WithSeed(rec.ID)
	withRequest := *rec
	withRequest.Request = &req // for the sidecar, if the job ends here
	body, err := l.prepare(ctx, &withRequest, req)
	if err != nil {
		return err
	}
	if err := l.take(ctx, l.submitSem); err != nil {
		return err
	}
	releaseTurn := sync.OnceFunc(func() { <-l.submitSem })
	defer releaseTurn()
	if err := l.awaitQuiet(ctx); err != nil {
		return err
	}
	if err := l.holdForOrphan(ctx, rec, &req); err != nil {
		return err
	}
	if err := l.refreshClock(ctx); err != nil {
		return err
	}
	intent, err := l.newIntent(ctx, rec, &req)
	if err != nil {
		return &pauseError{backoff: &l.waits.unreachable, message: redisUnavailable, cause: err}
	}
	if err := l.reserve(ctx, rec, intent, *body.Parameters.N); err != nil {
		return err
	}
	if err := l.sleep(ctx, l.limiter.delay()); err != nil || l.Stopped() {
		if err := l.release(ctx, intent); err != nil {
			l.log.Warn("reservation not released", "job_id", rec.ID, "err", err)
		}
		return cmp.Or(err, ErrStopped)
	}
	if err := l.updateRecord(ctx, rec, intent); err != nil {
		return err
	}
	if err := l.cfg.DataDir.Journal.Append(journal.KindIntent, intent); err != nil {
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.unreachable, message: "submissions paused: journal not writable", cause: err})
	}
	l.waitDurable(ctx, rec.ID)
	if !l.lease.valid() {
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.unreachable, message: "submissions paused: lease expired"})
	}
	created, err := l.create(ctx, *body)
	l.limiter.done()
	releaseTurn()
	if err != nil {
		return l.createFailed(ctx, rec, intent, err)
	}
	return l.created(ctx, intent, created)
}

// newIntent returns the record of a create that is about to be sent, with everything that
// identifies its task if the reply is lost.
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
	intent.KeyFingerprint, intent.ListedAt = l.account.remote.KeyFingerprint(), listed
	if at, known := l.account.serviceNow(); known {
		intent.ServiceAt = at
	}
	return &intent, nil
}

// prepare returns the create's body if the job may be submitted now. A stop cancels its
// requests to the bucket.
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
	case !rec.CancelRequestedAt.IsZero(): // while an earlier intent was rolled back
		err = l.finishJob(ctx, rec, endedRecord(rec, jobs.StateCanceled, jobs.CodeCanceled, canceledBeforeCreate))
		if err == nil {
			err = jobs.ErrConflict // read the record again
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

// checkPreconditions fails unless the job may be submitted now: Redis has its data, the
// account is not paused, the job is not finished, the bucket is available, and the disk has
// room. If the job is finished already, it ends the record and fails with
// [jobs.ErrConflict]: read the record again.
func (l *lane) checkPreconditions(ctx context.Context, rec *jobs.Record) error {
	if err := l.assertSameDataset(ctx); err != nil {
		return err
	}
	if err := l.checkAccountPause(ctx); err != nil {
		return err
	}
	if _, disabled := l.account.usable(); disabled != nil {
		return &pauseError{backoff: &l.waits.account, message: accountPaused, cause: disabled}
	}
	finished, err := l.Finished(ctx, rec.ID, rec.Digest)
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, ErrSimulated):
		// The sidecar belongs to another job and is not overwritten.
		return l.endRecord(ctx, rec, jobs.StateFailed, jobs.CodeJobIDTaken, err.Error())
	case errors.Is(err, storage.ErrUnreadable):
		return l.endRecord(ctx, rec, jobs.StateFailed, jobs.CodeSidecarUnreadable, err.Error())
	case err != nil:
		return &pauseError{backoff: &l.waits.unreachable, message: bucketUnavailable, cause: err}
	case finished != nil && !retriedSince(rec, finished):
		if err := l.adoptFinished(ctx, rec, finished); err != nil {
			return err
		}
		return jobs.ErrConflict
	}
	if limit := storeBacklog * l.cfg.StoreConcurrency; l.storeBacklogSize(ctx, limit) > limit {
		return &pauseError{
			backoff: &l.waits.unreachable, message: "submissions paused: finished images cannot be stored",
			cause: fmt.Errorf("more than %d jobs have images waiting to be stored", limit),
		}
	}
	free, err := l.cfg.Spool.FreeBytes()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err == nil && free < diskReserve {
		err = fmt.Errorf("%d MiB free, %d MiB required: free some space", free>>20, diskReserve>>20)
	}
	if err != nil {
		return &pauseError{backoff: &l.waits.unreachable, message: "submissions paused: data directory full or missing", cause: err}
	}
	return nil
}

// checkAccountPause fails while an operator has paused the account.
func (l *lane) checkAccountPause(ctx context.Context) error {
	pause, err := l.jobs.AccountPause(ctx, l.account.name)
	switch {
	case err != nil:
		return &pauseError{backoff: &l.waits.unreachable, message: redisUnavailable, cause: err}
	case pause == nil:
		return nil
	}
	return &pauseError{
		backoff: &backoff{first: accountPausePoll, most: accountPausePoll}, recheck: l.checkAccountPause,
		message: "lane paused by an operator", cause: errors.New(cmp.Or(pause.Reason, "no reason given")),
	}
}

// retriedSince reports whether a job was retried after the end that its sidecar records:
// the record has archived that attempt, or has a later one, or was retried later.
//
// Times are compared only if the job has no image: a wrong clock must not cause images to
// be bought twice.
func retriedSince(rec, finished *jobs.Record) bool {
	if len(finished.Missing()) == 0 {
		return false
	}
	closed := finished.Attempt > 0 && slices.ContainsFunc(rec.PastAttempts, func(a jobs.Attempt) bool { return a.Attempt == finished.Attempt })
	hasImages := finished.State == jobs.StateSucceeded
	return closed || rec.Attempt > finished.Attempt || !hasImages && rec.RetriedAt.After(finished.FinishedAt)
}

// create sends the create request. On a stop it waits for the reply for a limited time; a
// create that is cut short is reconciled by the next run.
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

// created records the task ID, in the journal first.
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
		// The lane's new holder is reconciling the job, or has resubmitted it.
		return l.merge(context.WithoutCancel(ctx), &next, time.Now())
	}
	return err
}

// createFailed handles a create without a task: an ambiguous one is reconciled, never sent
// again blindly; after a definite refusal the intent is rolled back.
func (l *lane) createFailed(ctx context.Context, rec, intent *jobs.Record, err error) error {
	var refusal *dashscope.Error
	if !errors.As(err, &refusal) {
		refusal = &dashscope.Error{Kind: dashscope.KindAmbiguous}
	}
	switch refusal.Kind {
	case dashscope.KindThrottled:
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.throttled, minWait: refusal.RetryAfter, message: temporarilyRefused, cause: err})
	case dashscope.KindRefused:
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.unreachable, minWait: refusal.RetryAfter, message: temporarilyRefused, cause: err})
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
	// The execution reconciles it.
	_, err = l.markAmbiguous(ctx, intent, err.Error(), refusal.RequestID, errors.Is(err, context.Canceled))
	return err
}

// rollbackIntent undoes an intent that certainly created no task, and returns pause. The
// job keeps its place in the queue, unless its cancellation was requested meanwhile.
func (l *lane) rollbackIntent(ctx context.Context, intent, rec *jobs.Record, pause *pauseError) error {
	l.journal(journal.KindRefused, intent)
	if err := l.release(ctx, intent); err != nil {
		l.log.Warn("reservation not released", "job_id", intent.ID, "err", err)
	}
	if l.cancelRequested(ctx, intent) {
		if err := l.finishJob(ctx, intent, endedRecord(intent, jobs.StateCanceled, jobs.CodeCanceled, canceledBeforeCreate)); err != nil {
			return err
		}
		return pause
	}
	next := *rec
	if err := l.transition(ctx, intent, &next); err != nil {
		return err
	}
	return pause
}
