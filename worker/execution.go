package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// effort is one go of a lane at a job. It belongs to the lane, not to the message
// that began it: when asynq takes the message away, because of a button in its
// web UI, an outage of Redis or the end of a session, a task may be running, so
// the effort goes on and keeps its slot, and a later delivery of the message
// joins it.
type execution struct {
	// handlers wait for the verdict, and slotless says that the effort has given its
	// slot up; guarded by the lane's mu.
	handlers     int
	slotReleased bool
	// parked is closed when the verdict may take minutes without a slot: no handler
	// waits for it any more.
	parked chan struct{}
	// done is closed when err is the verdict.
	done chan struct{}
	err  error
}

// trouble is why a lane can buy nothing for now, with the job or without it.
// Nothing was spent, and no attempt.
type pauseError struct {
	backoff *backoff
	minWait time.Duration
	message string // a constant, for the log
	cause   error
	// lasts, unless nil, fails as long as the trouble is not over after the wait.
	recheck func(context.Context) error
}

func (t *pauseError) Error() string {
	if t.cause == nil {
		return t.message
	}
	return t.message + ": " + t.cause.Error()
}

func (t *pauseError) Unwrap() error { return t.cause }

// join returns the effort that is under way on a job, or nil, for a handler that
// will wait for its verdict and must leave.
func (l *lane) attach(id string) *execution {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.efforts[id]
	if e != nil {
		e.handlers++
	}
	return e
}

// leave ends a handler's wait, before the verdict or after it.
func (l *lane) detach(ctx context.Context, id string, e *execution) {
	l.mu.Lock()
	e.handlers--
	alone := e.handlers == 0
	l.mu.Unlock()
	select {
	case <-e.done:
		if alone { // the verdict came too late for the message
			l.ensureMessage(ctx, id)
		}
	default:
	}
}

// leaveParked ends a handler's wait for an effort that is parked, unless it is over.
func (l *lane) detachParked(id string, e *execution) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.efforts[id] != e {
		return false
	}
	e.handlers--
	return true
}

// begin starts an effort in a slot that the caller has taken, unless one is under
// way: then it returns that one, and the slot is free again. handlers is how many
// wait for the verdict.
func (l *lane) start(ctx context.Context, id string, handlers int, work func(context.Context, *execution) error) *execution {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.efforts[id]; e != nil {
		<-l.slots
		e.handlers += handlers
		return e
	}
	e := &execution{handlers: handlers, parked: make(chan struct{}), done: make(chan struct{})}
	l.efforts[id] = e
	l.group.Go(func() {
		e.err = l.withInFlightMark(ctx, id, func(ctx context.Context) error { return work(ctx, e) })
		var t *pauseError
		if errors.As(e.err, &t) {
			select {
			case l.pauses <- t:
			default: // the lane is being closed already
			}
		}
		l.mu.Lock()
		delete(l.efforts, id)
		alone, slotless := e.handlers == 0, e.slotReleased
		close(e.done)
		l.mu.Unlock()
		if !slotless {
			<-l.slots
		}
		if alone {
			l.ensureMessage(ctx, id)
		}
	})
	return e
}

// letGo frees an effort's slot, and lets its handlers go, while it waits for something
// that needs none.
func (l *lane) releaseSlot(e *execution) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.slotReleased {
		return
	}
	e.slotReleased = true
	<-l.slots
	select {
	case <-e.parked:
	default:
		close(e.parked)
	}
}

