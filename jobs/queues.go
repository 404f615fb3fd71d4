package jobs

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// QueueStatus is how many jobs of a model and priority wait for a lane.
type QueueStatus struct {
	Model    string
	Priority string
	// Depth is the number of jobs that a lane can start.
	Depth int64
	// NextSince is since when the job that is drawn next waits; zero if none does. It is the one
	// that has waited for the longest time, but for those that were tried again.
	NextSince time.Time
	// Paused is set if the queue is paused in asynq's web UI.
	Paused bool
}

// queuesScript returns of each queue its length, the message that is drawn next and whether it is
// paused. It is one command, as the embedded Redis's connections cannot hold a long pipeline.
var queuesScript = redis.NewScript(`
local queues = {}
for i = 1, #KEYS, 2 do
  queues[#queues + 1] = tostring(redis.call('LLEN', KEYS[i]))
  queues[#queues + 1] = redis.call('LINDEX', KEYS[i], -1) or ''
  queues[#queues + 1] = tostring(redis.call('EXISTS', KEYS[i + 1]))
end
return queues
`)

// sinceScript returns since when messages wait, in Unix nanoseconds, or, of those that were put
// back, when their jobs were enqueued. Its keys are a message and a record each.
var sinceScript = redis.NewScript(`
local since = {}
for i = 1, #KEYS, 2 do
  since[#since + 1] = redis.call('HGET', KEYS[i], 'pending_since') or redis.call('HGET', KEYS[i + 1], 'enqueued') or ''
end
return since
`)

// Queues returns the queues of all models of the catalog, by two commands. It fails with Redis's
// own error.
func (i *Inspector) Queues(ctx context.Context) ([]QueueStatus, error) {
	var queues []QueueStatus
	var keys []string
	for _, model := range Models() {
		for _, priority := range priorities() {
			queue := Queue(model.Name, priority)
			queues = append(queues, QueueStatus{Model: model.Name, Priority: priority})
			keys = append(keys, asynqPending(queue), asynqPaused(queue))
		}
	}
	read, err := queuesScript.Run(ctx, i.store.redis, keys).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("read queues: %w", err)
	}
	var messages []string
	var waiting []*QueueStatus
	for n := range queues {
		q := &queues[n]
		if _, err := fmt.Sscan(read[3*n], &q.Depth); err != nil {
			return nil, fmt.Errorf("read queue of %s: %w", q.Model, err)
		}
		q.Paused = read[3*n+2] != "0"
		if id := read[3*n+1]; id != "" {
			waiting = append(waiting, q)
			messages = append(messages, asynqMessage(Queue(q.Model, q.Priority), id), rediskey.Record(id))
		}
	}
	if len(messages) == 0 {
		return queues, nil
	}
	since, err := sinceScript.Run(ctx, i.store.redis, messages).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("read queues: %w", err)
	}
	for n, q := range waiting {
		if at, err := strconv.ParseInt(since[n], 10, 64); err == nil {
			q.NextSince = time.Unix(0, at).UTC()
		} else if q.NextSince, err = time.Parse(time.RFC3339Nano, since[n]); err != nil {
			q.NextSince = time.Time{} // the job is gone
		}
	}
	return queues, nil
}
