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

// lane is one holding of an account's capacity for one model: it submits jobs
// and polls their tasks.
type lane struct {
	*Worker
	laneSpec

	log   *slog.Logger
	lease lease
	term  int64
	// slots has one place per task at once. asynq frees a handler's place while
	// the handler may still run, so its own bound is not enough.
	slots chan struct{}
	// pauses takes the trouble that closes the lane for a while.
	pauses chan *pauseError
	// turn is held by whoever submits: one create at a time.
	submitSem chan struct{}
	pace      *submitLimiter
	// queries bounds the looks at tasks. All lanes of an account, whoever holds
	// them, share half of what the account is allowed.
	queries *rate.Limiter

	group sync.WaitGroup // of the efforts
	mu    sync.Mutex
	// efforts are under way, by job ID.
	efforts map[string]*execution
	tasks   sync.Map // the IDs of the lane's own
	// first is the listing of the beginning of the term, nil if there was none, and
	// since then the last one in which nobody's task bore the lane's key.
	baseline *reconcile.Snapshot
	// memory is what Redis was known by at the beginning of the term, and suspects are
	// the tasks for each of which a job is held; guarded by mu.
	dataset string
	orphans []string

	waits waits
}

// waits grow while the same trouble lasts.
type waits struct{ unreachable, throttled, account backoff }

const (
	// accountQueries is half of the documented 20 a second (manage-asynchronous-tasks
	// page), which other programs need too.
	accountQueries = 10
	// parkTime is how long asynq waits for parked handlers before it puts their
	// messages back at the head of the queue.
	shutdownTimeout = 100 * time.Millisecond
)

func newLane(w *Worker, spec laneSpec) *lane {
	l := &lane{
		Worker: w, laneSpec: spec, log: spec.account.log.With("model", spec.model.Name),
		slots:     make(chan struct{}, spec.concurrency),
		pauses:    make(chan *pauseError, 1),
		submitSem: make(chan struct{}, 1),
		efforts:   map[string]*execution{},
		waits: waits{
			unreachable: backoff{first: time.Second, most: time.Minute},
			// Throttles usually clear within a minute (rate-limit page).
			throttled: backoff{first: time.Second, most: time.Minute},
			account:   backoff{first: 10 * time.Second, most: 10 * time.Minute},
		},
	}
	l.lease.redis, l.lease.key = w.cfg.Redis, l.key(rediskey.LaneLease)
	l.lease.workerID, l.lease.done = w.cfg.DataDir.WorkerID, make(chan struct{})
	return l
}

func (l *lane) key(name string) string { return rediskey.Lane(l.account.name, l.model.Name, name) }

// lanesOf counts the lanes of an account.
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

// runLane holds a lane for as many terms as it takes until the worker stops.
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
		if err := w.sleep(ctx, leaseAsk); err != nil {
			return nil //nolint:nilerr // the worker stops
		}
	}
}