// regain takes a slot for an effort that has let its own go.
func (l *lane) reacquireSlot(ctx context.Context, e *execution) error {
	l.mu.Lock()
	slotless := e.slotReleased
	l.mu.Unlock()
	if !slotless {
		return nil
	}
	if err := l.takeSlot(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	e.slotReleased = false
	l.mu.Unlock()
	return nil
}

// settle waits until no effort does anything, by taking every slot for good. It
// gives up when ctx ends.
func (l *lane) drainSlots(ctx context.Context) {
	for range cap(l.slots) {
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// noted does the work under an in-flight note in Redis, which names the job to
// whoever holds the lane after a death in the middle.
func (l *lane) withInFlightMark(ctx context.Context, id string, work func(context.Context) error) error {
	if err := l.markInFlight(ctx, l.account.name, l.model.Name, id); err != nil {
		return &pauseError{backoff: &l.waits.unreachable, message: redisAway, cause: err}
	}
	err := work(ctx)
	if errors.Is(err, ErrStopped) || ctx.Err() != nil {
		return err // the next holder goes on
	}
	l.clearInFlight(ctx, id)
	return err
}

const redisAway = "redis unavailable"

// note says in Redis that a lane is at a job.
func (w *Worker) markInFlight(ctx context.Context, account, model, id string) error {
	if err := w.cfg.Redis.HSet(ctx, rediskey.Lane(account, model, inFlightKey), id, time.Now().UTC().Format(time.RFC3339)).Err(); err != nil {
		return fmt.Errorf("note job %s in flight: %w", id, err)
	}
	return nil
}

const inFlightKey = rediskey.LaneInFlight

func (l *lane) clearInFlight(ctx context.Context, id string) {
	if err := l.cfg.Redis.HDel(context.WithoutCancel(ctx), l.key(inFlightKey), id).Err(); err != nil {
		l.log.Warn("in-flight mark not cleared", "job_id", id, "err", err)
	}
}

// resume goes on with what earlier holders of the lane were at: tasks that hold a
// slot and are paid for, and messages that wait for a handler which is dead. It
// returns when each has its slot or is done.
//
// waiting is what to do about a job without a task.
func (l *lane) resumeInFlight(ctx context.Context, waiting func(context.Context, *jobs.Record) error) error {
	left, err := l.cfg.Redis.HKeys(ctx, l.key(inFlightKey)).Result()
	if err != nil {
		return fmt.Errorf("read in-flight notes: %w", err)
	}
	for _, id := range left {
		l.mu.Lock()
		known := l.efforts[id] != nil
		l.mu.Unlock()
		if known {
			continue
		}
		if err := l.takeSlot(ctx); err != nil {
			return err
		}
		l.start(ctx, id, 0, func(ctx context.Context, e *execution) error { return l.resumeJob(ctx, e, id, waiting) })
	}
	return nil
}

// resumeInterval is how often a lane looks for jobs of its own that others came
// across: a task that was adopted by hand, drawn by another account's lane.
const inFlightInterval = 5 * time.Second

// keepResuming does so until the returned function is called.
func (l *lane) pollInFlight(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		for l.sleep(ctx, inFlightInterval) == nil {
			if l.currentDataset() != l.dataset {
				l.log.Warn("redis dataset changed: restarting the lane", "term", l.term)
				l.lease.invalidate()
				return
			}
			// A message whose handler is alive, in another lane, stays where it is.
			wait := func(context.Context, *jobs.Record) error { return nil }
			if err := l.resumeInFlight(ctx, wait); err != nil && ctx.Err() == nil && !errors.Is(err, ErrStopped) {
				l.log.Warn(redisAway, "err", err)
			}
		}
	})
	return func() { cancel(); group.Wait() }
}

// goOn takes a job over from an earlier holder, as far as it has a task. A job
// without one waits its turn, unless its create was lost: then it has had its turn.
func (l *lane) resumeJob(ctx context.Context, e *execution, id string, waiting func(context.Context, *jobs.Record) error) error {
	for lost := false; ; {
		rec, err := l.jobs.Get(ctx, id)
		if errors.Is(err, jobs.ErrNotFound) {
			return nil
		}
		if errors.Is(err, jobs.ErrCorrupt) {
			l.log.Error("job skipped: record corrupt", "job_id", id, "err", err)
			return nil
		}
		if err != nil {
			// It may have a task, so the slot is not free, and the note must stay.
			wait := l.waits.unreachable.next()
			l.log.Warn(redisAway, "job_id", id, "err", err, "wait", wait)
			if err := l.sleep(ctx, wait); err != nil {
				return err
			}
			continue
		}
		switch {
		case rec.State.Waiting() && lost && rec.Request != nil:
			return l.generate(ctx, e, jobs.GenerateMessage{JobID: id, Digest: rec.Digest, Request: rec.OriginalRequest()})
		case rec.State.Waiting():
			return waiting(ctx, rec)
		case l.foreign(rec):
			return nil
		case rec.State == jobs.StateSubmitting:
			lost = true
			err = l.reconcile(ctx, e, rec)
		case rec.State == jobs.StateGenerating:
			if err := l.reacquireSlot(ctx, e); err != nil {
				return err
			}
			l.log.Info("resuming", "job_id", id, "task_id", rec.TaskID, "attempt", rec.Attempt)
			err = l.poll(ctx, rec)
		default:
			return nil
		}
		var verdict *jobError
		if err != nil && !errors.As(err, &verdict) && !errors.Is(err, jobs.ErrConflict) {
			return err
		}
	}
}

// foreign reports whether a job is another lane's, from its intent on.
func (l *lane) foreign(rec *jobs.Record) bool {
	return rec.Account != l.account.name || rec.Model != l.model.Name
}

// wake sees to it that a job which waits has a message.
func (l *lane) ensureMessage(ctx context.Context, id string) {
	ctx = context.WithoutCancel(ctx)
	rec, err := l.jobs.Get(ctx, id)
	if err == nil && rec.State.Waiting() && rec.Request != nil {
		err = l.jobs.EnqueueGenerate(ctx, rec, rec.OriginalRequest())
	}
	if err != nil && !errors.Is(err, jobs.ErrNotFound) {
		l.log.Warn("job without a message", "job_id", id, "err", err)
	}
}

// rescue gives a waiting job whose handler died with the lane's last holder its
// place back. asynq would do so in a minute or two, and at the tail.
func (l *lane) requeueAtHead(ctx context.Context, rec *jobs.Record) error {
	if active, err := l.jobs.RequeueAtHead(ctx, rec); err != nil || active {
		return err
	}
	l.ensureMessage(ctx, rec.ID)
	return nil
}
