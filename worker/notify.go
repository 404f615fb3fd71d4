package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
)

// notify tells producers that their jobs are over, many at once: each at least once,
// under the same event ID on every try.
type notificationServer struct {
	*Worker
	server    *asynq.Server
	callbacks *callbacks
	producers *asynq.Client // queues follow-ups
}

const (
	// notifyConcurrency is how many are told at once; a receiver that says nothing holds
	// a place for callbackTime.
	notifyConcurrency = 16
	// notifyParkTime is how long a callback that is on its way may go on when the worker
	// stops. It is sent again by the next.
	notifyParkTime = 2 * time.Second
	// noticeInterval is how often a worker looks for ends that nobody told of because
	// whoever ended the job died at that moment.
	noticeInterval = 5 * time.Second
	// noticeLongest bounds what a receiver may ask for by Retry-After: the longest wait
	// of the schedule.
	noticeLongest = 6 * time.Hour
)

// noticeWaits are the waits between the tries of a notice: 16 tries in a day, the
// first ones for a receiver that is being restarted, the last ones for a person. They
// have no jitter: jobs do not end at the same moment.
func notificationDelays() []time.Duration {
	return []time.Duration{
		5 * time.Second, 30 * time.Second, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 30 * time.Minute,
		time.Hour, time.Hour, 2 * time.Hour, 2 * time.Hour, 3 * time.Hour, 4 * time.Hour, 4 * time.Hour, noticeLongest,
	}
}

// undeliveredError says why nobody was told, to the person who reads it in the web UI:
// without what may be secret in a link, and without what the receiver answered.
type deliveryError struct {
	cause string
	// remedy is what a person can do; "" where the receiver must do it.
	remedy string
	// after is when the receiver wants to be asked again; 0 if it did not say.
	after time.Duration
	// final says that nothing changes by itself.
	final bool
	// silent says that it took all its time.
	silent bool

	wait time.Duration // until the next try
}

func (e *deliveryError) Error() string { return withHint(e.cause, e.remedy) }

// Is lets asynq archive the message where there is no further try.
func (e *deliveryError) Is(target error) bool { return e.final && target == asynq.SkipRetry }

func newNotify(w *Worker) (*notificationServer, error) {
	c, err := newCallbacks(w.cfg)
	if err != nil {
		return nil, err
	}
	return &notificationServer{Worker: w, callbacks: c, producers: asynq.NewClientFromRedisClient(w.cfg.Redis)}, nil
}

func (n *notificationServer) start() error {
	n.server = asynq.NewServerFromRedisClient(n.cfg.Redis, asynq.Config{
		Concurrency:              notifyConcurrency,
		Queues:                   map[string]int{jobs.QueueNotify: 1},
		TaskCheckInterval:        n.cfg.QueueInterval, // a stop waits for it, once or a few times
		DelayedTaskCheckInterval: delayedFactor * n.cfg.QueueInterval,
		ShutdownTimeout:          notifyParkTime,
		// A death, a stop and a Redis that does not answer are no tries.
		IsFailure:      func(err error) bool { return errors.As(err, new(*deliveryError)) },
		RetryDelayFunc: notificationRetryDelay,
		Logger:         newAsynqLog(n.log),
		LogLevel:       asynq.WarnLevel,
	})
	if err := n.server.Start(asynq.HandlerFunc(n.handle)); err != nil {
		return fmt.Errorf("start notify: %w", err)
	}
	return nil
}

func notificationRetryDelay(_ int, err error, _ *asynq.Task) time.Duration {
	var failed *deliveryError
	switch {
	case errors.Is(err, asynq.ErrLeaseExpired):
		return 0
	case errors.As(err, &failed):
		return failed.wait
	}
	return redisPause
}

func (n *notificationServer) shutdown() { n.server.Shutdown() }

// keepNotifying queues what dead processes left untold, until the returned function is
// called.
func (n *notificationServer) pollDue(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		for away := false; ; {
			err := n.jobs.EnqueueDueNotifications(ctx)
			if err != nil && !away && ctx.Err() == nil {
				n.log.Warn("notices not looked for, trying again", "err", err)
			}
			away = err != nil
			if err := n.sleep(ctx, noticeInterval); err != nil {
				return
			}
		}
	})
	return func() { cancel(); group.Wait() }
}

