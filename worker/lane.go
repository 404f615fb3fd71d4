package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
)

// lane is one term of an account's capacity for one model: it submits jobs and polls their
// tasks.
type lane struct {
	*Worker
	laneSpec

	log   *slog.Logger
	lease lease
	term  int64
	// slots is a semaphore with one slot per concurrent task. asynq releases a handler's
	// slot while the handler may still run, so its own limit is not enough.
	slots chan struct{}
	// pauses receives the error that pauses the lane.
	pauses chan *pauseError
	// submitSem is held while submitting: one create at a time.
	submitSem chan struct{}
	limiter   *submitLimiter
	// queries limits status queries. All lanes of an account, in all workers, share half of
	// the account's limit.
	queries *rate.Limiter

	group sync.WaitGroup // of the executions
	mu    sync.Mutex
	// executions are those in progress, by job ID.
	executions map[string]*execution
	tasks      sync.Map // IDs of tasks created or adopted in this term
	// baseline is the snapshot of the start of the term, nil if the list was unavailable.
	// Later it is the last snapshot in which no task of the lane's key was unexplained.
	baseline *reconcile.Snapshot
	// dataset is the dataset ID at the start of the term. orphans are the orphaned tasks
	// for each of which one job will be held. Both are guarded by mu.
	dataset string
	orphans []string

	waits waits
}

// waits are the lane's backoffs by kind of failure. Each grows while the failure lasts.
type waits struct{ unreachable, throttled, account backoff }

const (
	// accountQueries is the query budget per account and second: half of the documented 20
	// per second (manage-asynchronous-tasks page); other programs use the account too.
	accountQueries = 10
	// shutdownTimeout is how long asynq waits for parked handlers before it requeues their
	// messages at the head of the queue.
	shutdownTimeout = 100 * time.Millisecond
)

func newLane(w *Worker, spec laneSpec) *lane {
	l := &lane{
		Worker: w, laneSpec: spec, log: spec.account.log.With("model", spec.model.Name),
		slots:      make(chan struct{}, spec.concurrency),
		pauses:     make(chan *pauseError, 1),
		submitSem:  make(chan struct{}, 1),
		executions: map[string]*execution{},
		waits: waits{
			unreachable: backoff{first: time.Second, most: time.Minute},
			// Throttling usually clears within a minute (rate-limit page).
			throttled: backoff{first: time.Second, most: time.Minute},
			account:   backoff{first: 10 * time.Second, most: 10 * time.Minute},
		},
	}
	l.lease.redis, l.lease.key = w.cfg.Redis, l.key(rediskey.LaneLease)
	l.lease.workerID, l.lease.done = w.cfg.DataDir.WorkerID, make(chan struct{})
	return l
}

func (l *lane) key(name string) string { return rediskey.Lane(l.account.name, l.model.Name, name) }

// lanesOf returns the number of lanes of an account.
func (w *Worker) lanesOf(a *account) int {
	n := 0
	for _, spec := range w.lanes {
		if spec.account == a {
			n++
		}
	}
	return n
}

