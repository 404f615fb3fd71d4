package jobs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hibiken/asynq"
)

// enqueueWithin is [Client.EnqueueWithin].
func (s *Store) enqueueWithin(ctx context.Context, req Request, limits Limits) (*Record, error) {
	req, warnings, err := s.prepare(ctx, req)
	if err != nil {
		return nil, err
	}
	next := NewRecord(req, warnings)
	next.PriceMicroYuan = limits.PriceMicroYuan
	rec, err := s.createOrGet(ctx, next, limits)
	if err != nil {
		return nil, err
	}
	if rec.Digest != next.Digest {
		return nil, fmt.Errorf("job %s: %w (its digest is %.12s…, this one's %.12s…): choose another ID", req.ID, ErrDigestConflict, rec.Digest, next.Digest)
	}
	if !rec.State.Waiting() {
		return rec, nil
	}
	// An earlier call may have been interrupted between the record and the message.
	return rec, s.EnqueueGenerate(ctx, rec, req)
}

// createOrGet writes a new record, also in place of one that was canceled because its message
// was lost, or returns the existing one.
func (s *Store) createOrGet(ctx context.Context, next *Record, limits Limits) (*Record, error) {
	for {
		err := s.update(ctx, nil, next, updateOptions{limits: limits})
		if !errors.Is(err, ErrConflict) {
			return next, err
		}
		rec, err := s.Get(ctx, next.ID)
		if err != nil {
			return nil, err
		}
		if rec.State != StateCanceled || rec.Code != CodeMessageLost || rec.Digest != next.Digest {
			return rec, nil
		}
		restored := *next
		restored.Attempt, restored.Term, restored.PastAttempts = rec.Attempt, rec.Term, rec.PastAttempts
		err = s.update(ctx, rec, &restored, updateOptions{clearCancel: true, limits: limits})
		if !errors.Is(err, ErrConflict) {
			return &restored, err
		}
	}
}

// prepare validates a request and gives it an ID. A request whose deadline has passed is
// refused unless its job exists.
func (s *Store) prepare(ctx context.Context, req Request) (Request, []string, error) {
	req, warnings, problems := req.normalize()
	if req.Stage && req.RefImg != "" && !stagedPattern.MatchString(req.RefImg) {
		problems = append(problems, FieldError{
			Field: stageName, Value: "true", Allowed: "where the bucket is at hand: danqing enqueue, batch or serve",
			Remedy: `copy the image there yourself and name it "sha256:" and its hash, or leave "stage" out`,
		})
	}
	if len(problems) > 0 {
		return req, warnings, &InvalidError{Fields: problems}
	}
	if req.Stage = false; req.ID == "" {
		req.ID = NewID()
	}
	late := req.CheckDeadline(time.Now())
	if late == nil {
		return req, warnings, nil
	}
	_, err := s.Get(ctx, req.ID)
	if errors.Is(err, ErrNotFound) {
		err = late
	}
	return req, warnings, err
}

// CheckDeadline fails with an [*InvalidError] if the deadline has passed at a time. A
// request that is not queued yet is refused then.
func (r Request) CheckDeadline(now time.Time) error {
	if r.Deadline.IsZero() || now.Before(r.Deadline) {
		return nil
	}
	return &InvalidError{Fields: []FieldError{{
		Field: "deadline", Value: show(r.Deadline.Format(time.RFC3339)), Allowed: "a future time", Remedy: "nothing was queued",
	}}}
}

// EnqueueGenerate ensures that a waiting job has a message for a lane. The request must
// be the job's own, normalized.
func (s *Store) EnqueueGenerate(ctx context.Context, rec *Record, req Request) error {
	payload := GenerateMessage{JobID: rec.ID, Digest: rec.Digest, Request: req}
	return s.enqueue(ctx, TypeGenerate, Queue(rec.Model, rec.Priority), rec.ID, payload, asynq.ProcessAt(req.NotBefore))
}

// EnqueueStore ensures that a job has a message for the delivery server, which stores its
// images or writes its sidecar.
func (s *Store) EnqueueStore(ctx context.Context, rec *Record) error {
	id := rec.ID + "." + strconv.Itoa(rec.Attempt)
	return s.enqueue(ctx, TypeStore, QueueStore, id, StoreMessage{JobID: rec.ID, Attempt: rec.Attempt})
}

func (s *Store) enqueue(ctx context.Context, kind, queue, id string, payload any, opts ...asynq.Option) error {
	message, err := newMessage(kind, queue, id, payload, opts...)
	if err != nil {
		return err
	}
	_, err = s.asynq.EnqueueContext(ctx, message)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		// The job waits, so a message with its ID that has ended blocks the new one.
		inspector := asynq.NewInspectorFromRedisClient(s.redis)
		info, infoErr := inspector.GetTaskInfo(queue, id)
		if infoErr != nil || info.State != asynq.TaskStateArchived && info.State != asynq.TaskStateCompleted {
			return nil //nolint:nilerr // it has a message, or had one a moment ago
		}
		if err := inspector.DeleteTask(queue, id); err != nil {
			return fmt.Errorf("enqueue %s in %s: a finished message blocks the ID: %w", id, queue, err)
		}
		_, err = s.asynq.EnqueueContext(ctx, message)
	}
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fmt.Errorf("enqueue %s in %s: %w", id, queue, err)
	}
	return nil
}
