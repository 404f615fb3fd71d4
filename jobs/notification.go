package jobs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// The messages by which a producer is told that its job is over.
const (
	TypeNotify  = "danqing:notify"
	QueueNotify = "danqing:notify"
)

// NotificationKind is a way in which a producer is told.
type NotificationKind string

// The kinds of a notification.
const (
	NotificationCallback NotificationKind = "callback"  // a signed POST to the job's callback
	NotificationFollowUp NotificationKind = "follow_up" // a message in the producer's own queue
)

// NotifyMessage wakes a notify server.
type NotifyMessage struct {
	JobID   string           `json:"job_id"`
	EventID string           `json:"event_id"`
	Kind    NotificationKind `json:"kind"`
}

const (
	// noticeTimeout bounds one try; the worker's notify stage ends it earlier.
	notificationTimeout = time.Minute
	// noticeRetries is one more than that stage makes, which spreads them over a day and
	// decides itself when to give up: a worker that is killed in the last try must not be
	// the end.
	notificationRetries = 16
	// noticesAtOnce bounds one round of EnqueueDueNotifications.
	notificationsPerRound = 200
)

// Event tells of the end of a job: the body of a callback, and the payload of a
// follow-up. Fields may be added to it.
type Event struct {
	// Type is "job.succeeded", "job.failed" or "job.canceled".
	Type string `json:"type"`
	// Timestamp is when the job ended.
	Timestamp time.Time `json:"timestamp"`
	Data      EventJob  `json:"data"`
}

