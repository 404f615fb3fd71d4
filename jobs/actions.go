package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// RequestOf returns what a job asks for, as asked: from its record, or while it
// waits from its message. It fails with [ErrRequestLost] if neither has it.
func (c *Client) RequestOf(_ context.Context, rec *Record) (Request, error) {
	if rec.Request != nil {
		return rec.OriginalRequest(), nil
	}
	queue := Queue(rec.Model, rec.Priority)
	info, err := asynq.NewInspectorFromRedisClient(c.redis).GetTaskInfo(queue, rec.ID)
	if errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound) {
		return Request{}, fmt.Errorf("job %s: %w: enqueue it again", rec.ID, ErrRequestLost)
	}
	if err != nil {
		return Request{}, fmt.Errorf("read message of %s: %w", rec.ID, err)
	}
	var message GenerateMessage
	if err := json.Unmarshal(info.Payload, &message); err != nil {
		return Request{}, fmt.Errorf("read message of %s: %w", rec.ID, err)
	}
	req, _, err := message.Request.Normalize()
	if err != nil || req.Digest() != rec.Digest {
		return Request{}, fmt.Errorf("job %s: %w: its message was changed: enqueue it again", rec.ID, ErrRequestLost)
	}
	return req, nil
}

// Cancel gives a job up. One that waits is canceled at once and costs nothing.
// One that has a create on its way, or a task, gets CancelRequestedAt: its lane
// cancels the task if DashScope still has it PENDING; otherwise the task is paid
// for, goes on, and its images are kept. The record that is returned tells which.
// A job that was retried for the images that it lacks has succeeded again, with
// those that it has.
//
// It fails with [ErrNotFound]; with [ErrFinished] beside the record if the job is
// over; with [ErrInvalidState] beside the record if its images are being stored or it is
// held; or with Redis's own error. It may be repeated: a canceled job is canceled
// without an error.
func (c *Client) Cancel(ctx context.Context, id string) (*Record, error) {
	for {
		rec, err := c.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		switch rec.State {
		case StateScheduled, StateQueued, StateRetrying:
			rec, err = c.cancelWaiting(ctx, rec)
		case StateSubmitting, StateGenerating:
			err = c.requestCancel(ctx, rec)
		case StateCanceled:
			// An earlier call may have died half way.
			err = c.finishEnded(ctx, rec)
		case StateStoring:
			err = fmt.Errorf("cancel %s: %w: its images are paid for and are being stored; they will be kept", id, ErrInvalidState)
		case StateHeld:
			err = fmt.Errorf("cancel %s: %w: it is held; to give it up: danqing jobs resolve %s --give-up", id, ErrInvalidState, id)
		case StateSucceeded, StateFailed:
			err = fmt.Errorf("cancel %s: %w: it has %s", id, ErrFinished, rec.State)
		default:
			err = fmt.Errorf("cancel %s: %w: unknown state %q", id, ErrInvalidState, rec.State)
		}
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
}

func (c *Client) cancelWaiting(ctx context.Context, rec *Record) (*Record, error) {
	why := "canceled on request while it waited; it cost nothing"
	if rec.CostMicroYuan > 0 {
		why = "canceled on request while it waited to be made again"
	}
	return c.endWaiting(ctx, rec, StateCanceled, CodeCanceled, why)
}

// DeadlineMessage is the message beside [CodeDeadlineExceeded].
const DeadlineMessage = "it was not submitted before its deadline; nothing was bought"

// Expire ends a waiting job that is [Record.Overdue], and returns its record. It fails
// with [ErrConflict] if the job has moved on, or with Redis's own error.
func (c *Client) Expire(ctx context.Context, rec *Record) (*Record, error) {
	return c.endWaiting(ctx, rec, StateFailed, CodeDeadlineExceeded, DeadlineMessage)
}

// endWaiting ends a job that waits, with its message.
func (c *Client) endWaiting(ctx context.Context, rec *Record, state State, code, why string) (*Record, error) {
	next := *rec
	// The message is deleted, and the sidecar must tell what was asked for.
	switch req, err := c.RequestOf(ctx, rec); {
	case err == nil:
		next.Request = &req
	case !errors.Is(err, ErrRequestLost):
		return rec, err
	}
	next.End(state, code, why, time.Now().UTC())
	if err := c.Update(ctx, rec, &next); err != nil {
		return rec, err
	}
	return &next, c.finishEnded(ctx, &next)
}

// cancelScript notes beside the record that somebody asked to cancel the job, if
// its (state, attempt, term) is what the caller read, and says so. It leaves alone
// what a swap in another process counts on.
var cancelScript = redis.NewScript(`
local cur = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'term')
for i = 1, 3 do
  if (cur[i] or '') ~= ARGV[i] then return 0 end
end
redis.call('HSET', KEYS[1], 'cancel', ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
`)

func (c *Client) requestCancel(ctx context.Context, rec *Record) error {
	if !rec.CancelRequestedAt.IsZero() {
		return nil
	}
	at := time.Now().UTC()
	done, err := cancelScript.Run(ctx, c.redis, []string{rediskey.Record(rec.ID)},
		string(rec.State), rec.Attempt, rec.Term, at.Format(time.RFC3339Nano), rediskey.Events, rec.ID).Int()
	if err != nil {
		return fmt.Errorf("cancel %s: %w", rec.ID, err)
	}
	if done == 0 {
		return fmt.Errorf("cancel %s: %w", rec.ID, ErrConflict)
	}
	rec.CancelRequestedAt = at
	return nil
}

// settleTries is how often a message is deleted that moves meanwhile; once is enough,
// as a handler ends once.
const maxDeleteTries = 3

// finishEnded does what is left to do for a job that a person ended: its message is
// taken out of the lane's queue, and the store server is told to write its sidecar.
func (c *Client) finishEnded(ctx context.Context, rec *Record) error {
	queue := Queue(rec.Model, rec.Priority)
	inspector := asynq.NewInspectorFromRedisClient(c.redis)
	for tries := 0; ; tries++ {
		err := inspector.DeleteTask(queue, rec.ID)
		if err == nil || errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound) {
			break
		}
		// A lane that has just drawn it finds out from the record. One that has just put
		// it down leaves it to be deleted.
		if info, infoErr := inspector.GetTaskInfo(queue, rec.ID); infoErr != nil || info.State == asynq.TaskStateActive {
			break
		}
		if tries == maxDeleteTries {
			return fmt.Errorf("delete message of %s: %w", rec.ID, err)
		}
	}
	return c.EnqueueStore(ctx, rec)
}