// finish tells of the last jobs of a queue that may end with this worker, and says what
// is left. Elsewhere other workers, or the next one, go on.
func (n *notificationServer) finish(ctx context.Context) {
	if !n.cfg.ExclusiveQueue {
		return
	}
	if err := n.jobs.EnqueueDueNotifications(ctx); err != nil {
		n.log.Warn("notices not looked for", "err", err)
	}
	n.drain(ctx, jobs.QueueNotify)
	queue, err := asynq.NewInspectorFromRedisClient(n.cfg.Redis).GetQueueInfo(jobs.QueueNotify)
	if err == nil && queue.Size-queue.Archived-queue.Completed > 0 {
		n.log.Warn("producers not told yet of all jobs that are over", "notices", queue.Size-queue.Archived-queue.Completed)
	}
}

// handle is the notify stage's edge to asynq.
func (n *notificationServer) handle(ctx context.Context, message *asynq.Task) error {
	var m jobs.NotifyMessage
	err := json.Unmarshal(message.Payload(), &m)
	if err == nil {
		err = jobs.ValidID(m.JobID)
	}
	if err != nil {
		return fmt.Errorf("the payload is no notice of danqing: %w: %w", err, asynq.SkipRetry)
	}
	log := n.log.With("job_id", m.JobID, "event_id", m.EventID, "kind", string(m.Kind))
	rec, err := n.jobs.Get(ctx, m.JobID)
	switch {
	case errors.Is(err, jobs.ErrNotFound), errors.Is(err, jobs.ErrCorrupt):
		log.Warn("notification dropped: job gone", "err", err)
		return nil
	case err != nil:
		return err
	case rec.EventID() != m.EventID:
		log.Info("notice dropped: the job was retried since", "state", string(rec.State))
		return nil
	}
	body, err := n.body(ctx, rec)
	if err == nil {
		err = n.deliver(ctx, rec, m, body)
	}
	var failed *deliveryError
	switch {
	case err == nil:
		log.Info("notification delivered", "state", string(rec.State))
		return nil
	case ctx.Err() != nil: // it is put back, or was taken away
		return context.Cause(ctx)
	case !errors.As(err, &failed):
		log.Warn("notification failed, retrying", "err", err, "wait", redisPause)
		return err
	}
	tried, _ := asynq.GetRetryCount(ctx)
	failed.schedule(m.JobID, tried)
	if failed.final {
		log.Error("notification failed", "err", failed, "attempt", tried+1)
	} else {
		log.Warn("notification failed, retrying", "err", failed, "attempt", tried+1, "wait", failed.wait)
	}
	return failed
}

// decide says what becomes of a notice after so many tries before this one.
func (e *deliveryError) schedule(jobID string, tried int) {
	again := "danqing jobs notify " + jobID + " sends it again"
	waits := notificationDelays()
	switch {
	case e.final:
		e.remedy = strings.TrimPrefix(e.remedy+"; "+again, "; ")
	case tried >= len(waits):
		e.final = true
		e.cause = fmt.Sprintf("%s; given up after %d tries", e.cause, tried+1)
		e.remedy = strings.TrimPrefix(e.remedy+"; "+again, "; ")
	default:
		e.wait = max(waits[tried], min(e.after, noticeLongest))
	}
}

// body is the event: the same bytes on every try, but for links that die.
func (n *notificationServer) body(ctx context.Context, rec *jobs.Record) ([]byte, error) {
	event, err := jobs.NewEvent(&rec.Job, func(image jobs.Image) (string, time.Time, error) {
		link, err := n.permanentLink(ctx, &rec.Job, image)
		if err != nil || link != "" || n.cfg.LocalBucket {
			return link, time.Time{}, err
		}
		return n.cfg.Bucket.Link(ctx, image.Key)
	})
	if err != nil {
		return nil, err
	}
	encoded, err := encode(event)
	return bytes.TrimSpace(encoded), err
}

func (n *notificationServer) deliver(ctx context.Context, rec *jobs.Record, m jobs.NotifyMessage, body []byte) error {
	switch {
	case m.Kind == jobs.NotificationCallback && rec.Callback != "":
		return n.callbacks.post(ctx, rec.Callback, m.EventID, body)
	case m.Kind == jobs.NotificationFollowUp && rec.FollowUp != nil:
		return n.followUp(ctx, *rec.FollowUp, m.EventID, body)
	}
	return &deliveryError{final: true, cause: fmt.Sprintf("the job names nobody to be told by %q", m.Kind)}
}

// followUp puts the event into the producer's queue. After a death at that moment it is
// queued once more, unless the first is still there.
func (n *notificationServer) followUp(ctx context.Context, to jobs.FollowUp, eventID string, body []byte) error {
	message := asynq.NewTask(to.Type, body, asynq.TaskID(eventID), asynq.Queue(to.Queue))
	_, err := n.producers.EnqueueContext(ctx, message)
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return &deliveryError{cause: fmt.Sprintf("follow-up %s in queue %s: %v", to.Type, to.Queue, err)}
	}
	return nil
}
