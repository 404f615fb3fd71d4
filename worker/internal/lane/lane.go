// Package lane runs an account's capacity for one model: it submits jobs and polls their
// tasks.
//
// A lane is held by one worker at a time. A term is the time for which it holds the lane. The
// methods' ctx ends when the term does: by a stop of the worker or by the loss of the lease.
// Work in progress is then completed under the lane's hard context.
package lane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/account"
	"github.com/danqing-queue/danqing/worker/internal/lease"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/quarantine"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/internal/watch"
	"github.com/danqing-queue/danqing/worker/journal"
)

// Recovery merges a worker's journal into the records.
type Recovery interface {
	// Merge updates a job's record to its state in the journal at a given time.
	Merge(ctx context.Context, journaled *jobs.Record, at time.Time) error
	// RecoverEntry merges one entry of the journal.
	RecoverEntry(ctx context.Context, e journal.Entry) error
	// StoreBacklog returns the number of the worker's jobs whose images are not in the
	// bucket. Up to limit it may count jobs that other workers have stored.
	StoreBacklog(ctx context.Context, limit int) int
}

// Config configures a lane. All fields are required but DrainOnly and Exclusive.
type Config struct {
	Recorder   *recorder.Recorder
	Dataset    *lease.Dataset
	Quarantine *quarantine.List
	Recovery   Recovery
	Account    *account.Account
	Model      jobs.Model
	// Concurrency is the number of the lane's slots.
	Concurrency      int
	SubmitsPerSecond float64
	// DrainOnly means that the lane takes no jobs: it ends when its tasks in flight have
	// ended.
	DrainOnly bool
	// AccountLanes is the number of the account's lanes, which share its query budget.
	AccountLanes int
	// Exclusive is set when no other worker uses this Redis. It may start empty.
	Exclusive bool
	Watcher   *watch.Watcher
	Leases    *lease.Leases
	// StoreBacklogLimit is the number of jobs that may wait for their images. Above it
	// nothing is submitted, since the download or the upload is failing.
	StoreBacklogLimit int
	// SubmitLimit returns how long after its intent a create may still make a task.
	SubmitLimit func() time.Duration
	// Probe checks whether the service accepts the account's key.
	Probe func(context.Context) error
	// ReferenceRefusedAt maps a job ID to the time.Time at which its reference image was
	// first refused with an error that may be temporary.
	ReferenceRefusedAt *sync.Map
	// Report is called with each status of the lane: a zero one while it waits for the lease.
	Report func(jobs.LaneStatus)
}

// lane is one term of a lane.
type lane struct {
	cfg      Config
	recorder *recorder.Recorder
	log      *slog.Logger
	// hard ends when work in progress must end too.
	hard  context.Context //nolint:containedctx // the worker's, not a call's
	lease *lease.Lease
	term  int64
	// slots is a semaphore with one slot per concurrent task. asynq releases a handler's
	// slot while the handler may still run, so its own limit is not enough.
	slots chan struct{}
	// pauses receives the error that pauses the lane.
	pauses chan *pauseError
	// created receives a signal after each create that made a task, for prepareAhead.
	created chan struct{}
	// recordSem is held while a job is recorded as prepared, and taken before submitSem.
	recordSem chan struct{}
	// submitSem is held while submitting: one create at a time. ambiguous counts those whose
	// outcome was unknown, and is guarded by it.
	submitSem   chan struct{}
	ambiguous   int
	limiter     *submitLimiter
	intentIndex reconcile.Intents

	group sync.WaitGroup // of the executions
	mu    sync.Mutex
	// executions are those in progress, by job ID.
	executions map[string]*execution
	// session is serve's, nil before the first, and endSession ends it. waiting are the jobs
	// whose messages were drawn and that wait for a slot. All are guarded by mu.
	session    context.Context //nolint:containedctx // not a call's
	endSession context.CancelCauseFunc
	waiting    []chan *ahead
	tasks      sync.Map // when each task created or adopted in this term was created, by ID
	// baseline is the snapshot of the start of the term, nil if the list was unavailable.
	// Later it is the last snapshot in which no task of the lane's key was unexplained.
	baseline *reconcile.Snapshot
	// dataset is the dataset ID at the start of the term. orphans are the orphaned tasks
	// for each of which one job will be held. Both are guarded by mu.
	dataset string
	orphans []string

	// listed is set once the task list is known to show the model's tasks. checkingList is set
	// while it is read for that, listCheckedAt is when it was last.
	listed, checkingList atomic.Bool
	listCheckedAt        atomic.Pointer[time.Time]

	// settling is the number of tasks that have ended and are not booked yet, prepared that of
	// jobs that wait for a slot with everything recorded.
	settling, prepared atomic.Int32
	// createDone is the channel of nextCreate. It is guarded by mu, nil if nobody waits for it.
	createDone chan struct{}

	waits waits
	usage *usage
	// paused is the pause that was logged last, nil once a task has been created since.
	paused atomic.Pointer[loggedPause]
}

