package lane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
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

	// accountPausePoll is how often a lane checks whether its account's pause is finished.
	accountPausePoll = 2 * time.Second

	// budgetPollInterval is how often a lane checks whether its account's daily budget has
	// room again: a new day begins, the budget is raised, or a reservation is released.
	budgetPollInterval = time.Minute

	accountPaused        = "lane paused: the account needs attention"
	temporarilyRefused   = "dashscope temporarily refused the request"
	canceledBeforeCreate = "canceled on request before a task was created; no cost"
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
	if err := l.holdForSpooled(ctx, rec, &req); err != nil {
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
		return l.redisPause(err)
	}
	if err := l.reserve(ctx, rec, intent, *body.Parameters.N); err != nil {
		return err
	}
	if err := loop.Sleep(ctx, l.limiter.delay()); err != nil || ctx.Err() != nil {
		if err := l.recorder.Release(ctx, intent); err != nil {
			l.log.Warn("reservation not released", "job_id", rec.ID, "err", err)
		}
		return cmp.Or(err, context.Cause(ctx))
	}
	if err := l.recorder.Update(ctx, rec, intent); err != nil {
		if isRefused(err) {
			return l.intentRefused(ctx, intent, rec, err)
		}
		return err
	}
	if err := l.recorder.Data.Journal.Append(journal.KindIntent, intent); err != nil {
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.unreachable, message: "submissions paused: journal not writable", cause: err})
	}
	l.cfg.Dataset.WaitDurable(context.WithoutCancel(ctx), rec.ID)
	if !l.lease.Valid() {
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

// reserve reserves the money for an attempt. It fails with a [*pauseError]; if the
// batch's budget has no room, it holds the job without buying anything.
func (l *lane) reserve(ctx context.Context, rec, intent *jobs.Record, images int) error {
	err := l.recorder.Ledger.Reserve(context.WithoutCancel(ctx), recorder.ChargeOf(intent, images, l.cfg.Account.Cost(l.cfg.Model, images)), l.cfg.Account.DailyBudgetMicroYuan)
	var full *ledger.BudgetError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &full):
		return l.redisPause(err)
	case full.Batch == "":
		return &pauseError{backoff: &loop.Backoff{First: budgetPollInterval, Most: budgetPollInterval}, message: "the daily budget is spent: nothing is submitted", cause: err}
	}
	next := recorder.Held(rec, jobs.CodeBudgetExceeded, "nothing was bought: "+full.Error()+"; run the batch again with a larger --budget")
	next.Request = intent.Request
	l.log.Warn("job held: batch budget spent", "job_id", rec.ID, "err", err)
	if err := l.recorder.Transition(ctx, rec, next); err != nil {
		return err
	}
	return errReread
}

// newIntent returns the record of a create that is about to be sent, with everything that
// identifies its task if the reply is lost.
func (l *lane) newIntent(ctx context.Context, rec *jobs.Record, req *jobs.Request) (*jobs.Record, error) {
	listed, err := l.lastClearTime(ctx)
	if err != nil {
		return nil, err
	}
	intent := *rec
	intent.ClearIntent()
	intent.State, intent.Attempt, intent.Term = jobs.StateSubmitting, rec.Attempt+1, l.term
	intent.Account, intent.Request, intent.TaskID = l.cfg.Account.Name, req, ""
	intent.TaskImages, intent.TaskMicroYuan, intent.RunningAt = 0, 0, time.Time{}
	intent.SubmittedAt, intent.Code, intent.Message, intent.Simulated = time.Now().UTC(), "", "", l.recorder.Simulated()
	intent.KeyFingerprint, intent.ListedAt = l.cfg.Account.Client.KeyFingerprint(), listed
	if at, known := l.cfg.Account.ServiceNow(); known {
		intent.ServiceAt = at
	}
	return &intent, nil
}

