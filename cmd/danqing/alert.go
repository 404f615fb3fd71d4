package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/worker"
)

func (p *program) alertCommand() *cobra.Command {
	alert := &cobra.Command{
		Use: "alert", Short: "Try where alerts are sent",
		Long: `A worker, "serve" and "up" send alerts to the receivers in DANQING_ALERT_URL: of held jobs,
paused lanes, spent budgets and the like.`,
		Args: cobra.NoArgs,
		RunE: missingCommand,
	}
	alert.AddCommand(&cobra.Command{
		Use: "test", Short: "Send a test alert to each receiver, and say what came back",
		Long: `Test sends an alert to each receiver in DANQING_ALERT_URL, and says whether it was accepted.
The exit code is 1 if one was not.`,
		Example: `  DANQING_ALERT_URL=https://open.feishu.cn/open-apis/bot/v2/hook/… danqing alert test`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.alertTest(cmd) },
	})
	return alert
}

func (p *program) alertTest(cmd *cobra.Command) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if len(cfg.Alerts) == 0 {
		return usageErrorf("set it to the URL of a robot, as in https://open.feishu.cn/open-apis/bot/v2/hook/…", "DANQING_ALERT_URL is not set")
	}
	failed := 0
	for _, receiver := range cfg.Alerts {
		line := "accepted  " + receiver.String()
		if err := worker.SendTestAlert(cmd.Context(), receiver); err != nil {
			failed++
			line = "failed    " + err.Error()
		}
		if _, err := fmt.Fprintln(p.stdout, line); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d receivers did not accept the alert", failed, len(cfg.Alerts))
	}
	return nil
}
