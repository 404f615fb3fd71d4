package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/internal/account"
	"github.com/danqing-queue/danqing/worker/internal/delivery"
	"github.com/danqing-queue/danqing/worker/internal/lane"
	"github.com/danqing-queue/danqing/worker/internal/lease"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/notify"
	"github.com/danqing-queue/danqing/worker/internal/quarantine"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/internal/watch"
	"github.com/danqing-queue/danqing/worker/journal"
	"github.com/danqing-queue/danqing/worker/metrics"
)

// Config configures a worker. The fields of the first group are required.
type Config struct {
	Redis   redis.UniversalClient
	Bucket  *storage.Bucket
	Spool   *storage.Spool
	DataDir *journal.DataDir
	// Accounts are the main accounts and their lanes, at least one. All lanes draw from the
	// same queues.
	Accounts []Account

	// StoreConcurrency is the number of jobs whose images are copied concurrently; 0 is 8.
	StoreConcurrency int
	// QueueInterval is the polling interval of an idle server whose version of asynq is not
	// recognized; others start at once on a message that Danqing has enqueued. Delayed
	// messages are polled at five times this interval, and those of other programs at this
	// interval, or every second if that is longer. 0 is 200 ms.
	QueueInterval time.Duration
	// SubmitLimit is how long after its intent a create may still make a
	// task. 0 is 330 s: the service's own limit of 300 s and 30 s for sending the request.
	// Lower values apply to a simulator only.
	SubmitLimit time.Duration
	// ExclusiveQueue is set when no other worker uses this Redis. It may start empty; the
	// journal is then the only record of spending.
	ExclusiveQueue bool
	// Failover is set when a replica may take the place of Redis, as with Sentinels. A lane
	// then works while a replica acknowledges its lease, which an old primary that was cut off
	// no longer has: without that, two workers might buy the same job.
	Failover bool
	// CallbackSecrets sign callbacks. Each must be accepted by [webhook.ValidSecret]. With
	// several secrets, as during a rotation, a callback carries one signature per secret.
	// Without a secret, callbacks are not sent and are logged as failed.
	CallbackSecrets []string
	// CallbackAllow lists non-public addresses that callbacks may be sent to.
	CallbackAllow []netip.Prefix
	// Alerts are where alerts are sent; none sends none.
	Alerts []*AlertReceiver
	// DialAlert dials their connections. nil is the network, by a proxy if one is configured.
	DialAlert func(ctx context.Context, network, address string) (net.Conn, error)
	// DialCallback dials callback connections. nil is [storage.PublicDialer] with
	// CallbackAllow.
	DialCallback func(ctx context.Context, network, address string) (net.Conn, error)
	// ServeURL is the base URL (http or https) of a `danqing serve` on this queue. Image
	// links use it and are valid as long as the images, unless the bucket has links of its
	// own. "" disables such links.
	ServeURL string
	// LocalBucket is set when the bucket is reachable from this process only. Event links
	// are then made from ServeURL alone.
	LocalBucket bool
	// WaitForKey makes [Worker.Prepare] wait while every key is refused, which it otherwise
	// fails with.
	WaitForKey bool
	// Metrics counts what the worker does; nil counts nothing that can be read.
	Metrics *metrics.Metrics
	// Logger receives the log; nil discards it.
	Logger *slog.Logger
}

const (
	defaultStoreConcurrency = 8
	// asynq's default of 1 s would leave the slot idle for 0.5 s on average when a job
	// arrives.
	defaultQueueInterval = 200 * time.Millisecond
	// announceInterval is how often a worker announces itself: far below
	// [jobs.WorkerLifetime], after which it is forgotten.
	announceInterval = 10 * time.Minute
	// deadlineInterval is how often a worker ends overdue jobs.
	deadlineInterval = 5 * time.Second
	// storeBacklog is the number of jobs per store worker that may wait for their images.
	storeBacklog = 8
)

// Worker runs the lanes of its accounts, a store server and a notification server. See the
// package documentation.
type Worker struct {
	cfg      Config
	log      *slog.Logger
	accounts *account.Set
	recorder *recorder.Recorder
	dataset  *lease.Dataset
	recovery *recovery
	watcher  *watch.Watcher
	leases   *lease.Leases
	store    *delivery.Server
	notify   *notify.Server
	lanes    []lane.Config
	prepared atomic.Bool // Prepare has returned without an error
	// laneStates has the status of each lane that this worker holds, by account and model.
	laneStates sync.Map
	claimed    bool // see claimModes
	// referenceRefusedAt is lane.Config.ReferenceRefusedAt of all lanes.
	referenceRefusedAt sync.Map

	stopping context.Context //nolint:containedctx // ends at Stop
	stop     context.CancelCauseFunc
}

