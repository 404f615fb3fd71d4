package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/config"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/storage"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// engine is a worker with all it stands on: given parts where they are
// configured, embedded ones where they are not.
type engine struct {
	cfg    *config.Config
	path   string // the data directory
	log    *slog.Logger
	worker *worker.Worker
	bucket *storage.Bucket
	redis  redis.UniversalClient
	// files is the embedded bucket, nil if another is configured.
	files *bucket.Server
	// durable asks for an embedded queue that keeps what it has acknowledged, and
	// queue is that one, nil if a Redis is configured.
	durable bool
	queue   *queue.Queue
	closers []io.Closer
}

// The embedded simulator is faster than the service, which takes half a minute
// for an image: somebody watches.
const (
	simulatedShortest = 500 * time.Millisecond
	simulatedLongest  = 2 * time.Second
	// simulatedBase is where the embedded simulator answers, over in-process
	// connections only; no such host exists.
	simulatedBase = "http://dashscope.simulated/api/v1"
)

// openEngine opens everything a worker of the first configured model needs. The
// caller must Close it.
func openEngine(cfg *config.Config, simulate bool, log *slog.Logger) (*engine, error) {
	e := &engine{cfg: cfg, log: log}
	if err := e.open(simulate); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *engine) open(simulate bool) error {
	var err error
	if e.path, err = e.dataDir(simulate); err != nil {
		return err
	}
	dir, err := worker.OpenDataDir(e.path)
	if err != nil {
		return err
	}
	e.closers = append(e.closers, dir)
	remote := e.cfg.DashScope()
	if simulate {
		sim := &simulator.Simulator{
			StateDir: dir.SimulatorPath(), TaskTime: simulator.Between(simulatedShortest, simulatedLongest), Logger: e.log,
		}
		if err := sim.Load(); err != nil {
			return fmt.Errorf("simulator: %w", err)
		}
		e.closers = append(e.closers, sim)
		remote = dashscope.Config{BaseURL: simulatedBase, APIKey: "sk-simulated", DialContext: sim.DialContext}
	}
	remote.Logger, remote.UserAgent = e.log, "danqing/"+version()
	client, err := dashscope.New(remote)
	if err != nil {
		return err
	}
	if err := e.openBucket(dir, simulate); err != nil {
		return err
	}
	if e.redis, err = e.openQueue(simulate); err != nil {
		return err
	}
	spool, err := storage.OpenSpool(dir.SpoolPath(), storage.SpoolConfig{
		Sources: []string{client.BaseURL().String()}, DialContext: remote.DialContext, Logger: e.log,
	})
	if err != nil {
		return err
	}
	e.worker, err = worker.New(worker.Config{
		Redis: e.redis, Bucket: e.bucket, Spool: spool, DataDir: dir, Logger: e.log,
		Accounts: []worker.Account{{DashScope: client, Lanes: []worker.Lane{{Model: e.cfg.Models[0], Concurrency: e.cfg.Concurrency}}}},
	})
	return err
}

// dataDir keeps simulated runs in a folder of their own, away from all that a
// real run looks at.
func (e *engine) dataDir(simulate bool) (string, error) {
	if simulate {
		return filepath.Join(e.cfg.DataDir, "simulated"), e.cfg.CheckSimulate()
	}
	if err := e.cfg.CheckReal(); err != nil {
		return "", err
	}
	return e.cfg.DataDir, nil
}

func (e *engine) openBucket(dir *worker.DataDir, simulate bool) (err error) {
	if !simulate && e.cfg.Bucket == "" && e.cfg.RedisURL.IsSet() {
		return usage("set it to a bucket that all workers reach: images in a process's own folder would be known to that process alone", "REDIS_URL is set and DANQING_S3_BUCKET is not")
	}
	if !simulate && e.cfg.Bucket != "" {
		e.bucket, err = storage.New(e.cfg.Storage())
		return err
	}
	e.files, err = bucket.Open(bucket.Config{Dir: dir.BucketPath(), Logger: e.log})
	if err != nil {
		return err
	}
	e.closers = append(e.closers, e.files)
	id, secret := e.files.Credentials()
	settings := storage.Config{
		KeyTemplate: e.cfg.KeyTemplate, Bucket: bucket.DefaultBucket, Endpoint: "http://bucket.embedded",
		AccessKeyID: id, SecretAccessKey: secret, HTTPClient: e.files.HTTPClient(),
	}
	e.bucket, err = storage.New(settings)
	return err
}

func (e *engine) openQueue(simulate bool) (redis.UniversalClient, error) {
	if !simulate && e.cfg.RedisURL.IsSet() {
		options, err := e.cfg.Redis()
		if err != nil {
			return nil, err
		}
		rdb := redis.NewClient(options)
		e.closers = append(e.closers, rdb)
		return rdb, nil
	}
	if e.durable {
		var err error
		e.queue, err = queue.OpenDir(queue.Config{Dir: filepath.Join(e.path, "queue"), Listen: "127.0.0.1:0", Logger: e.log})
		if err != nil {
			return nil, err
		}
		e.closers = append(e.closers, e.queue)
		return e.queue.Client(), nil
	}
	embedded := queue.Open()
	e.closers = append(e.closers, embedded)
	return embedded.Client(), nil
}

// Close closes the parts, the last opened first.
func (e *engine) Close() error {
	var errs []error
	for i := len(e.closers) - 1; i >= 0; i-- {
		errs = append(errs, e.closers[i].Close())
	}
	return errors.Join(errs...)
}

// run calls work, which runs the worker, and handles signals meanwhile: the first
// one stops the worker gracefully, the second one ends everything. It returns
// errInterrupted if a signal ended work.
func (e *engine) run(ctx context.Context, signals <-chan os.Signal, say func(string), work func(context.Context) error) error {
	ctx, quick := context.WithCancel(ctx)
	defer quick()
	ended := make(chan error, 1)
	go func() { ended <- work(ctx) }()
	for interrupted := false; ; {
		select {
		case err := <-ended:
			if interrupted && (err == nil || errors.Is(err, worker.ErrStopped) || errors.Is(err, context.Canceled)) {
				return errInterrupted
			}
			return err
		case <-signals:
			if interrupted {
				say("stopping at once")
				quick()
				continue
			}
			interrupted = true
			say("stopping; what is running at DashScope is fetched by the next run (once more: stop at once)")
			e.worker.Stop()
		}
	}
}
