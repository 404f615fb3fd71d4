package main

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// budgetFlag is the budget of a batch, in millionths of a yuan; 0 means no limit.
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

// Type returns the name of the value in help texts.
func (*budgetFlag) Type() string { return "yuan" }

const budgetUsage = "the most that each file's batch may cost over all its runs; lines beyond it wait for a larger budget (default: no limit)"

// setBudgets sets the budgets of batches, before any of their jobs is queued. Without a
// budget it removes an earlier run's.
func setBudgets(ctx context.Context, book *ledger.Ledger, files []*batchFile, budget budgetFlag) error {
	for _, s := range files {
		if s.name == "" { // a single job
			continue
		}
		if err := book.SetBatchBudget(ctx, s.name, int64(budget)); err != nil {
			return err
		}
	}
	return nil
}

// enqueueWithinBudget enqueues a request. If its job is held and madeAgain, it is queued again.
func (p *program) enqueueWithinBudget(ctx context.Context, cfg *config.Config, rdb redis.UniversalClient, req jobs.Request) (*jobs.Job, error) {
	rec, err := jobs.NewClient(rdb).Enqueue(ctx, req)
	if err != nil || !madeAgain(rec) {
		return rec, err
	}
	again, err := jobs.NewInspector(rdb).Resolve(ctx, rec.ID, jobs.Resolution{BuyAgain: true}, jobs.Decider{By: p.userName(cfg), Why: "its batch was run again"})
	if errors.Is(err, jobs.ErrInvalidState) { // done by another process
		return again, nil
	}
	return again, err
}

// madeAgain reports whether a held job is queued again when it is enqueued: nothing was bought
// because of its batch's budget, or an operator has decided to buy it again.
func madeAgain(rec *jobs.Job) bool {
	return rec.AwaitsBudget() || rec.State == jobs.StateHeld && !rec.BuyAgainAt.IsZero()
}
