package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/danqing-queue/danqing/jobs"
)

// lane is one account's capacity for one model: it submits jobs and polls their
// tasks.
type lane struct {
	*Worker

	lease lease
	term  int64
	// slots has one place per task at once. asynq frees a handler's place while
	// the handler may still run, so its own bound is not enough.
	slots chan struct{}
	// busy holds the IDs of the jobs that a handler is at.
	busy sync.Map
	// quiet counts the slots that quiesce took.
	quiet int
	// pace keeps creates below the documented rate.
	pace *rate.Limiter

	// unreachable, throttled and account grow while the same trouble lasts.
	unreachable, throttled, account backoff
}

const (
	// paceMargin stretches the time between creates: the network may bring two
	// closer together than they were sent.
	paceMargin = 1.1
	// parkTime is how long asynq waits for parked handlers before it puts their
	// messages back at the head of the queue.
	parkTime = 100 * time.Millisecond
)

func newLane(w *Worker) *lane {
	l := &lane{
		Worker:      w,
		slots:       make(chan struct{}, w.cfg.Concurrency),
		pace:        rate.NewLimiter(rate.Limit(w.model.SubmitsPerSecond/paceMargin), 1),
		unreachable: backoff{first: time.Second, most: time.Minute},
		// Throttles usually clear within a minute (rate-limit page).
		throttled: backoff{first: time.Second, most: time.Minute},
		account:   backoff{first: 10 * time.Second, most: 10 * time.Minute},
	}
	l.lease.redis, l.lease.key = w.cfg.Redis, w.laneKey("lease")
	l.lease.holder, l.lease.lost = w.cfg.DataDir.holder, make(chan struct{})
	// The lane's last holder may have submitted a moment ago.
	l.pace.Allow()
	return l
}

func (w *Worker) laneKey(name string) string {
	return "danqing:lane:" + w.cfg.Account + ":" + w.cfg.Model + ":" + name
}

// runLanes holds the lane for as many terms as it takes until the worker stops.
func (w *Worker) runLanes(ctx context.Context) error {
	for {
		l := newLane(w)
		switch err := l.hold(ctx); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrStopped) && w.Stopped():
			return nil
		case err != nil && !errors.Is(err, ErrStopped):
			w.log.Warn("lane not held, trying again", "term", l.term, "err", err)
		default:
			w.log.Warn("lane lost: standing by", "term", l.term)
		}
		if err := w.sleep(ctx, leaseAsk); err != nil {
			return nil //nolint:nilerr // the worker stops
		}
	}
}

// acquire waits for the lane's lease.
func (l *lane) acquire(ctx context.Context) error {
	for waiting := false; ; waiting = true {
		held, err := l.lease.take(ctx)
		if held {
			return nil
		}
		switch {
		case err != nil:
			l.log.Warn("redis does not answer, trying again", "err", err)
		case !waiting:
			l.log.Info("standing by: another worker has the lane")
		}
		if err := l.Worker.sleep(ctx, leaseAsk); err != nil {
			return err
		}
	}
}

// hold acquires the lane, finishes what is in flight, and draws work until the
// worker stops, which is ErrStopped, or the lease is lost, which is nil.
func (l *lane) hold(ctx context.Context) error {
	if err := l.acquire(ctx); err != nil {
		return err
	}
	keeping, release := context.WithCancel(context.WithoutCancel(ctx))
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		l.lease.keep(keeping)
	}()
	defer func() {
		release()
		<-kept
		if err := l.lease.drop(context.WithoutCancel(ctx)); err != nil {
			l.log.Warn("lease not given back", "err", err)
		}
	}()
	if err := l.takeTerm(ctx); err != nil {
		return err
	}
	if err := l.finishInFlight(ctx); err != nil {
		return err
	}
	server := asynq.NewServerFromRedisClient(l.cfg.Redis, asynq.Config{
		Concurrency:              l.cfg.Concurrency,
		Queues:                   jobs.LaneQueues(l.cfg.Model),
		TaskCheckInterval:        l.cfg.QueueInterval,
		DelayedTaskCheckInterval: delayedFactor * l.cfg.QueueInterval,
		ShutdownTimeout:          parkTime,
		IsFailure:                func(error) bool { return false },
		RetryDelayFunc:           laneRetryDelay,
		Logger:                   asynqLog{l.log},
		LogLevel:                 asynq.WarnLevel,
	})
	if err := server.Start(asynq.HandlerFunc(l.handle)); err != nil {
		return fmt.Errorf("start lane: %w", err)
	}
	l.log.Info("lane opened", "term", l.term, "simulated", l.simulated)
	var result error
	select {
	case <-l.stopping:
		result = ErrStopped
	case <-l.lease.lost:
	}
	server.Stop()
	l.quiesce(ctx)
	server.Shutdown()
	l.quiesce(context.WithoutCancel(ctx))
	l.log.Info("lane closed", "term", l.term)
	return result
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
	case <-l.lease.lost:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// quiesce waits until no handler does anything, by taking every slot for good;