// prepare returns the create's body if the job may be submitted now.
func (l *lane) prepare(ctx context.Context, rec *jobs.Record, req jobs.Request) (*dashscope.CreateRequest, error) {
	body, err := (*dashscope.CreateRequest)(nil), l.checkPreconditions(ctx, rec)
	switch {
	case err != nil:
	case !rec.CancelRequestedAt.IsZero(): // while an earlier intent was rolled back
		err = l.finishJob(ctx, rec, recorder.Ended(rec, jobs.StateCanceled, jobs.CodeCanceled, canceledBeforeCreate))
		if err == nil {
			err = errReread
		}
	case rec.Overdue(time.Now()):
		err = l.finishJob(ctx, rec, recorder.Ended(rec, jobs.StateFailed, jobs.CodeDeadlineExceeded, jobs.DeadlineMessage))
		if err == nil { // it has images of an earlier attempt
			err = errReread
		}
	default:
		body, err = l.createBody(ctx, rec, req)
	}
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return body, err
}

// checkPreconditions fails unless the job may be submitted now: Redis has its data, the
// account is not paused, the job is not finished, the bucket is available, and the disk has
// room. If the job is finished already, it ends the record and fails with
// errReread.
func (l *lane) checkPreconditions(ctx context.Context, rec *jobs.Record) error {
	if err := l.assertSameDataset(ctx); err != nil {
		return err
	}
	if err := l.checkAccountPause(ctx); err != nil {
		return err
	}
	if _, disabled := l.cfg.Account.Usable(); disabled != nil {
		return &pauseError{backoff: &l.waits.account, message: accountPaused, cause: disabled}
	}
	finished, err := l.recorder.Finished(ctx, rec.ID, rec.Digest)
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, recorder.ErrSimulated):
		// The sidecar belongs to another job and is not overwritten.
		return l.endRecord(ctx, rec, jobs.StateFailed, jobs.CodeJobIDTaken, err.Error())
	case errors.Is(err, storage.ErrUnreadable):
		return l.endRecord(ctx, rec, jobs.StateFailed, jobs.CodeSidecarUnreadable, err.Error())
	case err != nil:
		return &pauseError{backoff: &l.waits.unreachable, message: bucketUnavailable, cause: err}
	case finished != nil && !recorder.RetriedSince(rec, finished):
		if err := l.recorder.AdoptFinished(ctx, rec, finished); err != nil {
			return err
		}
		return errReread
	}
	if limit := l.cfg.StoreBacklogLimit; l.cfg.Recovery.StoreBacklog(ctx, limit) > limit {
		return &pauseError{
			backoff: &l.waits.unreachable, message: "submissions paused: finished images cannot be stored",
			cause: fmt.Errorf("more than %d jobs have images waiting to be stored", limit),
		}
	}
	free, err := l.recorder.Spool.FreeBytes()
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
	pause, err := l.recorder.Store.AccountPause(ctx, l.cfg.Account.Name)
	switch {
	case err != nil:
		return l.redisPause(err)
	case pause == nil:
		return nil
	}
	return &pauseError{
		backoff: &loop.Backoff{First: accountPausePoll, Most: accountPausePoll}, recheck: l.checkAccountPause,
		message: "lane paused by an operator", cause: errors.New(cmp.Or(pause.Reason, "no reason given")),
	}
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
		case <-l.recorder.Stopping.Done():
			cutAfter(createStopGrace)
		case <-sending.Done():
		}
	})
	defer context.AfterFunc(l.hard, func() { cutAfter(createGrace) })()
	return l.cfg.Account.Client.Create(sending, body)
}

