package jobs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// Codes of a record that a person ended.
const (
	CodeCanceled = "Canceled"
	CodeGivenUp  = "GivenUp"
	// CodeMessageLost marks a canceled job whose message is gone, and with it what
	// it asked for. Nothing was bought; [Client.Enqueue] queues it again.
	CodeMessageLost = "MessageLost"
)

// RequestOf returns what a job asks for, as asked: from its record, or while it
// waits from its message. It fails with [ErrNoRequest] if neither has it.
func (c *Client) RequestOf(ctx context.Context, rec *Record) (Request, error) {
	if rec.Request != nil {
		return rec.AsAsked(), nil
	}
	queue := Queue(rec.Model, rec.Priority)
	info, err := asynq.NewInspectorFromRedisClient(c.redis).GetTaskInfo(queue, rec.ID)
	if errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound) {
		return Request{}, fmt.Errorf("job %s: %w: enqueue it again", rec.ID, ErrNoRequest)
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
		return Request{}, fmt.Errorf("job %s: %w: its message was changed: enqueue it again", rec.ID, ErrNoRequest)
	}
	return req, nil
}

// Cancel gives a job up. One that waits is canceled at once and costs nothing.
// One that has a create on its way, or a task, gets CancelRequestedAt: its lane
// cancels the task if DashScope still has it PENDING; otherwise the task is paid
// for, goes on, and its images are kept. The record that is returned tells which.
//
// It fails with [ErrNotFound]; with [ErrOver] beside the record if the job is
// over; with [ErrState] beside the record if its images are being stored or it is
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
			err = c.settle(ctx, rec)
		case StateStoring:
			err = fmt.Errorf("cancel %s: %w: its images are paid for and are being stored; they will be kept", id, ErrState)
		case StateHeld:
			err = fmt.Errorf("cancel %s: %w: it is held; to give it up: danqing jobs resolve %s --give-up", id, ErrState, id)
		case StateSucceeded, StateFailed:
			err = fmt.Errorf("cancel %s: %w: it has %s", id, ErrOver, rec.State)
		default:
			err = fmt.Errorf("cancel %s: %w: its state %q is not known to this version", id, ErrState, rec.State)
		}
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
}

func (c *Client) cancelWaiting(ctx context.Context, rec *Record) (*Record, error) {
	next := *rec
	// The message is deleted, and the sidecar must tell what was asked for.
	switch req, err := c.RequestOf(ctx, rec); {
	case err == nil:
		next.Request = &req
	case !errors.Is(err, ErrNoRequest):
		return rec, err
	}
	next.State, next.FinishedAt = StateCanceled, time.Now().UTC()
	next.Code, next.Message = CodeCanceled, "canceled on request while it waited; it cost nothing"
	if rec.CostMicroYuan > 0 {
		next.Message = "canceled on request while it waited to be made again"
	}
	if err := c.Swap(ctx, rec, &next); err != nil {
		return rec, err
	}
	return &next, c.settle(ctx, &next)
}

// cancelScript notes beside the record that somebody asked to cancel the job, if
// its (state, attempt, term) is what the caller read, and says so. The first to
// ask stands. It leaves alone what a swap in another process counts on.
var cancelScript = redis.NewScript(`
local cur = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'term')
for i = 1, 3 do
  if (cur[i] or '') ~= ARGV[i] then return 0 end
end
redis.call('HSETNX', KEYS[1], 'cancel', ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
`)

func (c *Client) requestCancel(ctx context.Context, rec *Record) error {
	if !rec.CancelRequestedAt.IsZero() {
		return nil
	}
	at := time.Now().UTC()
	done, err := cancelScript.Run(ctx, c.redis, []string{recordPrefix + rec.ID},
		string(rec.State), rec.Attempt, rec.Term, at.Format(time.RFC3339Nano), eventsChannel, rec.ID).Int()
	if err != nil {
		return fmt.Errorf("cancel %s: %w", rec.ID, err)
	}
	if done == 0 {
		return fmt.Errorf("cancel %s: %w", rec.ID, ErrConflict)
	}
	rec.CancelRequestedAt = at
	return nil
}

