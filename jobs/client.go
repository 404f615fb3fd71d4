package jobs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// Client puts jobs on the queue and reads how they fare. It is safe for
// concurrent use.
type Client struct {
	redis redis.UniversalClient
	asynq *asynq.Client
}

// NewClient makes a client on a Redis connection, which stays the caller's to
// close. It dials nothing.
func NewClient(rdb redis.UniversalClient) *Client {
	return &Client{redis: rdb, asynq: asynq.NewClientFromRedisClient(rdb)}
}

// Enqueue puts a job on the queue and returns its record. It is idempotent: the
// same ID with the same request is the same job, however far it has come, and is
// returned as it stands. A request without an ID gets a random one; a producer
// that may have to repeat the call must choose the ID itself.
//
// It fails with an [*InvalidError] that lists every field the service would
// refuse, with [ErrDigestConflict] if the ID belongs to another request, or with
// Redis's own error; then the job may or may not be queued, and the same call
// may be made again.
func (c *Client) Enqueue(ctx context.Context, req Request) (*Record, error) {
	req, warnings, err := req.Normalize()
	if err != nil {
		return nil, err
	}
	if req.ID == "" {
		req.ID = NewID()
	}
	next := &Record{
		ID: req.ID, State: StateQueued, Digest: req.Digest(), Model: req.Model, Priority: req.Priority,
		Warnings: warnings, EnqueuedAt: time.Now().UTC(),
	}
	rec := next
	if err := c.Swap(ctx, nil, next); errors.Is(err, ErrConflict) {
		if rec, err = c.Get(ctx, req.ID); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	if rec.Digest != next.Digest {
		return nil, fmt.Errorf("job %s: %w (its digest is %.12s…, this one's %.12s…): choose another ID", req.ID, ErrDigestConflict, rec.Digest, next.Digest)
	}
	if !rec.State.Waiting() {
		return rec, nil
	}
	// An earlier call may have died between the record and the message.
	return rec, c.EnqueueGenerate(ctx, rec, req)
}

// EnqueueGenerate makes sure that a waiting job has a message that will wake a
// lane. The request must be the job's own, normalised.
func (c *Client) EnqueueGenerate(ctx context.Context, rec *Record, req Request) error {
	payload := GenerateMessage{JobID: rec.ID, Digest: rec.Digest, Request: req}
	return c.enqueue(ctx, TypeGenerate, Queue(rec.Model, rec.Priority), rec.ID, payload)
}

// EnqueueStore makes sure that a job whose images are to be copied has a message
// that will wake a store server.
func (c *Client) EnqueueStore(ctx context.Context, rec *Record) error {
	id := rec.ID + "." + strconv.Itoa(rec.Attempt)
	return c.enqueue(ctx, TypeStore, QueueStore, id, StoreMessage{JobID: rec.ID, Attempt: rec.Attempt})
}

func (c *Client) enqueue(ctx context.Context, kind, queue, id string, payload any) error {
	message, err := newMessage(kind, queue, id, payload)
	if err != nil {
		return err
	}
	if _, err := c.asynq.EnqueueContext(ctx, message); err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fmt.Errorf("enqueue %s in %s: %w", id, queue, err)
	}
	return nil
}

// waitRecheck bounds how long a lost event can hide a change from [Client.Wait].
const waitRecheck = 5 * time.Second

// Wait returns the record once the job is over or held. It fails with
// [ErrNotFound], Redis's own error, or the cause of ctx.
func (c *Client) Wait(ctx context.Context, id string) (*Record, error) {
	events := c.Events()
	for {
		if err := events.seek(ctx); err != nil {
			return nil, err
		}
		rec, err := c.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		if rec.State.Final() || rec.State == StateHeld {
			return rec, nil
		}
		for changed, deadline := false, time.Now().Add(waitRecheck); !changed && time.Now().Before(deadline); {
			batch, err := events.Next(ctx, time.Until(deadline))
			if err != nil {
				return nil, err
			}
			for _, event := range batch {
				changed = changed || event.JobID == id
			}
		}
	}
}

// Event says that a job's record was written.
type Event struct {
	JobID   string
	State   State
	Attempt int
}

// Events reads the stream of state changes. One goroutine at a time may use it.
type Events struct {
	redis redis.UniversalClient
	last  string
}

// Events starts reading at the next change after the first call of
// [Events.Next].
func (c *Client) Events() *Events { return &Events{redis: c.redis} }

// seek pins the position, so that what changes from now on is not missed.
func (e *Events) seek(ctx context.Context) error {
	if e.last != "" {
		return nil
	}
	e.last = "0"
	newest, err := e.redis.XRevRangeN(ctx, eventsKey, "+", "-", 1).Result()
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	if len(newest) > 0 {
		e.last = newest[0].ID
	}
	return nil
}

// Next returns the changes since the last call, waiting up to wait for the first
// one; none is not an error. The stream keeps the last ten thousand: a reader
// that may have fallen behind must look at the records too.
func (e *Events) Next(ctx context.Context, wait time.Duration) ([]Event, error) {
	if err := e.seek(ctx); err != nil {
		return nil, err
	}
	// go-redis does not interrupt a blocked read when ctx ends.
	const longest = time.Second
	wait = max(min(wait, longest), time.Millisecond)
	streams, err := e.redis.XRead(ctx, &redis.XReadArgs{Streams: []string{eventsKey, e.last}, Count: 1000, Block: wait}).Result()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	var events []Event
	for _, stream := range streams {
		for _, entry := range stream.Messages {
			e.last = entry.ID
			attempt, _ := strconv.Atoi(fmt.Sprint(entry.Values["attempt"]))
			events = append(events, Event{
				JobID: fmt.Sprint(entry.Values["job"]), State: State(fmt.Sprint(entry.Values["state"])), Attempt: attempt,
			})
		}
	}
	return events, nil
}
