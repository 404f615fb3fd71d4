package lane

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
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

	// operatorPausePoll is how often a lane checks whether the pause of its account or its model
	// is finished.
	operatorPausePoll = 2 * time.Second

	// budgetPollInterval is how often a lane checks whether its account's daily budget has
	// room again: a new day begins, the budget is raised, or a reservation is released.
	budgetPollInterval = time.Minute
	// settlingInterval is how often a job for which a budget has no room is tried again while tasks
	// are being booked, and settlingLongest for how long: other jobs wait for it.
	settlingInterval = 100 * time.Millisecond
	settlingLongest  = 5 * time.Second

	budgetSpent          = "the daily budget is spent: nothing is submitted"
	accountPaused        = "lane paused: the account needs attention"
	modelPaused          = "lane paused: the service does not offer the model"
	temporarilyRefused   = "dashscope temporarily refused the request"
	canceledBeforeCreate = "canceled on request before a task was created; no cost"
)

// prepared is a job whose create can be sent at once.
type prepared struct {
	rec, intent *jobs.Record // before, and as prepared
	body        *dashscope.CreateRequest
	// ambiguous is the lane's count of ambiguous creates at that time.
	ambiguous int
	// ahead is set if the job has waited for its slot since then.
	ahead bool
}

// submitInSlot prepares a job and sends its create once, or waits while it may not be sent.
func (l *lane) submitInSlot(ctx context.Context, e *execution, rec *jobs.Record, req jobs.Request) error {
	if err := l.reacquireSlot(ctx, e); err != nil {
		return err
	}
	p, err := l.prepare(ctx, rec, req, false)
	if err != nil {
		return err
	}
	if err = l.send(ctx, e, p); errors.Is(err, errNotNext) {
		err = errReread
	}
	return err
}

// prepare does everything for a create that can be done before a slot is free. The order of
// the steps is essential: each is recorded before the next begins.
func (l *lane) prepare(ctx context.Context, rec *jobs.Record, req jobs.Request, ahead bool) (*prepared, error) {
	req = req.WithSeed(rec.ID)
	withRequest := *rec
	withRequest.Request = &req // for the sidecar, if the job ends here
	body, err := l.checkedBody(ctx, &withRequest, req)
	if err != nil {
		return nil, err
	}
	p, err := l.record(ctx, rec, &req, body, ahead)
	if err == nil {
		l.cfg.Dataset.WaitDurable(context.WithoutCancel(ctx), rec.ID)
	}
	return p, err
}

// record records a job as prepared, with its money reserved: one job after the other.
func (l *lane) record(ctx context.Context, rec *jobs.Record, req *jobs.Request, body *dashscope.CreateRequest, ahead bool) (p *prepared, err error) {
	if err := l.take(ctx, l.recordSem); err != nil {
		return nil, err
	}
	defer func() { <-l.recordSem }()
	p = &prepared{rec: rec, body: body, ahead: ahead}
	if p.ambiguous, err = l.awaitOutcomes(ctx); err != nil {
		return nil, err
	}
	if err := l.holdForSpooled(ctx, rec, req); err != nil {
		return nil, err
	}
	if err := l.holdForOrphan(ctx, rec, req); err != nil {
		return nil, err
	}
	l.refreshClock(ctx)
	if p.intent, err = l.newIntent(ctx, rec, req); err != nil {
		return nil, l.redisPause(err)
	}
	if *body.Parameters.N < req.N {
		p.intent.TaskSeed = body.Parameters.Seed
	}
	if err := l.reserve(ctx, rec, p.intent, *body.Parameters.N, ahead); err != nil {
		return nil, err
	}
	switch written, err := l.updateInDataset(ctx, rec, p.intent); {
	case written && err != nil:
		return nil, l.rollbackIntent(ctx, p.intent, rec, err)
	case isRefused(err):
		return nil, l.intentRefused(ctx, p.intent, rec, err)
	case err != nil:
		return nil, err
	}
	return p, nil
}

