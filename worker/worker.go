package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/semaphore"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/journal"
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
	// QueueInterval is the polling interval of an idle lane or store server. Delayed
	// messages are polled at five times this interval. 0 is 200 ms. With a backlog the next
	// job is drawn at once.
	QueueInterval time.Duration
	// SubmitLimit is how long after its intent a create may still make a
	// task. 0 is 330 s: the service's own limit of 300 s and 30 s for sending the request.
	// Lower values apply to a simulator only.
	SubmitLimit time.Duration
	// ExclusiveQueue is set when no other worker uses this Redis. It may start empty; the
	// journal is then the only record of spending.
	ExclusiveQueue bool
	// CallbackSecrets sign callbacks. Each must be accepted by [webhook.ValidSecret]. With
	// several secrets, as during a rotation, a callback carries one signature per secret.
	// Without a secret, callbacks are not sent and are logged as failed.
	CallbackSecrets []string
	// CallbackAllow lists non-public addresses that callbacks may be sent to.
	CallbackAllow []netip.Prefix
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
	// Logger receives the log; nil discards it.
	Logger *slog.Logger
}

const (
	defaultStoreConcurrency = 8
	// asynq's default of 1 s would leave the slot idle for 0.5 s on average when a job
	// arrives. 200 ms costs Redis a handful of commands per second.
	defaultQueueInterval = 200 * time.Millisecond
	delayedFactor        = 5
	// asynqJanitorInterval is how often asynq deletes the messages of jobs that ended a
	// week ago. Its default of 8 s would be most of an idle worker's Redis commands.
	asynqJanitorInterval = 10 * time.Minute
)

// Worker runs the lanes of its accounts, a store server and a notification server. See the
// package documentation.
type Worker struct {
	cfg      Config
	log      *slog.Logger
	jobs     *jobs.Store
	ledger   *ledger.Ledger
	store    *deliveryServer
	notify   *notificationServer
	accounts []*account
	lanes    []laneSpec
	prepared bool

	mu sync.Mutex
	// knownDataset is the ID of the Redis dataset that this worker's journal was last
	// replayed into.
	knownDataset string
	// dataLossSeen is set once the dataset ID has differed from an earlier one.
	dataLossSeen bool
	// durability is how durably Redis stores writes.
	durability redishealth.Durability
	// simulated reports whether the services are simulators; it is valid once known is set.
	simulated, known bool

	// referenceRefusedAt maps a job ID to the time.Time at which its reference image was
	// first refused with an error that may be temporary.
	referenceRefusedAt sync.Map

	replaying *semaphore.Weighted // held while replaying to Redis: one replay at a time

	stop     sync.Once
	stopping chan struct{}
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
	if cfg.StoreConcurrency == 0 {
		cfg.StoreConcurrency = defaultStoreConcurrency
	}
	if cfg.QueueInterval == 0 {
		cfg.QueueInterval = defaultQueueInterval
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Worker{
		cfg: cfg, log: cfg.Logger, jobs: jobs.NewStore(cfg.Redis), ledger: ledger.New(cfg.Redis),
		replaying: semaphore.NewWeighted(1), stopping: make(chan struct{}),
	}
	w.store = &deliveryServer{Worker: w, memoryFetch: semaphore.NewWeighted(1)}
	var err error
	if w.notify, err = newNotify(w); err != nil {
		return nil, err
	}
	if err := w.newAccounts(cfg.Accounts); err != nil {
		return nil, err
	}
	return w, nil
}

// Simulated reports whether the services are simulators. It is valid after
// [Worker.Prepare].
func (w *Worker) Simulated() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.simulated
}

// Unfinished reports whether work is left: a paid job in the journal, of this or an earlier
// run, that is neither stored nor held, or a quarantined task whose images are not stored
// yet. It first journals jobs that other workers have finished.
func (w *Worker) Unfinished(ctx context.Context) bool {
	return w.unfinished(ctx, "") > 0 || w.quarantinePending(ctx) > 0
}

