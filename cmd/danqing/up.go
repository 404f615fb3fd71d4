package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	bucket "github.com/danqing-queue/danqing/storage/embedded"
)

type upFlags struct {
	simulate bool
	fail     []string
	listen   string
	log      logFlags
}

func (p *program) upCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process: queue, bucket, worker, API, web UI",
		Long: `Up runs everything in one process, on one machine: a durable queue, a bucket, a worker,
the API of "danqing serve", and a web page for operators. A configured
DANQING_S3_BUCKET replaces the embedded bucket, and a REDIS_URL beside it the embedded
queue. Other commands on the machine find it by the data directory.`,
		Example: `  danqing up
  danqing up --simulate --listen 127.0.0.1:9000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.up(cmd.Context(), f) },
	}
	cmd.Flags().BoolVar(&f.simulate, "simulate", false, "no key, no cost: a simulated DashScope, with all its data in a folder of its own")
	cmd.Flags().StringVar(&f.listen, "listen", "", listenUsage)
	addFail(cmd, &f.fail)
	f.log.add(cmd)
	return cmd
}

func (p *program) up(ctx context.Context, f upFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if err := cfg.EnableModels(nil); err != nil {
		return err
	}
	if err := checkFail(f.fail, f.simulate); err != nil {
		return err
	}
	log, outages, err := f.log.logger(p.stderr)
	if err != nil {
		return err
	}
	server, err := listen(ctx, cfg, f.listen)
	if err != nil {
		return err
	}
	rt := &runtime{cfg: cfg, log: log, fail: f.fail, durable: true, serveURL: server.baseURL()}
	err = rt.open(f.simulate)
	if err == nil {
		err = rt.check(ctx) // before the API accepts anything
	}
	if err != nil {
		return errors.Join(err, rt.Close(), server.listener.Close())
	}
	stop := outages.watch(ctx, outageChecks(rt.redis, rt.bucket))
	err = p.serveAndWork(ctx, rt, f, server)
	stop()
	return errors.Join(err, rt.Close())
}

// serveAndWork serves HTTP and runs the worker until a signal.
func (p *program) serveAndWork(ctx context.Context, rt *runtime, f upFlags, server *httpServer) error {
	if err := server.open(rt.cfg, serverConfig{
		redis: rt.redis, bucket: rt.bucket, ready: rt.ready, local: rt.localBucket != nil, price: rt.priceOf, depth: rt.maxQueued(), temp: filepath.Join(rt.dataPath, uploadFolder), log: rt.log,
	}); err != nil {
		return err
	}
	monitor, err := openMonitor(ctx, rt.cfg, rt.metrics, rt.log, rt.ready)
	if err != nil {
		return errors.Join(err, server.listener.Close())
	}
	defer monitor.Close()                  //nolint:errcheck // the process ends
	served := server.serve(rt.worker.Stop) // if the server fails, the worker stops too
	err = p.announce(rt, f, server)
	if err == nil {
		logRedisHealth(ctx, rt.redis, rt.log)
		err = rt.run(ctx, p.signals, func(text string) { rt.log.Info("shutting down", "reply", text) }, rt.worker.Run)
	}
	if errors.Is(err, errInterrupted) {
		err = nil // it runs until it is stopped
	}
	if rt.queue != nil {
		err = errors.Join(err, removeInstance(rt.dataPath))
	}
	return errors.Join(err, server.shutdown(ctx), <-served)
}

// defaultMaxQueuedEmbedded is the default maximum number of waiting jobs in an embedded
// queue, whose pushes become slower with its length: 0.1 ms per thousand jobs.
const defaultMaxQueuedEmbedded = 10_000

func (rt *runtime) maxQueued() int {
	if rt.cfg.Serve.MaxQueued == 0 && rt.queue != nil {
		return defaultMaxQueuedEmbedded
	}
	return cmp.Or(rt.cfg.Serve.MaxQueued, defaultMaxQueued)
}

// models returns the models of all lanes.
func (rt *runtime) models() []string {
	var models []string
	for _, a := range rt.cfg.Accounts {
		for _, l := range a.Lanes {
			models = append(models, l.Model)
		}
	}
	return models
}

// announce prints the addresses, and writes the instance file for other commands.
func (p *program) announce(rt *runtime, f upFlags, server *httpServer) error {
	base, simulate := server.baseURL(), ""
	if f.simulate {
		simulate = " --simulate"
	}
	if rt.queue != nil { // other commands have the URL of a configured Redis
		if err := writeInstance(rt.dataPath, instance{PID: os.Getpid(), HTTP: base, RedisURL: rt.queue.URL(), Models: rt.models()}); err != nil {
			return err
		}
	}
	images := "bucket " + rt.cfg.Bucket
	if rt.localBucket != nil {
		images = filepath.Join(rt.dataPath, "bucket", bucket.DefaultBucket)
	}
	server.announce(p)
	p.stderrf("images:  %s", images)
	p.stderrf(`enqueue: danqing enqueue%s --prompt "a black cat"   (from another terminal)`, simulate)
	return nil
}
