package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/jobs"
)

// bulkConcurrency is how many jobs are acted on at once: enough to hide the latency of Redis.
const bulkConcurrency = 16

// bulk acts on the jobs that are named or selected, and prints what became of each. A job that
// fails does not stop the others.
func (p *program) bulk(ctx context.Context, f *jobsFlags, b *bulkFlags, action bulkAction, ids []string) error {
	return p.onQueue(ctx, f.simulate, func(ctx context.Context, q *jobQueue) error {
		return p.bulkOn(ctx, q, f, b, action, ids)
	})
}

// bulkOn is bulk on a queue.
func (p *program) bulkOn(ctx context.Context, q *jobQueue, f *jobsFlags, b *bulkFlags, action bulkAction, ids []string) error {
	by, err := p.decider(q.cfg, b.by)
	if err != nil {
		return err
	}
	c := &chosen{ids: ids}
	switch {
	case len(ids) == 0:
		c, err = b.choose(ctx, q, action)
	case b.dryRun || len(ids) > 1 && !b.yes:
		c, err = b.named(ctx, q, action, ids)
	}
	if err != nil {
		return err
	}
	run, err := p.confirmBulk(ctx, c, f, b, action)
	if !run || err != nil {
		return err
	}
	act := func(ctx context.Context, id string) (*jobs.Job, error) {
		about := by
		about.Seen = c.seen[id]
		return action.act(ctx, q, id, about)
	}
	if len(ids) > 0 {
		return p.eachOf(ids, f.json, func(id string) (*jobs.Job, error) { return act(ctx, id) })
	}
	return p.actOn(ctx, c.ids, bulkConcurrency, action.verb, f.json, act)
}

// printBulkDryRun prints what would be done.
func (p *program) printBulkDryRun(c *chosen, action bulkAction, asJSON bool) error {
	var err error
	if asJSON {
		err = printJSON(p.stdout, struct {
			Jobs      int            `json:"jobs"`
			Images    map[string]int `json:"images,omitempty"` // by model
			AtMost    int64          `json:"at_most_micro_yuan"`
			Lately    int            `json:"left_out,omitempty"`
			Simulated bool           `json:"simulated,omitempty"`
		}{len(c.ids), c.images, c.atMost, c.lately, c.simulated})
	} else {
		_, err = fmt.Fprintln(p.stdout, c.what(action.verb))
	}
	p.stderrf("dry run: nothing was changed")
	return err
}

// confirmBulk reports whether jobs are to be acted on. It prints a dry run, and asks: always if
// they are selected by flags, and if many are named that cost something. Without a terminal a
// selection needs --yes.
func (p *program) confirmBulk(ctx context.Context, c *chosen, f *jobsFlags, b *bulkFlags, action bulkAction) (bool, error) {
	if c.lately > 0 {
		p.stderrf("left out: %s, %s less than an hour ago; name a job to do it again", count(c.lately, "job"), pastOf(action.verb))
	}
	selected := b.isSet()
	switch {
	case b.dryRun:
		return false, p.printBulkDryRun(c, action, f.json)
	case len(c.ids) == 0:
		p.stderrf("no job to %s", action.verb)
		return false, nil
	case b.yes, !selected && c.atMost == 0:
		return true, nil
	}
	err := errNobody
	if terminal.IsTerminal(p.stderr) {
		err = p.ask(ctx, c.what(action.verb)+"?", "nothing was changed")
	}
	switch {
	case errors.Is(err, errNobody) && selected:
		return false, usageErrorf("to see what it would do: --dry-run; to do it: --yes", "would %s: %w", c.what(action.verb), err)
	case errors.Is(err, errNobody):
		return true, nil
	}
	return true, err
}

// actOn acts on jobs, some at once, and prints a table, or JSON lines as they are done. When
// ctx ends it begins with no other job.
func (p *program) actOn(ctx context.Context, ids []string, atOnce int, verb string, asJSON bool, act func(ctx context.Context, id string) (*jobs.Job, error)) error {
	table := terminal.Table{Heads: []string{"JOB", "STATE", "NOTE"}}
	done, failed := 0, 0
	for len(ids) > 0 && ctx.Err() == nil {
		group := ids[:min(len(ids), atOnce)]
		ids = ids[len(group):]
		results := make([]bulkResult, len(group))
		var acting errgroup.Group
		for i, id := range group {
			acting.Go(func() error { // several steps: complete them
				results[i].job, results[i].err = act(context.WithoutCancel(ctx), id)
				return nil
			})
		}
		_ = acting.Wait() // it returns no error
		for i, r := range results {
			if r.err != nil {
				failed++
			} else {
				done++
			}
			if !asJSON {
				table.Rows = append(table.Rows, r.row(group[i]))
			} else if err := p.printBulkResult(group[i], r); err != nil {
				return err
			}
		}
	}
	var err error
	if !asJSON && len(table.Rows) > 0 {
		err = table.Write(p.stdout)
	}
	p.stderrf("%s %s", count(done, "job"), pastOf(verb))
	if len(ids) > 0 {
		p.stderrf("interrupted: %s not reached; run the same command again", count(len(ids), "job"))
		return errors.Join(err, context.Cause(ctx))
	}
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%s could not be %s: see the notes", count(failed, "job"), pastOf(verb)))
	}
	return err
}

// bulkResult is what became of one job.
type bulkResult struct {
	job *jobs.Job
	err error
}

func (r bulkResult) row(id string) []string {
	switch {
	case r.err != nil && r.job != nil:
		return []string{id, stateOf(r.job), "error: " + r.err.Error()}
	case r.err != nil:
		return []string{id, "-", "error: " + r.err.Error()}
	}
	note := ""
	if !r.job.CancelRequestedAt.IsZero() && !r.job.State.Final() {
		note = "paid for, and its images kept, if DashScope has begun with it"
	}
	return []string{id, stateOf(r.job), note}
}

func (p *program) printBulkResult(id string, r bulkResult) error {
	if r.err == nil {
		return printJSON(p.stdout, redactRecord(r.job))
	}
	return printJSON(p.stdout, struct {
		ID    string `json:"id"`
		Error string `json:"error"`
	}{id, r.err.Error()})
}