// unfinished returns the number of unfinished jobs whose last journal entry is of the given
// kind; "" is any kind. It first journals jobs that other workers have finished. Jobs that
// are held, and jobs of accounts that are not configured, are not counted.
func (w *Worker) unfinished(ctx context.Context, kind journal.Kind) int {
	n := 0
	for _, e := range w.cfg.DataDir.Journal.OpenJobs() {
		if kind != "" && e.Kind != kind || e.Record.State == jobs.StateHeld || w.accountNamed(e.Record.Account) == nil {
			continue
		}
		rec, err := w.jobs.Get(ctx, e.JobID)
		switch {
		case err == nil && rec.State.Final():
			w.journal(journal.KindFinished, rec)
		case err == nil && rec.State == jobs.StateHeld && !isBehind(rec, e.Record, e.At):
			w.journal(journal.KindHeld, rec)
		default:
			n++
		}
	}
	return n
}

// storeBacklogSize returns the number of jobs of this worker whose images are not in the
// bucket. Up to limit it counts journal entries only; above limit it checks which of the
// jobs other workers have stored.
func (w *Worker) storeBacklogSize(ctx context.Context, limit int) int {
	n := 0
	for _, e := range w.cfg.DataDir.Journal.OpenJobs() {
		if e.Kind == journal.KindResults {
			n++
		}
	}
	if n > limit {
		n = w.unfinished(ctx, journal.KindResults)
	}
	return n
}

