package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
)

// WithoutMessage returns those of the waiting records that no message will wake, which
// [Client.RequeueOrphan] can do something about.
func (c *Client) WithoutMessage(ctx context.Context, records []*Record) ([]*Record, error) {
	var keys []string
	var waiting, unwoken []*Record
	for _, rec := range records {
		if rec.State.Waiting() {
			keys = append(keys, asynqMessage(Queue(rec.Model, rec.Priority), rec.ID))
			waiting = append(waiting, rec)
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	states, err := messageStatesScript.Run(ctx, c.redis, keys).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("read messages: %w", err)
	}
	for i, state := range states {
		switch state {
		case "pending", "active", "scheduled", "retry":
		default:
			unwoken = append(unwoken, waiting[i])
		}
	}
	return unwoken, nil
}

// RequeueOrphan gives a waiting job a message that will wake somebody, if it has none. If its
// message was archived, or taken away with what it asked for, the job is canceled
// with [CodeArchived] or [CodeMessageLost], since nothing was bought. RequeueOrphan returns the record if it did
// something about the job, else nil. It fails with [ErrConflict] if the job moved
// on meanwhile, or with Redis's own error.
//
// A record younger than its message's way into the queue looks as if that were
// lost: leave jobs alone that were enqueued a moment ago.
func (c *Client) RequeueOrphan(ctx context.Context, rec *Record) (*Record, error) {
	if !rec.State.Waiting() {
		return nil, nil //nolint:nilnil // nothing to mend
	}
	info, err := asynq.NewInspectorFromRedisClient(c.redis).GetTaskInfo(Queue(rec.Model, rec.Priority), rec.ID)
	gone := errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound)
	if err != nil && !gone {
		return nil, err
	}
	if !gone && info.State != asynq.TaskStateArchived && info.State != asynq.TaskStateCompleted {
		return nil, nil //nolint:nilnil // nothing to mend
	}
	req, err := c.RequestOf(ctx, rec)
	next := *rec
	switch {
	case errors.Is(err, ErrRequestLost):
		next.Code, next.Message = CodeMessageLost, "its message is gone from the queue, and nothing was bought: enqueue it again"
	case err != nil:
		return nil, err
	case !gone && info.State == asynq.TaskStateArchived && !archivedBeforeRetry(rec, info):
		next.Code, next.Message = CodeArchived, "its message was archived in the queue before anything was bought: run it there, or retry the job"
		next.Request = &req
	default:
		return rec, c.EnqueueGenerate(ctx, rec, req)
	}
	next.State, next.FinishedAt = StateCanceled, time.Now().UTC()
	return &next, c.Update(ctx, rec, &next)
}

// archivedBeforeRetry reports whether a message lies in the archive because of the end that
// its job had before a person asked for it again: asynq repeats what it could not
// write down.
func archivedBeforeRetry(rec *Record, message *asynq.TaskInfo) bool {
	return !message.LastFailedAt.IsZero() && message.LastFailedAt.Before(rec.RetriedAt.Add(asynqLease))
}

// asynqLease is asynq's lease: after it, a verdict is dropped.
const asynqLease = 30 * time.Second
