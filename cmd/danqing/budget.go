package main

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// budgetFlag is what a batch may spend, in millionths of a yuan; 0 is no bound.
type budgetFlag int64

var _ pflag.Value = (*budgetFlag)(nil)

func (b *budgetFlag) Set(text string) error {
	amount, err := ledger.ParseYuan(text)
	if err != nil || amount == 0 {
		return errors.New("must be an amount of yuan above 0, such as 12 or 0.16")
	}
	*b = budgetFlag(amount)
	return nil
}

func (b *budgetFlag) String() string {
	if *b == 0 {
		return ""
	}
	return ledger.FormatYuan(int64(*b))
}

// Type names the value in help texts.
func (*budgetFlag) Type() string { return "yuan" }

const budgetUsage = "the most that each file's batch may cost over all its runs; lines beyond it wait for a larger budget (default: no limit)"

// setBudgets bounds what the batches of some sheets may spend, before anything of
// them is queued. Without a bound an earlier run's is taken away.
func setBudgets(ctx context.Context, book *ledger.Ledger, sheets []sheet, budget budgetFlag) error {
	for _, s := range sheets {
		if err := book.SetBatchBudget(ctx, s.Name, int64(budget)); err != nil {
			return err
		}
	}
	return nil
}

// enqueueFunded puts a line on the queue, also if an earlier run's budget had no room
// for it: nothing was bought.
func enqueueFunded(ctx context.Context, rdb redis.UniversalClient, req jobs.Request) (*jobs.Job, error) {
	rec, err := jobs.NewClient(rdb).Enqueue(ctx, req)
	if err != nil || !unfunded(rec) {
		return rec, err
	}
	again, err := jobs.NewInspector(rdb).Resolve(ctx, rec.ID, jobs.Resolution{BuyAgain: true})
	if errors.Is(err, jobs.ErrInvalidState) { // somebody else has done so
		return again, nil
	}
	return again, err
}

// unfunded reports whether a job waits for its batch's budget to be raised.
func unfunded(rec *jobs.Job) bool {
	return rec.State == jobs.StateHeld && rec.Code == jobs.CodeBudgetExceeded
}
