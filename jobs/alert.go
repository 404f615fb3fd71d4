package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// The task type and the queue in asynq of alerts. They have a queue of their own, so that a process
// without a worker can send them.
const (
	TypeAlert  = "danqing:alert"
	QueueAlert = "danqing:alert"
)

// AlertEvent is what an [Alert] is about.
type AlertEvent string

// The events of alerts, with their subjects.
const (
	AlertHeld      AlertEvent = "job.held"           // a job
	AlertNotStored AlertEvent = "image.not_stored"   // a job whose images were paid for an hour ago
	AlertPaused    AlertEvent = "lane.paused"        // ACCOUNT:MODEL
	AlertResumed   AlertEvent = "lane.resumed"       // ACCOUNT:MODEL
	AlertBudget80  AlertEvent = "budget.80_percent"  // an account
	AlertBudget    AlertEvent = "budget.reached"     // an account
	AlertNoWorker  AlertEvent = "model.no_worker"    // a model with waiting jobs
	AlertCallback  AlertEvent = "callback.abandoned" // a job
	AlertBatchOver AlertEvent = "batch.over"         // a batch
	AlertTest      AlertEvent = "test"               // danqing alert test
)

// AlertEvents are all events, the most urgent first.
func AlertEvents() []AlertEvent {
	return []AlertEvent{
		AlertHeld, AlertNotStored, AlertPaused, AlertBudget, AlertNoWorker, AlertCallback, AlertBudget80, AlertResumed, AlertBatchOver, AlertTest,
	}
}

// Alert tells people of an event that somebody may have to act on.
type Alert struct {
	Event   AlertEvent `json:"event"`
	Subject string     `json:"subject"`
	// Values are what the sentence says beside the subject, as an error or an amount.
	Values []string `json:"values,omitempty"`
}

// AlertMessage is the payload of a message in [QueueAlert]: the alerts of a minute for one receiver.
type AlertMessage struct {
	// ID is the same for all receivers, and at every attempt.
	ID string `json:"id"`
	// Receiver names the receiver by a hash of its URL, which is a secret.
	Receiver  string    `json:"receiver,omitempty"`
	Simulated bool      `json:"simulated,omitempty"`
	At        time.Time `json:"at"`
	// Counts has the number of alerts of each event, and Alerts the first ones of each.
	Counts map[AlertEvent]int `json:"counts"`
	Alerts []Alert            `json:"alerts"`
}

// Fields of [rediskey.Alerts] beside those of conditions.
const (
	alertRound  = "round"
	alertOutbox = "outbox"
)

// AlertState is what Redis remembers of alerts.
type AlertState struct {
	// Round is when conditions were last read, as it stands in Redis; "" for never.
	Round string
	// Conditions has what is known of each condition that holds, under a name of the caller's.
	Conditions map[string]string
	// Outbox is a message that is not queued for all receivers yet; nil for none.
	Outbox *AlertMessage
}

// AlertState reads what Redis remembers of alerts. It fails with Redis's own error.
func (s *Store) AlertState(ctx context.Context) (*AlertState, error) {
	fields, err := s.redis.HGetAll(ctx, rediskey.Alerts).Result()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", rediskey.Alerts, err)
	}
	state := &AlertState{Round: fields[alertRound], Conditions: fields}
	if outbox := fields[alertOutbox]; outbox != "" {
		if err := json.Unmarshal([]byte(outbox), &state.Outbox); err != nil {
			state.Outbox = nil // of another version: it is replaced by the next one
		}
	}
	delete(fields, alertRound)
	delete(fields, alertOutbox)
	return state, nil
}

// alertScript writes fields, "" for those to remove, unless another process has begun a round.
var alertScript = redis.NewScript(`
if (redis.call('HGET', KEYS[1], 'round') or '') ~= ARGV[1] then return 0 end
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
return 1
`)

// BeginAlertRound writes what has changed since state was read: a new round, conditions, "" for
// those that are over, and the message that tells of them, if there is one. It reports false, and
// writes nothing, if another process was faster. It fails with Redis's own error.
func (s *Store) BeginAlertRound(ctx context.Context, state *AlertState, round string, conditions map[string]string, message *AlertMessage) (bool, error) {
	args := []any{state.Round, alertRound, round}
	for name, value := range conditions {
		args = append(args, name, value)
	}
	if message != nil {
		encoded, err := compactjson.Marshal(message)
		if err != nil {
			return false, fmt.Errorf("encode alerts: %w", err)
		}
		args = append(args, alertOutbox, encoded)
	}
	begun, err := alertScript.Run(ctx, s.redis, []string{rediskey.Alerts}, args...).Bool()
	if err != nil {
		return false, fmt.Errorf("write %s: %w", rediskey.Alerts, err)
	}
	return begun, nil
}

// EnqueueAlerts queues the outbox of a state for each receiver, once, whoever calls it how often,
// and empties it. It fails with Redis's own error.
func (s *Store) EnqueueAlerts(ctx context.Context, state *AlertState, receivers []string) error {
	if state.Outbox == nil {
		return nil
	}
	for _, receiver := range receivers {
		payload := *state.Outbox
		payload.Receiver = receiver
		message, err := newMessage(TypeAlert, QueueAlert, receiver+"."+payload.ID, payload, asynq.Timeout(notificationTimeout), asynq.MaxRetry(notificationRetries))
		if err != nil {
			return err
		}
		if _, err := s.asynq.EnqueueContext(ctx, message); err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
			return fmt.Errorf("enqueue alerts: %w", err)
		}
		s.announceMessage(ctx, QueueAlert)
	}
	if err := alertScript.Run(ctx, s.redis, []string{rediskey.Alerts}, state.Round, alertOutbox, "").Err(); err != nil {
		return fmt.Errorf("write %s: %w", rediskey.Alerts, err)
	}
	state.Outbox = nil
	return nil
}

// archivePage is more than the worker's maintenance leaves in the archive of a queue.
const archivePage = 2000

// AbandonedNotification is a notification of a job's end that was given up.
type AbandonedNotification struct {
	JobID, EventID string
	Error          string // of the last attempt
}

// AbandonedNotifications returns the notifications that were given up after a time. It fails with
// Redis's own error.
func (i *Inspector) AbandonedNotifications(_ context.Context, after time.Time) ([]AbandonedNotification, error) {
	messages, err := asynq.NewInspectorFromRedisClient(i.store.redis).ListArchivedTasks(QueueNotify, asynq.PageSize(archivePage))
	if errors.Is(err, asynq.ErrQueueNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list abandoned notifications: %w", err)
	}
	var list []AbandonedNotification
	for _, m := range messages {
		var n NotifyMessage
		if m.LastFailedAt.After(after) && json.Unmarshal(m.Payload, &n) == nil && n.JobID != "" {
			list = append(list, AbandonedNotification{n.JobID, n.EventID, m.LastErr})
		}
	}
	return list, nil
}