// Retry puts a job that failed or was canceled on the queue again, as it was asked
// for, and returns its record. Tasks that failed cost nothing; what was charged
// for, as where a link died before its image was stored, is bought a second time.
//
// Of a job that has succeeded without some of its images it buys what is missing:
// see [Record.Missing]. The images that it has stay, in the record too. Those that
// are made take the seeds from that of the first missing one on. If none can be
// made, the job has succeeded with what it had.
//
// It fails with [ErrNotFound] (see [Client.RetryRecord]), [ErrRequestLost],
// [ErrInvalidState] if the job is not over, [ErrFinished] if it has all its images, or Redis's
// own error. It may be repeated while the job waits.
func (c *Client) Retry(ctx context.Context, id string) (*Record, error) {
	for {
		rec, err := c.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		switch {
		case rec.retriable():
			rec, err = c.restart(ctx, rec, rec)
		case rec.State.Waiting() && !rec.RetriedAt.IsZero():
			// An earlier call may have died between the record and the message.
			err = c.enqueueMessage(ctx, rec)
		case rec.State == StateHeld:
			err = fmt.Errorf("retry %s: %w: it is held; to buy it again: danqing jobs resolve %s --buy-again", id, ErrInvalidState, id)
		default:
			err = retryRefused(rec)
		}
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
}

// retriable reports whether the job is over and lacks images.
func (r *Record) retriable() bool {
	if r.State == StateSucceeded {
		return r.storedImages() > 0 && len(r.Missing()) > 0
	}
	return r.State.Final()
}

// notRetried says why a job that lacks no image is not made again.
func retryRefused(rec *Record) error {
	if !rec.State.Final() {
		return fmt.Errorf("retry %s: %w: it is not finished (%s)", rec.ID, ErrInvalidState, rec.State)
	}
	return fmt.Errorf(`retry %s: %w: it has all its images; for another image of the same request enqueue a new job with "redo_of": %q`, rec.ID, ErrFinished, rec.ID)
}

// RetryRecord is [Client.Retry] for a job that Redis may have forgotten: rec is
// what its sidecar tells, with the request. If Redis knows the job, its record
// decides.
func (c *Client) RetryRecord(ctx context.Context, rec *Record) (*Record, error) {
	for {
		known, err := c.Retry(ctx, rec.ID)
		if !errors.Is(err, ErrNotFound) {
			return known, err
		}
		switch {
		case !rec.retriable():
			return rec, retryRefused(rec)
		case rec.Request == nil:
			return nil, fmt.Errorf("job %s: %w: enqueue it again", rec.ID, ErrRequestLost)
		}
		if asked := rec.OriginalRequest(); asked.Digest() != rec.Digest {
			return nil, fmt.Errorf("retry %s: %w (the request in its sidecar has another digest)", rec.ID, ErrDigestConflict)
		}
		known, err = c.restart(ctx, nil, rec)
		if !errors.Is(err, ErrConflict) {
			return known, err
		}
	}
}

// restart puts a job that is over, or held, on the queue in place of old. Images that
// are in the bucket stay where they are, and in the record.
func (c *Client) restart(ctx context.Context, old, rec *Record) (*Record, error) {
	req, err := c.RequestOf(ctx, rec)
	if err != nil {
		return rec, err
	}
	next := *rec
	next.archiveAttempt()
	// A person wants it now.
	req.NotBefore, req.Deadline = time.Time{}, time.Time{}
	next.NotBefore, next.Deadline = req.NotBefore, req.Deadline
	next.State, next.TaskID, next.Request = StateQueued, "", &req
	next.Code, next.Message, next.Results, next.SpoolOwner, next.SpoolLocation = "", "", nil, "", ""
	if next.storedImages() == 0 {
		next.Images = nil
	}
	next.SubmittedAt, next.RunningAt, next.GeneratedAt, next.FinishedAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	next.ClearIntent()
	next.RetriedAt = time.Now().UTC()
	if !next.RetriedAt.After(rec.FinishedAt) { // the clock that ended it is ahead
		next.RetriedAt = rec.FinishedAt.Add(time.Millisecond)
	}
	if err := c.releaseReservation(ctx, rec); err != nil {
		return rec, err
	}
	if err := c.update(ctx, old, &next, updateOptions{clearCancel: true}); err != nil {
		return rec, err
	}
	return &next, c.enqueueMessage(ctx, &next)
}

// releaseReservation frees what the attempt of a job that a person has decided about has
// reserved, whenever that was: nobody else looks at days that are past.
func (c *Client) releaseReservation(ctx context.Context, rec *Record) error {
	if rec.Account == "" || rec.SubmittedAt.IsZero() {
		return nil
	}
	charge := ledger.Charge{Account: rec.Account, JobID: rec.ID, Attempt: rec.Attempt, At: rec.SubmittedAt, Batch: rec.Batch}
	if rec.Request != nil {
		charge.Batch = rec.Request.Batch
	}
	return ledger.New(c.redis).Release(ctx, charge)
}

// archiveAttempt moves what the record tells of its last attempt to the past ones.
func (r *Record) archiveAttempt() {
	if r.isPastAttempt(r.Attempt) {
		return
	}
	ended := r.FinishedAt
	if ended.IsZero() {
		ended = time.Now().UTC()
	}
	made := r.storedImages()
	for _, a := range r.PastAttempts {
		made -= a.Images
	}
	r.PastAttempts = append(r.PastAttempts[:len(r.PastAttempts):len(r.PastAttempts)], Attempt{
		Attempt: r.Attempt, Term: r.Term, TaskID: r.TaskID, SubmittedAt: r.SubmittedAt, EndedAt: ended, Images: max(made, 0), Code: r.Code, Message: r.Message,
	})
}

const (
	// lastWordTime bounds the wait for the handler that has just ended a job and has
	// yet to say so to asynq; ours, a hundred times what that takes.
	handlerExitTimeout = 2 * time.Second
	handlerExitPoll    = 20 * time.Millisecond
)

// enqueueMessage gives a waiting job its message. A handler that ended the job a moment
// ago may still have the old one; its end would take the new one with it.
func (c *Client) enqueueMessage(ctx context.Context, rec *Record) error {
	req, err := c.RequestOf(ctx, rec)
	if err != nil {
		return err
	}
	inspector := asynq.NewInspectorFromRedisClient(c.redis)
	tick := time.NewTicker(handlerExitPoll)
	defer tick.Stop()
	for waited := time.Duration(0); waited < handlerExitTimeout; waited += handlerExitPoll {
		info, err := inspector.GetTaskInfo(Queue(rec.Model, rec.Priority), rec.ID)
		if err != nil || info.State != asynq.TaskStateActive {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return c.EnqueueGenerate(ctx, rec, req)
}
