package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

const (
	// completionTimeout limits how long a shell waits for job IDs.
	completionTimeout = 2 * time.Second
	// completedJobs is how many job IDs are offered, those that changed last.
	completedJobs = 50
)

// addCompletions makes a shell complete what is known: models, styles, states, codes and job IDs.
func (p *program) addCompletions(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(flag *pflag.Flag) {
		if values := flagValues(flag.Name); values != nil {
			_ = cmd.RegisterFlagCompletionFunc(flag.Name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // a parent may have it
		}
	})
	for field := range strings.FieldsSeq(cmd.Use) {
		if strings.HasPrefix(strings.TrimPrefix(field, "{"), "JOB") {
			cmd.ValidArgsFunction = p.completeJobs
		}
	}
	for _, sub := range cmd.Commands() {
		p.addCompletions(sub)
	}
}

// flagValues are the values of a flag, nil if they are not known.
func flagValues(name string) []cobra.Completion {
	switch name {
	case "model":
		return modelNames()
	case "style":
		return styleNames()
	case "function":
		return functionNames()
	case "state":
		var names []string
		for _, state := range jobs.States() {
			names = append(names, string(state))
		}
		return names
	case "priority":
		return []string{jobs.PriorityCritical, jobs.PriorityDefault, jobs.PriorityBulk}
	case "fail":
		var names []string
		for _, t := range simulator.Troubles() {
			names = append(names, cobra.CompletionWithDesc(t.Name, t.Meaning))
		}
		return names
	case "log-format":
		return []string{"text", "json"}
	case "log-level":
		return []string{"debug", "info", "warn", "error"}
	}
	return nil
}

// completeJobs offers the IDs of jobs that changed last. Without a queue there are none, and
// nothing is said.
func (p *program) completeJobs(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	simulate, _ := cmd.Flags().GetBool("simulate")
	quiet := *p
	quiet.stderr = io.Discard
	q, err := quiet.openQueue(ctx, simulate)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer q.rdb.Close() //nolint:errcheck // read only
	named := map[string]bool{}
	for _, id := range args {
		named[id] = true
	}
	var ids []cobra.Completion
	filter := jobs.ListFilter{Limit: selectPage}
	for len(ids) < completedJobs {
		page, cursor, err := q.jobs.List(ctx, filter)
		for _, job := range page {
			if len(ids) < completedJobs && strings.HasPrefix(job.ID, begun) && !named[job.ID] {
				ids = append(ids, cobra.CompletionWithDesc(job.ID, string(job.State)))
			}
		}
		if filter.Cursor = cursor; err != nil || cursor == "" {
			break
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