// awaitOutcomes waits until the outcome of each create that was sent is known, or [lane.awaitQuiet]
// does not wait for it any more. It returns how many creates were ambiguous until then.
func (l *lane) awaitOutcomes(ctx context.Context) (ambiguous int, err error) {
	if err := l.take(ctx, l.submitSem); err != nil {
		return 0, err
	}
	defer func() { <-l.submitSem }()
	return l.ambiguous, l.awaitQuiet(ctx)
}

// send sends a prepared job's create once. It is sent only if what was checked when it was prepared
// still holds ([lane.checkTurn]), no create became ambiguous since, the rate limit allows it, the
// record and the journal have that it may be on its way, and the lease is valid. The checks are made
// beside the write of the record, which saves a round trip; if one fails, that is rolled back.
// After a crash from there on, [lane.reconcile] finds out what became of it.
func (l *lane) send(ctx context.Context, e *execution, p *prepared) error {
	defer l.nextCreateDone()
	if err := l.take(ctx, l.submitSem); err != nil {
		return l.rollbackIntent(ctx, p.intent, p.rec, err)
	}
	releaseTurn := sync.OnceFunc(func() { <-l.submitSem })
	defer releaseTurn()
	err := loop.Sleep(ctx, l.limiter.delay())
	if err == nil && l.ambiguous != p.ambiguous { // it may have to wait for the outcome of another create
		err = errReread
	}
	if err := cmp.Or(err, context.Cause(ctx)); err != nil {
		return l.rollbackIntent(ctx, p.intent, p.rec, err)
	}
	var checks errgroup.Group
	checks.Go(func() error { return l.checkTurn(ctx, p) })
	intent, err := l.startSending(ctx, p)
	notNow := checks.Wait()
	if isRefused(err) {
		return l.intentRefused(ctx, intent, p.rec, err)
	}
	if err := cmp.Or(err, notNow); err != nil {
		return l.rollbackIntent(ctx, intent, p.rec, err)
	}
	l.setWorking(e)
	l.limiter.sent()
	created, err := l.create(ctx, *p.body)
	l.limiter.done()
	if err == nil {
		l.recorder.Metrics.Created(l.cfg.Account.Name, l.cfg.Model.Name)
		return l.taskCreated(ctx, intent, created)
	}
	refusal := refusalOf(err)
	l.recorder.Metrics.NotCreated(l.cfg.Account.Name, l.cfg.Model.Name, refusal)
	if refusal.Kind == dashscope.KindThrottled {
		l.limiter.throttled()
	}
	if refusal.Kind == dashscope.KindAmbiguous || refusal.Kind == dashscope.KindTemporary {
		l.ambiguous++
	}
	releaseTurn()
	return l.createFailed(ctx, p.rec, intent, err, refusal)
}

// nextCreate returns a channel that is closed when the next create of the lane has its outcome on
// record, or was not sent.
func (l *lane) nextCreate() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.createDone == nil {
		l.createDone = make(chan struct{})
	}
	return l.createDone
}

// nextCreateDone closes the channel of [lane.nextCreate].
func (l *lane) nextCreateDone() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.createDone != nil {
		close(l.createDone)
		l.createDone = nil
	}
}

// startSending records that a prepared job's create is about to be sent: in the record by
// compare-and-set, in the journal, synced. It returns the intent as far as it is recorded.
func (l *lane) startSending(ctx context.Context, p *prepared) (*jobs.Record, error) {
	if ledger.Day(time.Now()) != ledger.Day(p.intent.SubmittedAt) {
		return p.intent, errReread // the money is reserved on another day
	}
	sending := *p.intent
	sending.State, sending.SubmittedAt, sending.ServiceAt = jobs.StateSubmitting, time.Now().UTC(), time.Time{}
	if at, known := l.cfg.Account.ServiceNow(); known {
		sending.ServiceAt = at
	}
	written, err := l.updateInDataset(ctx, p.intent, &sending)
	switch {
	case written && err != nil, isRefused(err): // a refused one may be written all the same
		return &sending, err
	case err != nil:
		return p.intent, err
	}
	if err := l.recorder.Data.Journal.Append(journal.KindIntent, &sending); err != nil {
		return &sending, &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseDisk, message: "submissions paused: journal not writable", cause: err}
	}
	if !l.lease.Valid() {
		return &sending, &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseRedis, message: "submissions paused: lease expired"}
	}
	return &sending, nil
}

