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

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/journal"
)

// Config says what a worker works on. All of the first group is required.
type Config struct {
	Redis   redis.UniversalClient
	Bucket  *storage.Bucket
	Spool   *storage.Spool
	DataDir *journal.DataDir
	// Accounts are the main accounts and their lanes, which draw from the same
	// queues; at least one.
	Accounts []Account

	// StoreConcurrency is how many jobs' images are copied at once; 0 is 8.
	StoreConcurrency int
	// QueueInterval is how often an idle lane or store looks for work, and a
	// fifth of how often delayed work is looked for; 0 is 200 ms. With a backlog
	// the next job is drawn at once.
	QueueInterval time.Duration
	// SubmitLimit is how long after a create was sent the service may still make a task
	// of it; 0 is 300 s, the service's own limit, and less is used against a simulator
	// alone.
	SubmitLimit time.Duration
	// OwnQueue says that no other worker is at this Redis, which may begin empty: all
	// that was spent the data directory's journal knows.
	ExclusiveQueue bool
	// CallbackSecrets sign callbacks: each is one that [webhook.ValidSecret] accepts.
	// While they are rotated there are several, and a callback bears the signatures of
	// all. Without any, callbacks are not sent, and say so.
	CallbackSecrets []string
	// CallbackAllow are addresses that may be called back although they are not public.
	CallbackAllow []netip.Prefix
	// DialCallback opens the connections of callbacks; nil is [storage.PublicDialer] of
	// CallbackAllow.
	DialCallback func(ctx context.Context, network, address string) (net.Conn, error)
	// ServeURL is the base URL, of http or https, of a `danqing serve` on this queue:
	// links to images lead there and live as long as the images, unless the bucket's own
	// do. "" is none.
	ServeURL string
	// LocalBucket says that nobody outside this process reaches the bucket: events then
	// have links by ServeURL alone.
	LocalBucket bool
	// Logger gets the operator's timeline; nil discards it.
	Logger *slog.Logger
}

const (
	defaultStoreConcurrency = 8
	// asynq's own second would let the slot idle for half of it, on average,
	// when a job arrives; this costs Redis a handful of commands a second.
	defaultQueueInterval = 200 * time.Millisecond
	delayedFactor        = 5
)

// Worker runs the lanes of its accounts, a store server and a notify server. See the package
// comment.
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
	// remembers is what Redis was known by when it was told last what this worker knows.
	knownDataset string
	// forgot says that Redis was known by something else before.
	dataLossSeen bool
	// durability is how Redis keeps what it was told.
	durability redishealth.Durability
	// simulated is what the services said of themselves, once known.
	simulated, known bool

	// refused has when the reference image of a job, by its ID, was first refused
	// for a reason that did not look final.
	referenceRefusedAt sync.Map

	replayMu sync.Mutex // one at a time tells Redis

	stop     sync.Once
	stopping chan struct{}
}

// New checks the configuration. It dials nothing.
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
	w := &Worker{cfg: cfg, log: cfg.Logger, jobs: jobs.NewStore(cfg.Redis), ledger: ledger.New(cfg.Redis), stopping: make(chan struct{})}
	w.store = &deliveryServer{Worker: w}
	var err error
	if w.notify, err = newNotify(w); err != nil {
		return nil, err
	}
	if err := w.newAccounts(cfg.Accounts); err != nil {
		return nil, err
	}
	return w, nil
}

// Simulated reports whether the services called themselves a simulator. It is
// known after [Worker.Prepare].
func (w *Worker) Simulated() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.simulated
}

// Unfinished reports whether the journal knows of anything paid for, by this or
// an earlier run, that is neither in the bucket nor held, or has images yet to keep
// of what is held. It notes what other workers have finished meanwhile.
func (w *Worker) Unfinished(ctx context.Context) bool {
	return w.unfinished(ctx, "") > 0 || w.quarantinePending(ctx) > 0
}