// runLanes runs every lane until the worker stops.
func (w *Worker) runLanes(ctx context.Context) error {
	errs := make([]error, len(w.lanes))
	var group sync.WaitGroup
	for i, spec := range w.lanes {
		group.Go(func() { errs[i] = w.runLane(ctx, spec) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// runLane runs a lane, one term after the other, until the worker stops.
func (w *Worker) runLane(ctx context.Context, spec laneSpec) error {
	for {
		l := newLane(w, spec)
		switch err := l.runTerm(ctx); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrStopped) && w.Stopped(), err == nil && spec.drainOnly:
			return nil
		case err != nil && !errors.Is(err, ErrStopped):
			l.log.Warn("lane failed, retrying", "term", l.term, "err", err)
		default:
			l.log.Warn("lease lost", "term", l.term)
		}
		if err := w.sleep(ctx, leasePoll); err != nil {
			return nil //nolint:nilerr // the worker stops
		}
	}
}

// acquire waits for the lane's lease.
func (l *lane) acquire(ctx context.Context) error {
	retry := backoff{first: leasePoll, most: leaseRenew}
	for waiting := false; ; waiting = true {
		held, err := l.lease.acquire(ctx)
		if held {
			return nil
		}
		wait := leasePoll
		switch {
		case err != nil:
			wait = retry.next()
			l.log.Warn(redisUnavailable+", trying again", "err", err, "wait", wait)
		case !waiting:
			l.log.Info("standby: lease held elsewhere")
		}
		if err := l.Worker.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// runTerm acquires the lease, resumes jobs in flight and draws work. It returns ErrStopped
// when the worker stops or the lease is lost.
func (l *lane) runTerm(ctx context.Context) error {
	if err := l.acquire(ctx); err != nil {
		return err
	}
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		l.lease.renew(renewing)
	}()
	defer func() {
		stop()
		<-renewed
		if err := l.lease.release(context.WithoutCancel(ctx)); err != nil {
			l.log.Warn("lease not released", "err", err)
		}
	}()
	if err := l.takeTerm(ctx); err != nil {
		return err
	}
	if err := l.awaitKeyAccepted(ctx); err != nil {
		return err
	}
	if err := l.initialSnapshot(ctx); err != nil {
		return err
	}
	// Only executions that a second signal cut short may still run after that.
	defer l.group.Wait()
	defer l.runQuarantine(ctx)()
	if err := l.resumeInFlight(ctx, l.requeueAtHead); err != nil {
		return err
	}
	if l.drainOnly {
		l.group.Wait()
		return l.waitQuarantineEmpty(ctx)
	}
	defer l.pollInFlight(ctx)()
	return l.serve(ctx)
}

// initialSnapshotTimeout is how long an unavailable task list delays a term. Until the list
// is available, ambiguous creates are held, not adopted.
const initialSnapshotTimeout = time.Minute

// initialSnapshot reads the account's task list at the start of a term. No create of this
// term made a task that is on it.
func (l *lane) initialSnapshot(ctx context.Context) error {
	pace := backoff{first: time.Second, most: 10 * time.Second}
	for begun := time.Now(); ; {
		dataset, err := l.syncDataset(ctx)
		if err == nil {
			l.dataset = dataset
			err = l.checkDataLoss(ctx)
		}
		if err == nil && l.baseline == nil {
			l.baseline, err = l.takeSnapshot(ctx)
		}
		if err == nil && l.cfg.ExclusiveQueue {
			err = l.refreshBaseline(ctx)
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrStopped) || ctx.Err() != nil {
			return err
		}
		if time.Since(begun) > initialSnapshotTimeout && l.currentDataset() == l.dataset && l.isVerified(ctx) {
			l.log.Warn("task list unavailable: ambiguous creates will be held, not adopted", "err", err)
			return nil
		}
		wait := pace.next()
		l.log.Warn("task list unavailable, retrying", "err", err, "wait", wait)
		if err := l.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// awaitKeyAccepted waits until the service accepts the account's key.
func (l *lane) awaitKeyAccepted(ctx context.Context) error {
	for {
		verified, disabled := l.account.usable()
		if verified {
			return nil
		}
		err := disabled
		if err == nil {
			err = l.probe(ctx, l.account)
		}
		if err == nil {
			return nil
		}
		if err := l.pause(ctx, &pauseError{backoff: &l.waits.account, message: accountPaused, cause: err}); err != nil {
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
		server := asynq.NewServerFromRedisClient(l.cfg.Redis, asynq.Config{
			Concurrency:              l.concurrency,
			Queues:                   jobs.LaneQueues(l.model.Name),
			TaskCheckInterval:        l.cfg.QueueInterval,
			DelayedTaskCheckInterval: delayedFactor * l.cfg.QueueInterval,
			JanitorInterval:          asynqJanitorInterval,
			ShutdownTimeout:          shutdownTimeout,
			IsFailure:                func(error) bool { return false },
			RetryDelayFunc:           laneRetryDelay,
			Logger:                   newAsynqLog(l.log),
			LogLevel:                 asynq.WarnLevel,
		})
		if err := server.Start(asynq.HandlerFunc(func(handling context.Context, message *asynq.Task) error {
			return l.handle(ctx, handling, message)
		})); err != nil {
			return fmt.Errorf("start lane: %w", err)
		}
		l.log.Info("lane opened", "term", l.term, "simulated", l.Simulated())
		l.publishStatus(ctx, jobs.LaneOpen, "", time.Time{})
		var pause *pauseError
		select {
		case pause = <-l.pauses:
		case <-l.stopping:
		case <-l.lease.done:
		}
		server.Stop()
		if pause == nil {
			l.drainSlots(ctx)
		}
		server.Shutdown()
		if pause == nil {
			l.log.Info("lane closed", "term", l.term)
			return ErrStopped
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

// pause keeps the lane paused for as long as t asks for. It logs the reason and publishes
// it in the lane's status.
func (l *lane) pause(ctx context.Context, t *pauseError) error {
	d := max(t.backoff.next(), t.minWait)
	l.log.Warn(t.message, "err", t.cause, "wait", d, "hint", hint(t.cause)) //nolint:sloglint // every pauseError has a constant message
	l.publishStatus(ctx, jobs.LanePaused, withHint(t.Error(), hint(t.cause)), time.Now().Add(d))
	for {
		if err := l.sleep(ctx, d); err != nil || t.recheck == nil || t.recheck(ctx) == nil {
			return err
		}
	}
}

// publishStatus publishes the lane's status for operators.
func (l *lane) publishStatus(ctx context.Context, state jobs.LaneState, message string, retryAt time.Time) {
	status := jobs.LaneStatus{
		Account: l.account.name, Model: l.model.Name, Term: l.term, Concurrency: l.concurrency, Simulated: l.Simulated(),
		State: state, Message: message, At: time.Now().UTC(), RetryAt: retryAt,
	}
	if err := l.jobs.SetLane(ctx, status); err != nil {
		l.log.Warn("lane status not published", "err", err)
	}
}

// sleep waits for d. A stop or a lost lease ends it with ErrStopped.
func (l *lane) sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-l.stopping:
		return ErrStopped
	case <-l.lease.done:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// takeSlot acquires a slot. The caller must release it.
func (l *lane) takeSlot(ctx context.Context) error { return l.take(ctx, l.slots) }

// take acquires a semaphore. The caller must release it.
func (l *lane) take(ctx context.Context, places chan<- struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-l.stopping:
		return ErrStopped
	case <-l.lease.done:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// takeTerm assigns the term number, which is unique across all lanes: a record written in
// one term is never attributed to another.
func (l *lane) takeTerm(ctx context.Context) error {
	term, err := l.cfg.Redis.Incr(ctx, termKey).Result()
	if err != nil {
		return fmt.Errorf("take term of lane: %w", err)
	}
	last, err := l.cfg.Redis.SetArgs(ctx, l.key(rediskey.LaneTerm), term, redis.SetArgs{Get: true}).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("take term of lane: %w", err)
	}
	l.term, l.limiter = term, newSubmitLimiter(l.submits, last != "")
	l.queries = rate.NewLimiter(rate.Limit(accountQueries/float64(l.lanesOf(l.account))), 1)
	l.queries.Allow() // the last holder may have queried just now
	return nil
}

const termKey = rediskey.Term
