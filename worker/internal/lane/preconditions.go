package lane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
)

// checkedBody returns the create's body if the job may be submitted now.
func (l *lane) checkedBody(ctx context.Context, rec *jobs.Record, req jobs.Request) (*dashscope.CreateRequest, error) {
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
// account and the model are not paused, the job is not finished, the bucket is available, and
// the disk has room. If the job is finished already, it ends the record and fails with errReread.
func (l *lane) checkPreconditions(ctx context.Context, rec *jobs.Record) error {
	if err := l.checkLane(ctx); err != nil {
		return err
	}
	finished, err := l.recorder.Finished(ctx, rec.ID, rec.Digest)
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, recorder.ErrSimulated):
		// The sidecar belongs to another job and is not overwritten.
		return l.endRecord(ctx, rec, jobs.StateFailed, jobs.CodeJobIDTaken, err.Error())
	case errors.Is(err, storage.ErrUnreadable):
		return l.endRecord(ctx, rec, jobs.StateFailed, jobs.CodeSidecarUnreadable, err.Error())
	case err != nil:
		return &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseBucket, message: bucketUnavailable, cause: err}
	case finished != nil && !recorder.RetriedSince(rec, finished):
		if err := l.recorder.AdoptFinished(ctx, rec, finished); err != nil {
			return err
		}
		return errReread
	}
	return l.checkRoom(ctx)
}

// checkRoom fails unless finished images can be stored, and the disk has room for more.
func (l *lane) checkRoom(ctx context.Context) error {
	if limit := l.cfg.StoreBacklogLimit; l.cfg.Recovery.StoreBacklog(ctx, limit) > limit {
		return &pauseError{
			backoff: &l.waits.unreachable, reason: jobs.PauseBucket, message: "submissions paused: finished images cannot be stored",
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
		return &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseDisk, message: "submissions paused: data directory full or missing", cause: err}
	}
	return nil
}

// checkLane fails unless the lane may submit now: Redis has its data, the account is usable, and
// no operator has paused the account or the model.
func (l *lane) checkLane(ctx context.Context) error {
	var checks errgroup.Group
	checks.Go(func() error { return l.assertSameDataset(ctx) })
	checks.Go(func() error { return l.checkPause(ctx) })
	if err := checks.Wait(); err != nil {
		return err
	}
	if _, disabled := l.cfg.Account.Usable(); disabled != nil {
		return &pauseError{backoff: &l.waits.account, reason: jobs.PauseAccount, message: accountPaused, cause: disabled}
	}
	return nil
}

// checkPause fails while an operator has paused the account or the model.
func (l *lane) checkPause(ctx context.Context) error {
	pause, err := l.recorder.Store.LanePause(ctx, l.cfg.Account.Name, l.cfg.Model.Name)
	switch {
	case err != nil:
		return l.redisPause(err)
	case pause == nil:
		return nil
	}
	return &pauseError{
		backoff: &loop.Backoff{First: operatorPausePoll, Most: operatorPausePoll}, recheck: l.checkPause,
		reason: jobs.PauseOperator, message: "lane paused by an operator", cause: errors.New(cmp.Or(pause.By, "unknown") + ": " + cmp.Or(pause.Why, "no reason given")),
	}
}

// reserve reserves the money for an attempt. It fails with a [*pauseError]; if the
// batch's budget has no room, it holds the job without buying anything.
func (l *lane) reserve(ctx context.Context, rec, intent *jobs.Record, images int, ahead bool) error {
	charge := recorder.ChargeOf(intent, images, l.cfg.Account.Cost(l.cfg.Model, l.cfg.Model.Most(intent.Request, images)))
	err := l.recorder.Ledger.Reserve(context.WithoutCancel(ctx), charge, l.cfg.Account.DailyBudgetMicroYuan)
	var full *ledger.BudgetError
	begun := time.Now()
	for errors.As(err, &full) && l.settling.Load() > 0 && time.Since(begun) < settlingLongest { // a task may have cost less than was reserved
		if err := loop.Sleep(ctx, settlingInterval); err != nil {
			return err
		}
		err = l.recorder.Ledger.Reserve(context.WithoutCancel(ctx), charge, l.cfg.Account.DailyBudgetMicroYuan)
	}
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &full):
		return l.redisPause(err)
	case full.Batch == "", ahead: // what is reserved may become free until a slot is
		return &pauseError{backoff: &loop.Backoff{First: budgetPollInterval, Most: budgetPollInterval}, reason: jobs.PauseBudget, message: budgetSpent, cause: err, until: full.Until}
	}
	next := recorder.Held(rec, jobs.CodeBudgetExceeded, "nothing was bought: "+full.Error()+"; run the batch again with a larger --budget")
	next.Request = intent.Request
	l.log.Warn("job held: batch budget spent", "job_id", rec.ID, "err", err)
	if err := l.recorder.Transition(ctx, rec, next); err != nil {
		return err
	}
	return errReread
}
