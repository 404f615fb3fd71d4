package lane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
)

// jobError determines what asynq does with a message. Its text is shown in the web UI.
type jobError struct {
	// retryIn is when the job is retried; 0 means never.
	retryIn time.Duration
	message string
	// attempt is set if an attempt of the job has failed: the web UI counts it.
	attempt bool
}

func (e *jobError) Error() string { return e.message }

// parkedRetry is when the message of a job is delivered again whose ambiguous create is reconciled
// without a slot. It only ensures that a worker is active for the job.
const parkedRetry = 30 * time.Second

// isFailedAttempt reports whether asynq counts an error as a failure of the message. Nothing else
// that a lane returns is one.
func isFailedAttempt(err error) bool {
	var outcome *jobError
	return errors.As(err, &outcome) && outcome.attempt
}

func laneRetryDelay(_ int, err error, _ *asynq.Task) time.Duration {
	var outcome *jobError
	switch {
	case errors.Is(err, asynq.ErrLeaseExpired):
		return 0
	case errors.As(err, &outcome):
		return outcome.retryIn
	default:
		return loop.RedisRetry
	}
}

// handle adapts the lane to asynq: it decodes the message, runs the job and translates
// the error. ctx is the lane's; handling is the message's, which may end before the
// execution does.
func (l *lane) handle(ctx, handling context.Context, message *asynq.Task) error {
	m, err := decodeMessage(message.Payload())
	if err == nil && m.Request.Model != l.cfg.Model.Name {
		err = fmt.Errorf("the payload has model %q in the queue of %q", m.Request.Model, l.cfg.Model.Name)
	}
	if err != nil {
		l.refuseRequest(ctx, m, err)
		return fmt.Errorf("%w: enqueue with the jobs package: %w", err, asynq.SkipRetry)
	}
	l.mu.Lock()
	session := l.session
	l.mu.Unlock()
	e, started := l.start(ctx, m.JobID, false, 1, func(ctx context.Context, e *execution) error {
		return l.drive(ctx, e, m.JobID, source{message: &m, session: session})
	})
	select {
	case <-e.done:
		// It may have left the job, which waits, to its message, or may be of an earlier session.
		if !started && (e.err == nil || errors.Is(e.err, errSessionOver)) {
			return l.handle(ctx, handling, message)
		}
	case <-e.parked:
		if l.detachParked(m.JobID, e) {
			return &jobError{retryIn: parkedRetry, message: jobs.CodeSubmitAmbiguous + ": " + reconcile.AmbiguousMessage + "see the job's record"}
		}
	case <-handling.Done():
		l.detach(ctx, m.JobID, e)
		return context.Cause(handling)
	}
	var paused *pauseError
	var outcome *jobError
	switch {
	case stopped(e.err), errors.Is(e.err, errSessionOver), errors.As(e.err, &paused), l.hard.Err() != nil:
		return blockUntilRequeued(handling)
	case errors.As(e.err, &outcome) && outcome.retryIn == 0:
		return fmt.Errorf("%w: %w", e.err, asynq.SkipRetry)
	default:
		return e.err
	}
}

// refuseRequest fails a waiting job whose request this worker refuses: its producer has another
// catalog of models. Nothing was bought. A message that is not its job's own is left alone.
func (l *lane) refuseRequest(ctx context.Context, m jobs.GenerateMessage, cause error) {
	if m.JobID == "" || m.Digest == "" || jobs.ValidID(m.JobID) != nil {
		return
	}
	rec, err := l.recorder.Store.Get(ctx, m.JobID)
	waits := err == nil && (rec.State == jobs.StateQueued || rec.State == jobs.StateRetrying)
	if !waits || !strings.HasPrefix(rec.Digest, m.Digest) || rec.Model != l.cfg.Model.Name {
		return
	}
	withRequest := *rec
	withRequest.Request = &m.Request
	if err := l.fail(ctx, &withRequest, jobs.CodeRequestRefused, "the worker's catalog of models refuses the request: "+cause.Error()+"; nothing was bought: give producers and workers the same DANQING_MODEL_CATALOG, then retry it"); err != nil && !errors.As(err, new(*jobError)) {
		l.log.Warn("refused request not recorded", "job_id", m.JobID, "err", err)
	}
}

// decodeMessage parses a payload and validates it as untrusted input: another program
// or an operator may have enqueued it.
func decodeMessage(payload []byte) (jobs.GenerateMessage, error) {
	var m jobs.GenerateMessage
	if err := json.Unmarshal(payload, &m); err != nil {
		return m, fmt.Errorf("the payload is not a danqing job: %w", err)
	}
	if err := jobs.ValidID(m.JobID); err != nil {
		return m, fmt.Errorf("payload job_id: %w", err)
	}
	return m, m.Check()
}

// blockUntilRequeued blocks until asynq, shutting down, has put the message back at the
// head of its queue. A handler that returned an error instead would send it to the
// tail.
func blockUntilRequeued(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}