// EventJob is the job that ended.
type EventJob struct {
	JobID     string            `json:"job_id"`
	State     State             `json:"state"`
	Model     string            `json:"model"`
	Simulated bool              `json:"simulated,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Batch     string            `json:"batch,omitempty"`
	Producer  string            `json:"producer,omitempty"`
	// Images are all that were asked for, each in the bucket or with the reason why it
	// is not.
	Images        []EventImage `json:"images,omitempty"`
	CostMicroYuan int64        `json:"cost_micro_yuan"`
	// Code and Message say why the job failed or was canceled.
	Code       string    `json:"code,omitempty"`
	Message    string    `json:"message,omitempty"`
	EnqueuedAt time.Time `json:"enqueued_at,omitzero"`
	FinishedAt time.Time `json:"finished_at"`
}

// EventImage is an image with a link to it.
type EventImage struct {
	Image
	// URL is where the image can be fetched until URLExpiresAt; forever if that is
	// zero.
	URL          string    `json:"url,omitempty"`
	URLExpiresAt time.Time `json:"url_expires_at,omitzero"`
}

// NewEvent describes the end of a job that is over; link tells where an image is
// fetched.
func NewEvent(rec *Record, link func(Image) (url string, expiresAt time.Time, err error)) (*Event, error) {
	e := &Event{Type: "job." + string(rec.State), Timestamp: rec.FinishedAt, Data: EventJob{
		JobID: rec.ID, State: rec.State, Model: rec.Model, Simulated: rec.Simulated, Labels: rec.Labels, Batch: rec.Batch, Producer: rec.Producer,
		CostMicroYuan: rec.CostMicroYuan, Code: rec.Code, Message: rec.Message, EnqueuedAt: rec.EnqueuedAt, FinishedAt: rec.FinishedAt,
	}}
	for _, image := range rec.Images {
		told := EventImage{Image: image}
		if image.Key != "" {
			var err error
			if told.URL, told.URLExpiresAt, err = link(image); err != nil {
				return nil, fmt.Errorf("event of %s: image %d: %w", rec.ID, image.N, err)
			}
		}
		e.Data.Images = append(e.Data.Images, told)
	}
	return e, nil
}

// EventID names the end of a job that is over: the job's ID, a dot, and the
// millisecond of the end. A job that is retried ends once more, with another. "" if the
// job is not over.
func (r *Record) EventID() string {
	if !r.State.Final() {
		return ""
	}
	return r.ID + "." + strconv.FormatInt(r.FinishedAt.UnixMilli(), 10)
}

// hasNotifications reports whether somebody is to be told that the job is over.
func (r *Record) hasNotifications() bool { return r.State.Final() && len(r.notificationKinds()) > 0 }

// notificationKinds are the ways in which the producer wants to be told.
func (r *Record) notificationKinds() []NotificationKind {
	var kinds []NotificationKind
	if r.Callback != "" {
		kinds = append(kinds, NotificationCallback)
	}
	if r.FollowUp != nil {
		kinds = append(kinds, NotificationFollowUp)
	}
	return kinds
}

// NotificationID is the ID of the message in [QueueNotify] that tells of the job's end in a
// way.
func (r *Record) NotificationID(kind NotificationKind) string {
	return r.EventID() + "." + string(kind)
}

// Notify queues what is to be told of a job that is over, once however often it is
// called. [Client.Update] has done so, unless it died half way: then [Client.EnqueueDueNotifications]
// does.
func (c *Client) Notify(ctx context.Context, rec *Record) error {
	return c.notify(ctx, rec, rec.UpdatedAt.UnixMilli())
}

// ackScript forgets that a job is due to be told of, unless it has ended once more.
var ackScript = redis.NewScript(`
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if due and tonumber(due) == tonumber(ARGV[2]) then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
`)

// notify is Notify for what was due since a moment, in milliseconds.
func (c *Client) notify(ctx context.Context, rec *Record, since int64) error {
	if rec.State.Final() {
		for _, kind := range rec.notificationKinds() {
			if err := c.enqueueNotification(ctx, rec, kind); err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
				return fmt.Errorf("notify of %s: %w", rec.ID, err)
			}
		}
	}
	if err := ackScript.Run(ctx, c.redis, []string{rediskey.NotificationsDue}, rec.ID, since).Err(); err != nil {
		return fmt.Errorf("notify of %s: %w", rec.ID, err)
	}
	return nil
}

func (c *Client) enqueueNotification(ctx context.Context, rec *Record, kind NotificationKind) error {
	message, err := newMessage(TypeNotify, QueueNotify, rec.NotificationID(kind), NotifyMessage{JobID: rec.ID, EventID: rec.EventID(), Kind: kind},
		asynq.Timeout(notificationTimeout), asynq.MaxRetry(notificationRetries))
	if err != nil {
		return err
	}
	_, err = c.asynq.EnqueueContext(ctx, message)
	return err
}

// EnqueueDueNotifications queues what is to be told of jobs that are over, where whoever ended them
// died before it had. Workers call it now and then.
func (c *Client) EnqueueDueNotifications(ctx context.Context) error {
	due, err := c.redis.ZRangeWithScores(ctx, rediskey.NotificationsDue, 0, notificationsPerRound-1).Result()
	if err != nil {
		return fmt.Errorf("look for notices that are due: %w", err)
	}
	for _, entry := range due {
		id := fmt.Sprint(entry.Member)
		rec, err := c.Get(ctx, id)
		switch {
		case errors.Is(err, ErrNotFound), errors.Is(err, ErrCorrupt):
			rec = &Record{ID: id} // nobody can be told any more
		case err != nil:
			return err
		}
		if err = c.notify(ctx, rec, int64(entry.Score)); err != nil {
			return err
		}
	}
	return nil
}

// NotifyAgain tells of a job's end once more, under the same event ID: a notice that
// waits for a later try is tried at once, and one that was delivered, or given up, is
// sent again. It returns the notices' message IDs.
//
// It fails with [ErrNotFound], with [ErrInvalidState] if the job is not over or names nobody
// to be told, or with Redis's own error.
func (c *Client) NotifyAgain(ctx context.Context, id string) ([]string, error) {
	rec, err := c.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	kinds := rec.notificationKinds()
	switch {
	case !rec.State.Final():
		return nil, fmt.Errorf("notify of %s: %w: it is not finished (%s)", id, ErrInvalidState, rec.State)
	case len(kinds) == 0:
		return nil, fmt.Errorf("notify of %s: %w: it has neither a callback nor a follow-up", id, ErrInvalidState)
	}
	var sent []string
	for _, kind := range kinds {
		if err := c.resend(ctx, rec, kind); err != nil {
			return sent, fmt.Errorf("notify of %s: %w", id, err)
		}
		sent = append(sent, rec.NotificationID(kind))
	}
	return sent, nil
}

func (c *Client) resend(ctx context.Context, rec *Record, kind NotificationKind) error {
	err := c.enqueueNotification(ctx, rec, kind)
	if !errors.Is(err, asynq.ErrTaskIDConflict) {
		return err
	}
	inspector, id := asynq.NewInspectorFromRedisClient(c.redis), rec.NotificationID(kind)
	info, err := inspector.GetTaskInfo(QueueNotify, id)
	switch {
	case errors.Is(err, asynq.ErrTaskNotFound):
		return c.enqueueNotification(ctx, rec, kind)
	case err != nil:
		return err
	case info.State == asynq.TaskStatePending, info.State == asynq.TaskStateActive:
		return nil // it is on its way
	case info.State == asynq.TaskStateRetry, info.State == asynq.TaskStateScheduled:
		return inspector.RunTask(QueueNotify, id)
	}
	// Archived or completed: run from there it would have no tries left.
	if err := inspector.DeleteTask(QueueNotify, id); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
		return err
	}
	return c.enqueueNotification(ctx, rec, kind)
}

// Notification is how it stands with one way of telling that a job is over.
type Notification struct {
	Kind NotificationKind `json:"kind"`
	// State is asynq's: "completed" once it was delivered, "archived" once it was given
	// up; "" if the queue knows of no notice: it was deleted, or is a week old.
	State string `json:"state"`
	// Tries are those that failed, LastError why the last one did, and NextAt when the
	// next one is due.
	Tries     int       `json:"tries,omitempty"`
	LastError string    `json:"last_error,omitempty"`
	NextAt    time.Time `json:"next_at,omitzero"`
}

// Notifications tells how far the producer of a job that is over has been told.
func (c *Client) Notifications(_ context.Context, rec *Record) ([]Notification, error) {
	if !rec.State.Final() {
		return nil, nil
	}
	var notices []Notification
	for _, kind := range rec.notificationKinds() {
		n := Notification{Kind: kind}
		info, err := asynq.NewInspectorFromRedisClient(c.redis).GetTaskInfo(QueueNotify, rec.NotificationID(kind))
		switch {
		case err == nil:
			n.State, n.Tries, n.LastError = info.State.String(), info.Retried, info.LastErr
			if info.State == asynq.TaskStateRetry {
				n.NextAt = info.NextProcessAt
			}
		case !errors.Is(err, asynq.ErrTaskNotFound) && !errors.Is(err, asynq.ErrQueueNotFound):
			return nil, fmt.Errorf("look at notices of %s: %w", rec.ID, err)
		}
		notices = append(notices, n)
	}
	return notices, nil
}
