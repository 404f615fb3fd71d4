package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	bucket "github.com/danqing-queue/danqing/storage/embedded"
)

type upFlags struct {
	simulate bool
	listen   string
	ui       bool
}

func (p *program) upCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process: queue, bucket, worker, API, web UI",
		Long: `Up runs everything in one process, on one machine: a durable queue, a bucket, a worker,
the API of "danqing serve", and asynq's web UI. A configured REDIS_URL or
DANQING_S3_BUCKET replaces the embedded part. Other commands on the machine find it by
the data directory.`,
		Example: `  danqing up
  danqing up --simulate --listen 127.0.0.1:9000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.up(cmd.Context(), f) },
	}
	cmd.Flags().BoolVar(&f.simulate, "simulate", false, "no key, no cost: a simulated DashScope, with all its data in a folder of its own")
	cmd.Flags().StringVar(&f.listen, "listen", "", listenUsage)
	uiFlag(cmd, &f.ui)
	return cmd
}

func (p *program) up(ctx context.Context, f upFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if err := cfg.Work(nil); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(p.stderr, nil))
	server, err := listen(ctx, cfg, f.listen)
	if err != nil {
		return err
	}
	e := &engine{cfg: cfg, log: log, durable: true, serveURL: server.base()}
	err = e.open(f.simulate)
	if err == nil {
		err = e.bucket.Check(ctx)
	}
	if err != nil {
		return errors.Join(err, e.Close(), server.listener.Close())
	}
	return errors.Join(p.serveAndWork(ctx, e, f, server), e.Close())
}

// serveAndWork answers over HTTP and runs the worker until it is told to stop.
func (p *program) serveAndWork(ctx context.Context, e *engine, f upFlags, server *httpServer) error {
	if err := server.open(e.cfg, serving{
		redis: e.redis, bucket: e.bucket, stream: e.files != nil, price: e.priceOf, depth: e.depth(), temp: filepath.Join(e.path, "uploads"), ui: showsUI(e.cfg, f.ui), log: e.log,
	}); err != nil {
		return err
	}
	served := server.serve(e.worker.Stop) // without its web UI this is not what was asked for
	err := p.announce(e, f, server)
	if err == nil {
		sayDurability(ctx, e.redis, e.log)
		err = e.run(ctx, p.signals, func(text string) { e.log.Info("shutting down", "reply", text) }, e.worker.Run)
	}
	if errors.Is(err, errInterrupted) {
		err = nil // it is meant to run until it is stopped
	}
	if e.queue != nil {
		err = errors.Join(err, removeInstance(e.path))
	}
	return errors.Join(err, server.shutdown(ctx), <-served)
}

// upDepth is how many jobs may wait in an embedded queue, whose pushes take the longer
// the more there are: a tenth of a millisecond more for each thousand.
const upDepth = 10_000

func (e *engine) depth() int {
	if e.cfg.Serve.MaxQueued == 0 && e.queue != nil {
		return upDepth
	}
	return cmp.Or(e.cfg.Serve.MaxQueued, serveDepth)
}

// announce tells people and the other commands where all is.
func (p *program) announce(e *engine, f upFlags, server *httpServer) error {
	base, simulate := server.base(), ""
	if f.simulate {
		simulate = " --simulate"
	}
	if e.queue != nil { // whoever wants a configured Redis knows its URL
		if err := writeInstance(e.path, instance{PID: os.Getpid(), HTTP: base, RedisURL: e.queue.URL()}); err != nil {
			return err
		}
	}
	images := "bucket " + e.cfg.Bucket
	if e.files != nil {
		images = filepath.Join(e.path, "bucket", bucket.DefaultBucket)
	}
	server.announce(p)
	p.say("images:  %s", images)
	p.say(`enqueue: danqing enqueue%s --prompt "a black cat"   (from another terminal)`, simulate)
	return nil
}