// created records the task ID, in the journal first. A reply that names a task of another
// job or attempt is not believed: the create is ambiguous.
func (l *lane) created(ctx context.Context, intent *jobs.Record, created *dashscope.Created) error {
	if owner, ok := l.recorder.Data.Journal.Owner(created.TaskID); ok && (owner.JobID != intent.ID || owner.Attempt != intent.Attempt) {
		return l.misattributed(ctx, intent, created, owner.JobID)
	}
	if slices.ContainsFunc(intent.PastAttempts, func(past jobs.Attempt) bool { return past.TaskID == created.TaskID }) {
		return l.misattributed(ctx, intent, created, intent.ID) // of an attempt that another worker made
	}
	next := *intent
	next.State, next.TaskID, next.Simulated = jobs.StateGenerating, created.TaskID, created.Simulated
	l.recorder.Journal(journal.KindTask, &next)
	l.tasks.Store(next.TaskID, time.Now())
	var owners map[string]jobs.TaskOwner
	err := l.recorder.Retry(ctx, next.ID, func(ctx context.Context) (err error) {
		owners, err = l.recorder.Store.TaskOwners(ctx, []string{next.TaskID})
		return err
	})
	if owner := owners[next.TaskID].Job; err == nil && owner != "" && owner != next.ID {
		l.tasks.Delete(next.TaskID)
		return l.misattributed(ctx, intent, created, owner)
	}
	l.cfg.Account.SetServiceTime(created.Date)
	l.waits.unreachable.Reset()
	l.waits.throttled.Reset()
	l.waits.account.Reset()
	l.log.Info("task submitted", "job_id", next.ID, "task_id", next.TaskID, "attempt", next.Attempt, "request_id", created.RequestID)
	l.setLastCreated(ctx, next.TaskID)
	err = l.recorder.Transition(ctx, intent, &next)
	if errors.Is(err, jobs.ErrConflict) {
		// The lane's new holder is reconciling the job, or has resubmitted it.
		return l.cfg.Recovery.Merge(context.WithoutCancel(ctx), &next, time.Now())
	}
	return err
}

// misattributed marks a create as ambiguous whose reply names another job's or attempt's task,
// as a broken proxy may send it.
func (l *lane) misattributed(ctx context.Context, intent *jobs.Record, created *dashscope.Created, owner string) error {
	rejected := *intent
	rejected.Rejected = append(slices.Clone(intent.Rejected), created.TaskID)
	reason := fmt.Sprintf("the reply names task %s, which belongs to job %s", created.TaskID, owner)
	_, err := l.markAmbiguous(ctx, &rejected, reason, created.RequestID, false)
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
		if err := l.recorder.Release(ctx, intent); err != nil {
			l.log.Warn("reservation not released", "job_id", intent.ID, "err", err)
		}
		l.recorder.Journal(journal.KindRefused, intent)
		return l.fail(ctx, intent, refusal.Code, withHint(refusal.Message, refusal.Hint()))
	case dashscope.KindRetry:
		return l.taskFailed(ctx, intent, refusal.Code, refusal.Message)
	case dashscope.KindAmbiguous, dashscope.KindTemporary:
	}
	// drive reads the record again and calls reconcile.
	_, err = l.markAmbiguous(ctx, intent, err.Error(), refusal.RequestID, errors.Is(err, context.Canceled))
	return err
}

// rollbackIntent undoes an intent that certainly created no task, and returns pause. The
// job keeps its place in the queue, unless its cancellation was requested meanwhile.
func (l *lane) rollbackIntent(ctx context.Context, intent, rec *jobs.Record, pause *pauseError) error {
	l.recorder.Journal(journal.KindRefused, intent)
	if err := l.recorder.Release(ctx, intent); err != nil {
		l.log.Warn("reservation not released", "job_id", intent.ID, "err", err)
	}
	if l.cancelRequested(ctx, intent) {
		if err := l.finishJob(ctx, intent, recorder.Ended(intent, jobs.StateCanceled, jobs.CodeCanceled, canceledBeforeCreate)); err != nil {
			return err
		}
		return pause
	}
	next := *rec
	if err := l.recorder.Transition(ctx, intent, &next); err != nil {
		return err
	}
	return pause
}
