package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
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
	"github.com/danqing-queue/danqing/worker/metrics"
)

// runtime is a worker with its dependencies: the configured ones, or embedded ones.
type runtime struct {
	cfg      *config.Config
	dataPath string // the data directory
	log      *slog.Logger
	worker   *worker.Worker
	bucket   *storage.Bucket
	redis    redis.UniversalClient
	// localBucket is the embedded bucket, nil if another one is configured.
	localBucket *bucket.Server
	// durable selects the durable embedded queue, which is queue then, nil if a Redis is
	// configured.
	durable bool
	// fail is the trouble that the embedded simulator makes, see makeTrouble.
	fail []string
	// serveURL is the URL at which this process serves images, "" if it does not.
	serveURL string
	// waitForKey makes a worker wait whose keys are all refused, instead of ending.
	waitForKey bool
	// accounts are the configured accounts with their clients.
	accounts []worker.Account
	metrics  *metrics.Metrics
	queue    *queue.Queue
	// remote is the configured Redis, nil if the queue is embedded. address is its name in
	// messages. failover is set if Sentinels name it.
	remote   *redis.Client
	address  string
	failover bool
	closers  []io.Closer
}

// Folders of a data directory beside those of package journal.
const (
	queueFolder  = "queue"   // the durable queue of danqing up
	uploadFolder = "uploads" // temporary
)

// Task times of the embedded simulator. The service takes half a minute for an image, but
// the user of a trial waits.
const (
	minSimulatedTask = 500 * time.Millisecond
	maxSimulatedTask = 2 * time.Second
	// simulatedBase is the base URL of the embedded simulator, over in-process
	// connections only. The host does not exist.
	simulatedBase = "http://dashscope.simulated/api/v1"
)

// openRuntime opens a worker for the configured accounts, with its dependencies. The caller
// must Close it.
func openRuntime(cfg *config.Config, simulate bool, fail []string, log *slog.Logger) (*runtime, error) {
	rt := &runtime{cfg: cfg, log: log, fail: fail}
	if err := rt.open(simulate); err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	return rt, nil
}

