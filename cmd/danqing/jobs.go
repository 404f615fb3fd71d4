package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/jobs"
)

// jobsFlags are the flags of all jobs commands.
type jobsFlags struct{ simulate, json bool }

func (p *program) jobsCommand() *cobra.Command {
	var f jobsFlags
	cmd := &cobra.Command{
		Use:   "jobs",
		Short: "Inspect and manage jobs",
		Long: `Jobs inspects and manages the jobs of a queue: the Redis at REDIS_URL, or that of the
"danqing up" that runs on the data directory. No API key is needed.`,
		Example: `  danqing jobs list --state held
  danqing jobs show shop.cat`,
		Args: cobra.NoArgs,
		RunE: missingCommand,
	}
	cmd.PersistentFlags().BoolVar(&f.simulate, "simulate", false, "use the queue of a simulated instance on this machine")
	cmd.PersistentFlags().BoolVar(&f.json, "json", false, "print JSON lines")
	cmd.AddCommand(
		p.jobsListCommand(&f), p.jobsShowCommand(&f), p.jobsWaitCommand(&f),
		p.jobsCancelCommand(&f), p.jobsRetryCommand(&f), p.jobsResolveCommand(&f),
		p.jobsNotifyCommand(&f), p.jobsPauseCommand(&f), p.jobsResumeCommand(&f),
	)
	return cmd
}

// eachOf calls act for each job and prints the result. After an error it continues with the
// other jobs.
func (p *program) eachOf(ids []string, asJSON bool, act func(id string) (*jobs.Job, error)) error {
	var wrong []error
	for _, id := range ids {
		rec, err := act(id)
		if err == nil {
			err = p.printJob(rec, asJSON)
		}
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	return errors.Join(wrong...)
}

func validIDs(ids []string) error {
	for _, id := range ids {
		if err := jobs.ValidID(id); err != nil {
			return usageErrorf("take the ID that danqing enqueue or danqing jobs list prints", "%w", err)
		}
	}
	return nil
}

// printJob prints a job's state in one line.
func (p *program) printJob(rec *jobs.Job, asJSON bool) error {
	if asJSON {
		return printJSON(p.stdout, redactRecord(rec))
	}
	if _, err := fmt.Fprintf(p.stdout, "%s %s\n", rec.ID, stateOf(rec)); err != nil {
		return err
	}
	if !rec.CancelRequestedAt.IsZero() && !rec.State.Final() {
		p.stderrf("%s: its task is canceled only if DashScope has not begun with it; otherwise it is paid for, and its images are kept", rec.ID)
	}
	return nil
}

// stateOf returns a job's state with a requested cancel and "simulated".
func stateOf(rec *jobs.Job) string {
	state := string(rec.State)
	if !rec.CancelRequestedAt.IsZero() && !rec.State.Final() {
		state += ", cancel requested"
	}
	if rec.Simulated {
		state += " (simulated)"
	}
	return state
}

func (p *program) jobsWaitCommand(f *jobsFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "wait JOB...",
		Short: "Wait until jobs are finished or held",
		Long: `Wait waits until all the jobs are finished or held, and prints each one then. Exit
codes: 0 all have succeeded, 3 some have not.`,
		Example: `  danqing jobs wait $(danqing enqueue prompts.jsonl)`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			if err := validIDs(ids); err != nil {
				return err
			}
			return p.onQueue(cmd.Context(), f.simulate, func(ctx context.Context, q *jobQueue) error {
				w := &waiter{program: p, jobQueue: q, json: f.json, open: map[string]bool{}}
				for _, id := range ids {
					w.open[id] = true
				}
				return w.run(ctx, ids)
			})
		},
	}
}

// waiter is one run of jobs wait.
type waiter struct {
	*program
	*jobQueue
	json bool
	open map[string]bool
	// failed is set if one of the jobs has not succeeded.
	failed bool
}

func (w *waiter) run(ctx context.Context, ids []string) error {
	changes, err := w.jobs.Subscribe(ctx)
	if err != nil {
		return err
	}
	defer changes.Close() //nolint:errcheck // read only
	recheck := time.NewTicker(recheckInterval)
	defer recheck.Stop()
	err = w.checkAll(ctx, ids)
	for unreachable := false; ; {
		switch {
		case err == nil:
			unreachable = false
		case ctx.Err() != nil || !isTransient(err):
			return err
		case !unreachable:
			unreachable = true
			w.stderrf("warning: %v: waiting on; the jobs are not affected", err)
		}
		if len(w.open) == 0 {
			break
		}
		select {
		case id := <-changes.IDs():
			if w.open[id] {
				err = w.check(ctx, id)
			}
		case <-recheck.C:
			err = w.checkAll(ctx, ids)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if w.failed {
		return errPartFailed
	}
	return nil
}

// checkAll checks every unfinished job, in the order of ids.
func (w *waiter) checkAll(ctx context.Context, ids []string) error {
	for _, id := range ids {
		if !w.open[id] {
			continue
		}
		if err := w.check(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (w *waiter) check(ctx context.Context, id string) error {
	rec, err := w.get(ctx, id)
	if err != nil || !isSettled(rec) {
		return err
	}
	delete(w.open, id)
	if rec.State != jobs.StateSucceeded {
		w.failed = true
		w.stderrf("%s: %s: %s: %s", id, rec.State, rec.Code, rec.Message)
	}
	return w.printJob(rec, w.json)
}
