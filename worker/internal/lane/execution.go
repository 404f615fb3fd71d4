package lane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/internal/loop"
)

// execution is a lane's work on one job. It outlives the asynq message that started it:
// asynq may take the message away, because of an action in its web UI, a Redis outage or
// the end of a session, while a task may be running. The execution then continues and keeps
// its slot, and a redelivery of the message attaches to it.
type execution struct {
	// handlers is the number of handlers that wait for the result. slotReleased is set
	// while the execution has no slot, and working while its slot has a task. All are guarded
	// by the lane's mu.
	handlers     int
	slotReleased bool
	working      bool
	// parked is closed when the result may take minutes without a slot. Handlers stop
	// waiting then.
	parked chan struct{}
	// done is closed when err is final.
	done chan struct{}
	err  error
}

// pauseError is why a lane cannot submit for now, neither this job nor another. Nothing was
// spent, and no attempt was counted.
type pauseError struct {
	backoff *loop.Backoff
	minWait time.Duration
	reason  jobs.PauseReason
	message string // a constant, for the log
	cause   error
	until   time.Time // when the cause ends by itself, if that is known
	// recheck, unless nil, is called after the wait and fails while the cause persists.
	recheck func(context.Context) error
}

func (t *pauseError) Error() string {
	if t.cause == nil {
		return t.message
	}
	return t.message + ": " + t.cause.Error()
}

func (t *pauseError) Unwrap() error { return t.cause }

// redisPause pauses the lane because of a Redis error.
func (l *lane) redisPause(err error) *pauseError {
	return &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseRedis, message: loop.RedisUnavailable, cause: err}
}

// detach ends a handler's wait, before or after the result.
func (l *lane) detach(ctx context.Context, id string, e *execution) {
	l.mu.Lock()
	e.handlers--
	unattended := e.handlers == 0
	l.mu.Unlock()
	select {
	case <-e.done:
		if unattended { // no handler returned the result to asynq
			l.returnMessage(ctx, id, e.err)
		}
	default:
	}
}

// detachParked ends a handler's wait for a parked execution. It reports false if the
// execution has ended.
func (l *lane) detachParked(id string, e *execution) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.executions[id] != e {
		return false
	}
	e.handlers--
	return true
}

// start starts an execution, in a slot that the caller has taken or without one. If the job
// already has an execution, it releases the slot and returns that one. handlers is the
// number of handlers that wait for the result.
func (l *lane) start(ctx context.Context, id string, inSlot bool, handlers int, work func(context.Context, *execution) error) (e *execution, started bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.executions[id]; e != nil {
		if inSlot {
			<-l.slots
		}
		e.handlers += handlers
		return e, false
	}
	e = &execution{handlers: handlers, slotReleased: !inSlot, parked: make(chan struct{}), done: make(chan struct{})}
	l.executions[id] = e
	l.group.Go(func() {
		e.err = l.withInFlightMark(ctx, id, func(ctx context.Context) error { return work(ctx, e) })
		var t *pauseError
		if errors.As(e.err, &t) {
			l.requestPause(t)
		}
		l.mu.Lock()
		delete(l.executions, id)
		unattended, slotReleased := e.handlers == 0, e.slotReleased
		l.endWorking(e)
		close(e.done)
		l.mu.Unlock()
		if !slotReleased {
			<-l.slots
		}
		if unattended {
			l.returnMessage(ctx, id, e.err)
		}
	})
	return e, true
}

// requestPause asks serve to pause the lane. Nothing that is prepared is sent before that.
func (l *lane) requestPause(t *pauseError) {
	l.mu.Lock()
	defer l.mu.Unlock() // both for the same session
	select {
	case l.pauses <- t:
	default: // the lane is being paused already
	}
	if l.endSession != nil {
		l.endSession(errSessionOver)
	}
}

// releaseSlot releases an execution's slot, if it has one.
func (l *lane) releaseSlot(e *execution) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !e.slotReleased {
		e.slotReleased = true
		l.endWorking(e)
		<-l.slots
	}
}

// park releases an execution's slot and its handlers while it waits for something that
// needs no slot.
func (l *lane) park(e *execution) {
	l.releaseSlot(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-e.parked:
	default:
		close(e.parked)
	}
}

// reacquireSlot takes a slot for an execution that has none.
func (l *lane) reacquireSlot(ctx context.Context, e *execution) error {
	if l.hasSlot(e) {
		return nil
	}
	if err := l.takeSlot(ctx); err != nil {
		return err
	}
	l.slotTaken(e)
	return nil
}

func (l *lane) hasSlot(e *execution) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !e.slotReleased
}

// slotTaken records that an execution has a slot.
func (l *lane) slotTaken(e *execution) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.slotReleased = false
}

// drain waits until no execution is running, after it has taken every slot for good. It gives
// up when the worker must stop at once.
func (l *lane) drain() {
	for range cap(l.slots) {
		select {
		case l.slots <- struct{}{}:
		case <-l.hard.Done():
			return
		}
	}
	for e := l.someExecution(); e != nil; e = l.someExecution() {
		select {
		case <-e.done:
		case <-l.hard.Done():
			return
		}
	}
}

