package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/jobs"
)

// selectHelp is what the commands that act on many jobs say of their flags.
const selectHelp = `

Name the jobs, or select them with the flags of "jobs list" among those in Redis. With flags
it asks first, and says how many jobs are meant and what they may cost; --dry-run says only
that. A job that cannot be %s does not stop the others. Interrupted and run again, it does
nothing twice: what was %s less than an hour ago is left out, unless it is named.`

// bulkCommand completes a command that acts on many jobs.
func (p *program) bulkCommand(f *jobsFlags, cmd *cobra.Command, action bulkAction, decides bool) *cobra.Command {
	var b bulkFlags
	cmd.Long += fmt.Sprintf(selectHelp, pastOf(action.verb), pastOf(action.verb))
	cmd.RunE = func(cmd *cobra.Command, ids []string) error {
		if err := b.check(action, ids); err != nil {
			return err
		}
		return p.bulk(cmd.Context(), f, &b, action, ids)
	}
	b.add(cmd, decides)
	return cmd
}

func (p *program) jobsCancelCommand(f *jobsFlags) *cobra.Command {
	return p.bulkCommand(f, &cobra.Command{
		Use:   "cancel {JOB... | FLAGS}",
		Short: "Cancel jobs that cost nothing yet",
		Long: `Cancel cancels jobs. One that waits is canceled at once. A task at DashScope is canceled
only if DashScope has not begun with it; otherwise it is paid for, and its images are
kept.`,
		Example: `  danqing jobs cancel shop.cat
  danqing jobs cancel --batch shop --state queued --why "the campaign is off"`,
	}, bulkAction{
		verb:       "cancel",
		states:     append(waitingStates(), jobs.StateSubmitting, jobs.StateGenerating),
		can:        func(job *jobs.Job) bool { return job.CancelRequestedAt.IsZero() },
		doneLately: decidedLately(jobs.ActionCancel),
		act: func(ctx context.Context, q *jobQueue, id string, by jobs.Decider) (*jobs.Job, error) {
			return q.jobs.Cancel(ctx, id, by)
		},
	}, true)
}

// waitingStates are those of jobs that wait for a lane.
func waitingStates() []jobs.State {
	return slices.DeleteFunc(jobs.States(), func(s jobs.State) bool { return !s.Waiting() })
}

// finalStates are those of jobs that have ended.
func finalStates() []jobs.State {
	return slices.DeleteFunc(jobs.States(), func(s jobs.State) bool { return !s.Final() })
}

func (p *program) jobsRetryCommand(f *jobsFlags) *cobra.Command {
	return p.bulkCommand(f, &cobra.Command{
		Use:   "retry {JOB... | FLAGS}",
		Short: "Queue jobs again that failed or lack images",
		Long: `Retry queues jobs that failed or were canceled again, unchanged. A failed task cost
nothing.

For a job that has succeeded without some of its images it buys only those. The others
stay, and the job keeps them if the retry fails. An image that exists is never created
again: for another image of the same request enqueue a new job with --redo-of.`,
		Example: `  danqing jobs retry shop.cat
  danqing jobs retry --batch shop --code Throttling --dry-run`,
	}, bulkAction{
		verb: "retry", states: finalStates(),
		can:        func(job *jobs.Job) bool { return job.Retriable() },
		images:     func(job *jobs.Job) int { return len(job.Missing()) },
		doneLately: decidedLately(jobs.ActionRetry),
		act: func(ctx context.Context, q *jobQueue, id string, by jobs.Decider) (*jobs.Job, error) {
			rec, err := q.get(ctx, id)
			if err != nil {
				return nil, err
			}
			return q.operator.RetryJob(ctx, rec, by)
		},
	}, true)
}

func (p *program) jobsNotifyCommand(f *jobsFlags) *cobra.Command {
	return p.bulkCommand(f, &cobra.Command{
		Use:   "notify {JOB... | FLAGS}",
		Short: "Send callbacks and follow-ups of finished jobs again",
		Long: `Notify sends the callback and the follow-up of finished jobs again, with the same event
ID, whether they were delivered, given up after a day, or wait for a later try. "danqing
jobs show" and the queue danqing:notify in the web UI show the outcome.`,
		Example: `  danqing jobs notify shop.cat
  danqing jobs notify --batch shop --state succeeded`,
	}, bulkAction{
		verb: "notify", states: finalStates(),
		can:        func(job *jobs.Job) bool { return job.Callback != "" || job.FollowUp != nil },
		doneLately: notifiedLately,
		act: func(ctx context.Context, q *jobQueue, id string, _ jobs.Decider) (*jobs.Job, error) {
			if _, err := q.operator.NotifyAgain(ctx, id); err != nil {
				return nil, err
			}
			return q.jobs.Get(ctx, id)
		},
	}, false)
}

