package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker/journal"
)

// budgetPollInterval is how often a lane checks whether its account's daily budget has room
// again: a new day begins, the budget is raised, or a reservation is released.
const budgetPollInterval = time.Minute

// chargeOf is what the ledger books of an attempt.
func chargeOf(rec *jobs.Record, images int, microYuan int64) ledger.Charge {
	c := ledger.Charge{
		Account: rec.Account, JobID: rec.ID, Attempt: rec.Attempt, At: rec.SubmittedAt,
		Model: rec.Model, Batch: rec.Batch, Labels: rec.Labels, Images: images, MicroYuan: microYuan,
	}
	if rec.Request != nil {
		c.Batch, c.Labels = rec.Request.Batch, rec.Request.Labels
	}
	return c
}

// cost returns the price of a number of images on an account, in micro-yuan; 0 if the
// account is not configured here, or its region does not have the model.
func (w *Worker) cost(account, model string, images int) int64 {
	a := w.accountNamed(account)
	m, err := jobs.LookupModel(model)
	if a == nil || err != nil {
		return 0
	}
	cost, _ := a.configured.Cost(m, images)
	return cost
}

// reserve reserves the money for an attempt. It fails with a [*pauseError]; if the
// batch's budget has no room, it holds the job without buying anything.
func (l *lane) reserve(ctx context.Context, rec, intent *jobs.Record, images int) error {
	err := l.ledger.Reserve(ctx, chargeOf(intent, images, l.cost(l.account.name, l.model.Name, images)), l.account.configured.DailyBudgetMicroYuan)
	var full *ledger.BudgetError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &full):
		return &pauseError{backoff: &l.waits.unreachable, message: redisUnavailable, cause: err}
	case full.Batch == "":
		return &pauseError{backoff: &backoff{first: budgetPollInterval, most: budgetPollInterval}, message: "the daily budget is spent: nothing is submitted", cause: err}
	}
	next := heldRecord(rec, jobs.CodeBudgetExceeded, "nothing was bought: "+full.Error()+"; run the batch again with a larger --budget")
	next.Request = intent.Request
	l.log.Warn("job held: batch budget spent", "job_id", rec.ID, "err", err)
	if err := l.transition(ctx, rec, next); err != nil {
		return err
	}
	return jobs.ErrConflict // read the record again
}

// release releases the reservation of an attempt that costs nothing.
func (w *Worker) release(ctx context.Context, rec *jobs.Record) error {
	return w.ledger.Release(context.WithoutCancel(ctx), chargeOf(rec, 0, 0))
}

// settleTask records the cost of a task. It is idempotent.
func (w *Worker) settleTask(ctx context.Context, rec *jobs.Record, taskID string, images int, microYuan int64) error {
	return w.recordSpend(context.WithoutCancel(ctx), chargeOf(rec, images, microYuan), taskID)
}

// retryRedis repeats do until it succeeds or the worker stops. do must fail only
// because of Redis.
func (w *Worker) retryRedis(ctx context.Context, jobID string, do func(context.Context) error) error {
	for retry := (&backoff{first: 100 * time.Millisecond, most: 10 * time.Second}); ; {
		err := do(ctx)
		if err == nil {
			return nil
		}
		w.log.Warn("redis unavailable, retrying", "job_id", jobID, "err", err)
		if err := w.sleep(ctx, retry.next()); err != nil {
			return err
		}
	}
}

// releaseLeakedReservations releases the reservations of attempts that have ended or
// were never started because their worker died. It checks the days on which an attempt
// can be open.
func (w *Worker) releaseLeakedReservations(ctx context.Context) error {
	for _, a := range w.accounts {
		for _, day := range []time.Time{time.Now().Add(-24 * time.Hour), time.Now()} {
			open, err := w.ledger.OpenReservations(ctx, a.name, day)
			if err != nil {
				return err
			}
			for _, charge := range open {
				if time.Since(charge.At) < requeueAge {
					continue
				}
				needed, err := w.reservationNeeded(ctx, charge)
				if err != nil {
					return err
				}
				if needed {
					continue
				}
				if err := w.ledger.Release(ctx, charge); err != nil {
					return fmt.Errorf("free a reservation: %w", err)
				}
			}
		}
	}
	return nil
}

// reservationNeeded reports whether an attempt may still cost something.
func (w *Worker) reservationNeeded(ctx context.Context, charge ledger.Charge) (bool, error) {
	if e, open := w.cfg.DataDir.Journal.OpenJob(charge.JobID); open && e.Attempt == charge.Attempt && e.Kind != journal.KindHeld {
		return true, nil
	}
	rec, err := w.jobs.Get(ctx, charge.JobID)
	if errors.Is(err, jobs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	return !rec.State.Final() && !rec.State.Waiting() && rec.Attempt == charge.Attempt, nil
}

// book notes what a task has cost, once: in the spend log, and in the ledger, whose
// error it returns. Then the same call must be made again.
func (w *Worker) recordSpend(ctx context.Context, charge ledger.Charge, taskID string) error {
	if err := w.cfg.DataDir.Spend.Append(charge, taskID); err != nil {
		// The ledger is authoritative; what the log lacks is missing in reports without
		// Redis.
		w.log.Error("spend log not written", "job_id", charge.JobID, "task_id", taskID, "err", err)
	}
	return w.ledger.Settle(ctx, charge, taskID)
}

// importSpend imports the spend log into the ledger of a Redis that lacks it.
func (w *Worker) importSpend(ctx context.Context) error {
	spend := w.cfg.DataDir.Spend
	if damaged := spend.Damaged(); damaged > 0 {
		w.log.Warn("unreadable lines in the spend log: budgets do not count them", "path", filepath.Join(w.cfg.DataDir.Path, journal.SpendLogName), "lines", damaged)
	}
	return spend.ImportInto(ctx, w.ledger, w.cfg.DataDir.WorkerID)
}
