package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
)

// helpWidth is the width of help texts that are not printed on a terminal.
const helpWidth = 80

// addCommands adds all commands, in groups.
func (p *program) addCommands(root *cobra.Command) {
	for _, group := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"make", "Make images:", []*cobra.Command{p.generateCommand(), p.batchCommand(), p.redoCommand(), p.modelsCommand()}},
		{"run", "Run a queue:", []*cobra.Command{p.upCommand(), p.workerCommand(), p.serveCommand()}},
		{"manage", "Use and manage a queue:", []*cobra.Command{p.enqueueCommand(), p.jobsCommand(), p.spendCommand(), p.doctorCommand(), p.healthCommand(), p.alertCommand()}},
		{"keep", "Look after stored images:", []*cobra.Command{p.verifyCommand(), p.pruneCommand(), p.purgeCommand()}},
		{"try", "Try and test:", []*cobra.Command{p.simulatorCommand(), p.drillCommand(), p.benchCommand()}},
		{"about", "About the program:", []*cobra.Command{p.versionCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: group.id, Title: group.title})
		for _, cmd := range group.commands {
			cmd.GroupID = group.id
			root.AddCommand(cmd)
		}
	}
	root.SetHelpCommandGroupID("about")
	root.SetCompletionCommandGroupID("about")
}

// fitHelp makes the help texts of all commands fit the terminal that they are printed on, or 80
// columns. Examples stay as they are, to be copied.
func (p *program) fitHelp(root *cobra.Command) {
	width := cmp.Or(terminal.Width(p.stdout), helpWidth)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages", fmt.Sprintf("Flags.FlagUsagesWrapped %d", width)))
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		cmd.Printf("%s\n\n%s", terminal.Reflow(cmp.Or(cmd.Long, cmd.Short), width), cmd.UsageString())
	})
}