// worksOn reports whether a job has an execution.
func (l *lane) worksOn(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.executions[id] != nil
}

// someExecution returns an execution that is in progress, nil if there is none. A message that was
// drawn just before the end may still start one, which the group must not be waiting for.
func (l *lane) someExecution() *execution {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.executions {
		return e
	}
	return nil
}

// withInFlightMark runs work under an in-flight mark in Redis. After a crash the mark names
// the job to the next holder of the lane.
func (l *lane) withInFlightMark(ctx context.Context, id string, work func(context.Context) error) error {
	if err := l.recorder.MarkInFlight(ctx, l.cfg.Account.Name, l.cfg.Model.Name, id); err != nil {
		return l.redisPause(err)
	}
	err := work(ctx)
	if stopped(err) || l.hard.Err() != nil {
		return err // the next holder resumes it
	}
	l.clearInFlight(ctx, id)
	return err
}

func (l *lane) clearInFlight(ctx context.Context, id string) {
	if err := l.recorder.Redis.HDel(context.WithoutCancel(ctx), l.key(rediskey.LaneInFlight), id).Err(); err != nil {
		l.log.Warn("in-flight mark not cleared", "job_id", id, "err", err)
	}
}

// resumeInFlight resumes the jobs that earlier holders of the lane left in flight: paid
// tasks that occupy a slot, and messages whose handler has crashed. It returns when each
// has its slot or is done.
//
// waiting handles a job that has neither a task nor an open intent.
func (l *lane) resumeInFlight(ctx context.Context, waiting func(context.Context, *jobs.Record) error) error {
	left, err := l.recorder.Redis.HKeys(ctx, l.key(rediskey.LaneInFlight)).Result()
	if err != nil {
		return fmt.Errorf("read in-flight marks: %w", err)
	}
	for _, id := range left {
		if l.worksOn(id) {
			continue
		}
		if err := l.takeSlot(ctx); err != nil {
			return err
		}
		l.start(ctx, id, true, 0, func(ctx context.Context, e *execution) error { return l.drive(ctx, e, id, source{waiting: waiting}) })
	}
	return nil
}

// inFlightInterval is how often a lane looks for its jobs that other lanes have marked, such
// as a job with a manually adopted task whose message another account's lane has drawn.
const inFlightInterval = 5 * time.Second

// pollInFlight resumes what resumeInFlight finds, and ends the term if Redis may have lost
// data.
func (l *lane) pollInFlight(ctx context.Context) {
	if l.cfg.Dataset.Known() != l.dataset {
		l.log.Warn("redis dataset changed: restarting the lane", "term", l.term)
		l.lease.Invalidate()
		return
	}
	if !l.cfg.Watcher.MayExist(l.key(rediskey.LaneInFlight)) {
		return
	}
	// A message that a handler of another lane has drawn stays there.
	wait := func(context.Context, *jobs.Record) error { return nil }
	if err := l.resumeInFlight(ctx, wait); err != nil && ctx.Err() == nil {
		loop.WarnRedis(l.log, err)
	}
}

// foreign reports whether a job belongs to another lane. A job belongs to a lane from its
// intent on.
func (l *lane) foreign(rec *jobs.Record) bool {
	return rec.Account != l.cfg.Account.Name || rec.Model != l.cfg.Model.Name
}

// ensureMessage enqueues a message for a waiting job that has none.
func (l *lane) ensureMessage(ctx context.Context, id string) {
	ctx = context.WithoutCancel(ctx)
	rec, err := l.recorder.Store.Get(ctx, id)
	if err == nil && rec.State.Waiting() && rec.Request != nil {
		err = l.recorder.Store.EnqueueGenerate(ctx, rec, rec.OriginalRequest())
	}
	if err != nil && !errors.Is(err, jobs.ErrNotFound) {
		l.log.Warn("waiting job may lack a message", "job_id", id, "err", err)
	}
}

// returnMessage does for the message of an execution without a handler what asynq does for one with
// a handler: the job keeps it, and is tried again after the wait that the result asks for.
func (l *lane) returnMessage(ctx context.Context, id string, result error) {
	l.ensureMessage(ctx, id)
	var outcome *jobError
	if !errors.As(result, &outcome) || outcome.retryIn == 0 {
		return
	}
	ctx = context.WithoutCancel(ctx)
	rec, err := l.recorder.Store.Get(ctx, id)
	if err == nil && rec.State == jobs.StateRetrying {
		err = l.recorder.Store.PostponeMessage(ctx, rec, time.Now().Add(outcome.retryIn))
	}
	if err != nil && !errors.Is(err, jobs.ErrNotFound) {
		l.log.Warn("job is tried again at once", "job_id", id, "err", err)
	}
}

// requeueAtHead restores the queue position of a waiting job whose handler crashed with the
// lane's last holder. asynq would requeue it after a minute or two, and at the tail.
func (l *lane) requeueAtHead(ctx context.Context, rec *jobs.Record) error {
	if active, err := l.recorder.Store.RequeueAtHead(ctx, rec); err != nil || active {
		return err
	}
	l.ensureMessage(ctx, rec.ID)
	return nil
}
