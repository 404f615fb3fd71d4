// Package notify notifies producers that their jobs have ended, by callbacks and follow-ups, and
// sends alerts to people.
package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/watch"
	"github.com/danqing-queue/danqing/worker/metrics"
)

// Store is what the server needs of the queue.
type Store interface {
	Get(ctx context.Context, id string) (*jobs.Record, error)
	// EnqueueDueNotifications enqueues the notifications that crashed processes did not
	// enqueue.
	EnqueueDueNotifications(ctx context.Context) error
}

// Config configures a [Server]. Secrets, ServeURL and LocalBucket may be zero.
type Config struct {
	Redis redis.UniversalClient
	Store Store
	// Bucket makes the links of images, or a gateway at ServeURL, "" for none.
	Bucket   jobs.Bucket
	ServeURL string
	// LocalBucket is set when the bucket is reachable from this process only: its links
	// that expire are useless to others.
	LocalBucket bool
	// Secrets sign callbacks. Without one, callbacks fail.
	Secrets []string
	// Receivers are where alerts are sent. DialAlert dials their connections; nil is the network.
	Receivers []*Receiver
	DialAlert func(ctx context.Context, network, address string) (net.Conn, error)
	// AlertsOnly leaves callbacks and follow-ups to other processes. Store and Bucket may be nil.
	AlertsOnly bool
	// Dial dials callback connections.
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	Watcher *watch.Watcher
	Metrics *metrics.Metrics
	Log     *slog.Logger
}

// Server notifies producers that their jobs have ended, and sends alerts, many at once: each at least
// once, with the same event ID on every attempt.
type Server struct {
	cfg         Config
	log         *slog.Logger
	server      *watch.Server
	callbacks   *callbacks
	alertClient *http.Client
	turns       turns
	producers   *asynq.Client // queues follow-ups
	stopDue     func()
}

const (
	// notifyConcurrency is the number of notifications in the server: those of eight producers
	// whose receivers do not respond, see [turns].
	notifyConcurrency = 256
	// notifyShutdownTimeout is how long a callback in progress may continue when the worker
	// stops. The next worker sends it again.
	notifyShutdownTimeout = 2 * time.Second
	// notificationInterval is how often a worker looks for ended jobs without a notification:
	// the process that ended the job crashed before it enqueued one.
	notificationInterval = 5 * time.Second
	// maxRetryAfter bounds a receiver's Retry-After: the longest wait of the schedule.
	maxRetryAfter = 6 * time.Hour
)

// notificationDelays are the delays between the attempts of a notification: 16 attempts
// in a day. The first ones cover a receiver's restart, the last ones give an operator
// time to act. They have no jitter: jobs do not end at the same moment.
func notificationDelays() []time.Duration {
	return []time.Duration{
		5 * time.Second, 30 * time.Second, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 30 * time.Minute,
		time.Hour, time.Hour, 2 * time.Hour, 2 * time.Hour, 3 * time.Hour, 4 * time.Hour, 4 * time.Hour, maxRetryAfter,
	}
}

// deliveryError says why a notification was not delivered. Its text is shown in the web
// UI, so it contains neither secrets of a URL nor the receiver's response.
type deliveryError struct {
	cause string
	// remedy is what an operator can do; "" if the receiver must act.
	remedy string
	// retryAfter is the receiver's Retry-After; 0 if absent.
	retryAfter time.Duration
	// final means that a retry cannot help.
	final bool
	// timedOut means that the receiver timed out.
	timedOut bool

	wait time.Duration // until the next attempt
}

func (e *deliveryError) Error() string {
	if e.remedy == "" {
		return e.cause
	}
	return e.cause + " (" + e.remedy + ")"
}

// Is makes asynq archive the message if there is no further attempt.
func (e *deliveryError) Is(target error) bool { return e.final && target == asynq.SkipRetry }

// New validates the configuration.
func New(cfg Config) (*Server, error) {
	c, err := newCallbacks(cfg.Secrets, cfg.Dial)
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, log: cfg.Log, callbacks: c, alertClient: newAlertClient(cfg.DialAlert), producers: asynq.NewClientFromRedisClient(cfg.Redis), stopDue: func() {}}, nil
}

