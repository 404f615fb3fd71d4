package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/jobs/gateway"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
)

const (
	// defaultListen is where the web UI is, by the contract of the command line.
	defaultListen = "127.0.0.1:8765"
	// headerTimeout bounds a client that opens a connection and says nothing.
	headerTimeout = time.Minute
	// answerTimeout bounds what is still being answered when the program ends.
	answerTimeout = 2 * time.Second
)

type upFlags struct {
	simulate bool
	listen   string
}

func (p *program) upCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process: queue, bucket, worker, web UI",
		Long: `Up is a whole Danqing in one process, for one machine: a queue that keeps what it has
acknowledged, a bucket, a worker for it, and asynq's web UI. What is configured
(REDIS_URL, DANQING_S3_BUCKET) is used instead of the part of its own. Other
commands on the machine find it by the data directory.`,
		Example: `  danqing up
  danqing up --simulate --listen 127.0.0.1:9000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.up(cmd.Context(), f) },
	}
	cmd.Flags().BoolVar(&f.simulate, "simulate", false, "no key, no cost: a simulated DashScope, with all its data in a folder of its own")
	cmd.Flags().StringVar(&f.listen, "listen", "", "loopback address of the web UI; port 0 picks a free one (default: DANQING_LISTEN, else "+defaultListen+")")
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
	for _, address := range []string{p.getenv("DANQING_LISTEN"), defaultListen} {
		if f.listen == "" {
			f.listen = address
		}
	}
	log := slog.New(slog.NewTextHandler(p.stderr, nil))
	e := &engine{cfg: cfg, log: log, durable: true}
	if err := e.open(f.simulate); err != nil {
		return errors.Join(err, e.Close())
	}
	err = e.bucket.Check(ctx)
	if err == nil {
		err = p.serve(ctx, e, f)
	}
	return errors.Join(err, e.Close())
}

// serve answers over HTTP and runs the worker until it is told to stop.
func (p *program) serve(ctx context.Context, e *engine, f upFlags) error {
	handler, err := gateway.New(gateway.Config{Redis: e.redis, UI: true, Logger: e.log})
	if err != nil {
		return err
	}
	listener, err := gateway.Listen(ctx, f.listen)
	if err != nil {
		return usage("choose another address by --listen, as in: danqing up --listen 127.0.0.1:0", "%w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout, ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelWarn)}
	served := make(chan error, 1)
	go func() {
		served <- server.Serve(listener)
		e.worker.Stop() // without its web UI this is not what was asked for
	}()
	err = p.announce(e, f, listener.Addr())
	if err == nil {
		sayDurability(ctx, e.worker.Jobs(), e.log)
		err = e.run(ctx, p.signals, func(text string) { e.log.Info("told to stop", "reply", text) }, e.worker.Run)
	}
	if errors.Is(err, errInterrupted) {
		err = nil // it is meant to run until it is stopped
	}
	if e.queue != nil {
		err = errors.Join(err, removeInstance(e.path))
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	if server.Shutdown(closing) != nil {
		err = errors.Join(err, server.Close()) // whoever is still being answered was given time
	}
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("web UI: %w", ended))
	}
	return err
}

// announce tells people and the other commands where all is.
func (p *program) announce(e *engine, f upFlags, address net.Addr) error {
	base, simulate := "http://"+address.String(), ""
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
	p.say("web UI:  %s/ui/", base)
	p.say("images:  %s", images)
	p.say(`enqueue: danqing enqueue%s --prompt "a black cat"   (from another terminal)`, simulate)
	return nil
}