// settle does what is left to do for a job that a person ended: its message is
// taken out of the lane's queue, and the store server is told to write its sidecar.
func (c *Client) settle(ctx context.Context, rec *Record) error {
	queue := Queue(rec.Model, rec.Priority)
	inspector := asynq.NewInspectorFromRedisClient(c.redis)
	err := inspector.DeleteTask(queue, rec.ID)
	if err != nil && !errors.Is(err, asynq.ErrTaskNotFound) && !errors.Is(err, asynq.ErrQueueNotFound) {
		// A lane that has just drawn it finds out from the record.
		if info, infoErr := inspector.GetTaskInfo(queue, rec.ID); infoErr == nil && info.State != asynq.TaskStateActive {
			return fmt.Errorf("delete message of %s: %w", rec.ID, err)
		}
	}
	return c.EnqueueStore(ctx, rec)
}

// Retry puts a job that failed or was canceled on the queue again, as it was asked
// for, and returns its record. Tasks that failed cost nothing; what was charged
// for, as where a link died before its image was stored, is bought a second time.
//
// It fails with [ErrNotFound] (see [Client.RetryRecord]), [ErrNoRequest],
// [ErrState] if the job is not over, [ErrOver] if it has succeeded, or Redis's own
// error. It may be repeated while the job waits.
func (c *Client) Retry(ctx context.Context, id string) (*Record, error) {
	for {
		rec, err := c.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		switch {
		case rec.State == StateFailed || rec.State == StateCanceled:
			rec, err = c.again(ctx, rec, rec)
		case rec.State.Waiting() && !rec.RetriedAt.IsZero():
			// An earlier call may have died between the record and the message.
			err = c.requeue(ctx, rec)
		case rec.State == StateHeld:
			err = fmt.Errorf("retry %s: %w: it is held; to buy it again: danqing jobs resolve %s --buy-again", id, ErrState, id)
		default:
			err = notRetried(rec)
		}
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
}

// notRetried says why a job that has not failed is not made again.
func notRetried(rec *Record) error {
	if rec.State != StateSucceeded {
		return fmt.Errorf("retry %s: %w: it is not over (%s)", rec.ID, ErrState, rec.State)
	}
	for _, image := range rec.Images {
		if image.Key == "" {
			return fmt.Errorf(`retry %s: %w: it has succeeded, without image %d; for what is missing enqueue a new job with "redo_of": %q`, rec.ID, ErrOver, image.N, rec.ID)
		}
	}
	return fmt.Errorf(`retry %s: %w: it has succeeded with all its images; for others enqueue a new job with "redo_of": %q`, rec.ID, ErrOver, rec.ID)
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
		case rec.State != StateFailed && rec.State != StateCanceled:
			return rec, notRetried(rec)
		case rec.Request == nil:
			return nil, fmt.Errorf("job %s: %w: enqueue it again", rec.ID, ErrNoRequest)
		}
		if asked := rec.AsAsked(); asked.Digest() != rec.Digest {
			return nil, fmt.Errorf("retry %s: %w (what its sidecar asks for has another digest)", rec.ID, ErrDigestConflict)
		}
		known, err = c.again(ctx, nil, rec)
		if !errors.Is(err, ErrConflict) {
			return known, err
		}
	}
}

// again puts a job that is over, or held, on the queue in place of old.
func (c *Client) again(ctx context.Context, old, rec *Record) (*Record, error) {
	req, err := c.RequestOf(ctx, rec)
	if err != nil {
		return rec, err
	}
	next := *rec
	next.closeAttempt()
	next.State, next.TaskID, next.Request = StateQueued, "", &req
	next.Code, next.Message, next.Results, next.Images = "", "", nil, nil
	next.SubmittedAt, next.GeneratedAt, next.FinishedAt = time.Time{}, time.Time{}, time.Time{}
	next.RetriedAt = time.Now().UTC()
	if err := c.swap(ctx, rand.Text(), old, &next, true); err != nil {
		return rec, err
	}
	return &next, c.requeue(ctx, &next)
}

// closeAttempt moves what the record tells of its last attempt to the past ones.
func (r *Record) closeAttempt() {
	if r.closed(r.Attempt) {
		return
	}
	ended := r.FinishedAt
	if ended.IsZero() {
		ended = time.Now().UTC()
	}
	r.PastAttempts = append(r.PastAttempts[:len(r.PastAttempts):len(r.PastAttempts)], Attempt{
		Attempt: r.Attempt, Term: r.Term, TaskID: r.TaskID, SubmittedAt: r.SubmittedAt, EndedAt: ended, Code: r.Code, Message: r.Message,
	})
}

