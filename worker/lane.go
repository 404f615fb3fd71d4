package worker

import (
	"context"
	"errors"
	"fmt"
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

	term int64
	// slots has one place per task at once. asynq frees a handler's place while
	// the handler may still run, so its own bound is not enough.
	slots chan struct{}
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
	return &lane{
		Worker:      w,
		slots:       make(chan struct{}, w.cfg.Concurrency),
		pace:        rate.NewLimiter(rate.Limit(w.model.SubmitsPerSecond/paceMargin), 1),
		unreachable: backoff{first: time.Second, most: time.Minute},
		// Throttles usually clear within a minute (rate-limit page).
		throttled: backoff{first: time.Second, most: time.Minute},
		account:   backoff{first: 10 * time.Second, most: 10 * time.Minute},
	}
}

func (l *lane) key(name string) string {
	return "danqing:lane:" + l.cfg.Account + ":" + l.cfg.Model + ":" + name
}

// run finishes what is in flight, then draws work until the worker stops.
func (l *lane) run(ctx context.Context) error {
	if err := l.takeTerm(ctx); err != nil {
		return err
	}
	if err := l.finishInFlight(ctx); err != nil {
		return err
	}
	server := asynq.NewServerFromRedisClient(l.cfg.Redis, asynq.Config{
		Concurrency:              l.cfg.Concurrency,
		Queues:                   jobs.LaneQueues(l.cfg.Model),
		TaskCheckInterval:        200 * time.Millisecond,
		DelayedTaskCheckInterval: time.Second,
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
	<-l.stopping
	server.Stop()
	l.quiesce(ctx)
	server.Shutdown()
	l.quiesce(context.WithoutCancel(ctx))
	l.log.Info("lane closed", "term", l.term)
	return nil
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
	term, err := l.cfg.Redis.Incr(ctx, l.key("term")).Result()
	if err != nil {
		return fmt.Errorf("take term of lane: %w", err)
	}
	l.term = term
	return nil
}

// note says in Redis which jobs of the lane have a create or a task under way.
func (l *lane) note(ctx context.Context, rec *jobs.Record) {
	if err := l.cfg.Redis.HSet(ctx, l.key("in_flight"), rec.ID, rec.Attempt).Err(); err != nil {
		l.log.Warn("in-flight note not written", "job_id", rec.ID, "err", err)
	}
}

func (l *lane) clearNote(ctx context.Context, rec *jobs.Record) {
	if err := l.cfg.Redis.HDel(ctx, l.key("in_flight"), rec.ID).Err(); err != nil {
		l.log.Warn("in-flight note not cleared", "job_id", rec.ID, "err", err)
	}
}

// finishInFlight polls the tasks that an earlier process left at DashScope: they
// hold the slot, and they are paid for. It returns at once when the worker stops.
func (l *lane) finishInFlight(ctx context.Context) error {
	left, err := l.cfg.Redis.HKeys(ctx, l.key("in_flight")).Result()
	if err != nil {
		return fmt.Errorf("read in-flight notes: %w", err)
	}
	var group errgroup.Group
	for _, id := range left {
		group.Go(func() error {
			rec, err := l.jobs.Get(ctx, id)
			if errors.Is(err, jobs.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			if rec.State != jobs.StateGenerating && rec.State != jobs.StateSubmitting {
				l.clearNote(ctx, rec)
				return nil
			}
			l.log.Info("resuming", "job_id", id, "task_id", rec.TaskID, "attempt", rec.Attempt)
			err = l.generate(ctx, jobs.GenerateMessage{JobID: id, Digest: rec.Digest})
			var verdict *verdictError
			if errors.Is(err, ErrStopped) || errors.As(err, &verdict) {
				return nil
			}
			return err
		})
	}
	return group.Wait()
}
