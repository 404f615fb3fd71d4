package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/storage"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/journal"
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
	// serveURL is where this process serves images, "" if it does not.
	serveURL string
	// accounts are those that pay.
	accounts []worker.Account
	queue    *queue.Queue
	// remote is the configured Redis, nil if the queue is embedded.
	remote  *redis.Client
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

// openEngine opens everything a worker of the configured accounts needs. The caller
// must Close it.
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
	dir, err := journal.OpenDataDir(e.path)
	if err != nil {
		return err
	}
	e.closers = append(e.closers, dir)
	var dial func(context.Context, string, string) (net.Conn, error)
	if simulate {
		if dial, err = e.simulator(dir.SimulatorPath()); err != nil {
			return err
		}
	}
	sources, err := e.openAccounts(dial)
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
		Sources: sources, DialContext: dial, Logger: e.log,
	})
	if err != nil {
		return err
	}
	var secrets []string
	for _, s := range e.cfg.Callbacks.Secrets {
		secrets = append(secrets, s.Reveal())
	}
	e.worker, err = worker.New(worker.Config{
		Redis: e.redis, Bucket: e.bucket, Spool: spool, DataDir: dir, Logger: e.log, Accounts: e.accounts,
		SubmitLimit: e.cfg.SubmitLimit, ExclusiveQueue: e.ownQueue(simulate),
		CallbackSecrets: secrets, CallbackAllow: e.cfg.Callbacks.Allow, ServeURL: cmp.Or(e.cfg.Serve.URL, e.serveURL), LocalBucket: e.files != nil,
	})
	return err
}

// simulator starts the embedded one, with a main account for each configured.
func (e *engine) simulator(dir string) (dial func(context.Context, string, string) (net.Conn, error), err error) {
	sim := &simulator.Simulator{
		StateDir: dir, TaskTime: simulator.Between(simulatedShortest, simulatedLongest), Logger: e.log,
		Keys: map[string]simulator.Key{},
	}
	for _, a := range e.cfg.Accounts {
		sim.Keys[simulatedKey(a)] = simulator.Key{Account: a.Name}
	}
	if err := sim.Load(); err != nil {
		return nil, fmt.Errorf("simulator: %w", err)
	}
	e.closers = append(e.closers, sim)
	return sim.DialContext, nil
}

func simulatedKey(a config.Account) string { return "sk-simulated-" + a.Name }

// openAccounts makes a client for each account, of the simulator if dial leads there,
// and tells where results may come from.
func (e *engine) openAccounts(dial func(context.Context, string, string) (net.Conn, error)) (sources []string, err error) {
	for _, a := range e.cfg.Accounts {
		remote := a.DashScope()
		if dial != nil {
			remote = dashscope.Config{BaseURL: simulatedBase, APIKey: simulatedKey(a), DialContext: dial}
		}
		remote.Logger, remote.UserAgent = e.log.With("account", a.Name), "danqing/"+version()
		client, err := dashscope.New(remote)
		if err != nil {
			return nil, fmt.Errorf("account %s: %w", a.Name, err)
		}
		lanes := make([]worker.Lane, len(a.Lanes))
		for i, l := range a.Lanes {
			lanes[i] = worker.Lane(l)
		}
		e.accounts = append(e.accounts, worker.Account{
			Name: a.Name, DashScope: client, Lanes: lanes,
			DailyBudgetMicroYuan: a.DailyBudgetMicroYuan, PricesMicroYuan: a.PricesMicroYuan,
		})
		sources = append(sources, client.BaseURL().String())
	}
	return sources, nil
}

// price is what a request costs at most, in millionths of a yuan, where its model is
// dearest among the accounts.
func (e *engine) price(req jobs.Request) int64 {
	model, err := jobs.LookupModel(req.Model)
	if err != nil {
		return 0
	}
	return e.priceOf(model, req.N)
}

func (e *engine) priceOf(model jobs.Model, n int) int64 { return maxPrice(e.accounts, model, n) }

// maxPrice is what n images of a model cost on the account where they cost most.
func maxPrice[A interface {
	Cost(model jobs.Model, images int) (microYuan int64, sold bool)
}](accounts []A, model jobs.Model, n int) int64 {
	var most int64
	for _, account := range accounts {
		cost, _ := account.Cost(model, n)
		most = max(most, cost)
	}
	return most
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

func (e *engine) openBucket(dir *journal.DataDir, simulate bool) (err error) {
	if !simulate && e.cfg.Bucket == "" && e.cfg.RedisURL.IsSet() {
		return usage("set it to a bucket that all workers reach: a folder of one process is not reachable by the others", "REDIS_URL is set and DANQING_S3_BUCKET is not")
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

// A lane's asynq server has some ten loops, each with a connection for a moment, and
// one that listens; go-redis' own bound is ten per processor.
const (
	connections        = 40
	connectionsPerLane = 12
)

func lanes(cfg *config.Config) int {
	n := 0
	for _, a := range cfg.Accounts {
		n += len(a.Lanes)
	}
	return n
}

// ownQueue reports whether the queue is this process's own: no other worker is at it,
// and what it does not know the data directory's journal does.
func (e *engine) ownQueue(simulate bool) bool { return simulate || !e.cfg.RedisURL.IsSet() }

func (e *engine) openQueue(simulate bool) (redis.UniversalClient, error) {
	if !simulate && e.cfg.RedisURL.IsSet() {
		options, err := e.cfg.Redis()
		if err != nil {
			return nil, err
		}
		if options.PoolSize == 0 { // unless the URL says
			options.PoolSize = connections + connectionsPerLane*lanes(e.cfg)
		}
		e.remote = redis.NewClient(options)
		e.closers = append(e.closers, e.remote)
		return e.remote, nil
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
	go func() {
		if e.remote != nil { // say plainly what is wrong before anything depends on it
			if err := reach(ctx, e.remote); err != nil {
				ended <- err
				return
			}
		}
		ended <- work(ctx)
	}()
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
			say("stopping; running tasks are fetched by the next run (again to stop at once)")
			e.worker.Stop()
		}
	}
}