// loggedPause is a pause of which the log has a line. text is its reason and remedy.
type loggedPause struct {
	text string
	at   time.Time
}

// waits are the lane's backoffs by kind of failure. Each grows while the failure lasts.
type waits struct{ unreachable, throttled, account loop.Backoff }

const (
	// shutdownTimeout is how long asynq waits for parked handlers before it requeues their
	// messages at the head of the queue.
	shutdownTimeout = 100 * time.Millisecond
)

func newLane(hard context.Context, cfg Config) *lane {
	r := cfg.Recorder
	l := &lane{
		cfg: cfg, recorder: r, hard: hard, log: cfg.Account.Log.With("model", cfg.Model.Name),
		lease:       cfg.Leases.New(rediskey.Lane(cfg.Account.Name, cfg.Model.Name, rediskey.LaneLease)),
		intentIndex: reconcile.IntentsOf(r.Redis, cfg.Account.Name, cfg.Model.Name),
		slots:       make(chan struct{}, cfg.Concurrency),
		pauses:      make(chan *pauseError, 1),
		created:     make(chan struct{}, 1),
		recordSem:   make(chan struct{}, 1),
		submitSem:   make(chan struct{}, 1),
		executions:  map[string]*execution{},
		usage:       newUsage(cfg.Concurrency),
	}
	l.waits.unreachable = loop.Backoff{First: time.Second, Most: time.Minute}
	// Throttling usually clears within a minute (rate-limit page).
	l.waits.throttled = loop.Backoff{First: time.Second, Most: time.Minute}
	l.waits.account = loop.Backoff{First: 10 * time.Second, Most: 10 * time.Minute}
	return l
}

func (l *lane) key(name string) string {
	return rediskey.Lane(l.cfg.Account.Name, l.cfg.Model.Name, name)
}

// Run holds the lane, one term after the other, until ctx ends: ctx ends when the worker
// stops. hard ends when it must stop at once; Run then fails with its cause.
func Run(ctx, hard context.Context, cfg Config) error {
	for {
		l := newLane(hard, cfg)
		err := l.runTerm(ctx)
		switch {
		case hard.Err() != nil:
			return context.Cause(hard)
		case ctx.Err() != nil, err == nil && cfg.DrainOnly:
			return nil //nolint:nilerr // the worker stops
		case errors.Is(err, lease.ErrLost):
			l.log.Warn("lease lost", "term", l.term)
			l.recorder.Metrics.LeaseLost(cfg.Account.Name, cfg.Model.Name)
		default:
			l.log.Warn("lane failed, retrying", "term", l.term, "err", err)
		}
		if err := loop.Sleep(ctx, lease.Poll); err != nil {
			return nil //nolint:nilerr // the worker stops
		}
	}
}

// stopped reports whether an error means that the term has ended.
func stopped(err error) bool {
	return errors.Is(err, loop.ErrStopped) || errors.Is(err, lease.ErrLost) || errors.Is(err, context.Canceled)
}