// Start starts the server. Until ctx ends it also enqueues the notifications that
// crashed processes did not enqueue. The caller must call Shutdown.
func (n *Server) Start(ctx context.Context) error {
	queues := map[string]int{jobs.QueueAlert: 1}
	if !n.cfg.AlertsOnly {
		queues[jobs.QueueNotify] = 1
	}
	n.server = n.cfg.Watcher.NewServer(n.log, asynq.Config{
		Concurrency: notifyConcurrency, Queues: queues, ShutdownTimeout: notifyShutdownTimeout,
		// Crashes, shutdowns and Redis outages do not count as attempts.
		IsFailure:      func(err error) bool { return errors.As(err, new(*deliveryError)) },
		RetryDelayFunc: notificationRetryDelay,
	})
	if err := n.server.Start(asynq.HandlerFunc(n.handle)); err != nil {
		return fmt.Errorf("start notify: %w", err)
	}
	if n.cfg.AlertsOnly {
		return nil
	}
	failing := false
	n.stopDue = loop.Every(ctx, notificationInterval, func(ctx context.Context) {
		err := n.cfg.Store.EnqueueDueNotifications(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
		case loop.IsTransient(err):
			loop.WarnRedis(n.log, err)
		case !failing:
			n.log.Warn("due notifications not enqueued, retrying", "err", err)
		}
		failing = err != nil
	})
	return nil
}

// Shutdown stops the server. Callbacks in progress get two more seconds.
func (n *Server) Shutdown() {
	n.stopDue()
	n.server.Shutdown()
}

// Finish delivers what is due and logs how many notifications remain. It is for a queue that
// no other worker uses.
func (n *Server) Finish(ctx context.Context) {
	if err := n.cfg.Store.EnqueueDueNotifications(ctx); err != nil {
		n.log.Warn("due notifications not enqueued", "err", err)
	}
	watch.Drain(ctx, n.cfg.Redis, jobs.QueueNotify)
	queue, err := asynq.NewInspectorFromRedisClient(n.cfg.Redis).GetQueueInfo(jobs.QueueNotify)
	if err == nil && queue.Size-queue.Archived-queue.Completed > 0 {
		n.log.Warn("notifications not delivered yet", "notifications", queue.Size-queue.Archived-queue.Completed)
	}
}

func notificationRetryDelay(_ int, err error, _ *asynq.Task) time.Duration {
	var failed *deliveryError
	var notYet *notYetError
	switch {
	case errors.Is(err, asynq.ErrLeaseExpired):
		return 0
	case errors.As(err, &failed):
		return failed.wait
	case errors.As(err, &notYet):
		return notYet.wait
	}
	return loop.RedisRetry
}

// handle adapts the notify stage to asynq.
func (n *Server) handle(ctx context.Context, message *asynq.Task) error {
	if message.Type() == jobs.TypeAlert {
		return n.handleAlert(ctx, message)
	}
	var m jobs.NotifyMessage
	err := json.Unmarshal(message.Payload(), &m)
	if err == nil {
		err = jobs.ValidID(m.JobID)
	}
	if err != nil {
		return fmt.Errorf("the payload is not a danqing notification: %w: %w", err, asynq.SkipRetry)
	}
	log := n.log.With("job_id", m.JobID, "event_id", m.EventID, "kind", string(m.Kind))
	rec, err := n.cfg.Store.Get(ctx, m.JobID)
	switch {
	case errors.Is(err, jobs.ErrNotFound), errors.Is(err, jobs.ErrCorrupt):
		log.Warn("notification dropped: job gone", "err", err)
		n.cfg.Metrics.Notified(m.Kind, "dropped")
		return nil
	case err != nil:
		return err
	case rec.EventID() != m.EventID:
		log.Info("notification dropped: job retried since", "state", string(rec.State))
		n.cfg.Metrics.Notified(m.Kind, "dropped")
		return nil
	}
	return n.attempted(ctx, log.With("state", string(rec.State)), m.Kind, n.deliver(ctx, rec, m), "danqing jobs notify "+m.JobID+" sends it again")
}