// New validates the configuration and returns a worker. It makes no connection.
func New(cfg Config) (*Worker, error) {
	if cfg.Redis == nil || cfg.Bucket == nil || cfg.Spool == nil || cfg.DataDir == nil || len(cfg.Accounts) == 0 {
		return nil, errors.New("worker: Redis, Bucket, Spool, DataDir and Accounts are all required")
	}
	if u, err := url.Parse(cfg.ServeURL); cfg.ServeURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "") {
		return nil, fmt.Errorf("worker: ServeURL %q: must be an http or https URL without a query, as in https://danqing.example.com", cfg.ServeURL)
	}
	cfg.ServeURL = strings.TrimRight(cfg.ServeURL, "/")
	cfg.StoreConcurrency = cmp.Or(cfg.StoreConcurrency, defaultStoreConcurrency)
	cfg.QueueInterval = cmp.Or(cfg.QueueInterval, defaultQueueInterval)
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.New("")
	}
	if cfg.DialCallback == nil {
		cfg.DialCallback = storage.PublicDialer(cfg.CallbackAllow)
	}
	w := &Worker{cfg: cfg, log: cfg.Logger, accounts: &account.Set{Log: cfg.Logger, WaitForKey: cfg.WaitForKey}, watcher: watch.New(cfg.Redis, cfg.QueueInterval)}
	w.leases = lease.NewLeases(cfg.Redis, cfg.DataDir.WorkerID, cfg.Failover)
	w.stopping, w.stop = context.WithCancelCause(context.Background())
	store := jobs.NewStore(cfg.Redis)
	w.recorder = &recorder.Recorder{
		Redis: cfg.Redis, Store: store, Ledger: ledger.New(cfg.Redis), Data: cfg.DataDir, Bucket: cfg.Bucket, Spool: cfg.Spool,
		Log: cfg.Logger, ServeURL: cfg.ServeURL, Metrics: cfg.Metrics, Stopping: w.stopping, Simulated: w.Simulated,
	}
	w.recovery = &recovery{
		recorder: w.recorder, accounts: w.accounts,
		quarantine: &quarantine.List{Redis: cfg.Redis, Store: store, Log: cfg.Logger}, exclusive: cfg.ExclusiveQueue,
	}
	if at := cfg.DataDir.JournalLostAt(); time.Since(at) < journal.TaskRetention {
		w.log.Error("journal was lost: for a day, one job is held for each task that belongs to no known job", "path", cfg.DataDir.Path)
	}
	w.dataset = lease.NewDataset(cfg.Redis, cfg.DataDir, cfg.Logger, cfg.ExclusiveQueue, w.replay)
	w.store = delivery.New(delivery.Config{
		Recorder: w.recorder, Accounts: w.accounts, Concurrency: cfg.StoreConcurrency, Watcher: w.watcher, Log: cfg.Logger,
	})
	var err error
	if w.notify, err = notify.New(notify.Config{
		Redis: cfg.Redis, Store: store, Bucket: cfg.Bucket, ServeURL: cfg.ServeURL, LocalBucket: cfg.LocalBucket, Secrets: cfg.CallbackSecrets, Dial: cfg.DialCallback,
		Receivers: cfg.Alerts, DialAlert: cfg.DialAlert,
		Watcher: w.watcher, Metrics: cfg.Metrics, Log: cfg.Logger,
	}); err != nil {
		return nil, err
	}
	return w, w.newAccounts(cfg.Accounts)
}

// Simulated reports whether the services are simulators. It is valid after
// [Worker.Prepare].
func (w *Worker) Simulated() bool { return w.accounts.Simulated() }

// Unfinished reports whether work is left: a paid job in the journal, of this or an earlier
// run, that is neither stored nor held, or a quarantined task whose images are not stored
// yet. It first journals jobs that other workers have finished.
func (w *Worker) Unfinished(ctx context.Context) bool {
	if w.recovery.unfinished(ctx, "") > 0 {
		return true
	}
	for _, l := range w.lanes {
		if n, err := w.recovery.quarantine.Unstored(ctx, l.Account.Name, l.Model.Name); err == nil && n > 0 {
			return true
		}
	}
	return false
}

