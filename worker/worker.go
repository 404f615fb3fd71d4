package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Config says what a worker works on. All of the first group is required.
type Config struct {
	Redis     redis.UniversalClient
	DashScope *dashscope.Client
	Bucket    *storage.Bucket
	Spool     *storage.Spool
	DataDir   *DataDir

	// Account names the Alibaba main account in records and sidecars; "" is
	// "default".
	Account string
	// Model is the lane's model; "" is wanx-v1.
	Model string
	// Concurrency is how many tasks the lane has at DashScope at once, 1 to the
	// model's limit; 0 is 1.
	Concurrency int
	// StoreConcurrency is how many jobs' images are copied at once; 0 is 8.
	StoreConcurrency int
	// QueueInterval is how often an idle lane or store looks for work, and a
	// fifth of how often delayed work is looked for; 0 is 200 ms. With a backlog
	// the next job is drawn at once.
	QueueInterval time.Duration
	// Logger gets the operator's timeline; nil discards it.
	Logger *slog.Logger
}

const (
	defaultAccount          = "default"
	defaultStoreConcurrency = 8
	// asynq's own second would let the slot idle for half of it, on average,
	// when a job arrives; this costs Redis a handful of commands a second.
	defaultQueueInterval = 200 * time.Millisecond
	delayedFactor        = 5
)

// Worker runs one lane and a store server. See the package comment.
type Worker struct {
	cfg   Config
	model jobs.Model
	log   *slog.Logger
	jobs  *jobs.Client
	store *store

	// simulated is what the service said of itself when the worker prepared.
	simulated bool
	prepared  bool

	stop     sync.Once
	stopping chan struct{}
}

// New checks the configuration. It dials nothing.
func New(cfg Config) (*Worker, error) {
	if cfg.Redis == nil || cfg.DashScope == nil || cfg.Bucket == nil || cfg.Spool == nil || cfg.DataDir == nil {
		return nil, errors.New("worker: Redis, DashScope, Bucket, Spool and DataDir are all required")
	}
	if cfg.Account == "" {
		cfg.Account = defaultAccount
	}
	if cfg.StoreConcurrency == 0 {
		cfg.StoreConcurrency = defaultStoreConcurrency
	}
	if cfg.QueueInterval == 0 {
		cfg.QueueInterval = defaultQueueInterval
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Model == "" {
		cfg.Model = jobs.DefaultModel
	}
	model, err := jobs.LookupModel(cfg.Model)
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 1
	}
	if cfg.Concurrency < 0 || cfg.Concurrency > model.Concurrency {
		return nil, fmt.Errorf("worker: concurrency %d: %s allows 1 to %d tasks at once", cfg.Concurrency, cfg.Model, model.Concurrency)
	}
	w := &Worker{cfg: cfg, model: model, jobs: jobs.NewClient(cfg.Redis), stopping: make(chan struct{})}
	w.log = cfg.Logger.With("account", cfg.Account, "model", cfg.Model)
	w.store = &store{Worker: w}
	return w, nil
}

// Jobs returns the queue client on the worker's Redis.
func (w *Worker) Jobs() *jobs.Client { return w.jobs }

// Simulated reports whether the service called itself a simulator. It is known
// after [Worker.Prepare].
func (w *Worker) Simulated() bool { return w.simulated }

// ErrGateway means that the base URL leads back to a Danqing.
var ErrGateway = errors.New("the DashScope base URL leads to a Danqing, which would submit to itself: set DASHSCOPE_HTTP_BASE_URL to DashScope's own address")

// Unfinished reports whether the journal knows of anything paid for, by this or
// an earlier run, that is neither in the bucket nor held. It notes what other
// workers have finished meanwhile.
func (w *Worker) Unfinished(ctx context.Context) bool {
	unfinished := false
	for _, e := range w.cfg.DataDir.Journal.openEntries() {
		if e.Record.State == jobs.StateHeld {
			continue
		}
		rec, err := w.jobs.Get(ctx, e.JobID)
		if err == nil && rec.State.Final() {
			w.journal(entryOver, rec)
			continue
		}
		if err == nil && rec.State == jobs.StateHeld && !behind(rec, e.Record) {
			w.journal(entryHeld, rec)
			continue
		}
		unfinished = true
	}
	return unfinished
}

// toBeStored counts the jobs of this worker whose images are not in the bucket.
func (w *Worker) toBeStored() int {
	n := 0
	for _, e := range w.cfg.DataDir.Journal.openEntries() {
		if e.Kind == entryResults {
			n++
		}
	}
	return n
}

// Prepare asks the service who it is and merges the journal into the records. It
// spends nothing. It waits, and says so, while the service cannot be reached,
// and fails if the key is refused, with [ErrGateway], or with [ErrStopped]. [Worker.Run]
// calls it if the caller did not.
func (w *Worker) Prepare(ctx context.Context) error {
	if w.prepared {
		return nil
	}
	endpoint, err := w.probe(ctx)
	if err != nil {
		return err
	}
	if endpoint.Gateway {
		return ErrGateway
	}
	w.simulated = endpoint.Simulated
	if err := w.recoverJournal(ctx); err != nil {
		return err
	}
	w.prepared = true
	return nil
}

func (w *Worker) probe(ctx context.Context) (dashscope.Endpoint, error) {
	for trouble := (&backoff{first: time.Second, most: time.Minute}); ; {
		endpoint, err := w.cfg.DashScope.Probe(ctx)
		var refused *dashscope.Error
		if err == nil || errors.As(err, &refused) && (refused.Kind == dashscope.KindAccount || refused.Kind == dashscope.KindTerminal) {
			return endpoint, err
		}
		wait := trouble.next()
		w.log.Warn("dashscope does not answer, trying again", "err", err, "wait", wait)
		if err := w.sleep(ctx, wait); err != nil {
			return endpoint, err
		}
	}
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
	stores, err := w.store.start()
	if err != nil {
		return err
	}
	defer stores.shutdown()
	if err := w.runLanes(ctx); err != nil {
		return err
	}
	w.store.drain(ctx)
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
	if sidecar.Simulated && !w.simulated {
		return nil, fmt.Errorf("job %s: %w", jobID, ErrSimulated)
	}
	return recordOf(sidecar)
}

// swap writes a record, repeating while Redis does not answer: what it says is in
// the journal already, and the slot cannot be used meanwhile.
func (w *Worker) swap(ctx context.Context, old, next *jobs.Record) error {
	write := rand.Text()
	for trouble := (&backoff{first: 100 * time.Millisecond, most: 10 * time.Second}); ; {
		err := w.jobs.SwapAs(ctx, write, old, next)
		if err == nil || errors.Is(err, jobs.ErrConflict) {
			return err
		}
		w.log.Warn("redis does not answer, trying again", "job_id", next.ID, "err", err)
		if err := w.sleep(ctx, trouble.next()); err != nil {
			return err
		}
	}
}

// journal appends an entry after the fact: the journal is then behind the truth
// by one step, which the next start sees as less than happened and never as more.
func (w *Worker) journal(kind entryKind, rec *jobs.Record) {
	if err := w.cfg.DataDir.Journal.append(kind, rec); err != nil {
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
func sentence(what, remedy string) string {
	if remedy == "" {
		return what
	}
	return what + " (" + remedy + ")"
}