// updateInDataset writes a record as [recorder.Recorder.Update] does. If Redis was away meanwhile,
// it may have lost that another lane has bought the job, and has the record as this lane knew
// it: then updateInDataset fails, although the record is written.
func (l *lane) updateInDataset(ctx context.Context, old, next *jobs.Record) (written bool, err error) {
	write, tries := rand.Text(), 0
	err = l.recorder.Retry(ctx, next.ID, func(ctx context.Context) error {
		tries++
		return l.recorder.Store.UpdateOnce(ctx, write, old, next)
	})
	if err == nil && tries > 1 {
		return true, l.assertSameDataset(ctx)
	}
	return err == nil, err
}

// newIntent returns the record of a job that is prepared, with everything that identifies its
// task if the create's reply is lost.
func (l *lane) newIntent(ctx context.Context, rec *jobs.Record, req *jobs.Request) (*jobs.Record, error) {
	listed, err := l.lastClearTime(ctx)
	if err != nil {
		return nil, err
	}
	intent := *rec
	intent.ClearIntent()
	intent.State, intent.Attempt, intent.Term, intent.Dataset = jobs.StatePrepared, rec.Attempt+1, l.term, l.dataset
	intent.Account, intent.Request, intent.TaskID = l.cfg.Account.Name, req, ""
	intent.TaskImages, intent.TaskMicroYuan, intent.RunningAt = 0, 0, time.Time{}
	intent.SubmittedAt, intent.Code, intent.Message, intent.Simulated = time.Now().UTC(), "", "", l.recorder.Simulated()
	intent.KeyFingerprint, intent.ListedAt = l.cfg.Account.Client.KeyFingerprint(), listed
	if at, known := l.cfg.Account.ServiceNow(); known {
		intent.ServiceAt = at
	}
	return &intent, nil
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

// taskCreated records the task ID, in the journal first. A reply that names a task of another
// job or attempt is not believed: the create is ambiguous. The caller must hold submitSem, so that
// no other create is sent, or prepared, before the outcome of this one is recorded.
func (l *lane) taskCreated(ctx context.Context, intent *jobs.Record, created *dashscope.Created) error {
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
	l.cfg.Account.SetCreated(l.cfg.Model.Name)
	if last := l.paused.Swap(nil); last != nil {
		l.log.Info("lane working again", "duration", time.Since(last.at))
	}
	l.log.Info("task submitted", "job_id", next.ID, "task_id", next.TaskID, "attempt", next.Attempt, "request_id", created.RequestID)
	l.setLastCreated(ctx, next.TaskID)
	select {
	case l.created <- struct{}{}:
	default:
	}
	err = l.recorder.Transition(ctx, intent, &next)
	if errors.Is(err, jobs.ErrConflict) {
		// The lane's new holder is reconciling the job, or has resubmitted it.
		return l.cfg.Recovery.Merge(context.WithoutCancel(ctx), &next, time.Now())
	}
	return err
}

// misattributed marks a create as ambiguous whose reply names another job's or attempt's task,
// as a broken proxy may send it. The caller must hold submitSem.
func (l *lane) misattributed(ctx context.Context, intent *jobs.Record, created *dashscope.Created, owner string) error {
	l.ambiguous++
	rejected := *intent
	rejected.Rejected = append(slices.Clone(intent.Rejected), created.TaskID)
	reason := fmt.Sprintf("the reply names task %s, which belongs to job %s", created.TaskID, owner)
	_, err := l.markAmbiguous(ctx, &rejected, reason, created.RequestID, false)
	return err
}

// refusalOf returns why a create made no task. Without an answer it is ambiguous.
func refusalOf(err error) *dashscope.Error {
	var refusal *dashscope.Error
	if errors.As(err, &refusal) {
		return refusal
	}
	return &dashscope.Error{Kind: dashscope.KindAmbiguous}
}

// createFailed handles a create without a task: an ambiguous one is reconciled, never sent
// again blindly; after a definite refusal the intent is rolled back.
func (l *lane) createFailed(ctx context.Context, rec, intent *jobs.Record, err error, refusal *dashscope.Error) error {
	switch refusal.Kind {
	case dashscope.KindThrottled:
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.throttled, minWait: refusal.RetryAfter, reason: jobs.PauseThrottled, message: temporarilyRefused, cause: err})
	case dashscope.KindRefused:
		return l.rollbackIntent(ctx, intent, rec, &pauseError{backoff: &l.waits.unreachable, minWait: refusal.RetryAfter, reason: jobs.PauseService, message: temporarilyRefused, cause: err})
	case dashscope.KindAccount, dashscope.KindModel:
		return l.rollbackIntent(ctx, intent, rec, l.refusedPause(refusal.Kind, refusal.Code, refusal.RetryAfter, err))
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

// refusedPause is the pause of a lane whose account or model the service refuses. 403 AccessDenied
// may mean either: it is the model's while another model of the account works.
func (l *lane) refusedPause(kind dashscope.Kind, code string, minWait time.Duration, cause error) *pauseError {
	p := &pauseError{backoff: &l.waits.account, minWait: minWait, reason: jobs.PauseAccount, message: accountPaused, cause: cause}
	if kind == dashscope.KindModel || dashscope.IsAccessDenied(code) && l.cfg.Account.OtherModelWorks(l.cfg.Model.Name) {
		p.reason, p.message = jobs.PauseModel, modelPaused
	}
	return p
}

// rollbackIntent undoes an intent that certainly created no task, and returns why. The job
// keeps its place in the queue, unless its cancellation was requested meanwhile.
func (l *lane) rollbackIntent(ctx context.Context, intent, rec *jobs.Record, why error) error {
	if intent.State == jobs.StateSubmitting { // the journal has it
		l.recorder.Journal(journal.KindRefused, intent)
	}
	current, err := l.recorder.Store.Get(context.WithoutCancel(ctx), intent.ID)
	if err == nil && current.Term != intent.Term && current.Account == intent.Account && current.Attempt == intent.Attempt {
		return jobs.ErrConflict // the lane's new holder has the same reservation
	}
	if err := l.recorder.Release(ctx, intent); err != nil {
		l.log.Warn("reservation not released", "job_id", intent.ID, "err", err)
	}
	if err == nil && !current.CancelRequestedAt.IsZero() {
		intent.Decisions = current.Decisions
		if err := l.finishJob(ctx, intent, recorder.Ended(intent, jobs.StateCanceled, jobs.CodeCanceled, canceledBeforeCreate)); err != nil {
			return err
		}
		return why
	}
	next := *rec
	if err := l.recorder.Transition(ctx, intent, &next); err != nil {
		return err
	}
	return why
}

// takeBack rolls back what another lane, or an earlier holder of this one, has prepared: it
// cannot be sent any more. If Redis may have lost data since then, it may have been sent.
func (l *lane) takeBack(ctx context.Context, rec *jobs.Record) error {
	if err := l.assertSameDataset(ctx); err != nil {
		return err
	}
	next := *rec
	if rec.Dataset != l.dataset {
		l.log.Warn("job was prepared before redis may have lost data: reconciling", "job_id", rec.ID, "attempt", rec.Attempt)
		next.State, next.SentLater = jobs.StateSubmitting, true
		return cmp.Or(l.recorder.Transition(ctx, rec, &next), errReread)
	}
	next.ClearIntent()
	next.State, next.Attempt, next.SubmittedAt = jobs.StateQueued, rec.Attempt-1, time.Time{}
	if err := l.recorder.Transition(ctx, rec, &next); err != nil {
		return err
	}
	if err := l.recorder.Release(ctx, rec); err != nil {
		l.log.Warn("reservation not released", "job_id", rec.ID, "err", err)
	}
	return errReread
}
