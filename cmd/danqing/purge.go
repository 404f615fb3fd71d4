package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/journal"
)

type purgeFlags struct{ simulate, yes bool }

func (p *program) purgeCommand() *cobra.Command {
	var f purgeFlags
	cmd := &cobra.Command{
		Use:   "purge",
		Short: "Delete all simulated jobs and images, for real ones in their place",
		Long: `Purge deletes the jobs and images of the simulator from the configured Redis database,
bucket prefix and data directory. It deletes what Danqing has stored there, and nothing
else. A place with real jobs is never touched.

It shows what it will delete, and asks. Stop the workers first. Run it for each data
directory of theirs, on its machine.`,
		Example: `  danqing purge
  danqing purge --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.untilSignal(cmd.Context(), nil, func(ctx context.Context) error { return p.purge(ctx, f) })
		},
	}
	cmd.Flags().BoolVar(&f.simulate, "simulate", false, "purge the folder of the runs with --simulate")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	return cmd
}

// purge is one run of the command.
type purge struct {
	*program
	dir      string // the data directory
	operator *jobs.Inspector
	bucket   *storage.Bucket
	yes      bool

	// modes are the modes of the configured places.
	modes map[string]jobs.Mode
	// keys are the objects to delete.
	keys []string
}

func (p *program) purge(ctx context.Context, f purgeFlags) (err error) {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	r := &purge{program: p, dir: cfg.DataDir, yes: f.yes, modes: map[string]jobs.Mode{}}
	if f.simulate {
		if err := cfg.CheckSimulate(); err != nil {
			return err
		}
		r.dir = simulatedDir(r.dir)
	}
	if cfg.RedisURL.IsSet() {
		at, err := cfg.Redis()
		if err != nil {
			return err
		}
		rdb := at.Client(0)
		defer func() { err = errors.Join(err, rdb.Close()) }()
		if err := ping(ctx, rdb, at.Address); err != nil {
			return err
		}
		r.operator = jobs.NewInspector(rdb)
	}
	if cfg.Bucket != "" {
		if r.bucket, err = storage.New(cfg.Storage()); err != nil {
			return err
		}
	}
	if err := r.run(ctx); err != nil {
		return err
	}
	r.stderrf("all of this is deleted")
	return nil
}

func (r *purge) run(ctx context.Context) error {
	if err := r.findModes(ctx); err != nil {
		return err
	}
	found := false
	for _, place := range []string{worker.PlaceRedis, worker.PlaceBucket, worker.PlaceDataDir} {
		switch mode := r.modes[place]; mode {
		case "":
		case jobs.ModeSimulated:
			found = true
		default:
			r.stderrf("%s is %s: it is not touched", place, mode)
		}
	}
	if !found {
		return usageErrorf("set REDIS_URL, DANQING_S3_BUCKET, DANQING_S3_PREFIX and DANQING_DATA_DIR to those of the simulated jobs; with --simulate the folder of such runs is purged", "nothing here is simulated: nothing was deleted")
	}
	if r.modes[worker.PlaceDataDir] != jobs.ModeSimulated {
		return r.purgeShared(ctx)
	}
	return journal.PurgeSimulated(r.dir, []string{queueFolder, uploadFolder, instanceFile}, func() error { return r.purgeShared(ctx) })
}

func (r *purge) findModes(ctx context.Context) (err error) {
	if r.operator != nil {
		if r.modes[worker.PlaceRedis], err = r.operator.Mode(ctx); err != nil {
			return err
		}
	}
	if r.bucket != nil {
		mode, err := r.bucket.Mode(ctx)
		if err != nil {
			return err
		}
		r.modes[worker.PlaceBucket] = jobs.Mode(mode)
	}
	r.modes[worker.PlaceDataDir], err = journal.ReadMode(r.dir)
	return err
}

// purgeShared asks, and purges Redis and bucket.
func (r *purge) purgeShared(ctx context.Context) error {
	if err := r.plan(ctx); err != nil {
		return err
	}
	if !r.yes {
		if err := r.confirmDeletion(ctx, "delete all of this?"); err != nil {
			return err
		}
	}
	if r.modes[worker.PlaceRedis] == jobs.ModeSimulated {
		if err := r.operator.PurgeSimulated(ctx); err != nil {
			return err
		}
	}
	if r.modes[worker.PlaceBucket] == jobs.ModeSimulated {
		return r.bucket.Purge(ctx, r.keys)
	}
	return nil
}

// plan prints what will be deleted.
func (r *purge) plan(ctx context.Context) error {
	if r.modes[worker.PlaceRedis] == jobs.ModeSimulated {
		keys, err := r.operator.SimulatedKeys(ctx)
		if err != nil {
			return err
		}
		r.stderrf("%s is simulated: %s to delete", worker.PlaceRedis, count(keys, "key"))
	}
	if r.modes[worker.PlaceBucket] == jobs.ModeSimulated {
		own, others, err := r.bucket.SimulatedKeys(ctx)
		if err != nil {
			return err
		}
		r.keys = own
		kept := ""
		if others > 0 {
			kept = fmt.Sprintf("; %s of others stay", count(others, "object"))
		}
		r.stderrf("%s is simulated: %s to delete%s", worker.PlaceBucket, count(len(own), "object"), kept)
	}
	if r.modes[worker.PlaceDataDir] == jobs.ModeSimulated {
		r.stderrf("%s %s is simulated: its journal, spend log, images and queue are to delete", worker.PlaceDataDir, r.dir)
	}
	return nil
}
