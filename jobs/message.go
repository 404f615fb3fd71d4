package jobs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs/compactjson"
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
	// messageTimeout limits one delivery. A handler waits out throttling and pauses, so
	// it is longer than a task exists at DashScope (24 h).
	messageTimeout = 48 * time.Hour
	// messageRetention keeps ended messages for the web UI as long as the record.
	messageRetention = RecordLifetime
	// messageRetries is never reached: each stage decides itself when to give up.
	messageRetries = 1 << 20
)

// GenerateMessage is the payload of a message for a lane. While the job waits it alone has the
// request, so that a deep queue stores it once.
type GenerateMessage struct {
	JobID string `json:"job_id"`
	// Digest is the first half of the request's digest, or all of it.
	Digest  string  `json:"digest"`
	Request Request `json:"request"` // without its ID
}

// messageDigest is the length of a digest in a message: 128 bits tell any change.
const messageDigest = 32

func newPayload(rec *Record, req Request) *GenerateMessage {
	req.ID = ""
	return &GenerateMessage{JobID: rec.ID, Digest: rec.Digest[:min(messageDigest, len(rec.Digest))], Request: req}
}

// Check normalizes the request of a message and gives it the job's ID. It fails if the
// request is invalid, or has another digest.
func (m *GenerateMessage) Check() error {
	m.Request.ID = m.JobID
	req, _, err := m.Request.Normalize()
	if err != nil {
		return fmt.Errorf("payload request: %w", err)
	}
	if len(m.Digest) < messageDigest || !strings.HasPrefix(req.Digest(), m.Digest) {
		return errors.New("payload digest mismatch")
	}
	m.Request = req
	return nil
}

// StoreMessage is the payload of a message for the delivery server.
type StoreMessage struct {
	JobID   string `json:"job_id"`
	Attempt int    `json:"attempt"`
}

// Queue returns the name of the asynq queue of a model's jobs of one priority.
func Queue(model, priority string) string {
	return "danqing:" + model + ":" + priority
}

// LaneQueues returns the queues of a model with their weights.
func LaneQueues(model string) map[string]int {
	return map[string]int{
		Queue(model, PriorityCritical): 6,
		Queue(model, PriorityDefault):  3,
		Queue(model, PriorityBulk):     1,
	}
}

// message is a message for a lane that is queued together with its job's record.
type message struct {
	request *Request
	queue   string
	encoded []byte
	// processAt is when the message becomes pending; zero for at once.
	processAt time.Time
}

// newGenerateMessage returns the message of a new job.
func newGenerateMessage(rec *Record, req *Request) (*message, error) {
	payload, err := compactjson.Marshal(newPayload(rec, *req))
	if err != nil {
		return nil, fmt.Errorf("encode message %s: %w", rec.ID, err)
	}
	m := &message{request: req, queue: Queue(rec.Model, rec.Priority)}
	m.encoded = encodeMessage(TypeGenerate, m.queue, rec.ID, payload)
	if rec.State == StateScheduled {
		m.processAt = req.NotBefore
	}
	return m, nil
}

// messageWaits reports whether a message in a state of asynq starts its job, now or later.
func messageWaits(state string) bool {
	switch state {
	case "pending", "active", "scheduled", "retry":
		return true
	}
	return false
}

func newMessage(kind, queue, id string, payload any, opts ...asynq.Option) (*asynq.Task, error) {
	encoded, err := compactjson.Marshal(payload)
	if err != nil {
		return nil, fmt.Errorf("encode message %s: %w", id, err)
	}
	opts = append([]asynq.Option{
		asynq.TaskID(id), asynq.Queue(queue), asynq.Timeout(messageTimeout), asynq.MaxRetry(messageRetries), asynq.Retention(messageRetention),
	}, opts...)
	return asynq.NewTask(kind, encoded, opts...), nil
}

// PublishResult writes the job's state and images into its message, for the queue's web
// UI. No other code reads it. It fails with Redis's own error.
func (s *Store) PublishResult(ctx context.Context, rec *Record) error {
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
	encoded, err := compactjson.Marshal(shown)
	if err != nil {
		return fmt.Errorf("publish result of %s: %w", rec.ID, err)
	}
	key := asynqMessage(Queue(rec.Model, rec.Priority), rec.ID)
	if err := publishScript.Run(ctx, s.redis, []string{key}, encoded).Err(); err != nil {
		return fmt.Errorf("publish result of %s: %w", rec.ID, err)
	}
	return nil
}

// RequeueAtHead puts a job's message back at the head of its queue if it is active, as
// after the death of the worker that had it: asynq itself would requeue it a minute or two
// later, at the tail. It reports whether the message was active, and fails with Redis's
// own error.
func (s *Store) RequeueAtHead(ctx context.Context, rec *Record) (bool, error) {
	queue := Queue(rec.Model, rec.Priority)
	info, err := asynq.NewInspectorFromRedisClient(s.redis).GetTaskInfo(queue, rec.ID)
	if err != nil || info.State != asynq.TaskStateActive {
		return false, nil //nolint:nilerr // the caller ensures that there is a message
	}
	keys := []string{asynqActive(queue), asynqLeases(queue), asynqPending(queue), asynqMessage(queue, rec.ID)}
	if err := requeueScript.Run(ctx, s.redis, keys, rec.ID, rec.EnqueuedAt.UnixNano()).Err(); err != nil {
		return false, fmt.Errorf("requeue message of %s: %w", rec.ID, err)
	}
	return true, nil
}

// ArchivedMessages returns how many messages are in the archive of a queue, whether or
// not asynq has the queue in its set. It fails with Redis's own error.
func (s *Store) ArchivedMessages(ctx context.Context, queue string) (int64, error) {
	n, err := s.redis.ZCard(ctx, asynqArchived(queue)).Result()
	if err != nil {
		return 0, fmt.Errorf("count archive of %s: %w", queue, err)
	}
	return n, nil
}
