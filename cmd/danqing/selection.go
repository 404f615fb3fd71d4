package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/jobs"
)

// jobFilter are the flags that select jobs by what they have in common.
type jobFilter struct {
	jobs.ListFilter
	states    []string
	olderThan string
}

func (f *jobFilter) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.states, "state", nil, "only jobs in this state; may be given several times")
	flags.StringVar(&f.Model, "model", "", "only jobs of this model")
	flags.StringVar(&f.Account, "account", "", "only jobs that this account has submitted")
	flags.StringToStringVar(&f.Labels, "label", nil, "only jobs with this label, name=value; may be given several times")
	flags.StringVar(&f.Batch, "batch", "", "only jobs of the batch of this name")
	flags.StringVar(&f.Producer, "producer", "", "only jobs of this token")
	flags.StringVar(&f.Code, "code", "", "only jobs that failed or are held with this code")
	flags.StringVar(&f.olderThan, "older-than", "", "only jobs that have not changed for this time, as in 90m or 3d")
}

// isSet reports whether anything is selected.
func (f *jobFilter) isSet() bool {
	return len(f.states) > 0 || f.Model != "" || f.Account != "" || len(f.Labels) > 0 || f.Batch != "" || f.Producer != "" || f.Code != "" || f.olderThan != ""
}

// resolve checks the flags, and completes the filter.
func (f *jobFilter) resolve(now time.Time) (err error) {
	if f.States, err = parseStates(f.states); err != nil {
		return err
	}
	if _, err := jobs.LookupModel(f.Model); f.Model != "" && err != nil {
		return usageErrorf("--model takes a name of the catalog", "%w", err)
	}
	if f.olderThan != "" {
		age, err := parseAge(f.olderThan)
		if err != nil {
			return err
		}
		f.UpdatedBefore = now.Add(-age)
	}
	return nil
}

const (
	// selectPage is how many jobs are read at once.
	selectPage = 1000
	// lately is how long a decision is not repeated for a job that a filter selects: a command
	// that is interrupted and run again does nothing twice.
	lately = time.Hour
)

// bulkAction is what is done to many jobs.
type bulkAction struct {
	verb string // as in "retry"
	// states are those in which it can be done.
	states []jobs.State
	// can reports whether it can be done to a job in one of these states; nil means always.
	can func(*jobs.Job) bool
	// images returns how many images it may buy for a job; nil means none.
	images func(*jobs.Job) int
	// doneLately reports whether it was done to the job since a time.
	doneLately func(ctx context.Context, q *jobQueue, job *jobs.Job, since time.Time) (bool, error)
	// act does it.
	act func(ctx context.Context, q *jobQueue, id string, by jobs.Decider) (*jobs.Job, error)
}

// decidedLately is a doneLately of decisions: the last one of the job counts. What was canceled and
// then retried may be canceled again.
func decidedLately(actions ...string) func(context.Context, *jobQueue, *jobs.Job, time.Time) (bool, error) {
	return func(_ context.Context, _ *jobQueue, job *jobs.Job, since time.Time) (bool, error) {
		if len(job.Decisions) == 0 {
			return false, nil
		}
		last := job.Decisions[len(job.Decisions)-1]
		return slices.Contains(actions, last.Action) && last.At.After(since), nil
	}
}

// bulkFlags are those of the commands that act on many jobs.
type bulkFlags struct {
	jobFilter
	by          jobs.Decider
	dryRun, yes bool
}

func (f *bulkFlags) add(cmd *cobra.Command, decides bool) {
	f.jobFilter.add(cmd)
	if decides {
		addDecider(cmd, &f.by)
	}
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say how many jobs are meant and what they may cost, and do nothing")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
}

// check fails unless jobs are named or selected, and completes the filter.
func (f *bulkFlags) check(action bulkAction, ids []string) error {
	switch {
	case len(ids) == 0 && !f.isSet():
		return usageErrorf("as in: danqing jobs "+action.verb+" shop.cat, or danqing jobs "+action.verb+" --batch shop", "no job is named, and none selected")
	case len(ids) > 0 && f.isSet():
		return usageErrorf("do the one, then the other", "jobs are named, and selected by flags too")
	}
	if err := validIDs(ids); err != nil {
		return err
	}
	if err := f.resolve(time.Now()); err != nil {
		return err
	}
	if len(f.States) == 0 {
		f.States = action.states
	}
	for _, state := range f.States {
		if !slices.Contains(action.states, state) {
			return usageErrorf("one of: "+strings.Trim(fmt.Sprint(action.states), "[]"), "--state %s: jobs in this state cannot be %s", state, pastOf(action.verb))
		}
	}
	return nil
}

