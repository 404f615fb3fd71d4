package main

import (
	"cmp"
	"fmt"
	"os"
	"os/user"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
)

// addDecider adds the flags of who decides, and why.
func addDecider(cmd *cobra.Command, by *jobs.Decider) {
	cmd.Flags().StringVar(&by.Why, "why", "", "the reason, kept with the decision")
	cmd.Flags().StringVar(&by.By, "by", "", "who decides (default: DANQING_OPERATOR, or the user of this machine)")
}

// decider completes who decides. It fails before anything is sent.
func (p *program) decider(cfg *config.Config, by jobs.Decider) (jobs.Decider, error) {
	by.By = cmp.Or(by.By, p.userName(cfg))
	if err := by.Validate(); err != nil {
		return by, usageErrorf("as in: --why 'the supplier refunded it'", "%w", err)
	}
	return by, nil
}

// userName returns who runs this command: DANQING_OPERATOR, else the user who called sudo,
// else the user of the operating system.
func (p *program) userName(cfg *config.Config) string {
	if cfg.Operator != "" {
		return cfg.Operator
	}
	if name := p.getenv("SUDO_USER"); name != "" && os.Getuid() == 0 {
		return name
	}
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}
