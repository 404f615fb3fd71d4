package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/drill"
)

type drillFlags struct {
	short, server, sentinel, list, json, unlisted bool

	seed         uint64
	faults, jobs int
	points       []string
}

// errDrillFailed ends a drill that has found a fault and printed it.
var errDrillFailed = errors.New("a promise was broken: see the report")

func (p *program) drillCommand() *cobra.Command {
	var f drillFlags
	cmd := &cobra.Command{
		Use:   "drill",
		Short: "Test that no image is paid for twice and none is lost",
		Long: `Drill runs real workers as child processes against a simulated DashScope, kills them
(kill -9) at every kind of request and reply, freezes them, cuts, delays and garbles
their connections, takes the bucket and Redis away, also at the same time, and then
compares what DashScope has charged with what lies in the bucket. It costs nothing and touches loopback only.

Without REDIS_URL the queue is that of "danqing up", which is killed with it; with
REDIS_URL, an empty database, two workers share it; with --redis-server the drill
starts a Redis of its own and kills that too; with --sentinel it starts a primary, a
replica and Sentinels, and makes them fail over. It exits with 1 unless every image was
charged exactly once, none is lost and no job is stuck.`,
		Example: `  danqing drill --short
  danqing drill --redis-server --seed 42
  REDIS_URL=redis://127.0.0.1:6379/15 danqing drill --faults 2000 --jobs 5000
  danqing drill --points create.kill-done,create.late`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.drill(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.short, "short", false, "some 25 faults, within two minutes")
	flags.BoolVar(&f.server, "redis-server", false, "start a redis-server from the PATH for the drill")
	flags.BoolVar(&f.sentinel, "sentinel", false, "start a primary, a replica and Sentinels for the drill, and fail over")
	flags.BoolVar(&f.unlisted, "unlisted", false, "hide the tasks of the newer protocol from the task list: its lost creates must end held")
	flags.Uint64Var(&f.seed, "seed", 0, "repeat the faults of an earlier drill (default: random)")
	flags.IntVar(&f.faults, "faults", 0, "number of faults (default 500)")
	flags.IntVar(&f.jobs, "jobs", 0, "smallest number of jobs (default 1000)")
	flags.StringSliceVar(&f.points, "points", nil, "only these points, three times each; create. is all of a route")
	flags.BoolVar(&f.list, "list-points", false, "only print the names of the points")
	flags.BoolVar(&f.json, "json", false, "print the report as one JSON object")
	return cmd
}

func (p *program) drill(ctx context.Context, f drillFlags) error {
	cfg := drill.Config{
		Seed: f.seed, Faults: f.faults, Jobs: f.jobs, Short: f.short, Points: f.points, Unlisted: f.unlisted, Progress: p.stderr,
		Queue: drill.QueueEmbedded, RedisURL: p.getenv("REDIS_URL"), Instance: findInstance,
	}
	switch {
	case f.sentinel:
		cfg.Queue = drill.QueueSentinel
	case f.server:
		cfg.Queue = drill.QueueServer
	case cfg.RedisURL != "":
		cfg.Queue = drill.QueueRedis
	}
	if f.list {
		for _, name := range drill.Points(cfg.Queue) {
			if _, err := fmt.Fprintln(p.stdout, name); err != nil {
				return err
			}
		}
		return nil
	}
	if f.unlisted && f.sentinel {
		return usageErrorf("leave one of them out", "--unlisted and --sentinel: after a failover that loses data a person must compare such a model's tasks with the console")
	}
	if f.faults < 0 || f.jobs < 0 {
		return usageErrorf("as in: --faults 500 --jobs 1000", "--faults %d --jobs %d: must not be negative", f.faults, f.jobs)
	}
	var err error
	if cfg.Program, err = os.Executable(); err != nil {
		return fmt.Errorf("find the program: %w", err)
	}
	report, err := p.runDrill(ctx, cfg)
	if err != nil {
		return err
	}
	if f.json {
		err = json.NewEncoder(p.stdout).Encode(report)
	} else {
		err = report.Print(p.stdout)
	}
	if err == nil && !report.Passed {
		err = errDrillFailed
	}
	return err
}

// runDrill runs a drill until it ends or is interrupted.
func (p *program) runDrill(ctx context.Context, cfg drill.Config) (report *drill.Report, err error) {
	err = p.untilSignal(ctx, func() { p.stderrf("stopping the drill and its workers") }, func(ctx context.Context) error {
		report, err = drill.Run(ctx, cfg)
		return err
	})
	var point *drill.PointError
	switch {
	case errors.As(err, &point):
		return nil, usageErrorf("see: danqing drill --list-points", "%w", err)
	case errors.Is(err, drill.ErrNotEmpty):
		return nil, usageErrorf("name an empty one, as in REDIS_URL=redis://127.0.0.1:6379/15, or let the drill start its own: danqing drill --redis-server", "%w", err)
	}
	return report, err
}

// findInstance returns the process ID and the queue of the instance on a data directory, for
// the drill.
func findInstance(ctx context.Context, dataDir string) (pid int, redisURL string, err error) {
	at, err := readInstance(ctx, dataDir)
	return at.PID, at.RedisURL, err
}