// unfinished counts the jobs in the journal whose last entry is of a kind, "" for
// any, and that are not over, after noting which of them others have finished.
// What is held waits for a person, and what another account owns for its return.
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

// toBeStored counts the jobs of this worker whose images are not in the bucket, if
// they are more than limit; below that it does not look who has stored them.
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

// Prepare asks the services who they are and merges the journal into the records.
// It spends nothing. It waits, and says so, while no service can be reached or Redis
// cannot be written, and fails if every key is refused, with [ErrGateway], [ErrMixed], [ErrSameAccount]
// or [ErrStopped]. An account that is not usable yet does not hold up the others.
// [Worker.Run] calls it if the caller did not.
func (w *Worker) Prepare(ctx context.Context) error {
	if w.prepared {
		return nil
	}
	if err := w.probeAll(ctx); err != nil {
		return err
	}
	for away := (&backoff{first: time.Second, most: 10 * time.Second}); ; {
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
		wait := away.next()
		w.log.Warn(redisAway+", trying again", "err", err, "wait", wait)
		if err := w.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// passes reports whether an error of Redis, or of the way to it, may be over later: Redis
// is full, starts, fails over or does not answer.
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

// Stop asks [Worker.Run] to end gracefully: no further submit, what is being
// submitted is recorded, what is ready is stored. A task that is running at
// DashScope is left there; the next run finds it in the journal.
func (w *Worker) Stop() { w.stop.Do(func() { close(w.stopping) }) }

// Run works until [Worker.Stop] and a graceful end, or until ctx ends, which cuts
// everything short but a create that is on its way: that gets two seconds more.
// It returns nil after a stop. It can be called once.
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
	defer func() { // each waits a second or two for its loops
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

// ErrStopped ends every wait of a worker that is told to stop.
var ErrStopped = errors.New("the worker is stopping")

// Stopped reports whether the worker was told to stop.
func (w *Worker) Stopped() bool {
	select {
	case <-w.stopping:
		return true
	default:
		return false
	}
}

// sleep waits for d, or fails with ErrStopped or the cause of ctx.
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

// ErrSimulated means that the bucket holds a simulated job under an ID that a
// real run wants.
var ErrSimulated = errors.New("the bucket holds a simulated job of this ID: use another prefix or bucket for real images")

// Finished returns a job that is over, as its sidecar tells it, nil if it is not
// over, and an error if that cannot be told: then nothing may be spent. It fails
// with [jobs.ErrDigestConflict] if the ID belongs to another request and with
// [ErrSimulated] if it is taken by a simulated job.
func (w *Worker) Finished(ctx context.Context, jobID, digest string) (*jobs.Record, error) {
	sidecar, err := w.cfg.Bucket.Sidecar(ctx, jobID)
	if errors.Is(err, storage.ErrNotExist) {
		return nil, nil //nolint:nilnil // "not over" is an answer, not a failure
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

// swap writes a record, repeating while Redis does not answer: what it says has
// happened, and the slot cannot be used meanwhile.
func (w *Worker) updateRecord(ctx context.Context, old, next *jobs.Record) error {
	var refused error // by a Redis that answers
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

// journal appends an entry after the fact: the journal is then behind the truth
// by one step, which the next start sees as less than happened and never as more.
//
// What another worker has stored goes out of the own spool.
func (w *Worker) journal(kind journal.Kind, rec *jobs.Record) {
	if last, ok := w.cfg.DataDir.Journal.OpenJob(rec.ID); ok && kind == journal.KindFinished && last.Record != nil {
		defer w.store.discardSpool(last.Record, rec)
	}
	if err := w.cfg.DataDir.Journal.Append(kind, rec); err != nil {
		w.log.Error("journal not written", "job_id", rec.ID, "kind", string(kind), "err", err)
	}
}

// backoff is a doubling wait. It is safe for concurrent use.
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

// sentence joins what happened and what a person can do.
func withHint(what, remedy string) string {
	if remedy == "" {
		return what
	}
	return what + " (" + remedy + ")"
}
