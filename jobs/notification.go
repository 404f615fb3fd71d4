package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// The task type and the queue in asynq of notifications: the messages for a producer at the
// end of a job.
const (
	TypeNotify  = "danqing:notify"
	QueueNotify = "danqing:notify"
)

// NotificationKind is a way in which a producer is notified of the end of a job.
type NotificationKind string

// The kinds of a notification.
const (
	NotificationCallback NotificationKind = "callback"  // a signed POST to the job's callback
	NotificationFollowUp NotificationKind = "follow_up" // a message in the producer's own queue
)

// NotifyMessage is the payload of a message for the notification server.
type NotifyMessage struct {
	JobID   string           `json:"job_id"`
	EventID string           `json:"event_id"`
	Kind    NotificationKind `json:"kind"`
}

const (
	// notificationTimeout limits one attempt; the server ends it earlier.
	notificationTimeout = time.Minute
	// notificationRetries is one more than the server makes, which spreads them over a
	// day and decides when to give up: a crash during the last attempt must not end it.
	notificationRetries = 16
	// notificationsPerRound limits one round of EnqueueDueNotifications.
	notificationsPerRound = 200
)

// Event describes the end of a job: the body of a callback and the payload of a
// follow-up. Fields may be added.
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
	// Batch and LineID are the names in a batch file, "" outside of one.
	Batch    string `json:"batch,omitempty"`
	LineID   string `json:"line_id,omitempty"`
	Producer string `json:"producer,omitempty"`
	// Bucket is the name of the bucket that has the images; "" while there are none.
	Bucket string `json:"bucket,omitempty"`
	// Images are all requested images, each in the bucket or with the reason why it is not.
	Images        []EventImage `json:"images,omitempty"`
	CostMicroYuan int64        `json:"cost_micro_yuan"`
	// Code and Message say why the job failed or was canceled.
	Code       string    `json:"code,omitempty"`
	Message    string    `json:"message,omitempty"`
	EnqueuedAt time.Time `json:"enqueued_at,omitzero"`
	FinishedAt time.Time `json:"finished_at"`
}

// EventImage is an image with its URL.
type EventImage struct {
	Image
	// URL is where the image can be fetched until URLExpiresAt; permanently if that is
	// zero.
	URL          string    `json:"url,omitempty"`
	URLExpiresAt time.Time `json:"url_expires_at,omitzero"`
}

// NewEvent describes the end of a job that has ended. link returns the URL of an image
// and when it expires.
func NewEvent(job *Job, link func(Image) (url string, expiresAt time.Time, err error)) (*Event, error) {
	e := &Event{Type: "job." + string(job.State), Timestamp: job.FinishedAt, Data: EventJob{
		JobID: job.ID, State: job.State, Model: job.Model, Simulated: job.Simulated, Labels: job.Labels, Batch: job.Batch, Producer: job.Producer, Bucket: job.Bucket,
		CostMicroYuan: job.CostMicroYuan, Code: job.Code, Message: job.Message, EnqueuedAt: job.EnqueuedAt, FinishedAt: job.FinishedAt,
	}}
	if job.Request != nil {
		e.Data.LineID = job.Request.LineID
	}
	for _, image := range job.Images {
		shown := EventImage{Image: image}
		shown.Link = "" // the event has it as URL
		if image.Key != "" {
			var err error
			if shown.URL, shown.URLExpiresAt, err = link(image); err != nil {
				return nil, fmt.Errorf("event of %s: image %d: %w", job.ID, image.N, err)
			}
		}
		e.Data.Images = append(e.Data.Images, shown)
	}
	return e, nil
}

// hasNotifications reports whether the job has ended and its producer is to be notified.
func (j *Job) hasNotifications() bool { return j.State.Final() && len(j.notificationKinds()) > 0 }

// notificationKinds are the ways in which the producer is notified.
func (j *Job) notificationKinds() []NotificationKind {
	var kinds []NotificationKind
	if j.Callback != "" {
		kinds = append(kinds, NotificationCallback)
	}
	if j.FollowUp != nil {
		kinds = append(kinds, NotificationFollowUp)
	}
	return kinds
}

// NotificationID is the ID of the message in [QueueNotify] for the job's end.
func (j *Job) NotificationID(kind NotificationKind) string {
	return j.EventID() + "." + string(kind)
}

// ackScript removes a job from the due notifications, unless it has ended again.
var ackScript = redis.NewScript(`
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if due and tonumber(due) == tonumber(ARGV[2]) then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
`)

// notify queues the notifications of an ended job, once however often it is called, and
// then removes it from the due ones. since is the score of the due entry, in Unix
// milliseconds.
func (s *Store) notify(ctx context.Context, rec *Record, since int64) error {
	if rec.State.Final() {
		for _, kind := range rec.notificationKinds() {
			if err := s.enqueueNotification(ctx, rec, kind); err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
				return fmt.Errorf("notify of %s: %w", rec.ID, err)
			}
		}
	}
	if err := ackScript.Run(ctx, s.redis, []string{rediskey.NotificationsDue}, rec.ID, since).Err(); err != nil {
		return fmt.Errorf("notify of %s: %w", rec.ID, err)
	}
	return nil
}

