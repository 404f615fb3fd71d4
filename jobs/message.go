package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// Task types and queues in asynq, as its web UI shows them.
const (
	TypeGenerate = "danqing:generate"
	TypeStore    = "danqing:store"
	QueueStore   = "danqing:store"
)

// Priorities of a job. The queues of a lane are drawn 6:3:1, so that bulk waits
// longest but never forever.
const (
	PriorityCritical = "critical"
	PriorityDefault  = "default"
	PriorityBulk     = "bulk"
)

const (
	// messageTimeout bounds one delivery. A generate handler waits out throttles
	// and pauses inside, so it is longer than a task can live at DashScope (24 h).
	messageTimeout = 48 * time.Hour
	// messageRetention keeps ended messages for the web UI as long as the record.
	messageRetention = RecordLifetime
	// messageRetries is no bound: each stage decides itself when to give up.
	messageRetries = 1 << 20
)

// GenerateMessage wakes a lane. The request stands here while the job waits, so
// that a deep queue costs Redis one copy of it.
type GenerateMessage struct {
	JobID   string  `json:"job_id"`
	Digest  string  `json:"digest"`
	Request Request `json:"request"`
}

// StoreMessage wakes a store server.
type StoreMessage struct {
	JobID   string `json:"job_id"`
	Attempt int    `json:"attempt"`
}

// Queue names the asynq queue of a model's jobs of one priority.
func Queue(model, priority string) string {
	return "danqing:" + model + ":" + priority
}

// LaneQueues are the queues of a model with the weights they are drawn by.
func LaneQueues(model string) map[string]int {
	return map[string]int{
		Queue(model, PriorityCritical): 6,
		Queue(model, PriorityDefault):  3,
		Queue(model, PriorityBulk):     1,
	}
}

// Position returns how many jobs of the same model and priority will be drawn before
// a job that waits, and whether it is in line at all: not while it waits for a
// later try, nor once a lane has drawn it.
func (c *Client) Position(ctx context.Context, rec *Record) (ahead int64, inLine bool, err error) {
	line := asynqPending(Queue(rec.Model, rec.Priority))
	at, err := c.redis.LPos(ctx, line, rec.ID, redis.LPosArgs{Rank: -1}).Result()
	if errors.Is(err, redis.Nil) {
		return 0, false, nil
	}
	length, lenErr := c.redis.LLen(ctx, line).Result()
	if err := errors.Join(err, lenErr); err != nil {
		return 0, false, fmt.Errorf("look for %s in its queue: %w", rec.ID, err)
	}
	return max(length-1-at, 0), true, nil
}

func newMessage(kind, queue, id string, payload any, opts ...asynq.Option) (*asynq.Task, error) {
	encoded, err := encodeJSON(payload)
	if err != nil {
		return nil, fmt.Errorf("encode message %s: %w", id, err)
	}
	opts = append([]asynq.Option{
		asynq.TaskID(id), asynq.Queue(queue), asynq.Timeout(messageTimeout), asynq.MaxRetry(messageRetries), asynq.Retention(messageRetention),
	}, opts...)
	return asynq.NewTask(kind, encoded, opts...), nil
}

// PublishResult copies what a person wants to know of the job into its message, for
// the queue's web UI. Nothing of ours reads it.
func (c *Client) PublishResult(ctx context.Context, rec *Record) error {
	shown := struct {
		State         State    `json:"state"`
		Simulated     bool     `json:"simulated,omitempty"`
		TaskID        string   `json:"task_id,omitempty"`
		Attempt       int      `json:"attempt,omitempty"`
		Images        []string `json:"images,omitempty"`
		CostMicroYuan int64    `json:"cost_micro_yuan,omitempty"`
		Code          string   `json:"code,omitempty"`
		Message       string   `json:"message,omitempty"`
	}{rec.State, rec.Simulated, rec.TaskID, rec.Attempt, nil, rec.CostMicroYuan, rec.Code, rec.Message}
	for _, image := range rec.Images {
		if image.Key != "" {
			shown.Images = append(shown.Images, image.Key)
		}
	}
	encoded, err := encodeJSON(shown)
	if err != nil {
		return fmt.Errorf("show result of %s: %w", rec.ID, err)
	}
	key := asynqMessage(Queue(rec.Model, rec.Priority), rec.ID)
	if err := publishScript.Run(ctx, c.redis, []string{key}, encoded).Err(); err != nil {
		return fmt.Errorf("show result of %s: %w", rec.ID, err)
	}
	return nil
}

// RequeueAtHead puts a job's message back at the head of its queue if it is active, as
// after the death of the worker that had it: asynq itself would requeue it a minute or two
// later, at the tail. It reports whether the message was active, and fails with Redis's
// own error.
func (c *Client) RequeueAtHead(ctx context.Context, rec *Record) (bool, error) {
	queue := Queue(rec.Model, rec.Priority)
	info, err := asynq.NewInspectorFromRedisClient(c.redis).GetTaskInfo(queue, rec.ID)
	if err != nil || info.State != asynq.TaskStateActive {
		return false, nil //nolint:nilerr // the caller ensures that there is a message
	}
	keys := []string{asynqActive(queue), asynqLeases(queue), asynqPending(queue), asynqMessage(queue, rec.ID)}
	if err := requeueScript.Run(ctx, c.redis, keys, rec.ID).Err(); err != nil {
		return false, fmt.Errorf("requeue message of %s: %w", rec.ID, err)
	}
	return true, nil
}

// ArchivedMessages returns how many messages are in the archive of a queue, whether or
// not asynq has the queue in its set. It fails with Redis's own error.
func (c *Client) ArchivedMessages(ctx context.Context, queue string) (int64, error) {
	n, err := c.redis.ZCard(ctx, asynqArchived(queue)).Result()
	if err != nil {
		return 0, fmt.Errorf("count archive of %s: %w", queue, err)
	}
	return n, nil
}