// Prepare probes the accounts and merges the journal into the records. It spends nothing.
// While no service is reachable or Redis is not writable it logs a warning and retries. It
// fails if every key is refused, and with [ErrGateway], [ErrMixed], [ErrSameAccount] or
// [ErrStopped]. An account that is not usable yet does not delay the others. [Worker.Run]
// calls Prepare if the caller did not.
func (w *Worker) Prepare(ctx context.Context) error {
	if w.prepared {
		return nil
	}
	if err := w.probeAll(ctx); err != nil {
		return err
	}
	for retry := (&backoff{first: time.Second, most: 10 * time.Second}); ; {
		_, err := w.syncDataset(ctx)
		if err == nil {
			err = w.addDrainLanes(ctx)
		}
		if err == nil {
			w.prepared = true
			return nil
		}
		if !isTransient(err) {
			return err
		}
		wait := retry.next()
		w.log.Warn(redisUnavailable+", trying again", "err", err, "wait", wait)
		if err := w.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// isTransient reports whether a Redis or connection error may be temporary: Redis is full,
// loading, failing over or unreachable.
func isTransient(err error) bool {
	if answer := redis.Error(nil); !errors.As(err, &answer) {
		return errors.As(err, new(net.Error)) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, redis.ErrPoolTimeout)
	}
	for _, may := range []func(error) bool{
		redis.IsOOMError, redis.IsLoadingError, redis.IsReadOnlyError, redis.IsClusterDownError,
		redis.IsTryAgainError, redis.IsMasterDownError, redis.IsMaxClientsError, redis.IsNoReplicasError,
	} {
		if may(err) {
			return true
		}
	}
	return redis.HasErrorPrefix(err, "MISCONF") || redis.HasErrorPrefix(err, "BUSY")
}

// Stop begins a graceful shutdown of [Worker.Run]: no further submit, a create in progress
// is recorded, downloaded images are stored. A task that is running at DashScope is left
// there; the next run resumes it from the journal.
func (w *Worker) Stop() { w.stop.Do(func() { close(w.stopping) }) }

// Run works until [Worker.Stop] and returns nil after a graceful shutdown. If ctx ends, it
// shuts down at once; a create in progress gets two more seconds. Run may be called once.
func (w *Worker) Run(ctx context.Context) error {
	if err := w.Prepare(ctx); err != nil {
		if errors.Is(err, ErrStopped) {
			return nil
		}
		return err
	}
	quick := context.AfterFunc(ctx, w.Stop)
	defer quick()
	if err := w.notify.start(); err != nil {
		return err
	}
	stores, err := w.store.start()
	if err != nil {
		w.notify.shutdown()
		return err
	}
	defer func() { // each takes a second or two to end its loops
		var group sync.WaitGroup
		group.Go(w.notify.shutdown)
		group.Go(stores.shutdown)
		group.Wait()
	}()
	defer w.notify.pollDue(ctx)()
	defer w.runJanitor(ctx)()
	defer w.watchDataset(ctx)()
	if err := w.runLanes(ctx); err != nil {
		return err
	}
	w.drain(ctx, jobs.QueueStore)
	w.notify.finish(ctx)
	return nil
}

// ErrStopped ends every wait of a worker that is shutting down.
var ErrStopped = errors.New("the worker is stopping")

// Stopped reports whether [Worker.Stop] was called.
func (w *Worker) Stopped() bool {
	select {
	case <-w.stopping:
		return true
	default:
		return false
	}
}

// sleep waits for d. It fails with ErrStopped or the cause of ctx.
func (w *Worker) sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-w.stopping:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ErrSimulated means that the bucket holds a simulated job with the ID of a real job.
var ErrSimulated = errors.New("the bucket holds a simulated job with this ID: use another prefix or bucket for real images")

// Finished returns the record of a finished job, read from its sidecar, or nil if the job
// has none. After an error it is unknown whether the job is finished, and nothing may be
// spent on it. It fails with [jobs.ErrDigestConflict] if the ID belongs to another request
// and with [ErrSimulated] if it belongs to a simulated job.
func (w *Worker) Finished(ctx context.Context, jobID, digest string) (*jobs.Record, error) {
	sidecar, err := w.cfg.Bucket.Sidecar(ctx, jobID)
	if errors.Is(err, storage.ErrNotExist) {
		return nil, nil //nolint:nilnil // "not finished" is an answer, not a failure
	}
	if err != nil {
		return nil, err
	}
	if sidecar.Digest != digest {
		return nil, fmt.Errorf("job %s: %w", jobID, jobs.ErrDigestConflict)
	}
	if sidecar.Simulated && !w.Simulated() {
		return nil, fmt.Errorf("job %s: %w", jobID, ErrSimulated)
	}
	return RecordOf(sidecar)
}

// updateRecord writes a record and retries while Redis is unavailable: the change has
// already happened, and the slot cannot be reused before it is recorded.
func (w *Worker) updateRecord(ctx context.Context, old, next *jobs.Record) error {
	var refused error // a conflict or an owned task, which are not retried
	write := rand.Text()
	err := w.retryRedis(ctx, next.ID, func(ctx context.Context) error {
		err := w.jobs.UpdateOnce(ctx, write, old, next)
		if errors.Is(err, jobs.ErrConflict) || errors.As(err, new(*jobs.TaskOwnedError)) {
			refused, err = err, nil
		}
		return err
	})
	return cmp.Or(err, refused)
}

// journal appends an entry for a step that is done. If the append fails, the journal lacks
// that step: the next start then assumes less progress, never more.
//
// For a job that another worker has stored, it also discards this worker's spool files.
func (w *Worker) journal(kind journal.Kind, rec *jobs.Record) {
	if last, ok := w.cfg.DataDir.Journal.OpenJob(rec.ID); ok && kind == journal.KindFinished && last.Record != nil {
		defer w.store.discardSpool(last.Record, rec)
	}
	if err := w.cfg.DataDir.Journal.Append(kind, rec); err != nil {
		w.log.Error("journal not written", "job_id", rec.ID, "kind", string(kind), "err", err)
	}
}

// backoff is an exponential backoff that doubles from first to most. It is safe for
// concurrent use.
type backoff struct {
	first, most time.Duration

	mu   sync.Mutex
	last time.Duration
}

func (b *backoff) next() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = min(max(2*b.last, b.first), b.most)
	return b.last
}

func (b *backoff) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = 0
}

// withHint appends what an operator can do to an error message.
func withHint(what, remedy string) string {
	if remedy == "" {
		return what
	}
	return what + " (" + remedy + ")"
}