func (s *Store) enqueueNotification(ctx context.Context, rec *Record, kind NotificationKind) error {
	message, err := newMessage(TypeNotify, QueueNotify, rec.NotificationID(kind), NotifyMessage{JobID: rec.ID, EventID: rec.EventID(), Kind: kind},
		asynq.Timeout(notificationTimeout), asynq.MaxRetry(notificationRetries))
	if err != nil {
		return err
	}
	if _, err = s.asynq.EnqueueContext(ctx, message); err == nil {
		s.announceMessage(ctx, QueueNotify)
	}
	return err
}

// EnqueueDueNotifications queues the notifications of ended jobs whose last writer was
// interrupted before it had. Workers call it periodically. It fails with Redis's own
// error.
func (s *Store) EnqueueDueNotifications(ctx context.Context) error {
	due, err := s.redis.ZRangeWithScores(ctx, rediskey.NotificationsDue, 0, notificationsPerRound-1).Result()
	if err != nil {
		return fmt.Errorf("read due notifications: %w", err)
	}
	for _, entry := range due {
		id := fmt.Sprint(entry.Member)
		rec, err := s.Get(ctx, id)
		switch {
		case errors.Is(err, ErrNotFound), errors.Is(err, ErrCorrupt):
			rec = &Record{Job: Job{ID: id}} // it has no notifications
		case err != nil:
			return err
		}
		if err = s.notify(ctx, rec, int64(entry.Score)); err != nil {
			return err
		}
	}
	return nil
}

// NotifyAgain sends the notifications of a job's end again, with the same event ID, also
// those that were delivered or abandoned. It returns the IDs of the messages.
//
// It fails with [ErrNotFound], with [ErrInvalidState] if the job has not ended or has
// neither callback nor follow-up, or with Redis's own error.
func (i *Inspector) NotifyAgain(ctx context.Context, id string) ([]string, error) {
	rec, err := i.store.Get(ctx, id)
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
		if err := i.store.resend(ctx, rec, kind); err != nil {
			return sent, fmt.Errorf("notify of %s: %w", id, err)
		}
		sent = append(sent, rec.NotificationID(kind))
	}
	return sent, nil
}

func (s *Store) resend(ctx context.Context, rec *Record, kind NotificationKind) error {
	err := s.enqueueNotification(ctx, rec, kind)
	if !errors.Is(err, asynq.ErrTaskIDConflict) {
		return err
	}
	inspector, id := asynq.NewInspectorFromRedisClient(s.redis), rec.NotificationID(kind)
	info, err := inspector.GetTaskInfo(QueueNotify, id)
	switch {
	case errors.Is(err, asynq.ErrTaskNotFound):
		return s.enqueueNotification(ctx, rec, kind)
	case err != nil:
		return err
	case info.State == asynq.TaskStatePending, info.State == asynq.TaskStateActive:
		return nil // a worker is about to send it
	case info.State == asynq.TaskStateRetry, info.State == asynq.TaskStateScheduled:
		return inspector.RunTask(QueueNotify, id)
	}
	// Archived or completed: run from there it would have no tries left.
	if err := inspector.DeleteTask(QueueNotify, id); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
		return err
	}
	return s.enqueueNotification(ctx, rec, kind)
}

// Notification is the state of one notification of a job's end.
type Notification struct {
	Kind NotificationKind `json:"kind"`
	// State is asynq's: "completed" once it was delivered, "archived" once it was
	// abandoned; "" if it was deleted or is older than a week.
	State string `json:"state"`
	// Tries is how many attempts failed, LastError why the last one did, and NextAt when
	// the next one is due.
	Tries     int       `json:"tries,omitempty"`
	LastError string    `json:"last_error,omitempty"`
	NextAt    time.Time `json:"next_at,omitzero"`
	// DoneAt is when it was delivered; zero if it was not.
	DoneAt time.Time `json:"done_at,omitzero"`
}

// Notifications returns the state of the notifications of an ended job, nil if it has not
// ended. It fails with Redis's own error.
func (i *Inspector) Notifications(_ context.Context, job *Job) ([]Notification, error) {
	if !job.State.Final() {
		return nil, nil
	}
	var list []Notification
	for _, kind := range job.notificationKinds() {
		n := Notification{Kind: kind}
		info, err := asynq.NewInspectorFromRedisClient(i.store.redis).GetTaskInfo(QueueNotify, job.NotificationID(kind))
		switch {
		case err == nil:
			n.State, n.Tries, n.LastError, n.DoneAt = info.State.String(), info.Retried, info.LastErr, info.CompletedAt
			if info.State == asynq.TaskStateRetry {
				n.NextAt = info.NextProcessAt
			}
		case !errors.Is(err, asynq.ErrTaskNotFound) && !errors.Is(err, asynq.ErrQueueNotFound):
			return nil, fmt.Errorf("read notifications of %s: %w", job.ID, err)
		}
		list = append(list, n)
	}
	return list, nil
}
