package jobs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
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
	return c.EnqueueWithin(ctx, req, Limits{})
}

// EnqueueWithin is [Client.Enqueue] within limits: a job that is new and would exceed
// one fails with a [*LimitError], and nothing of it is queued.
func (c *Client) EnqueueWithin(ctx context.Context, req Request, limits Limits) (*Record, error) {
	req, warnings, err := c.prepare(ctx, req)
	if err != nil {
		return nil, err
	}
	next := NewRecord(req, warnings)
	next.PriceMicroYuan = limits.PriceMicroYuan
	rec := next
	if err := c.update(ctx, nil, next, updateOptions{limits: limits}); errors.Is(err, ErrConflict) {
		if rec, err = c.Get(ctx, req.ID); err != nil {
			return nil, err
		}
		if rec.State == StateCanceled && rec.Code == CodeMessageLost && rec.Digest == next.Digest {
			next.Attempt, next.Term, next.PastAttempts = rec.Attempt, rec.Term, rec.PastAttempts
			if err := c.update(ctx, rec, next, updateOptions{clearCancel: true, limits: limits}); err != nil {
				return nil, err
			}
			rec = next
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

// enqueueAtOnce bounds the calls that EnqueueAll makes at a time: enough to hide the
// way to Redis and back.
const enqueueConcurrency = 16

// EnqueueAll puts many jobs on the queue and returns their records, in the order of
// the requests. All requests are checked before any is queued: if one is refused,
// nothing is, and the error is an [*InvalidError] whose fields begin with the request's
// place, as in [3].prompt. After another error the records of those that were not
// queued are nil; requests that have IDs may then be enqueued again.
func (c *Client) EnqueueAll(ctx context.Context, reqs []Request) ([]*Record, error) {
	var invalid InvalidError
	for i, req := range reqs {
		_, _, err := c.prepare(ctx, req)
		refused := (*InvalidError)(nil)
		if err != nil && !errors.As(err, &refused) {
			return make([]*Record, len(reqs)), fmt.Errorf("request %d: %w", i, err)
		}
		if err != nil {
			for _, f := range refused.Fields {
				f.Field = fmt.Sprintf("[%d].%s", i, f.Field)
				invalid.Fields = append(invalid.Fields, f)
			}
		}
	}
	if len(invalid.Fields) > 0 {
		return nil, &invalid
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	records := make([]*Record, len(reqs))
	places := make(chan int)
	var group sync.WaitGroup
	for range min(enqueueConcurrency, len(reqs)) {
		group.Go(func() {
			for i := range places {
				rec, err := c.Enqueue(ctx, reqs[i])
				if err != nil {
					cancel(fmt.Errorf("request %d: %w", i, err))
					continue
				}
				records[i] = rec
			}
		})
	}
	for i := range reqs {
		if ctx.Err() != nil {
			break
		}
		places <- i
	}
	close(places)
	group.Wait()
	return records, context.Cause(ctx)
}

// prepare checks a request and gives it an ID. One whose deadline is over is refused
// unless its job is there already.
func (c *Client) prepare(ctx context.Context, req Request) (Request, []string, error) {
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
	_, err := c.Get(ctx, req.ID)
	if errors.Is(err, ErrNotFound) {
		err = late
	}
	return req, warnings, err
}

// CheckDeadline fails with an [*InvalidError] if the deadline is over at a time: what is not
// queued yet is refused then.
func (r Request) CheckDeadline(now time.Time) error {
	if r.Deadline.IsZero() || now.Before(r.Deadline) {
		return nil
	}
	return &InvalidError{Fields: []FieldError{{
		Field: "deadline", Value: show(r.Deadline.Format(time.RFC3339)), Allowed: "a future time", Remedy: "nothing was queued",
	}}}
}

// EnqueueGenerate makes sure that a waiting job has a message that will wake a
// lane. The request must be the job's own, normalized.
func (c *Client) EnqueueGenerate(ctx context.Context, rec *Record, req Request) error {
	payload := GenerateMessage{JobID: rec.ID, Digest: rec.Digest, Request: req}
	return c.enqueue(ctx, TypeGenerate, Queue(rec.Model, rec.Priority), rec.ID, payload, asynq.ProcessAt(req.NotBefore))
}

// EnqueueStore makes sure that a job whose images are to be copied has a message
// that will wake a store server.
func (c *Client) EnqueueStore(ctx context.Context, rec *Record) error {
	id := rec.ID + "." + strconv.Itoa(rec.Attempt)
	return c.enqueue(ctx, TypeStore, QueueStore, id, StoreMessage{JobID: rec.ID, Attempt: rec.Attempt})
}

func (c *Client) enqueue(ctx context.Context, kind, queue, id string, payload any, opts ...asynq.Option) error {
	message, err := newMessage(kind, queue, id, payload, opts...)
	if err != nil {
		return err
	}
	_, err = c.asynq.EnqueueContext(ctx, message)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		// The record says that the job waits: an ended message of it is in the way.
		inspector := asynq.NewInspectorFromRedisClient(c.redis)
		info, infoErr := inspector.GetTaskInfo(queue, id)
		if infoErr != nil || info.State != asynq.TaskStateArchived && info.State != asynq.TaskStateCompleted {
			return nil //nolint:nilerr // it has a message, or had one a moment ago
		}
		if err := inspector.DeleteTask(queue, id); err != nil {
			return fmt.Errorf("enqueue %s in %s: a finished message blocks the ID: %w", id, queue, err)
		}
		_, err = c.asynq.EnqueueContext(ctx, message)
	}
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fmt.Errorf("enqueue %s in %s: %w", id, queue, err)
	}
	return nil
}

// waitRecheck bounds how long a lost event can hide a change from [Client.Wait].
const waitRecheck = 5 * time.Second

// Wait returns the record once the job is over or held. It fails with
// [ErrNotFound], Redis's own error, or the cause of ctx.
func (c *Client) Wait(ctx context.Context, id string) (*Record, error) {
	changes, err := c.Subscribe(ctx)
	if err != nil {
		return nil, err
	}
	defer changes.Close() //nolint:errcheck // nobody listens any more
	tick := time.NewTicker(waitRecheck)
	defer tick.Stop()
	for {
		rec, err := c.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		if rec.State.Final() || rec.State == StateHeld {
			return rec, nil
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

// Changes tells which jobs' records were written. It may miss some, while the
// connection to Redis is down or when it is read too slowly, and says so afterwards;
// whoever must not miss any looks at the records themselves now and then besides.
type Changes struct {
	sub *redis.PubSub
	ids chan string
}

// Subscribe listens to all changes from now on. The caller must Close it.
func (c *Client) Subscribe(ctx context.Context) (*Changes, error) {
	sub := c.redis.Subscribe(ctx, rediskey.Events)
	if _, err := sub.Receive(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to job changes: %w", err), sub.Close())
	}
	changes := &Changes{sub: sub, ids: make(chan string, changesBuffer)}
	go changes.forward(sub.ChannelWithSubscriptions())
	return changes, nil
}

// changesKept is how many changes a slow reader may be behind before it misses
// some; ours.
const changesBuffer = 1000

func (c *Changes) forward(received <-chan any) {
	defer close(c.ids)
	missed := false
	for r := range received {
		// A subscription after the first one follows upon an outage.
		message, ok := r.(*redis.Message)
		missed = missed || !ok
		if missed {
			missed = !c.offer("")
		}
		if ok && !c.offer(message.Payload) {
			missed = true
		}
	}
}

// offer hands an ID on unless the reader is behind. Waiting would hold up Redis: the
// embedded one writes to all its subscribers before it answers anybody.
func (c *Changes) offer(id string) bool {
	select {
	case c.ids <- id:
		return true
	default:
		return false
	}
}

// IDs delivers the IDs of the jobs that changed, "" after some were missed, and is
// closed by Close.
func (c *Changes) IDs() <-chan string { return c.ids }

// Close ends the subscription.
func (c *Changes) Close() error {
	err := c.sub.Close()
	for range c.ids { // lets forward end
	}
	return err
}