// Prepare probes the accounts and merges the journal into the records. It spends nothing.
// Redis, the bucket's prefix and the data directory are real or simulated from then on.
// While no service is reachable or Redis is not writable it logs a warning and retries. It
// fails if every key is refused, and with a [*ModeError], [ErrGateway], [ErrMixed],
// [ErrSameAccount] or [ErrStopped]. An account that is not usable yet does not delay the others. If ctx ends
// first, the worker is stopped. [Worker.Run] calls Prepare if the caller did not.
func (w *Worker) Prepare(ctx context.Context) error {
	if w.prepared.Load() {
		return nil
	}
	defer context.AfterFunc(ctx, w.Stop)() // ends the repetition of writes, too
	ctx, release := w.UntilStop(ctx)
	defer release()
	err := w.prepare(ctx)
	w.prepared.Store(err == nil)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (w *Worker) prepare(ctx context.Context) error {
	found, err := w.probe(ctx)
	if err != nil {
		return err
	}
	for retry := (&loop.Backoff{First: time.Second, Most: 10 * time.Second}); ; found = w.modes(ctx) {
		err := w.claimModes(ctx, found)
		if err == nil {
			_, err = w.dataset.Sync(ctx)
		}
		if err == nil {
			err = w.addDrainLanes(ctx)
		}
		if err == nil || !loop.IsTransient(err) {
			return err
		}
		wait := retry.Next()
		loop.WarnRedis(w.log, err, "wait", wait)
		if err := loop.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// probe probes the accounts, and reads the modes of the places meanwhile.
func (w *Worker) probe(ctx context.Context) (placeModes, error) {
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan placeModes, 1)
	go func() { found <- w.modes(reading) }()
	err := w.accounts.ProbeAll(ctx)
	if err != nil {
		cancel()
	}
	return <-found, err
}

// Stop begins a graceful shutdown of [Worker.Run]: no further submit, a create in progress
// is recorded, downloaded images are stored. A task that is running at DashScope is left
// there; the next run resumes it from the journal.
func (w *Worker) Stop() { w.stop(ErrStopped) }

// Stopped reports whether [Worker.Stop] was called.
func (w *Worker) Stopped() bool { return w.stopping.Err() != nil }

// UntilStop returns a context that ends with ctx and at [Worker.Stop], with ErrStopped. The
// caller must release it.
func (w *Worker) UntilStop(ctx context.Context) (until context.Context, release func()) {
	until, cancel := context.WithCancelCause(ctx)
	unlink := context.AfterFunc(w.stopping, func() { cancel(context.Cause(w.stopping)) })
	return until, func() { unlink(); cancel(nil) }
}

// Run works until [Worker.Stop] and returns nil after a graceful shutdown. If ctx ends, it
// shuts down at once; a create in progress gets two more seconds. It ends with a
// [*ModeError] if Redis has lost its data and got jobs of the other mode. Run may be called
// once.
func (w *Worker) Run(ctx context.Context) error {
	if err := w.Prepare(ctx); err != nil {
		if errors.Is(err, ErrStopped) {
			return nil
		}
		return err
	}
	defer context.AfterFunc(ctx, w.Stop)()
	stopping, release := w.UntilStop(ctx)
	defer release()
	defer w.watcher.Start(context.WithoutCancel(ctx))() // until the servers have stopped
	defer w.leases.Start(context.WithoutCancel(ctx))()
	if err := w.notify.Start(stopping); err != nil {
		return err
	}
	if err := w.store.Start(); err != nil {
		w.notify.Shutdown()
		return err
	}
	defer func() { // each takes a second or two to end its loops
		var group sync.WaitGroup
		group.Go(w.notify.Shutdown)
		group.Go(w.store.Shutdown)
		group.Wait()
	}()
	janitor := &janitor{recorder: w.recorder, accounts: w.accounts, recovery: w.recovery, models: w.models()}
	defer loop.Every(stopping, janitorInterval, janitor.run)()
	defer loop.Every(stopping, lease.DatasetInterval, w.watchDataset())()
	defer loop.Every(stopping, deadlineInterval, w.expireOverdue)()
	defer loop.Every(stopping, announceInterval, w.announce)()
	defer startAlertRounds(stopping, w.cfg.Redis, w.cfg.Alerts, w.log)()
	if err := w.runLanes(stopping, ctx); err != nil {
		return err
	}
	watch.Drain(ctx, w.cfg.Redis, jobs.QueueStore)
	if w.cfg.ExclusiveQueue { // otherwise other workers, or the next one, continue
		w.notify.Finish(ctx)
	}
	if wrong := (*ModeError)(nil); errors.As(context.Cause(w.stopping), &wrong) {
		return wrong
	}
	return nil
}

// runLanes runs every lane until the worker stops.
func (w *Worker) runLanes(ctx, hard context.Context) error {
	errs := make([]error, len(w.lanes))
	var group sync.WaitGroup
	for i, cfg := range w.lanes {
		group.Go(func() { errs[i] = lane.Run(ctx, hard, cfg) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// ErrStopped is the error of what [Worker.Stop] has ended.
var ErrStopped = loop.ErrStopped

// ErrSimulated means that the bucket holds a simulated job with the ID of a real job.
var ErrSimulated = recorder.ErrSimulated

// Finished returns the record of a finished job, read from its sidecar, or nil if the job
// has none. After an error it is unknown whether the job is finished, and nothing may be
// spent on it. It fails with [jobs.ErrDigestConflict] if the ID belongs to another request
// and with [ErrSimulated] if it belongs to a simulated job.
func (w *Worker) Finished(ctx context.Context, jobID, digest string) (*jobs.Record, error) {
	return w.recorder.Finished(ctx, jobID, digest)
}

// RecordOf rebuilds a job's record from its sidecar. It lacks the links, which have
// expired, and what only the queue stores. It fails with [storage.ErrUnreadable] if the
// request is corrupt.
func RecordOf(side *storage.Sidecar) (*jobs.Record, error) { return recorder.RecordOf(side) }

// expireOverdue ends the jobs whose deadline has passed, whether or not a lane is open.
func (w *Worker) expireOverdue(ctx context.Context) {
	loop.WarnFailed(ctx, w.log, w.recorder.Store.ExpireOverdue(ctx), "overdue jobs not ended, retrying")
}

// announce tells those who accept jobs what this worker works on.
func (w *Worker) announce(ctx context.Context) {
	status := jobs.WorkerStatus{Callbacks: len(w.cfg.CallbackSecrets) > 0, CallbackAllow: w.cfg.CallbackAllow}
	for _, l := range w.lanes {
		if !l.DrainOnly {
			status.Models = append(status.Models, l.Model.Name)
		}
	}
	err := w.recorder.Store.AnnounceWorker(ctx, w.cfg.DataDir.WorkerID, status)
	loop.WarnFailed(ctx, w.log, err, "worker not announced, retrying")
}

// watchDataset returns what replays to Redis if it may have lost data. The first time it does
// nothing: Prepare has just done it.
func (w *Worker) watchDataset() func(context.Context) {
	prepared := false
	return func(ctx context.Context) {
		if prepared {
			w.syncDataset(ctx)
		}
		prepared = true
	}
}

func (w *Worker) syncDataset(ctx context.Context) {
	_, err := w.dataset.Sync(ctx)
	if err == nil && !w.claimed {
		err = w.claimModes(ctx, w.modes(ctx))
	}
	if err == nil {
		err = w.recordKeyIDs(ctx)
	}
	if errors.As(err, new(*ModeError)) {
		w.stop(fmt.Errorf("%w: %w", ErrStopped, err))
	} else if err != nil && ctx.Err() == nil {
		loop.WarnRedis(w.log, err)
	}
}

// replay writes this worker's data directory to a Redis that may have lost data. It also
// registers the queues.
func (w *Worker) replay(ctx context.Context) error {
	if err := w.claimRedis(ctx); err != nil {
		return err
	}
	if err := w.recovery.replayDataDir(ctx); err != nil {
		return err
	}
	if err := w.recorder.Store.RegisterQueues(ctx, w.models()); err != nil {
		return err
	}
	w.announce(ctx)
	return w.recordKeyIDs(ctx)
}

// recordKeyIDs copies the api_key_ids of the configured accounts' keys from Redis to the
// journal: if Redis loses them, their tasks are still recognized.
func (w *Worker) recordKeyIDs(ctx context.Context) error {
	journal := w.cfg.DataDir.Journal
	for _, a := range w.accounts.All {
		fingerprint := a.Client.KeyFingerprint()
		if journal.KeyID(fingerprint) != "" {
			continue
		}
		id, err := w.recorder.Store.KeyID(ctx, fingerprint)
		if err == nil && id != "" {
			err = journal.SetKeyID(fingerprint, id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *Worker) models() []string {
	models := make([]string, len(w.lanes))
	for i, lane := range w.lanes {
		models[i] = lane.Model.Name
	}
	return models
}

// submitLimit is how long after its intent a create may still make a task. A limit below
// the service's own is used with a simulator only, whose timing is known.
func (w *Worker) submitLimit() time.Duration {
	if w.cfg.SubmitLimit > 0 && w.Simulated() {
		return w.cfg.SubmitLimit
	}
	return max(w.cfg.SubmitLimit, reconcile.SubmitLimit)
}
