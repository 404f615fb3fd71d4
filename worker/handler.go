package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/hibiken/asynq"
	"golang.org/x/time/rate"

	"github.com/danqing-queue/danqing/jobs"
)

// verdictError tells asynq what becomes of a message. Its text is a sentence for
// the person who reads it in the web UI.
type jobError struct {
	// retryIn is when the job is tried again; 0 means never.
	retryIn time.Duration
	message string
}

func (e *jobError) Error() string { return e.message }

// redisPause is when a message is looked at again after an error of ours, which
// spent nothing.
const redisPause = 5 * time.Second

// parkedRetry is when the message of a job whose create was lost comes again: it only
// wakes, should nobody be at the job any more.
const parkedRetry = 30 * time.Second

func laneRetryDelay(_ int, err error, _ *asynq.Task) time.Duration {
	var verdict *jobError
	switch {
	case errors.Is(err, asynq.ErrLeaseExpired):
		return 0
	case errors.As(err, &verdict):
		return verdict.retryIn
	default:
		return redisPause
	}
}

// handle is the lane's edge to asynq: it decodes, calls, and translates. ctx is the
// lane's, handling the message's own, which ends before the effort may.
func (l *lane) handle(ctx, handling context.Context, message *asynq.Task) error {
	m, err := decodeMessage(message.Payload())
	if err == nil && m.Request.Model != l.model.Name {
		err = fmt.Errorf("the payload asks for model %q in a queue of %q", m.Request.Model, l.model.Name)
	}
	if err != nil {
		return fmt.Errorf("%w: enqueue with the jobs package: %w", err, asynq.SkipRetry)
	}
	e := l.attach(m.JobID)
	if e == nil {
		if err := l.takeSlot(handling); err != nil {
			return blockUntilRequeued(handling)
		}
		e = l.start(ctx, m.JobID, 1, func(ctx context.Context, e *execution) error { return l.generate(ctx, e, m) })
	}
	select {
	case <-e.done:
	case <-e.parked:
		if l.detachParked(m.JobID, e) {
			return &jobError{retryIn: parkedRetry, message: jobs.CodeSubmitAmbiguous + ": " + ambiguousMessage + "the job's record tells more"}
		}
	case <-handling.Done():
		l.detach(ctx, m.JobID, e)
		return context.Cause(handling)
	}
	var hindered *pauseError
	var verdict *jobError
	switch {
	case errors.Is(e.err, ErrStopped), errors.As(e.err, &hindered), ctx.Err() != nil:
		return blockUntilRequeued(handling)
	case errors.As(e.err, &verdict) && verdict.retryIn == 0:
		return fmt.Errorf("%w: %w", e.err, asynq.SkipRetry)
	default:
		return e.err
	}
}

// decodeMessage reads a payload and checks it as if it came from a stranger: it
// may have been put there by another program, or by hand.
func decodeMessage(payload []byte) (jobs.GenerateMessage, error) {
	var m jobs.GenerateMessage
	if err := json.Unmarshal(payload, &m); err != nil {
		return m, fmt.Errorf("the payload is no job of danqing: %w", err)
	}
	if err := jobs.ValidID(m.JobID); err != nil {
		return m, fmt.Errorf("the payload's job_id: %w", err)
	}
	req, _, err := m.Request.Normalize()
	if err != nil {
		return m, fmt.Errorf("the payload's request: %w", err)
	}
	if req.Digest() != m.Digest {
		return m, errors.New("the payload's request does not fit its digest: it was changed on its way")
	}
	m.Request = req
	return m, nil
}

// giveBack blocks until asynq, shutting down, has put the message back at the head of
// its queue. A handler that returned instead would send it to the tail.
func blockUntilRequeued(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// asynqLog sends asynq's own lines to slog: while Redis is away, the same few again
// and again, so that only some of them are kept.
type asynqLog struct {
	log  *slog.Logger
	some *rate.Sometimes
}

func newAsynqLog(log *slog.Logger) asynqLog {
	return asynqLog{log: log, some: &rate.Sometimes{First: asynqLines, Interval: asynqInterval}}
}

const (
	asynqLines    = 5
	asynqInterval = 10 * time.Second
)

func (a asynqLog) line(level slog.Level, args []any) {
	a.some.Do(func() { a.log.Log(context.Background(), level, "asynq", "err", fmt.Sprint(args...)) })
}

func (a asynqLog) Debug(...any)      {}
func (a asynqLog) Info(...any)       {}
func (a asynqLog) Warn(args ...any)  { a.line(slog.LevelInfo, args) }
func (a asynqLog) Error(args ...any) { a.line(slog.LevelError, args) }

// Fatal is called by asynq only where its own state is broken beyond repair.
func (a asynqLog) Fatal(args ...any) {
	a.line(slog.LevelError, args)
	os.Exit(1) //nolint:forbidigo // asynq counts on it
}
