package main

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
)

func (p *program) workerCommand() *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Process the jobs of a Redis queue",
		Long: `Worker processes the jobs in the Redis at REDIS_URL until it is stopped. One worker at a
time holds the lane of an account's model; others stand by.`,
		Example: `  REDIS_URL=redis://127.0.0.1:6379/0 DANQING_S3_BUCKET=images danqing worker`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.worker(cmd.Context(), f) },
	}
	f.add(cmd)
	return cmd
}

func (p *program) worker(ctx context.Context, f logFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if !cfg.RedisURL.IsSet() {
		return usageErrorf("set it, as in redis://127.0.0.1:6379/0; for a file of prompts without Redis use: danqing batch", "REDIS_URL is not set")
	}
	log, outages, err := f.logger(p.stderr)
	if err != nil {
		return err
	}
	rt := &runtime{cfg: cfg, log: log, waitForKey: true}
	if err := rt.open(false); err != nil {
		return errors.Join(err, rt.Close())
	}
	monitor, err := openMonitor(ctx, cfg, rt.metrics, log, rt.ready)
	if err != nil {
		return errors.Join(err, rt.Close())
	}
	defer outages.watch(ctx, outageChecks(rt.redis, rt.bucket))()
	err = rt.run(ctx, p.signals, func(text string) { log.Info("shutting down", "reply", text) }, rt.checkAndWork)
	if errors.Is(err, errInterrupted) {
		err = nil // a worker runs until it is stopped
	}
	return errors.Join(err, monitor.Close(), rt.Close())
}

// checkAndWork checks Redis and the bucket while the worker is prepared, and then runs it.
func (rt *runtime) checkAndWork(ctx context.Context) error {
	checks, checking := errgroup.WithContext(ctx)
	checks.Go(func() error { logRedisHealth(checking, rt.redis, rt.log); return nil })
	checks.Go(func() error { return rt.bucket.Check(checking) })
	checks.Go(func() error { return rt.worker.Prepare(checking) })
	switch err := checks.Wait(); {
	case errors.Is(err, worker.ErrStopped):
		return nil
	case err != nil:
		return err
	}
	return rt.worker.Run(ctx)
}

// outageChecks are how to ask the services that may go away.
func outageChecks(rdb redis.UniversalClient, bucket *storage.Bucket) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		redisAway:  func(ctx context.Context) error { return rdb.Ping(ctx).Err() },
		bucketAway: bucket.Check,
	}
}