// acquire waits for the lane's lease.
func (l *lane) acquire(ctx context.Context) error {
	away := backoff{first: leaseAsk, most: leaseRenew}
	for waiting := false; ; waiting = true {
		held, err := l.lease.acquire(ctx)
		if held {
			return nil
		}
		wait := leaseAsk
		switch {
		case err != nil:
			wait = away.next()
			l.log.Warn(redisAway+", trying again", "err", err, "wait", wait)
		case !waiting:
			l.log.Info("standby: lease held elsewhere")
		}
		if err := l.Worker.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// hold acquires the lane, goes on with what is in flight, and draws work until
// the worker stops or the lease is lost, which both are ErrStopped.
func (l *lane) runTerm(ctx context.Context) error {
	if err := l.acquire(ctx); err != nil {
		return err
	}
	keeping, release := context.WithCancel(context.WithoutCancel(ctx))
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		l.lease.renew(keeping)
	}()
	defer func() {
		release()
		<-kept
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
	// Only what a quick stop has cut short may still run after that.
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

// firstPatience is how long a list that cannot be read holds up a term. Until it can
// be, nothing that gets lost is adopted.
const initialSnapshotTimeout = time.Minute

// firstLook begins a term with the account's list: what is on it was not made by any
// create of this term.
func (l *lane) initialSnapshot(ctx context.Context) error {
	pace := backoff{first: time.Second, most: 10 * time.Second}
	for begun := time.Now(); ; {
		memory, err := l.syncDataset(ctx)
		if err == nil {
			l.dataset = memory
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

// meet waits until the service accepts the account's key.
func (l *lane) awaitKeyAccepted(ctx context.Context) error {
	for {
		met, unfit := l.account.usable()
		if met {
			return nil
		}
		err := unfit
		if err == nil {
			err = l.Worker.probe(ctx, l.account)
		}
		if err == nil {
			return nil
		}
		if err := l.pause(ctx, &pauseError{backoff: &l.waits.account, message: accountPaused, cause: err}); err != nil {
			return err
		}
	}
}

// serve draws work, in one session of an asynq server after the other, until the
// worker stops or the lease is lost. Trouble ends a session: its messages go
// back to the head of their queues, where the lanes of other accounts may take
// them, and the next session begins when the trouble may be over.
func (l *lane) serve(ctx context.Context) error {
	for {
		// Tasks of earlier holders may have every slot.
		if err := l.takeSlot(ctx); err != nil {
			return err
		}
		<-l.slots
		server := asynq.NewServerFromRedisClient(l.cfg.Redis, asynq.Config{
			Concurrency:              l.concurrency,
			Queues:                   jobs.LaneQueues(l.model.Name),
			TaskCheckInterval:        l.cfg.QueueInterval,
			DelayedTaskCheckInterval: delayedFactor * l.cfg.QueueInterval,
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
		case same := <-l.pauses: // of the same burst
			l.log.Debug("stale pause discarded", "err", same)
		default:
		}
	}
}

// rest keeps the lane closed for as long as a trouble asks for, and says so.
func (l *lane) pause(ctx context.Context, t *pauseError) error {
	d := max(t.backoff.next(), t.minWait)
	l.log.Warn(t.message, "err", t.cause, "wait", d, "hint", hint(t.cause)) //nolint:sloglint // every maker of a trouble gives a constant
	l.publishStatus(ctx, jobs.LanePaused, withHint(t.Error(), hint(t.cause)), time.Now().Add(d))
	for {
		if err := l.sleep(ctx, d); err != nil || t.recheck == nil || t.recheck(ctx) == nil {
			return err
		}
	}
}

// show tells operators how the lane is.
func (l *lane) publishStatus(ctx context.Context, state jobs.LaneState, message string, retryAt time.Time) {
	status := jobs.LaneStatus{
		Account: l.account.name, Model: l.model.Name, Term: l.term, Concurrency: l.concurrency, Simulated: l.Simulated(),
		State: state, Message: message, At: time.Now().UTC(), RetryAt: retryAt,
	}
	if err := l.jobs.SetLane(ctx, status); err != nil {
		l.log.Warn("lane status not published", "err", err)
	}
}

// sleep waits for d; a stop or a lost lease ends it with ErrStopped.
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

// takeSlot waits for a slot. The caller frees it.
func (l *lane) takeSlot(ctx context.Context) error { return l.take(ctx, l.slots) }

// take waits for a place in a semaphore, which the caller frees.
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

// takeTerm numbers the holding. No two holdings have the same number, of whatever
// lane: a record that one of them has written is never taken for another's.
func (l *lane) takeTerm(ctx context.Context) error {
	term, err := l.cfg.Redis.Incr(ctx, termKey).Result()
	if err != nil {
		return fmt.Errorf("take term of lane: %w", err)
	}
	last, err := l.cfg.Redis.SetArgs(ctx, l.key(rediskey.LaneTerm), term, redis.SetArgs{Get: true}).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("take term of lane: %w", err)
	}
	l.term, l.pace = term, newPace(l.submits, last != "")
	l.queries = rate.NewLimiter(rate.Limit(accountQueries/float64(l.lanesOf(l.account))), 1)
	l.queries.Allow() // the last holder may have asked a moment ago
	return nil
}

const termKey = rediskey.Term
