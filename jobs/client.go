package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// Client is for producers: it puts jobs on the queue and waits for them. It is safe for concurrent use. Operators use an [Inspector], workers a [Store].
type Client struct{ store *Store }

// NewClient returns a client on a Redis connection, which the caller closes. It sends
// nothing.
func NewClient(rdb redis.UniversalClient) *Client { return &Client{store: NewStore(rdb)} }

// jobOf returns the part of a record that producers and operators see.
func jobOf(rec *Record, err error) (*Job, error) {
	if rec == nil {
		return nil, err
	}
	return &rec.Job, err
}

// Enqueue puts a job on the queue and returns it. It is idempotent: the same ID with the
// same request is the same job, and is returned as it is. A request without an ID gets a
// random one; a producer that may repeat the call must choose the ID itself.
//
// It fails with an [*InvalidError] that lists every field that DashScope would refuse, with
// [ErrDigestConflict] if the ID belongs to another request, or with Redis's own error. After
// the last one the job may or may not be queued, and the same call may be repeated.
func (c *Client) Enqueue(ctx context.Context, req Request) (*Job, error) {
	return jobOf(c.store.enqueueWithin(ctx, req, Limits{}))
}

// EnqueueWithin is [Client.Enqueue] within limits: it fails with a [*LimitError] for a new
// job that would exceed one, and queues nothing of it.
func (c *Client) EnqueueWithin(ctx context.Context, req Request, limits Limits) (*Job, error) {
	return jobOf(c.store.enqueueWithin(ctx, req, limits))
}

// EnqueueAll enqueues many jobs, in the order of the requests, and returns them in that order.
// One command to Redis queues up to a hundred. All requests are checked before any is queued:
// if one is refused, nothing is queued, and the error is an [*InvalidError] whose fields begin
// with the request's index, as in [3].prompt. After another error the jobs that were not queued,
// or may not be, are nil; requests with IDs may then be enqueued again.
func (c *Client) EnqueueAll(ctx context.Context, reqs []Request) ([]*Job, error) {
	records, err := c.store.enqueueAll(ctx, reqs)
	jobs := make([]*Job, len(records))
	for i, rec := range records {
		jobs[i], _ = jobOf(rec, nil)
	}
	return jobs, err
}

// Get returns a job. It fails with [ErrNotFound] if Redis has no such job, with
// [ErrCorrupt] if its record cannot be read, or with Redis's own error.
func (c *Client) Get(ctx context.Context, id string) (*Job, error) {
	return jobOf(c.store.Get(ctx, id))
}

// waitRecheck is how often [Client.Wait] reads the job, in case an event was lost.
const waitRecheck = 5 * time.Second

// Wait returns the job once it has ended or is held. It fails with [ErrNotFound], with
// Redis's own error, or with the cause of ctx.
func (c *Client) Wait(ctx context.Context, id string) (*Job, error) {
	changes, err := c.Subscribe(ctx)
	if err != nil {
		return nil, err
	}
	defer changes.Close() //nolint:errcheck // the subscription is not used again
	tick := time.NewTicker(waitRecheck)
	defer tick.Stop()
	for {
		job, err := c.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		if job.State.Final() || job.State == StateHeld {
			return job, nil
		}
		for changed := false; !changed; {
			select {
			case changedID := <-changes.IDs():
				changed = changedID == id || changedID == ""
			case <-tick.C:
				changed = true
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
	}
}

// Subscribe returns all changes of jobs from now on. The caller must close it. It fails
// with Redis's own error.
func (c *Client) Subscribe(ctx context.Context) (*Changes, error) {
	sub := c.store.redis.Subscribe(ctx, rediskey.Events)
	if _, err := sub.Receive(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to job changes: %w", err), sub.Close())
	}
	changes := &Changes{sub: sub, ids: make(chan string, changesBuffer)}
	go changes.forward(sub.ChannelWithSubscriptions())
	return changes, nil
}

// Cancel cancels a job. One that waits is canceled at once and costs nothing. For one that
// has a create on its way, or a task, CancelRequestedAt is set: the task is canceled if
// DashScope still has it PENDING; otherwise it is paid for, and its images are stored. The
// job that is returned says which. A job that was retried for its missing images has then
// succeeded with those that it has.
//
// It fails with [ErrNotFound]; with [ErrFinished] beside the job if it has succeeded or
// failed; with [ErrInvalidState] beside the job if it is held or its images are being
// stored; with a [FieldError] if by is invalid; or with Redis's own error. It may be repeated.
func (c *Client) Cancel(ctx context.Context, id string, by Decider) (*Job, error) {
	return jobOf(c.store.cancel(ctx, id, by))
}

// CancelUnsubmitted cancels a job that waits and has cost nothing, like [Client.Cancel]. It
// fails with [ErrInvalidState] beside any other job that has not ended, and does not touch it.
func (c *Client) CancelUnsubmitted(ctx context.Context, id string) (*Job, error) {
	return jobOf(c.store.cancelUnsubmitted(ctx, id))
}

// List returns the jobs in Redis, the last changed first, and a cursor for the next page,
// "" after the last. Corrupt records are left out. A job that changes between two pages may
// be in both or in neither. It reads every record in the states of the filter until the page
// is full.
//
// It fails with a [FieldError] if the cursor is not one, or with Redis's own error.
func (c *Client) List(ctx context.Context, filter ListFilter) (jobs []*Job, cursor string, err error) {
	records, cursor, err := c.store.List(ctx, filter)
	for _, rec := range records {
		jobs = append(jobs, &rec.Job)
	}
	return jobs, cursor, err
}

// RequestOf returns the request of a job as it was enqueued: from the job, or from its
// message while it waits. It fails with [ErrRequestLost] if neither has it, or with Redis's
// own error.
func (c *Client) RequestOf(_ context.Context, job *Job) (Request, error) {
	return c.store.requestOf(job)
}
