package main

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
)

// dryRun prints what a run would make, and what it would cost, without a worker or a key. It
// writes nothing but its answer.
func (r *batchRun) dryRun(ctx context.Context, cfg *config.Config, simulate bool) error {
	return r.untilSignal(ctx, nil, func(ctx context.Context) error {
		view, err := openView(cfg, simulate)
		if err != nil {
			return err
		}
		from := &paces{cfg: cfg, own: true}
		source := &dryRunSource{dataDirView: view, listed: map[string]bool{}}
		if cfg.RedisURL.IsSet() {
			at, err := cfg.Redis()
			if err != nil {
				return err
			}
			rdb := at.Client(0)
			defer rdb.Close() //nolint:errcheck // read only
			if err := source.connect(ctx, rdb, at.Address, from); err != nil {
				return err
			}
		}
		if from.simulated, err = source.simulatedPlaces(ctx, simulate); err != nil {
			return err
		}
		if view.local != nil && !from.simulated && from.queue == nil {
			if from.measured, err = measuredTimes(ctx, view.local); err != nil {
				return err
			}
		}
		r.progress = newProgress(r.stderr)
		r.index()
		if err := r.lookUp(ctx, source, from.simulated); err != nil {
			return err
		}
		if r.plan, err = planOf(r.files, r.counts(), r.budget, from.price, func(model string) (pace, error) { return from.of(ctx, model) }); err != nil {
			return err
		}
		r.plan.simulated = from.simulated
		if n := len(source.listed); n > 0 {
			source.unchecked = append(source.unchecked, fmt.Sprintf("whether the finished jobs were asked for the same as their lines (%s in the bucket)", count(n, "sidecar")))
		}
		if _, err := readInstance(ctx, view.path); err == nil {
			r.stderrf("danqing up runs on %s: use danqing enqueue", view.path)
		}
		return r.printDryRun(r.plan, r.json, source.unchecked)
	})
}

// printDryRun prints a plan, and what could not be checked.
func (p *program) printDryRun(pl *plan, asJSON bool, unchecked []string) error {
	var err error
	if asJSON {
		err = printJSON(p.stdout, pl.json())
	} else if _, err = fmt.Fprintln(p.stdout, pl.head()); err == nil {
		err = pl.writeModels(p.stdout)
	}
	if !pl.simulated {
		unchecked = append(unchecked, "the API key, free quotas, and what DashScope's moderation says")
	}
	for _, what := range unchecked {
		p.stderrf("not checked: %s", what)
	}
	p.stderrf("dry run: nothing was written or spent")
	return err
}

// connect adds what Redis tells to a dry run.
func (s *dryRunSource) connect(ctx context.Context, rdb *redis.Client, address string, from *paces) error {
	err := ping(ctx, rdb, address)
	if err == nil {
		from.lanes, err = jobs.NewInspector(rdb).Lanes(ctx)
	}
	if err != nil {
		return s.skip("jobs in Redis", err)
	}
	s.redis, from.queue = jobs.NewClient(rdb), jobs.NewClient(rdb)
	mode, err := jobs.NewInspector(rdb).Mode(ctx)
	s.redisMode = mode
	return err
}

// simulatedPlaces reports whether the places of a run are simulated. It fails if they are not
// of one mode, as the run would. The service is not asked which mode it has.
func (s *dryRunSource) simulatedPlaces(ctx context.Context, simulate bool) (bool, error) {
	with, mode := "the run", jobs.Mode("")
	if simulate {
		mode = jobs.ModeSimulated
	}
	modes := map[string]jobs.Mode{worker.PlaceDataDir: s.mode, worker.PlaceRedis: s.redisMode}
	if remote, ok := s.bucket.(*storage.Bucket); ok {
		mode, err := remote.Mode(ctx)
		if err != nil {
			s.bucket = nil
			return simulate, s.skip("what is finished already", err)
		}
		modes[worker.PlaceBucket] = jobs.Mode(mode)
	}
	for _, place := range []string{worker.PlaceRedis, worker.PlaceBucket, worker.PlaceDataDir} {
		if mode == "" {
			with, mode = place, modes[place]
		}
		if wrong := worker.CompareModes(place, modes[place], with, mode); wrong != nil {
			return false, wrong
		}
	}
	return mode == jobs.ModeSimulated, nil
}