// later handlers find the worker stopping and park. It gives up when ctx ends.
func (l *lane) quiesce(ctx context.Context) {
	for ; l.quiet < cap(l.slots); l.quiet++ {
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

func (l *lane) takeTerm(ctx context.Context) error {
	term, err := l.cfg.Redis.Incr(ctx, l.laneKey("term")).Result()
	if err != nil {
		return fmt.Errorf("take term of lane: %w", err)
	}
	l.term = term
	return nil
}

// note says in Redis which jobs of the lane have a create or a task under way.
func (w *Worker) note(ctx context.Context, rec *jobs.Record) {
	if err := w.cfg.Redis.HSet(ctx, w.laneKey("in_flight"), rec.ID, rec.Attempt).Err(); err != nil {
		w.log.Warn("in-flight note not written", "job_id", rec.ID, "err", err)
	}
}

func (l *lane) clearNote(ctx context.Context, rec *jobs.Record) {
	if err := l.cfg.Redis.HDel(ctx, l.laneKey("in_flight"), rec.ID).Err(); err != nil {
		l.log.Warn("in-flight note not cleared", "job_id", rec.ID, "err", err)
	}
}

// finishInFlight polls the tasks that an earlier process left at DashScope: they
// hold the slot, and they are paid for. It returns ErrStopped at once when the worker
// stops or the lease is lost.
func (l *lane) finishInFlight(ctx context.Context) error {
	left, err := l.cfg.Redis.HKeys(ctx, l.laneKey("in_flight")).Result()
	if err != nil {
		return fmt.Errorf("read in-flight notes: %w", err)
	}
	var group errgroup.Group
	for _, id := range left {
		group.Go(func() error { return l.finishTask(ctx, id) })
	}
	return group.Wait()
}

// asAsked is the request that the job's digest stands for: without the seed, if
// that was derived.
func asAsked(rec *jobs.Record) jobs.Request {
	req := *rec.Request
	if req.Seed = nil; req.Digest() == rec.Digest {
		return req
	}
	return *rec.Request
}

// finishTask takes a job over from an earlier process, as far as it has a task.
func (l *lane) finishTask(ctx context.Context, id string) error {
	for {
		rec, err := l.jobs.Get(ctx, id)
		if errors.Is(err, jobs.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case rec.State == jobs.StateSubmitting:
			err = l.holdAmbiguous(ctx, rec, "the program died while it was submitting the job")
		case rec.State == jobs.StateGenerating:
			l.log.Info("resuming", "job_id", id, "task_id", rec.TaskID, "attempt", rec.Attempt)
			err = l.poll(ctx, rec)
		case rec.State.Waiting():
			// Its task has failed; its message may have died with the queue.
			l.clearNote(ctx, rec)
			return l.jobs.EnqueueGenerate(ctx, rec, asAsked(rec))
		default:
			l.clearNote(ctx, rec)
			return nil
		}
		var verdict *verdictError
		if err != nil && !errors.As(err, &verdict) && !errors.Is(err, jobs.ErrConflict) {
			return err
		}
	}
}