func (rt *runtime) open(simulate bool) error {
	var err error
	rt.metrics = newMetrics()
	if rt.dataPath, err = rt.dataDir(simulate); err != nil {
		return err
	}
	dir, err := journal.OpenDataDir(rt.dataPath)
	if err != nil {
		return err
	}
	rt.closers = append(rt.closers, dir)
	var dial func(context.Context, string, string) (net.Conn, error)
	if simulate {
		if dial, err = rt.simulator(dir.SimulatorPath()); err != nil {
			return err
		}
	}
	sources, err := rt.openAccounts(dial)
	if err != nil {
		return err
	}
	if err := rt.openBucket(dir, simulate); err != nil {
		return err
	}
	if rt.redis, err = rt.openQueue(simulate); err != nil {
		return err
	}
	rt.redis.AddHook(rt.metrics.RedisHook())
	rt.metrics.WatchQueue(rt.redis)
	spool, err := storage.OpenSpool(dir.SpoolPath(), storage.SpoolConfig{
		Sources: sources, DialContext: dial, Logger: rt.log,
	})
	if err != nil {
		return err
	}
	var secrets []string
	for _, s := range rt.cfg.Callbacks.Secrets {
		secrets = append(secrets, s.Reveal())
	}
	allow := rt.cfg.Callbacks.Allow
	if simulate {
		allow = append(allow, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
	}
	var alerts []*worker.AlertReceiver
	if rt.remote != nil || rt.durable { // a queue in memory would forget what was told
		alerts = rt.cfg.Alerts
	}
	rt.worker, err = worker.New(worker.Config{
		Redis: rt.redis, Bucket: rt.bucket, Spool: spool, DataDir: dir, Logger: rt.log, Accounts: rt.accounts,
		SubmitLimit: rt.cfg.SubmitLimit, ExclusiveQueue: rt.exclusiveQueue(simulate), Failover: rt.failover,
		CallbackSecrets: secrets, CallbackAllow: allow, ServeURL: cmp.Or(rt.cfg.Serve.URL, rt.serveURL), LocalBucket: rt.localBucket != nil, Metrics: rt.metrics, WaitForKey: rt.waitForKey,
		Alerts: alerts,
	})
	return err
}

// simulator starts the embedded simulator, with a main account for each configured account.
func (rt *runtime) simulator(dir string) (dial func(context.Context, string, string) (net.Conn, error), err error) {
	sim := &simulator.Simulator{
		StateDir: dir, TaskTime: simulator.Between(minSimulatedTask, maxSimulatedTask), Logger: rt.log,
		Keys: map[string]simulator.Key{},
	}
	for _, a := range rt.cfg.Accounts {
		sim.Keys[simulatedKey(a)] = simulator.Key{Account: a.Name}
	}
	if err := makeTrouble(sim, rt.fail); err != nil {
		return nil, err
	}
	if err := sim.Load(); err != nil {
		return nil, fmt.Errorf("simulator: %w", err)
	}
	rt.closers = append(rt.closers, sim)
	return sim.DialContext, nil
}

func simulatedKey(a config.Account) string { return "sk-simulated-" + a.Name }

// openAccounts creates a client for each account, of the simulator if dial is not nil. It
// returns the base URLs, as trusted sources of images.
func (rt *runtime) openAccounts(dial func(context.Context, string, string) (net.Conn, error)) (sources []string, err error) {
	for _, a := range rt.cfg.Accounts {
		remote := a.DashScope()
		if dial != nil {
			remote = dashscope.Config{BaseURL: simulatedBase, APIKey: simulatedKey(a), DialContext: dial}
		}
		remote.Observe = func(op string, status int, took time.Duration) { rt.metrics.Request(a.Name, op, status, took) }
		remote.Logger, remote.UserAgent = rt.log.With("account", a.Name), "danqing/"+version()
		client, err := dashscope.New(remote)
		if err != nil {
			return nil, fmt.Errorf("account %s: %w", a.Name, err)
		}
		lanes := make([]worker.Lane, len(a.Lanes))
		for i, l := range a.Lanes {
			lanes[i] = worker.Lane(l)
		}
		rt.accounts = append(rt.accounts, worker.Account{
			Name: a.Name, DashScope: client, Lanes: lanes,
			DailyBudgetMicroYuan: a.DailyBudgetMicroYuan, PricesMicroYuan: a.PricesMicroYuan,
		})
		sources = append(sources, client.BaseURL().String())
	}
	return sources, nil
}

// priceOf returns the maximum cost of n images of a model among the accounts, in millionths of
// a yuan.
func (rt *runtime) priceOf(model jobs.Model, n int) int64 { return maxPrice(rt.accounts, model, n) }

// maxPrice returns the maximum cost of n images of a model among accounts.
func maxPrice[A interface {
	Cost(model jobs.Model, images int) (microYuan int64, sold bool)
}](accounts []A, model jobs.Model, n int) int64 {
	var highest int64
	for _, account := range accounts {
		cost, _ := account.Cost(model, n)
		highest = max(highest, cost)
	}
	return highest
}

// dataDir returns the data directory. Simulated runs have a separate one, which real runs
// never read.
func (rt *runtime) dataDir(simulate bool) (string, error) {
	if simulate {
		return simulatedDir(rt.cfg.DataDir), rt.cfg.CheckSimulate()
	}
	if err := rt.cfg.CheckReal(); err != nil {
		return "", err
	}
	return rt.cfg.DataDir, nil
}

func (rt *runtime) openBucket(dir *journal.DataDir, simulate bool) (err error) {
	if !simulate && rt.cfg.Bucket == "" && rt.cfg.RedisURL.IsSet() {
		return usageErrorf("set it to a bucket that all workers reach: a folder of one process is not reachable by the others", "REDIS_URL is set and DANQING_S3_BUCKET is not")
	}
	if !simulate && rt.cfg.Bucket != "" {
		settings := rt.cfg.Storage()
		settings.Observe = rt.metrics.BucketRequest
		rt.bucket, err = storage.New(settings)
		return err
	}
	rt.localBucket, err = bucket.Open(bucket.Config{Dir: dir.BucketPath(), Logger: rt.log})
	if err != nil {
		return err
	}
	rt.closers = append(rt.closers, rt.localBucket)
	id, secret := rt.localBucket.Credentials()
	settings := storage.Config{
		KeyTemplate: rt.cfg.KeyTemplate, Bucket: bucket.DefaultBucket, Endpoint: "http://bucket.embedded",
		AccessKeyID: id, SecretAccessKey: secret, HTTPClient: rt.localBucket.HTTPClient(), Observe: rt.metrics.BucketRequest,
	}
	rt.bucket, err = storage.New(settings)
	return err
}

// Sizes of the Redis connection pool. A lane's asynq server has about ten loops, each with a
// connection for a moment, and a subscription. go-redis' default is ten per processor.
const (
	basePoolSize    = 40
	poolSizePerLane = 12
)

func laneCount(cfg *config.Config) int {
	n := 0
	for _, a := range cfg.Accounts {
		n += len(a.Lanes)
	}
	return n
}

// exclusiveQueue reports whether only this process uses the queue. It may start empty; the
// journal in the data directory is then the only record of spending.
func (rt *runtime) exclusiveQueue(simulate bool) bool { return simulate || !rt.cfg.RedisURL.IsSet() }

func (rt *runtime) openQueue(simulate bool) (redis.UniversalClient, error) {
	if !simulate && rt.cfg.RedisURL.IsSet() {
		at, err := rt.cfg.Redis()
		if err != nil {
			return nil, err
		}
		rt.remote, rt.address = at.Client(basePoolSize+poolSizePerLane*laneCount(rt.cfg)), at.Address
		rt.failover = at.Sentinel != nil
		rt.closers = append(rt.closers, rt.remote)
		return rt.remote, nil
	}
	if rt.durable {
		var err error
		rt.queue, err = queue.OpenDir(queue.Config{Dir: filepath.Join(rt.dataPath, queueFolder), Listen: "127.0.0.1:0", Logger: rt.log})
		if err != nil {
			return nil, err
		}
		rt.closers = append(rt.closers, rt.queue)
		return rt.queue.Client(), nil
	}
	embedded := queue.Open()
	rt.closers = append(rt.closers, embedded)
	return embedded.Client(), nil
}

// check fails if Redis or the bucket cannot be reached, or if they, the data directory and
// the accounts' services are not all real or all simulated.
func (rt *runtime) check(ctx context.Context) error {
	if rt.remote != nil {
		if err := ping(ctx, rt.remote, rt.address); err != nil {
			return err
		}
	}
	if err := rt.bucket.Check(ctx); err != nil {
		return err
	}
	return rt.worker.CheckMode(ctx)
}

// Close closes the dependencies, the last opened first.
func (rt *runtime) Close() error {
	var errs []error
	for i := len(rt.closers) - 1; i >= 0; i-- {
		errs = append(errs, rt.closers[i].Close())
	}
	return errors.Join(errs...)
}

// run calls work, which runs the worker, and handles signals: the first one stops the worker
// gracefully, the second one ends everything. It returns errInterrupted if a signal ended
// work.
func (rt *runtime) run(ctx context.Context, signals <-chan os.Signal, say func(string), work func(context.Context) error) error {
	ctx, stopNow := context.WithCancel(ctx)
	defer stopNow()
	ended := make(chan error, 1)
	go func() {
		if rt.remote != nil { // for a clear error before anything uses it
			if err := ping(ctx, rt.remote, rt.address); err != nil {
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
				stopNow()
				continue
			}
			interrupted = true
			say("stopping; running tasks are fetched by the next run (again to stop at once)")
			rt.worker.Stop()
		}
	}
}
