package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/jobs"
)

// pauseFlags name what is paused or resumed: an account or a model.
type pauseFlags struct {
	account, model string
	by             jobs.Decider
}

func (f *pauseFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.account, "account", "", "the account's name; the one of the environment is called default")
	cmd.Flags().StringVar(&f.model, "model", "", "the model, of all accounts")
	addDecider(cmd, &f.by)
}

func (f *pauseFlags) validate() error {
	if f.account != "" && f.model != "" {
		return usageErrorf("pause the one, then the other", "--account %s and --model %s: give one of them", f.account, f.model)
	}
	if f.model != "" {
		if _, err := jobs.LookupModel(f.model); err != nil {
			return usageErrorf("--model takes a name of the catalog", "%w", err)
		}
		return nil
	}
	if f.account == "" {
		return usageErrorf("as in: --account default, or --model wanx-v1", "neither --account nor --model is given")
	}
	if err := jobs.ValidAccount(f.account); err != nil {
		return usageErrorf("name what is meant, as in: --account default, or --model wanx-v1", "%w", err)
	}
	return nil
}

func (p *program) jobsPauseCommand(f *jobsFlags) *cobra.Command {
	var what pauseFlags
	cmd := &cobra.Command{
		Use:   "pause {--account NAME | --model MODEL}",
		Short: "Stop the submits of an account or a model",
		Long: `Pause stops the submits of all lanes of an account, or of a model, until "danqing jobs
resume". They draw no job, urgent ones neither, and take back what they have prepared.
Running tasks are finished and stored. Other accounts and models go on.

A model's pause is that of its queues in asynq's web UI, which can end it too.`,
		Example: `  danqing jobs pause --account main --why "the budget is spent"
  danqing jobs pause --model wanx-v1 --why "the pictures look wrong since noon"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.onLanes(cmd.Context(), f, &what, (*jobs.Inspector).PauseAccount, (*jobs.Inspector).PauseModel)
		},
	}
	what.add(cmd)
	return cmd
}

func (p *program) jobsResumeCommand(f *jobsFlags) *cobra.Command {
	var what pauseFlags
	cmd := &cobra.Command{
		Use:   "resume {--account NAME | --model MODEL}",
		Short: "Resume the submits of an account or a model",
		Long:  `Resume ends the pause of an account or a model; its lanes continue within seconds.`,
		Example: `  danqing jobs resume --account main
  danqing jobs resume --model wanx-v1 --why "the new prompts are fine"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.onLanes(cmd.Context(), f, &what, (*jobs.Inspector).ResumeAccount, (*jobs.Inspector).ResumeModel)
		},
	}
	what.add(cmd)
	return cmd
}

// laneAction pauses or resumes the account, or the model, of a name.
type laneAction func(i *jobs.Inspector, ctx context.Context, name string, by jobs.Decider) error

// onLanes calls one of two functions, for an account or for a model, and prints its lanes.
func (p *program) onLanes(ctx context.Context, f *jobsFlags, what *pauseFlags, account, model laneAction) error {
	if err := what.validate(); err != nil {
		return err
	}
	return p.onQueue(ctx, f.simulate, func(ctx context.Context, q *jobQueue) error {
		by, err := p.decider(q.cfg, what.by)
		if err != nil {
			return err
		}
		all, err := q.lanes(ctx)
		if err != nil {
			return err
		}
		meant := func(l lane) bool { return what.model != "" && l.Model == what.model || l.Account == what.account }
		if what.account != "" && len(all) > 0 && !slices.ContainsFunc(all, meant) {
			return usageErrorf("danqing jobs list shows the accounts", "unknown account %q on this queue: nothing was changed", what.account)
		}
		act, name := account, what.account
		if what.model != "" {
			act, name = model, what.model
		}
		if err := act(q.operator, ctx, name, by); err != nil {
			return err
		}
		if all, err = q.lanes(ctx); err != nil {
			return err
		}
		lanes := slices.DeleteFunc(all, func(l lane) bool { return !meant(l) })
		switch {
		case len(lanes) == 0 && what.model != "":
			p.stderrf("warning: no lane of model %s on this queue yet", what.model)
			return nil
		case len(lanes) == 0:
			p.stderrf("warning: unknown account %q on this queue", what.account)
			return nil
		case f.json:
			return p.printLanes(lanes)
		}
		return p.printLanesTable(lanes)
	})
}
