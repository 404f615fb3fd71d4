package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
)

// fitHelp makes the help texts of all commands fit the terminal that they are printed on.
// Examples stay as they are, to be copied.
func (p *program) fitHelp(root *cobra.Command) {
	width := terminal.Width(p.stdout)
	if width == 0 {
		return
	}
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages", fmt.Sprintf("Flags.FlagUsagesWrapped %d", width)))
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		cmd.Printf("%s\n\n%s", terminal.Reflow(cmp.Or(cmd.Long, cmd.Short), width), cmd.UsageString())
	})
}