// notifiedLately reports whether all of a job's notifications are on their way, or were
// delivered since a time.
func notifiedLately(ctx context.Context, q *jobQueue, job *jobs.Job, since time.Time) (bool, error) {
	list, err := q.operator.Notifications(ctx, job)
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(list, func(n jobs.Notification) bool {
		onItsWay := n.State == "pending" || n.State == "active"
		return !onItsWay && !n.DoneAt.After(since)
	}), nil
}

func (p *program) jobsResolveCommand(f *jobsFlags) *cobra.Command {
	var decision jobs.Resolution
	var b bulkFlags
	cmd := &cobra.Command{
		Use:   "resolve {JOB... | FLAGS}",
		Short: "Decide about held jobs",
		Long: `Resolve ends the hold of jobs for which it is unknown what was paid for. "danqing jobs
show" says why a job is held; the Model Studio console lists the account's tasks. Give
one decision:

  --adopt TASK   the task is this job's: fetch its images. With the job's own
                 task: fetch and store them again
  --buy-again    create what is not in the bucket again. If there was a task
                 after all, both are paid for
  --give-up      end the job as failed, or with the images that it has

What is under _held/ in the bucket stays there in any case.

What a "danqing batch" without Redis holds is decided when it has ended. The next run on the
data directory fetches a task that was adopted; the next run of the file buys again.`,
		Example: `  danqing jobs resolve shop.cat --adopt 86ecf553-d340-4e21-af6e-a0c6a421c010
  danqing jobs resolve --batch shop --code SubmitAmbiguous --buy-again --why "none is in the console"`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if err := checkResolution(cmd, decision, ids); err != nil {
				return err
			}
			action := resolveAction(decision)
			if err := b.check(action, ids); err != nil {
				return err
			}
			return p.onJobs(cmd.Context(), f.simulate, func(ctx context.Context, q *jobQueue) error {
				return p.bulkOn(ctx, q, f, &b, action, ids)
			}, func(ctx context.Context, v *dataDirView) error {
				return p.resolveInFiles(ctx, v, f, &b, action, ids, decision)
			})
		},
	}
	cmd.Long += fmt.Sprintf(selectHelp, "resolved", "decided")
	cmd.Flags().StringVar(&decision.Adopt, "adopt", "", "ID of the task that is the job's")
	cmd.Flags().BoolVar(&decision.BuyAgain, "buy-again", false, "create it again, although it may have been paid for")
	cmd.Flags().BoolVar(&decision.GiveUp, "give-up", false, "end the job as failed")
	b.add(cmd, true)
	return cmd
}

// checkResolution fails unless there is one decision, which is possible for the jobs.
func checkResolution(cmd *cobra.Command, decision jobs.Resolution, ids []string) error {
	given := 0
	for _, name := range []string{"adopt", "buy-again", "give-up"} {
		if cmd.Flags().Changed(name) {
			given++
		}
	}
	if given != 1 || !decision.BuyAgain && !decision.GiveUp && decision.Adopt == "" {
		return usageErrorf("see: danqing jobs resolve --help", "give exactly one of --adopt TASK, --buy-again and --give-up")
	}
	if decision.Adopt != "" && len(ids) != 1 {
		return usageErrorf("name one job", "a task belongs to one job, and %d were named", len(ids))
	}
	return nil
}

// resolveAction is a decision about held jobs.
func resolveAction(decision jobs.Resolution) bulkAction {
	action := bulkAction{
		verb: "resolve", states: []jobs.State{jobs.StateHeld},
		doneLately: decidedLately(jobs.ActionBuyAgain, jobs.ActionAdopt, jobs.ActionGiveUp),
		act: func(ctx context.Context, q *jobQueue, id string, by jobs.Decider) (*jobs.Job, error) {
			return q.operator.Resolve(ctx, id, decision, by)
		},
	}
	if decision.BuyAgain {
		action.images = func(job *jobs.Job) int { return len(job.Missing()) }
		action.can = func(job *jobs.Job) bool { return job.BuyAgainAt.IsZero() }
	}
	return action
}