// pastOf returns the participle of a command's verb.
func pastOf(verb string) string {
	switch verb {
	case "retry":
		return "retried"
	case "cancel":
		return "canceled"
	case "notify":
		return "notified"
	}
	return "resolved"
}

// chosen are the jobs that a command acts on.
type chosen struct {
	ids []string
	// seen is when each had last changed: somebody else may decide before the question is answered.
	seen map[string]time.Time
	// images are how many may be bought, by model, and atMost what they may cost, in millionths
	// of a yuan.
	images map[string]int
	atMost int64
	// lately is how many were left out because the same was done to them lately.
	lately    int
	simulated bool
}

// add adds a job, unless it is not to be acted on.
func (c *chosen) add(ctx context.Context, q *jobQueue, action bulkAction, job *jobs.Job, price func(string, int) int64, now time.Time) error {
	if action.can != nil && !action.can(job) {
		return nil
	}
	done, err := action.doneLately(ctx, q, job, now.Add(-lately))
	if err != nil {
		return err
	}
	if done {
		c.lately++
		return nil
	}
	c.ids = append(c.ids, job.ID)
	c.see(action, job, price)
	return nil
}

// see adds what acting on a job may cost, and which of its changes that is about.
func (c *chosen) see(action bulkAction, job *jobs.Job, price func(string, int) int64) {
	c.seen[job.ID] = job.UpdatedAt
	if action.images == nil {
		return
	}
	if n := action.images(job); n > 0 {
		c.images[job.Model] += n
		c.atMost += price(job.Model, n)
	}
}

// choose reads the jobs of the filter, a page at a time.
func (f *bulkFlags) choose(ctx context.Context, q *jobQueue, action bulkAction) (*chosen, error) {
	now := time.Now()
	c := &chosen{seen: map[string]time.Time{}, images: map[string]int{}, simulated: q.simulated}
	filter, seen := f.ListFilter, map[string]bool{}
	filter.Limit = selectPage
	price := (&paces{cfg: q.cfg}).price
	for {
		page, cursor, err := q.jobs.List(ctx, filter)
		if err != nil {
			return nil, err
		}
		for _, job := range page {
			if seen[job.ID] { // it changed while the pages were read
				continue
			}
			seen[job.ID] = true
			if err := c.add(ctx, q, action, job, price, now); err != nil {
				return nil, err
			}
		}
		if cursor == "" {
			return c, nil
		}
		filter.Cursor = cursor
	}
}

// named are the jobs that were named. Those that cannot be read have no price; acting on them
// says why.
func (f *bulkFlags) named(ctx context.Context, q *jobQueue, action bulkAction, ids []string) (*chosen, error) {
	c := &chosen{ids: ids, seen: map[string]time.Time{}, images: map[string]int{}, simulated: q.simulated}
	for _, id := range ids {
		job, err := q.get(ctx, id)
		switch {
		case errors.Is(err, jobs.ErrNotFound), errors.Is(err, jobs.ErrCorrupt):
		case err != nil:
			return nil, err
		case slices.Contains(action.states, job.State) && (action.can == nil || action.can(job)):
			c.see(action, job, (&paces{cfg: q.cfg}).price)
		}
	}
	return c, nil
}

// what describes what is about to be done, as in "retry 3 jobs, 4 images of wanx-v1, for 0.64
// yuan at most".
func (c *chosen) what(verb string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s", verb, count(len(c.ids), "job"))
	for _, model := range slices.Sorted(maps.Keys(c.images)) {
		fmt.Fprintf(&text, ", %s of %s", count(c.images[model], "image"), model)
	}
	switch {
	case c.atMost > 0 && c.simulated:
		return text.String() + ", simulated: nothing is charged (real ones: " + yuan(c.atMost) + " at most)"
	case c.atMost > 0:
		return text.String() + ", for " + yuan(c.atMost) + " at most"
	}
	return text.String() + ", which costs nothing"
}