// attempted logs and counts an attempt of a notification that ended with err, and returns what asynq
// is told. again is what to do after the last one.
func (n *Server) attempted(ctx context.Context, log *slog.Logger, kind jobs.NotificationKind, err error, again string) error {
	failedMessage := string(kind) + " failed" // a callback, a follow_up or an alert; ERROR: it is given up
	var failed *deliveryError
	switch {
	case errors.As(err, new(*notYetError)):
		return err
	case err == nil:
		log.Info(string(kind) + " delivered") //nolint:sloglint // a constant for each kind
		n.cfg.Metrics.Notified(kind, "delivered")
		return nil
	case ctx.Err() != nil: // requeued by asynq, or its lease expired
		return context.Cause(ctx)
	case !errors.As(err, &failed):
		log.Warn(failedMessage, "err", err, "wait", loop.RedisRetry) //nolint:sloglint // a constant for each kind
		return err
	}
	tried, _ := asynq.GetRetryCount(ctx)
	failed.schedule(again, tried)
	if failed.final {
		log.Error(failedMessage, "err", failed, "attempt", tried+1) //nolint:sloglint // a constant for each kind
		n.cfg.Metrics.Notified(kind, "abandoned")
	} else {
		log.Warn(failedMessage, "err", failed, "attempt", tried+1, "wait", failed.wait) //nolint:sloglint // a constant for each kind
		n.cfg.Metrics.Notified(kind, "failed")
	}
	return failed
}

// schedule sets the delay before the next attempt, after tried earlier attempts, or
// makes the error final. again is what to do then.
func (e *deliveryError) schedule(again string, tried int) {
	waits := notificationDelays()
	switch {
	case e.final:
		e.remedy = strings.TrimPrefix(e.remedy+"; "+again, "; ")
	case tried >= len(waits):
		e.final = true
		e.cause = fmt.Sprintf("%s; abandoned after %d attempts", e.cause, tried+1)
		e.remedy = strings.TrimPrefix(e.remedy+"; "+again, "; ")
	default:
		e.wait = max(waits[tried], min(e.retryAfter, maxRetryAfter))
	}
}

// body returns the event, the same bytes on every attempt except for expiring links.
func (n *Server) body(ctx context.Context, rec *jobs.Record) ([]byte, error) {
	event, err := jobs.NewEvent(&rec.Job, func(image jobs.Image) (string, time.Time, error) {
		link, err := rec.PermanentLink(ctx, image, n.cfg.Bucket, n.cfg.ServeURL)
		if err != nil || link != "" || n.cfg.LocalBucket {
			return link, time.Time{}, err
		}
		return n.cfg.Bucket.Link(ctx, image.Key)
	})
	if err != nil {
		return nil, err
	}
	return compactjson.Marshal(event)
}

func (n *Server) deliver(ctx context.Context, rec *jobs.Record, m jobs.NotifyMessage) error {
	if m.Kind == jobs.NotificationCallback {
		end, err := n.turns.take(ctx, sender(rec))
		if err != nil {
			return err
		}
		defer end()
	}
	body, err := n.body(ctx, rec)
	switch {
	case err != nil:
		return err
	case m.Kind == jobs.NotificationCallback && rec.Callback != "":
		return n.callbacks.post(ctx, rec.Producer, rec.Callback, m.EventID, body)
	case m.Kind == jobs.NotificationFollowUp && rec.FollowUp != nil:
		return n.followUp(ctx, *rec.FollowUp, m.EventID, body)
	}
	return &deliveryError{final: true, cause: fmt.Sprintf("the job has no %s", m.Kind)}
}

// sender is who shares the deliveries: the producer, who chooses the receivers; without one,
// the receiver.
func sender(rec *jobs.Record) string {
	if rec.Producer != "" {
		return rec.Producer
	}
	u, err := url.Parse(rec.Callback)
	if err != nil {
		return ""
	}
	return "host " + u.Host
}

// followUp enqueues the event in the producer's queue. After a crash it may be enqueued
// again, unless the first message still exists.
func (n *Server) followUp(ctx context.Context, to jobs.FollowUp, eventID string, body []byte) error {
	message := asynq.NewTask(to.Type, body, asynq.TaskID(eventID), asynq.Queue(to.Queue))
	_, err := n.producers.EnqueueContext(ctx, message)
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return &deliveryError{cause: fmt.Sprintf("follow-up %s in queue %s: %v", to.Type, to.Queue, err)}
	}
	return nil
}
