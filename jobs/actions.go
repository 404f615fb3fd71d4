package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// requestOf is [Client.RequestOf].
func (s *Store) requestOf(job *Job) (Request, error) {
	if job.Request != nil {
		return job.OriginalRequest(), nil
	}
	queue := Queue(job.Model, job.Priority)
	info, err := asynq.NewInspectorFromRedisClient(s.redis).GetTaskInfo(queue, job.ID)
	if errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound) {
		return Request{}, fmt.Errorf("job %s: %w: enqueue it again", job.ID, ErrRequestLost)
	}
	if err != nil {
		return Request{}, fmt.Errorf("read message of %s: %w", job.ID, err)
	}
	var message GenerateMessage
	if err := json.Unmarshal(info.Payload, &message); err != nil {
		return Request{}, fmt.Errorf("read message of %s: %w", job.ID, err)
	}
	message.Request.ID = job.ID
	req, _, err := message.Request.Normalize()
	if err != nil || req.Digest() != job.Digest {
		return Request{}, fmt.Errorf("job %s: %w: its message was changed: enqueue it again", job.ID, ErrRequestLost)
	}
	return req, nil
}

// cancel is [Client.Cancel].
func (s *Store) cancel(ctx context.Context, id string, by Decider) (*Record, error) {
	made, err := by.decision(ActionCancel)
	if err != nil {
		return nil, fmt.Errorf("cancel %s: %w", id, err)
	}
	for {
		rec, err := s.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		switch rec.State {
		case StateScheduled, StateQueued, StatePrepared, StateRetrying:
			rec, err = s.cancelWaiting(ctx, rec, &made)
		case StateSubmitting, StateGenerating:
			err = s.requestCancel(ctx, rec, made)
		case StateCanceled:
			// An earlier call may have been interrupted.
			err = s.finishEnded(ctx, rec)
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

// cancelUnsubmitted is [Client.CancelUnsubmitted].
func (s *Store) cancelUnsubmitted(ctx context.Context, id string) (*Record, error) {
	for {
		rec, err := s.Get(ctx, id)
		switch {
		case err != nil:
			return nil, err
		case rec.State.Final():
			return rec, fmt.Errorf("cancel %s: %w: it has %s", id, ErrFinished, rec.State)
		case !rec.State.Waiting() || rec.CostMicroYuan > 0:
			return rec, fmt.Errorf("cancel %s: %w: it was submitted", id, ErrInvalidState)
		}
		rec, err = s.endWaiting(ctx, rec, nil, StateCanceled, CodeCanceled, UnwantedMessage)
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
}

// UnwantedMessage is the message of a job that [Client.CancelUnsubmitted] has canceled.
const UnwantedMessage = "canceled while it waited, because nobody waited for it any more; it cost nothing"

// cancelWaiting cancels a waiting job, which a person has decided if made is not nil.
func (s *Store) cancelWaiting(ctx context.Context, rec *Record, made *Decision) (*Record, error) {
	message := "canceled on request while it waited; it cost nothing"
	if rec.CostMicroYuan > 0 {
		message = "canceled on request while it waited for a retry"
	}
	return s.endWaiting(ctx, rec, made, StateCanceled, CodeCanceled, message)
}

// DeadlineMessage is the message beside [CodeDeadlineExceeded].
const DeadlineMessage = "it was not submitted before its deadline; nothing was bought"

// Expire ends a waiting job that is [Job.Overdue], and returns its record. It fails with
// [ErrConflict] if the job is no longer waiting, or with Redis's own error.
func (s *Store) Expire(ctx context.Context, rec *Record) (*Record, error) {
	return s.endWaiting(ctx, rec, nil, StateFailed, CodeDeadlineExceeded, DeadlineMessage)
}

// expireBatch is how many jobs ExpireOverdue ends at most in one call.
const expireBatch = 100

// ExpireOverdue ends the waiting jobs that are [Job.Overdue], up to 100 of them, oldest
// deadline first.
func (s *Store) ExpireOverdue(ctx context.Context) error {
	now := time.Now()
	ids, err := s.redis.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: rediskey.Deadlines, ByScore: true, Start: "-inf", Stop: strconv.FormatInt(now.UnixMilli(), 10), Count: expireBatch,
	}).Result()
	if err != nil {
		return fmt.Errorf("read deadlines: %w", err)
	}
	var failed []error
	for _, id := range ids {
		rec, err := s.Get(ctx, id)
		switch {
		case err == nil && rec.Overdue(now):
			_, err = s.Expire(ctx, rec)
		case err == nil && rec.State.Waiting(): // its deadline is within this millisecond
		case err == nil, errors.Is(err, ErrNotFound), errors.Is(err, ErrCorrupt):
			err = s.redis.ZRem(ctx, rediskey.Deadlines, id).Err()
		}
		if err != nil && !errors.Is(err, ErrConflict) { // the others are not delayed
			failed = append(failed, fmt.Errorf("end overdue job %s: %w", id, err))
		}
	}
	return errors.Join(failed...)
}

// endWaiting ends a waiting job and deletes its message. made is the decision of a person, nil
// if none decided it.
func (s *Store) endWaiting(ctx context.Context, rec *Record, made *Decision, state State, code, message string) (*Record, error) {
	next := *rec
	if made != nil {
		next.Decide(*made)
	}
	// The message is deleted, and the sidecar needs the request.
	switch req, err := s.requestOf(&rec.Job); {
	case err == nil:
		next.Request = &req
	case !errors.Is(err, ErrRequestLost):
		return rec, err
	}
	next.End(state, code, message, time.Now().UTC())
	if err := s.Update(ctx, rec, &next); err != nil {
		return rec, err
	}
	return &next, s.finishEnded(ctx, &next)
}

// cancelScript writes a cancel request beside the record, if its state,
// attempt and term are what the caller read, and publishes it. It does not touch the
// fields that the compare-and-set of another process checks.
var cancelScript = redis.NewScript(`
local cur = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'term')
for i = 1, 3 do
  if (cur[i] or '') ~= ARGV[i] then return 0 end
end
redis.call('HSET', KEYS[1], 'cancel', ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
`)

func (s *Store) requestCancel(ctx context.Context, rec *Record, made Decision) error {
	if !rec.CancelRequestedAt.IsZero() {
		return nil
	}
	encoded, err := compactjson.Marshal(made)
	if err != nil {
		return fmt.Errorf("cancel %s: %w", rec.ID, err)
	}
	done, err := cancelScript.Run(ctx, s.redis, []string{rediskey.Record(rec.ID)},
		string(rec.State), rec.Attempt, rec.Term, encoded, rediskey.Events, rec.ID).Int()
	if err != nil {
		return fmt.Errorf("cancel %s: %w", rec.ID, err)
	}
	if done == 0 {
		return fmt.Errorf("cancel %s: %w", rec.ID, ErrConflict)
	}
	rec.CancelRequestedAt = made.At
	rec.Decide(made)
	return nil
}

// finishEnded completes the end of a job by an operator: it deletes the message in the
// lane's queue, unless that lies in the archive with the reason, and enqueues the one for which
// a worker writes the sidecar.
func (s *Store) finishEnded(ctx context.Context, rec *Record) error {
	if !rec.messageArchived() {
		// A lane that has just taken the message reads the record.
		if _, err := s.drop(ctx, Queue(rec.Model, rec.Priority), rec.ID, true); err != nil {
			return err
		}
	}
	return s.EnqueueStore(ctx, rec)
}

// Retry is [Inspector.Retry], with the whole record.
func (s *Store) Retry(ctx context.Context, id string, by Decider) (*Record, error) {
	made, err := by.decision(ActionRetry)
	if err != nil {
		return nil, fmt.Errorf("retry %s: %w", id, err)
	}
	for {
		rec, err := s.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		unseen := by.checkSeen(&rec.Job)
		switch {
		case rec.Retriable() && unseen != nil:
			err = fmt.Errorf("retry %s: %w", id, unseen)
		case rec.Retriable():
			rec, err = s.restart(ctx, rec, rec, made)
		case rec.State.Waiting() && !rec.RetriedAt.IsZero():
			// An earlier call may have been interrupted between the record and the message.
			err = s.enqueueMessage(ctx, rec)
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

// retryRefused says why a job that lacks no image is not retried.
func retryRefused(rec *Record) error {
	if !rec.State.Final() {
		return fmt.Errorf("retry %s: %w: it is not finished (%s)", rec.ID, ErrInvalidState, rec.State)
	}
	return fmt.Errorf(`retry %s: %w: it has all its images; for another image of the same request enqueue a new job with "redo_of": %q`, rec.ID, ErrFinished, rec.ID)
}

// retryRecord is [Inspector.RetryJob].
func (s *Store) retryRecord(ctx context.Context, rec *Record, by Decider) (*Record, error) {
	made, err := by.decision(ActionRetry)
	if err != nil {
		return nil, fmt.Errorf("retry %s: %w", rec.ID, err)
	}
	for {
		known, err := s.Retry(ctx, rec.ID, by)
		if !errors.Is(err, ErrNotFound) {
			return known, err
		}
		switch {
		case !rec.Retriable():
			return rec, retryRefused(rec)
		case rec.Request == nil:
			return nil, fmt.Errorf("job %s: %w: enqueue it again", rec.ID, ErrRequestLost)
		}
		if req := rec.OriginalRequest(); req.Digest() != rec.Digest {
			return nil, fmt.Errorf("retry %s: %w (the request in its sidecar has another digest)", rec.ID, ErrDigestConflict)
		}
		known, err = s.restart(ctx, nil, rec, made)
		if !errors.Is(err, ErrConflict) {
			return known, err
		}
	}
}

// restart queues an ended or held job again, in place of old. Images that are in the
// bucket stay there, and in the record.
func (s *Store) restart(ctx context.Context, old, rec *Record, made Decision) (*Record, error) {
	req, err := s.requestOf(&rec.Job)
	if err != nil {
		return rec, err
	}
	next := *rec
	next.Decide(made)
	next.archiveAttempt()
	// An operator retries a job to have it at once.
	req.NotBefore, req.Deadline = time.Time{}, time.Time{}
	next.NotBefore, next.Deadline = req.NotBefore, req.Deadline
	next.State, next.TaskID, next.Request = StateQueued, "", &req
	next.Code, next.Message, next.Results, next.SpoolOwner, next.SpoolLocation = "", "", nil, "", ""
	if next.storedImages() == 0 {
		next.Images = nil
	}
	next.SubmittedAt, next.RunningAt, next.GeneratedAt, next.FinishedAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	next.ClearIntent()
	next.RetriedAt, next.BuyAgainAt = time.Now().UTC(), time.Time{}
	if !next.RetriedAt.After(rec.FinishedAt) { // the clock that wrote FinishedAt is ahead
		next.RetriedAt = rec.FinishedAt.Add(time.Millisecond)
	}
	if err := s.releaseReservation(ctx, rec); err != nil {
		return rec, err
	}
	if err := s.update(ctx, write{old: old, next: &next, clearCancel: true}); err != nil {
		return rec, err
	}
	return &next, s.enqueueMessage(ctx, &next)
}

// releaseReservation releases the reservation of a job's current attempt, on any day. A
// worker searches for leaked reservations on recent days only.
func (s *Store) releaseReservation(ctx context.Context, rec *Record) error {
	if rec.Account == "" || rec.SubmittedAt.IsZero() {
		return nil
	}
	charge := ledger.Charge{Account: rec.Account, JobID: rec.ID, Attempt: rec.Attempt, At: rec.SubmittedAt, Batch: rec.Batch}
	if rec.Request != nil {
		charge.Batch = rec.Request.Batch
	}
	return ledger.New(s.redis).Release(ctx, charge)
}

// archiveAttempt moves the current attempt to the past ones.
func (r *Record) archiveAttempt() {
	if r.isPastAttempt(r.Attempt) {
		return
	}
	ended := r.FinishedAt
	if ended.IsZero() {
		ended = time.Now().UTC()
	}
	images := r.storedImages()
	for _, a := range r.PastAttempts {
		images -= a.Images
	}
	r.PastAttempts = append(r.PastAttempts[:len(r.PastAttempts):len(r.PastAttempts)], Attempt{
		Attempt: r.Attempt, Term: r.Term, TaskID: r.TaskID, SubmittedAt: r.SubmittedAt, EndedAt: ended, Images: max(images, 0), Code: r.Code, Message: r.Message,
	})
}

const (
	// handlerExitTimeout limits the wait for a handler that has just ended the job to
	// return. The value is our choice, a hundred times what that takes.
	handlerExitTimeout = 2 * time.Second
	handlerExitPoll    = 20 * time.Millisecond
)

// enqueueMessage gives a waiting job its message. A handler that ended the job a moment
// ago may still have the old one active; when it returns, asynq would delete the new one
// with it.
func (s *Store) enqueueMessage(ctx context.Context, rec *Record) error {
	req, err := s.requestOf(&rec.Job)
	if err != nil {
		return err
	}
	inspector := asynq.NewInspectorFromRedisClient(s.redis)
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
	return s.EnqueueGenerate(ctx, rec, req)
}
