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
		RunE: func(*cobra.Command, []string) error {
			return usageErrorf("see: danqing jobs --help", "jobs: the command is missing")
		},
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

func (p *program) jobsCancelCommand(f *jobsFlags) *cobra.Command {
	var by jobs.Decider
	cmd := &cobra.Command{
		Use:   "cancel JOB...",
		Short: "Cancel jobs that cost nothing yet",
		Long: `Cancel cancels jobs. One that waits is canceled at once. A task at DashScope is canceled
only if DashScope has not begun with it; otherwise it is paid for, and its images are
kept.`,
		Example: `  danqing jobs cancel shop.cat
  danqing jobs list --batch shop --state queued --json | jq -r .id | xargs danqing jobs cancel`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			return p.eachJob(cmd.Context(), f, ids, by, func(ctx context.Context, q *jobQueue, id string, by jobs.Decider) (*jobs.Job, error) {
				return q.jobs.Cancel(ctx, id, by)
			})
		},
	}
	addDecider(cmd, &by)
	return cmd
}

func (p *program) jobsRetryCommand(f *jobsFlags) *cobra.Command {
	var by jobs.Decider
	cmd := &cobra.Command{
		Use:   "retry JOB...",
		Short: "Queue jobs again that failed or lack images",
		Long: `Retry queues jobs that failed or were canceled again, unchanged. A failed task cost
nothing.

For a job that has succeeded without some of its images it buys only those. The others
stay, and the job keeps them if the retry fails. An image that exists is never created
again: for another image of the same request enqueue a new job with --redo-of.`,
		Example: `  danqing jobs retry shop.cat`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			return p.eachJob(cmd.Context(), f, ids, by, func(ctx context.Context, q *jobQueue, id string, by jobs.Decider) (*jobs.Job, error) {
				rec, err := q.get(ctx, id)
				if err != nil {
					return nil, err
				}
				return q.operator.RetryJob(ctx, rec, by)
			})
		},
	}
	addDecider(cmd, &by)
	return cmd
}

func (p *program) jobsNotifyCommand(f *jobsFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "notify JOB...",
		Short: "Send callbacks and follow-ups of finished jobs again",
		Long: `Notify sends the callback and the follow-up of finished jobs again, with the same event
ID, whether they were delivered, given up after a day, or wait for a later try. "danqing
jobs show" and the queue danqing:notify in the web UI show the outcome.`,
		Example: `  danqing jobs notify shop.cat`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			return p.eachJob(cmd.Context(), f, ids, jobs.Decider{}, func(ctx context.Context, q *jobQueue, id string, _ jobs.Decider) (*jobs.Job, error) {
				if _, err := q.operator.NotifyAgain(ctx, id); err != nil {
					return nil, err
				}
				return q.jobs.Get(ctx, id)
			})
		},
	}
}

func (p *program) jobsResolveCommand(f *jobsFlags) *cobra.Command {
	var decision jobs.Resolution
	var by jobs.Decider
	cmd := &cobra.Command{
		Use:   "resolve JOB...",
		Short: "Decide about held jobs",
		Long: `Resolve ends the hold of jobs for which it is unknown what was paid for. "danqing jobs
show" says why a job is held; the Model Studio console lists the account's tasks. Give
one decision:

  --adopt TASK   the task is this job's: fetch its images. With the job's own task:
                 fetch and store them again
  --buy-again    create what is not in the bucket again. If there was a task after all,
                 both are paid for
  --give-up      end the job as failed, or with the images that it has

What is under _held/ in the bucket stays there in any case.

What a "danqing batch" without Redis holds is decided when it has ended. The next run on the
data directory fetches a task that was adopted; the next run of the file buys again.`,
		Example: `  danqing jobs resolve shop.cat --adopt 86ecf553-d340-4e21-af6e-a0c6a421c010
  danqing jobs resolve shop.cat --buy-again`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			given := 0
			for _, name := range []string{"adopt", "buy-again", "give-up"} {
				if cmd.Flags().Changed(name) {
					given++
				}
			}
			if given != 1 || !decision.BuyAgain && !decision.GiveUp && decision.Adopt == "" {
				return usageErrorf("see: danqing jobs resolve --help", "give exactly one of --adopt TASK, --buy-again and --give-up")
			}
			if decision.Adopt != "" && len(ids) > 1 {
				return usageErrorf("name one job", "a task belongs to one job, and %d were named", len(ids))
			}
			if err := validIDs(ids); err != nil {
				return err
			}
			return p.onJobs(cmd.Context(), f.simulate, func(ctx context.Context, q *jobQueue) error {
				by, err := p.decider(q.cfg, by)
				if err != nil {
					return err
				}
				return p.eachOf(ids, f.json, func(id string) (*jobs.Job, error) { return q.operator.Resolve(ctx, id, decision, by) })
			}, func(ctx context.Context, v *dataDirView) error {
				by, err := p.decider(v.cfg, by)
				if err != nil {
					return err
				}
				return p.resolveInFiles(ctx, v, f.simulate, f.json, ids, decision, by)
			})
		},
	}
	cmd.Flags().StringVar(&decision.Adopt, "adopt", "", "ID of the task that is the job's")
	cmd.Flags().BoolVar(&decision.BuyAgain, "buy-again", false, "create it again, although it may have been paid for")
	cmd.Flags().BoolVar(&decision.GiveUp, "give-up", false, "end the job as failed")
	addDecider(cmd, &by)
	return cmd
}

// eachJob calls act for each job and prints the result. After an error it continues with
// the other jobs.
func (p *program) eachJob(ctx context.Context, f *jobsFlags, ids []string, by jobs.Decider, act func(context.Context, *jobQueue, string, jobs.Decider) (*jobs.Job, error)) error {
	if err := validIDs(ids); err != nil {
		return err
	}
	return p.onQueue(ctx, f.simulate, func(ctx context.Context, q *jobQueue) error {
		by, err := p.decider(q.cfg, by)
		if err != nil {
			return err
		}
		return p.eachOf(ids, f.json, func(id string) (*jobs.Job, error) { return act(ctx, q, id, by) })
	})
}

// eachOf is eachJob on a queue.
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