// runTerm waits for the lease, resumes jobs in flight and draws work. It fails with
// [loop.ErrStopped] when the worker stops and with [lease.ErrLost] when the lease is lost.
func (l *lane) runTerm(ctx context.Context) error {
	l.cfg.Report(jobs.LaneStatus{})
	ctx, release, err := l.lease.Hold(ctx, l.log, func(err error) {
		l.publishStatus(ctx, jobs.LaneStatus{State: jobs.LanePaused, Reason: jobs.PauseRedis, Message: err.Error()})
	})
	if err != nil {
		return err
	}
	defer release()
	l.cfg.Report(jobs.LaneStatus{})
	l.usage.setReason(idleStarting)
	defer l.cfg.Account.HoldLane(l.cfg.AccountLanes)()
	go l.keepFirstWarm(ctx)
	if err := l.takeTerm(ctx); err != nil {
		return err
	}
	defer loop.Every(ctx, usageInterval, l.recordUsage)()
	if err := l.awaitKeyAccepted(ctx); err != nil {
		return err
	}
	if err := l.letOthersStart(ctx); err != nil {
		return err
	}
	if err := l.initialSnapshot(ctx); err != nil {
		return err
	}
	// Only executions that a second signal cut short may still run after that.
	defer l.group.Wait()
	quarantined := l.quarantineRunner()
	interval := min(quarantine.Interval, l.longestPoll())
	defer quarantined.Run(ctx, interval)()
	defer loop.Every(ctx, l.longestPoll(), l.findLateTasks)()
	if err := l.resumeInFlight(ctx, l.requeueAtHead); err != nil {
		return err
	}
	if l.cfg.DrainOnly {
		l.group.Wait()
		return quarantined.WaitStored(ctx)
	}
	defer loop.Every(ctx, inFlightInterval, l.pollInFlight)()
	return l.serve(ctx)
}

// longestPoll is the longest poll interval of the task list.
func (l *lane) longestPoll() time.Duration {
	return max(l.cfg.SubmitLimit()/maxPollShare, minPollInterval)
}

func (l *lane) quarantineRunner() *quarantine.Runner {
	return &quarantine.Runner{
		List: l.cfg.Quarantine, Account: l.cfg.Account.Name, Model: l.cfg.Model.Name, Service: l.cfg.Account.Client,
		Cost: func(rec *jobs.Record, task *dashscope.Task, images int) int64 {
			return l.cfg.Account.Cost(l.cfg.Model, purchase(l.cfg.Model, rec.Request, task, images))
		},
		MaxImages: l.cfg.Model.ImagesAtMost(),
		Recorder:  l.recorder, Watcher: l.cfg.Watcher, Log: l.log,
	}
}

// initialSnapshotTimeout is how long an unavailable task list delays a term. Until the list
// is available, ambiguous creates are held, not adopted.
const initialSnapshotTimeout = time.Minute