const (
	// lastWordTime bounds the wait for the handler that has just ended a job and has
	// yet to say so to asynq; ours, a hundred times what that takes.
	lastWordTime  = 2 * time.Second
	lastWordCheck = 20 * time.Millisecond
)

// requeue gives a waiting job its message. A handler that ended the job a moment
// ago may still have the old one; its end would take the new one with it.
func (c *Client) requeue(ctx context.Context, rec *Record) error {
	req, err := c.RequestOf(ctx, rec)
	if err != nil {
		return err
	}
	inspector := asynq.NewInspectorFromRedisClient(c.redis)
	tick := time.NewTicker(lastWordCheck)
	defer tick.Stop()
	for waited := time.Duration(0); waited < lastWordTime; waited += lastWordCheck {
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

// Resolution is a person's decision about a held job. Exactly one must be given.
type Resolution struct {
	// Adopt is the ID of a task at DashScope, in the account of the job's intent,
	// which is found to be this job's: it is polled like any other, and its images
	// are stored as the job's. For a job that is held with images that could not be
	// proven it may be the job's own task: they are fetched, or taken from the
	// spool, and stored once more. What lies under _held/ stays there.
	Adopt string
	// BuyAgain puts the job on the queue once more. If the hold was about a task
	// that does exist, that one is paid for too; and so are images that lie under
	// _held/. They stay there.
	BuyAgain bool
	// GiveUp ends the job as failed. If it has a task or images, they are paid
	// for; what lies under _held/ stays there.
	GiveUp bool
}

func (r Resolution) validate() error {
	given := 0
	for _, is := range []bool{r.Adopt != "", r.BuyAgain, r.GiveUp} {
		if is {
			given++
		}
	}
	if given != 1 {
		return FieldError{Field: "resolution", Value: fmt.Sprintf("%d decisions", given), Allowed: "one of: adopt a task, buy again, give up"}
	}
	if r.Adopt != "" && !taskPattern.MatchString(r.Adopt) {
		return FieldError{Field: "adopt", Value: show(r.Adopt), Allowed: "the ID of a task at DashScope"}
	}
	return nil
}

// taskPattern matches DashScope's task IDs: UUIDs in every example of its
// documents, with room for others.
var taskPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// Resolve ends a hold as a person decided, and returns the record.
//
// It fails with a [FieldError] if not exactly one thing was decided, with
// [ErrNotFound], with [ErrState] beside the record if the job is not held, with
// [*TaskOwnedError] if the task to adopt is another job's, or with Redis's own
// error. The same decision may be made again: it is acted on once.
func (c *Client) Resolve(ctx context.Context, id string, decision Resolution) (*Record, error) {
	if err := decision.validate(); err != nil {
		return nil, fmt.Errorf("resolve %s: %w", id, err)
	}
	for {
		rec, err := c.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		switch done, repairErr := c.resolved(ctx, rec, decision); {
		case done:
			err = repairErr
		case rec.State != StateHeld:
			err = fmt.Errorf("resolve %s: %w: it is not held (%s)", id, ErrState, rec.State)
		case decision.GiveUp:
			rec, err = c.giveUp(ctx, rec)
		case decision.BuyAgain:
			next := *rec
			next.ResolvedAt = time.Now().UTC()
			rec, err = c.again(ctx, rec, &next)
		default:
			rec, err = c.adopt(ctx, rec, decision.Adopt)
		}
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
}

// resolved reports whether the decision has been acted on already. It does what an
// earlier call, if that died half way, has left to do.
func (c *Client) resolved(ctx context.Context, rec *Record, decision Resolution) (bool, error) {
	switch {
	case rec.ResolvedAt.IsZero():
		return false, nil
	case decision.GiveUp && rec.State == StateFailed && rec.Code == CodeGivenUp:
		return true, c.settle(ctx, rec)
	case decision.BuyAgain && rec.State.Waiting():
		return true, c.requeue(ctx, rec)
	case decision.Adopt == "" || decision.Adopt != rec.TaskID:
		return false, nil
	case rec.State == StateGenerating:
		return true, c.requeue(ctx, rec)
	case rec.State == StateStoring:
		return true, c.EnqueueStore(ctx, rec)
	}
	return false, nil
}

func (c *Client) giveUp(ctx context.Context, rec *Record) (*Record, error) {
	next := *rec
	if req, err := c.RequestOf(ctx, rec); err == nil && rec.Request == nil {
		next.Request = &req
	} else if err != nil && !errors.Is(err, ErrNoRequest) {
		return rec, err
	}
	next.State, next.Code = StateFailed, CodeGivenUp
	next.Message = fmt.Sprintf("given up on request; it was held: %s: %s", rec.Code, rec.Message)
	next.FinishedAt = time.Now().UTC()
	next.ResolvedAt, next.Results = next.FinishedAt, nil // signed links have done their duty
	if err := c.Swap(ctx, rec, &next); err != nil {
		return rec, err
	}
	return &next, c.settle(ctx, &next)
}

// TaskOwnedError says that a task belongs to another job.
type TaskOwnedError struct{ TaskID, JobID string }

// Error names both.
func (e *TaskOwnedError) Error() string {
	return fmt.Sprintf("task %s belongs to job %s", e.TaskID, e.JobID)
}

func (c *Client) adopt(ctx context.Context, rec *Record, task string) (*Record, error) {
	if rec.Account == "" {
		return rec, fmt.Errorf("adopt task %s for %s: %w: it was never submitted, so that no account of its task is known", task, rec.ID, ErrState)
	}
	req, err := c.RequestOf(ctx, rec)
	if err != nil {
		return rec, err
	}
	if err := c.claimTask(ctx, rec.ID, task); err != nil {
		return rec, fmt.Errorf("adopt task %s for %s: %w", task, rec.ID, err)
	}
	next := *rec
	if rec.TaskID != "" && rec.TaskID != task {
		next.closeAttempt()
	}
	if next.closed(next.Attempt) {
		next.Attempt++
	}
	if next.Request == nil {
		req = req.WithSeed(rec.ID)
		next.Request = &req
	}
	next.State, next.Code, next.Message, next.ResolvedAt = StateGenerating, "", "", time.Now().UTC()
	if next.SubmittedAt.IsZero() {
		next.SubmittedAt = next.ResolvedAt
	}
	// A task whose images are known was charged to the job already.
	known := rec.TaskID == task && len(rec.Results) > 0
	if known {
		next.State = StateStoring
	} else {
		next.Results, next.GeneratedAt = nil, time.Time{}
	}
	next.TaskID, next.Images = task, nil
	if err := c.swap(ctx, rand.Text(), rec, &next, true); err != nil {
		return rec, err
	}
	if known {
		return &next, c.EnqueueStore(ctx, &next)
	}
	return &next, c.requeue(ctx, &next)
}

// adoptedPrefix begins the key that names the job that adopted a task.
const adoptedPrefix = "danqing:adopted:"

// claimTask makes sure that no other job owns the task, nor adopts it meanwhile.
// A job that left Redis cannot own it: tasks live for a day, records for a week.
func (c *Client) claimTask(ctx context.Context, id, task string) error {
	claimed, err := c.redis.SetNX(ctx, adoptedPrefix+task, id, RecordLifetime).Result()
	if err != nil {
		return err
	}
	if !claimed {
		owner, err := c.redis.Get(ctx, adoptedPrefix+task).Result()
		if err != nil {
			return err
		}
		if owner != id {
			return &TaskOwnedError{TaskID: task, JobID: owner}
		}
	}
	for filter := (ListFilter{Limit: scanSize}); ; {
		records, cursor, err := c.List(ctx, filter)
		if err != nil {
			return err
		}
		for _, rec := range records {
			if rec.ID != id && rec.owns(task) {
				return errors.Join(&TaskOwnedError{TaskID: task, JobID: rec.ID}, c.redis.Del(ctx, adoptedPrefix+task).Err())
			}
		}
		if filter.Cursor = cursor; cursor == "" {
			return nil
		}
	}
}

// owns reports whether a task is the record's, or was.
func (r *Record) owns(task string) bool {
	if r.TaskID == task {
		return true
	}
	for _, a := range r.PastAttempts {
		if a.TaskID == task {
			return true
		}
	}
	return false
}
