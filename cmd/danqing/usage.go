package main

import (
	"errors"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/danqing-queue/danqing/jobs/editdistance"
)

// flagHint says what to do about a wrong flag: which one is meant, if it is misspelled.
func flagHint(cmd *cobra.Command, err error) string {
	see := "see: " + cmd.CommandPath() + " --help"
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return see
	}
	wrong, meant, limit := unknown.GetSpecifiedName(), "", 3
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if d := editdistance.Between(wrong, f.Name); d < limit && d < len(f.Name)/2 {
			meant, limit = f.Name, d
		}
	})
	if meant == "" {
		return see
	}
	return "did you mean --" + meant + "? " + see
}

// argsHint says what to do about a wrong number of arguments, or an unknown command.
func argsHint(cmd *cobra.Command) string {
	see, args := "see: "+cmd.CommandPath()+" --help", cmd.Flags().Args()
	switch {
	case cmd.HasParent() && !cmd.HasSubCommands() && len(args) == 0:
		return "as in: " + cmd.UseLine() + "; " + see
	case cmd.HasSubCommands() && len(args) > 0:
		cmd.SuggestionsMinimumDistance = 2
		if meant := cmd.SuggestionsFor(args[0]); len(meant) > 0 {
			return "did you mean " + meant[0] + "? " + see
		}
	}
	return see
}

// missingCommand is the error of a command that does nothing without one of its own.
func missingCommand(cmd *cobra.Command, _ []string) error {
	return usageErrorf("see: "+cmd.CommandPath()+" --help", "%s: the command is missing", cmd.Name())
}
