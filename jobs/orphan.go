package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// WithoutMessage returns those of the waiting records that no message in the queue will
// start, for [Store.RequeueOrphan].
func (s *Store) WithoutMessage(ctx context.Context, records []*Record) ([]*Record, error) {
	var keys []string
	var waiting, orphans []*Record
	for _, rec := range records {
		if rec.State.Waiting() {
			keys = append(keys, asynqMessage(Queue(rec.Model, rec.Priority), rec.ID))
			waiting = append(waiting, rec)
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	states, err := statesScript.Run(ctx, s.redis, keys).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("read messages: %w", err)
	}
	for i, state := range states {
		waits := messageWaits(state)
		if state == "active" {
			if waits, err = s.isActive(ctx, waiting[i]); err != nil {
				return nil, err
			}
		}
		if !waits {
			orphans = append(orphans, waiting[i])
		}
	}
	return orphans, nil
}

// isActive reports whether a job's message is in asynq's list of active ones. After an error in
// the middle of a command asynq leaves one with that state in no list, for ever.
func (s *Store) isActive(ctx context.Context, rec *Record) (bool, error) {
	err := s.redis.LPos(ctx, asynqActive(Queue(rec.Model, rec.Priority)), rec.ID, redis.LPosArgs{}).Err()
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, fmt.Errorf("read active messages: %w", err)
	}
	return err == nil, nil
}

// RequeueOrphan gives a waiting job a message if it has none. If its message was
// archived, or is gone together with the request, the job is canceled with [CodeArchived]
// or [CodeMessageLost], since nothing was bought; a job that was retried for its missing
// images succeeds with the images that it has. It returns the record if it changed
// something, else nil. It fails with [ErrConflict] if the job was changed meanwhile, or
// with Redis's own error.
//
// A job that was enqueued a moment ago may not have its message yet: the caller leaves it
// out.
func (s *Store) RequeueOrphan(ctx context.Context, rec *Record) (*Record, error) {
	if !rec.State.Waiting() {
		return nil, nil //nolint:nilnil // nothing to repair
	}
	info, err := asynq.NewInspectorFromRedisClient(s.redis).GetTaskInfo(Queue(rec.Model, rec.Priority), rec.ID)
	gone := errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound)
	if err != nil && !gone {
		return nil, err
	}
	waits := !gone && info.State != asynq.TaskStateArchived && info.State != asynq.TaskStateCompleted
	if waits && info.State == asynq.TaskStateActive {
		if waits, err = s.isActive(ctx, rec); err != nil {
			return nil, err
		}
	}
	if waits {
		return nil, nil //nolint:nilnil // nothing to repair
	}
	archived := !gone && info.State == asynq.TaskStateArchived && !archivedBeforeRetry(rec, info)
	req, err := s.requestOf(&rec.Job)
	next := *rec
	switch {
	case errors.Is(err, ErrRequestLost):
		next.Code, next.Message = CodeMessageLost, "its message is gone from the queue, and nothing was bought: enqueue it again"
	case err != nil:
		return nil, err
	case archived && rec.storedImages() > 0:
		return s.cancelWaiting(ctx, rec, nil) // it succeeds with the images that it has
	case archived:
		next.Code, next.Message = CodeArchived, "its message was archived in the queue before anything was bought: run it there, or retry the job"
		next.Request = &req
	default:
		return rec, s.EnqueueGenerate(ctx, rec, req)
	}
	next.State, next.FinishedAt = StateCanceled, time.Now().UTC()
	return &next, s.Update(ctx, rec, &next)
}

// archivedBeforeRetry reports whether the message was archived for the job's end before its
// retry: asynq repeats a failed write as long as it has the message's lease.
func archivedBeforeRetry(rec *Record, message *asynq.TaskInfo) bool {
	return !message.LastFailedAt.IsZero() && message.LastFailedAt.Before(rec.RetriedAt.Add(asynqLease))
}
