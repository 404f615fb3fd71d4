package jobs

import (
	"encoding/binary"
	"time"

	"github.com/redis/go-redis/v9"
)

// asynqVersion is the version of asynq from whose sources the keys and scripts in this
// file were read: internal/base/base.go and internal/rdb/rdb.go. They are private to
// asynq. A test fails when go.mod requires another version; then compare them again.
const asynqVersion = "v0.26.0"

// asynqLease is how long a server has the lease of a message without renewing it
// (rdb.LeaseDuration).
const asynqLease = 30 * time.Second

// asynqQueues is asynq's set of the names of its queues (base.AllQueues).
const asynqQueues = "asynq:queues"

// asynqKey is the prefix of all keys of a queue (base.QueueKeyPrefix).
func asynqKey(queue, part string) string { return "asynq:{" + queue + "}:" + part }

// asynqMessage is a hash with one message: state, msg and, once there is one, result
// (base.TaskKey).
func asynqMessage(queue, id string) string { return asynqKey(queue, "t:"+id) }

// asynqPending is a list of the IDs of a queue's pending messages. Messages are added at
// its left end and taken from its right end (base.PendingKey).
func asynqPending(queue string) string { return asynqKey(queue, "pending") }

// asynqScheduled is a sorted set of the IDs of a queue's messages for later, by their time in
// Unix seconds (base.ScheduledKey).
func asynqScheduled(queue string) string { return asynqKey(queue, "scheduled") }

// asynqRetry is a sorted set of the IDs of a queue's messages that are tried again, by that time
// in Unix seconds (base.RetryKey).
func asynqRetry(queue string) string { return asynqKey(queue, "retry") }

// asynqCompleted is a sorted set of the IDs of a queue's completed messages, by the time of
// their deletion in Unix seconds (base.CompletedKey).
func asynqCompleted(queue string) string { return asynqKey(queue, "completed") }

// asynqPaused exists while a queue is paused in the web UI (base.PausedKey).
func asynqPaused(queue string) string { return asynqKey(queue, "paused") }

// asynqActive is a list of the IDs of a queue's active messages (base.ActiveKey).
func asynqActive(queue string) string { return asynqKey(queue, "active") }

// asynqLeases is a sorted set of the IDs of active messages, by the end of their lease
// (base.LeaseKey).
func asynqLeases(queue string) string { return asynqKey(queue, "lease") }

// asynqArchived is a sorted set of the IDs of a queue's archived messages, by the time at which
// they were archived in Unix seconds (base.ArchivedKey).
func asynqArchived(queue string) string { return asynqKey(queue, "archived") }

// encodeMessage encodes a message as asynq does (base.EncodeMessage): in the wire format of
// protobuf, with the field numbers of internal/proto/asynq.proto.
func encodeMessage(kind, queue, id string, payload []byte) []byte {
	b := make([]byte, 0, len(kind)+len(queue)+len(id)+len(payload)+32)
	bytes := func(field byte, value []byte) {
		b = binary.AppendUvarint(append(b, field<<3|2), uint64(len(value)))
		b = append(b, value...)
	}
	text := func(field byte, value string) { bytes(field, []byte(value)) }
	number := func(field byte, value uint64) { b = binary.AppendUvarint(append(b, field<<3), value) }
	text(1, kind)
	bytes(2, payload)
	text(3, id)
	text(4, queue)
	number(5, messageRetries)
	number(8, uint64(messageTimeout/time.Second))
	number(12, uint64(messageRetention/time.Second))
	return b
}

// statesScript returns the states of the messages, or of the records, at its keys, "" for those
// that do not exist. One command serves many, since a caller reads all waiting jobs.
var statesScript = redis.NewScript(`
local states = {}
for i = 1, #KEYS do states[i] = redis.call('HGET', KEYS[i], 'state') or '' end
return states
`)

// publishScript writes a message's result if the message exists. asynq's own writer does
// not check that, and a result without a message blocks its ID forever
// (hibiken/asynq#1167).
var publishScript = redis.NewScript(`
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HSET', KEYS[1], 'result', ARGV[1])
`)
