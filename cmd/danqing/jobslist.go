package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/jobs"
)

func (p *program) jobsListCommand(f *jobsFlags) *cobra.Command {
	var filter jobFilter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List jobs, the last changed first",
		Long: `List prints the jobs in Redis, the last changed first, then the number of jobs in each
state, and the lanes. Jobs leave Redis a week after their end; their sidecars stay in
the bucket.

Without REDIS_URL and without a "danqing up" on the data directory it prints what the
files of "danqing batch" and "danqing generate" tell, and which command goes on with them.

With --json it prints only the jobs.`,
		Example: `  danqing jobs list
  danqing jobs list --state held --state failed --label sku=A-17
  danqing jobs list --batch shop --limit 10000 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := filter.resolve(time.Now()); err != nil {
				return err
			}
			if filter.Limit <= 0 {
				return usageErrorf("give a number from 1", "--limit %d", filter.Limit)
			}
			return p.onJobs(cmd.Context(), f.simulate, func(ctx context.Context, q *jobQueue) error {
				return p.jobsList(ctx, q, filter.ListFilter, f.json)
			}, func(ctx context.Context, v *dataDirView) error {
				return p.jobsOfFiles(ctx, v, filter.ListFilter, f.json)
			})
		},
	}
	filter.add(cmd)
	cmd.Flags().IntVar(&filter.Limit, "limit", 50, "the largest number of jobs")
	return cmd
}

func parseStates(names []string) ([]jobs.State, error) {
	var states []jobs.State
	for _, name := range names {
		known := false
		for _, state := range jobs.States() {
			if string(state) == name {
				states, known = append(states, state), true
			}
		}
		if !known {
			return nil, usageErrorf("one of: "+strings.Trim(fmt.Sprint(jobs.States()), "[]"), "--state %q: no such state", name)
		}
	}
	return states, nil
}

func (p *program) jobsList(ctx context.Context, q *jobQueue, filter jobs.ListFilter, asJSON bool) error {
	records, cursor, err := q.jobs.List(ctx, filter)
	if err != nil {
		return err
	}
	if asJSON {
		return p.printJobs(records, cursor != "")
	}
	counts, err := q.jobs.Counts(ctx)
	if err != nil {
		return err
	}
	lanes, err := q.lanes(ctx)
	if err != nil {
		return err
	}
	if len(records) > 0 {
		if err := q.addRequests(ctx, records); err != nil {
			return err
		}
		if err := p.printJobsTable(records, cursor != ""); err != nil {
			return err
		}
	}
	line := countsLine(counts)
	if len(records) == 0 && line != noJobs {
		p.stderrf("none of these jobs matches the flags:")
	}
	if _, err := fmt.Fprintln(p.stdout, line); err != nil {
		return err
	}
	return p.printLanesTable(lanes)
}

// addRequests gives waiting jobs their requests, which their messages have.
func (q *jobQueue) addRequests(ctx context.Context, records []*jobs.Job) error {
	var group errgroup.Group
	group.SetLimit(maxLookups)
	for _, rec := range records {
		if rec.Request != nil {
			continue
		}
		group.Go(func() error {
			req, err := q.jobs.RequestOf(ctx, rec)
			if err == nil {
				rec.Request = &req
			} else if errors.Is(err, jobs.ErrRequestLost) {
				err = nil
			}
			return err
		})
	}
	return group.Wait()
}

// printJobs prints jobs as JSON lines. more is set if there are others.
func (p *program) printJobs(records []*jobs.Job, more bool) error {
	for _, rec := range records {
		if err := printJSON(p.stdout, redactRecord(rec)); err != nil {
			return err
		}
	}
	if more {
		p.stderrf("there are more: raise --limit")
	}
	return nil
}

// promptCells is how much of a prompt a list shows.
const promptCells = 30

func (p *program) printJobsTable(records []*jobs.Job, more bool) error {
	t := terminal.Table{Heads: []string{"JOB", "STATE", "MODEL", "ACCOUNT", "CHANGED", "PROMPT", "COST", "NOTE"}, Right: []int{6}}
	now := time.Now()
	for _, rec := range records {
		cost, note, prompt := "-", "", "-"
		if rec.Request != nil {
			prompt = terminal.Shorten(rec.Request.Prompt, promptCells)
		}
		if rec.CostMicroYuan > 0 {
			cost = yuan(rec.CostMicroYuan)
		}
		switch {
		case rec.State == jobs.StateSucceeded:
			note = imagesNote(rec)
		case rec.Code != "":
			note = rec.Code + ": " + rec.Message
		default:
			note = rec.Message
		}
		if !rec.BuyAgainAt.IsZero() {
			note = "to be bought again; " + note
		}
		t.Rows = append(t.Rows, []string{rec.ID, stateOf(rec), rec.Model, orDash(rec.Account), ageText(rec.UpdatedAt, now), prompt, cost, note})
	}
	err := t.Write(p.stdout)
	if err == nil && more {
		_, err = fmt.Fprintf(p.stdout, "… and more: raise --limit\n")
	}
	return err
}

// imagesNote returns how many images a job has, and how many are missing.
func imagesNote(rec *jobs.Job) string {
	stored := 0
	for _, image := range rec.Images {
		if image.Key != "" {
			stored++
		}
	}
	note := count(stored, "image")
	if missing := len(rec.Images) - stored; missing > 0 {
		note += fmt.Sprintf(", %d not made", missing)
	}
	return note
}

// busyHours is of how many hours, beside the current one, the table of lanes shows the busy share.
const busyHours = 1

func (p *program) printLanesTable(lanes []lane) error {
	if len(lanes) == 0 {
		_, err := fmt.Fprintln(p.stdout, "no lanes: no worker has used this queue yet")
		return err
	}
	t := terminal.Table{Heads: []string{"LANE", "STATE", "TASKS", "BUSY", "SINCE", "NOTE"}, Right: []int{3}}
	for _, l := range lanes {
		state, note := string(l.State), l.pauseReason()
		switch {
		case !l.Held:
			state = "idle"
		case note != "":
			state = string(jobs.LanePaused)
		}
		if note == "" { // as of a task that cannot be queried
			note = l.Message
		}
		if note == "" && l.Resumed != nil {
			note = "resumed " + byWhomAndWhy(l.Resumed.Decision) + " at " + formatTime(l.Resumed.At)
		}
		if l.Simulated {
			state += " (simulated)"
		}
		t.Rows = append(t.Rows, []string{l.Account + " " + l.Model, state, fmt.Sprintf("%d of %d", l.Busy(), l.Concurrency), fmt.Sprintf("%.0f %%", 100*l.BusyShare(time.Now().Add(-busyHours*time.Hour))), ageText(l.At, time.Now()), note})
	}
	return t.Write(p.stdout)
}

// printLanes prints lanes as JSON lines.
func (p *program) printLanes(lanes []lane) error {
	for _, l := range lanes {
		if err := printJSON(p.stdout, l); err != nil {
			return err
		}
	}
	return nil
}

// noJobs is the line of a queue without jobs.
const noJobs = "no jobs"

// countsLine returns the number of jobs in each state that has any.
func countsLine(counts map[jobs.State]int64) string {
	var parts []string
	for _, state := range jobs.States() {
		if n := counts[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	if len(parts) == 0 {
		return noJobs
	}
	return strings.Join(parts, ", ")
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