// initialSnapshot reads the account's task list at the start of a term, before any create of
// the term.
func (l *lane) initialSnapshot(ctx context.Context) error {
	pace := loop.Backoff{First: time.Second, Most: 10 * time.Second}
	for begun := time.Now(); ; {
		dataset, err := l.cfg.Dataset.Sync(ctx)
		if err == nil {
			l.dataset = dataset
			err = l.checkDataLoss(ctx)
		}
		if err == nil && l.baseline == nil {
			l.baseline, err = l.takeSnapshot(ctx)
		}
		if err == nil && l.cfg.Exclusive {
			err = l.refreshBaseline(ctx)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(begun) > initialSnapshotTimeout && l.cfg.Dataset.Known() == l.dataset && l.isVerified(ctx) {
			l.log.Warn("task list unavailable: ambiguous creates will be held, not adopted", "err", err)
			return nil
		}
		wait := pace.Next()
		l.log.Warn("task list unavailable, retrying", "err", err, "wait", wait)
		if err := loop.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// awaitKeyAccepted waits until the service accepts the account's key.
func (l *lane) awaitKeyAccepted(ctx context.Context) error {
	for {
		verified, disabled := l.cfg.Account.Usable()
		if verified {
			return nil
		}
		err := disabled
		if err == nil {
			err = l.cfg.Probe(ctx)
		}
		if err == nil {
			return nil
		}
		if err := l.pause(ctx, &pauseError{backoff: &l.waits.account, reason: jobs.PauseAccount, message: accountPaused, cause: err}); err != nil {
			return err
		}
	}
}

// serve draws work in consecutive sessions of an asynq server until the worker stops or the
// lease is lost. A pauseError ends a session: its messages return to the head of their
// queues, where lanes of other accounts may draw them, and the next session starts after
// the pause.
func (l *lane) serve(ctx context.Context) error {
	for {
		// Tasks of earlier terms may occupy every slot.
		if err := l.takeSlot(ctx); err != nil {
			return err
		}
		<-l.slots
		endSession := l.startSession(ctx)
		server := l.cfg.Watcher.NewServer(l.log, l.asynqConfig())
		if err := server.Start(asynq.HandlerFunc(func(handling context.Context, message *asynq.Task) error {
			return l.handle(ctx, handling, message)
		})); err != nil {
			endSession()
			return fmt.Errorf("start lane: %w", err)
		}
		if l.paused.Load() == nil { // else it is a try
			l.log.Info("lane opened", "term", l.term, "simulated", l.recorder.Simulated())
		}
		l.publishStatus(ctx, jobs.LaneStatus{State: jobs.LaneOpen})
		var pause *pauseError
		select {
		case pause = <-l.pauses:
		case <-ctx.Done():
		}
		endSession()
		server.Stop()
		if pause == nil {
			l.drain()
		}
		server.Shutdown()
		if pause == nil {
			l.log.Info("lane closed", "term", l.term)
			return context.Cause(ctx)
		}
		if err := l.pause(ctx, pause); err != nil {
			return err
		}
		select {
		case same := <-l.pauses: // from the same failure
			l.log.Debug("stale pause discarded", "err", same)
		default:
		}
	}
}

// asynqConfig configures a session's server.
func (l *lane) asynqConfig() asynq.Config {
	return asynq.Config{
		Concurrency: l.cfg.Concurrency, Queues: jobs.LaneQueues(l.cfg.Model.Name), ShutdownTimeout: shutdownTimeout,
		IsFailure: isFailedAttempt, RetryDelayFunc: laneRetryDelay,
	}
}

// pause pauses the lane for the time of t. It logs the reason, once until a task is created, and
// publishes it in the lane's status.
func (l *lane) pause(ctx context.Context, t *pauseError) error {
	d := max(t.backoff.Next(), t.minWait)
	text := t.message + hint(t.cause)
	if last := l.paused.Load(); last == nil || last.text != text {
		l.log.Warn(t.message, "err", t.cause, "wait", d, "hint", hint(t.cause)) //nolint:sloglint // every pauseError has a constant message
		l.paused.Store(&loggedPause{text: text, at: time.Now()})
	}
	l.publishStatus(ctx, jobs.LaneStatus{
		State: jobs.LanePaused, Reason: t.reason, Message: withHint(t.Error(), hint(t.cause)), RetryAt: time.Now().Add(d), Until: t.until,
	})
	for {
		if err := loop.Sleep(ctx, d); err != nil || t.recheck == nil || t.recheck(ctx) == nil {
			return err
		}
	}
}

// publishStatus publishes the lane's status for operators: the fields that it does not set are
// those of the lane.
func (l *lane) publishStatus(ctx context.Context, status jobs.LaneStatus) {
	l.usage.setReason(status.Reason)
	status.Account, status.Model, status.Term, status.Concurrency = l.cfg.Account.Name, l.cfg.Model.Name, l.term, l.cfg.Concurrency
	status.DailyBudgetMicroYuan = l.cfg.Account.DailyBudgetMicroYuan
	status.Simulated, status.At = l.recorder.Simulated(), time.Now().UTC()
	status.Host, _ = os.Hostname()
	l.cfg.Report(status)
	if err := l.recorder.Store.SetLane(ctx, status); err != nil {
		l.log.Warn("lane status not published", "err", err)
	}
}

// takeSlot acquires a slot. The caller must release it.
func (l *lane) takeSlot(ctx context.Context) error { return l.take(ctx, l.slots) }

// take acquires a semaphore. The caller must release it.
func (l *lane) take(ctx context.Context, places chan<- struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lastSubmit returns when an earlier holder of the lane has created its last task, zero if in the
// last day none was. A create that made none may exceed the rate limit, which costs nothing.
func (l *lane) lastSubmit(ctx context.Context) (time.Time, error) {
	made, err := l.lastCreated(ctx)
	if now := time.Now(); made.At.After(now) {
		return now, err
	}
	return made.At, err
}

// takeTerm assigns the term number, which is unique across all lanes: a record written in
// one term is never attributed to another.
func (l *lane) takeTerm(ctx context.Context) error {
	term, err := l.recorder.Redis.Incr(ctx, rediskey.Term).Result()
	if err != nil {
		return fmt.Errorf("take term of lane: %w", err)
	}
	if err := l.recorder.Redis.Set(ctx, l.key(rediskey.LaneTerm), term, 0).Err(); err != nil {
		return fmt.Errorf("take term of lane: %w", err)
	}
	used, err := l.lastSubmit(ctx)
	if err != nil {
		return fmt.Errorf("take term of lane: %w", err)
	}
	l.recorder.Metrics.TermBegun(l.cfg.Account.Name, l.cfg.Model.Name)
	l.term, l.limiter = term, newSubmitLimiter(l.cfg.SubmitsPerSecond, l.cfg.Model.SubmitsPerMinute, used)
	return nil
}
