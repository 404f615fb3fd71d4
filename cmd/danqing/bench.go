package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/bench"
)

type benchFlags struct {
	lanes               []int
	roundTrip, duration time.Duration
	quick, json         bool
	plot                string
}

func (p *program) benchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure how busy a slot is, beside other programs' loops",
		Long: `Bench measures how busy a slot of DashScope is, and how many queries that takes: with
Danqing's worker, with the loop of DashScope's SDK, plain asynq, one-api, a fixed poll,
and an oracle that knows how long each task takes. All run at once in real time, each
against a simulated DashScope of its own at the same distance. It costs nothing and uses
no network. Other work on the machine makes all of them slower: compare the rows of one
run only.`,
		Example: `  danqing bench
  danqing bench --duration 10m --plot speed.svg`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.bench(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.IntSliceVar(&f.lanes, "lanes", []int{1, 20}, "tasks that an account runs at once, 1 to 20")
	flags.DurationVar(&f.roundTrip, "round-trip", bench.DefaultRoundTrip, "time from a request to its answer")
	flags.DurationVar(&f.duration, "duration", 0, "how long to measure (default 2m0s)")
	flags.BoolVar(&f.quick, "quick", false, "tasks of less than a second, for four seconds: a trial")
	flags.StringVar(&f.plot, "plot", "", "file for a plot of idle time against queries, SVG")
	flags.BoolVar(&f.json, "json", false, "print the report as one JSON object")
	return cmd
}

func (p *program) bench(ctx context.Context, f benchFlags) error {
	if f.roundTrip < 0 || f.roundTrip > time.Second || f.duration < 0 {
		return usageErrorf("as in: --round-trip 30ms --duration 2m", "--round-trip %s --duration %s: allowed: 0 to 1s, and no negative time", f.roundTrip, f.duration)
	}
	cfg := bench.Config{Lanes: f.lanes, RoundTrip: f.roundTrip, Duration: f.duration, Quick: f.quick}
	p.stderrf("measuring for %s", cfg.Time())
	var report *bench.Report
	err := p.untilSignal(ctx, nil, func(ctx context.Context) (err error) {
		report, err = bench.Run(ctx, cfg)
		return err
	})
	if wrong := (*bench.LanesError)(nil); errors.As(err, &wrong) {
		return usageErrorf("as in: --lanes 1,20", "--lanes: %w", err)
	}
	if err != nil {
		return err
	}
	if f.plot != "" {
		if err := os.WriteFile(f.plot, report.Plot(), 0o644); err != nil { //nolint:gosec // a picture for everybody
			return fmt.Errorf("write the plot: %w", err)
		}
	}
	if f.json {
		return json.NewEncoder(p.stdout).Encode(report)
	}
	return report.Print(p.stdout)
}
