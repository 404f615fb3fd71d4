package jobs

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// This file moves messages between asynq's lists, where asynq's own commands do not suffice:
// they lose an entry that has no hash, and fail at one whose hash is in no list. See
// asynqVersion.

// luaArchive moves a message to the archive, and writes why into it: protobuf takes the last of
// equal fields. An active message stays: its handler archives it. Its keys are those of
// archiveKeys.
const luaArchive = `
local function archive(keys, id, reason, now)
  local found = redis.call('HMGET', keys[1], 'state', 'msg')
  local state = found[1]
  if not state or not found[2] or state == 'active' then return 0 end
  if state == 'pending' then redis.call('LREM', keys[2], 0, id) end
  for i = 3, 5 do redis.call('ZREM', keys[i], id) end
  redis.call('ZADD', keys[6], now, id)
  redis.call('HSET', keys[1], 'msg', found[2] .. reason, 'state', 'archived')
  redis.call('HDEL', keys[1], 'pending_since')
  return 1
end
`

func archiveKeys(rec *Record) []string {
	queue := Queue(rec.Model, rec.Priority)
	return []string{asynqMessage(queue, rec.ID), asynqPending(queue), asynqScheduled(queue), asynqRetry(queue), asynqCompleted(queue), asynqArchived(queue)}
}

// messageArchived reports whether the job's message lies in the archive, with the reason: the
// web UI shows there what needs somebody.
func (r *Record) messageArchived() bool { return r.State == StateHeld || r.State == StateFailed }

// MessageError is what asynq's web UI shows as the last error of a job that is held or has
// failed: why, and what to do about it. Running the message there does neither.
func (r *Record) MessageError() string {
	why := r.Code + ": " + r.Message
	if r.State == StateHeld {
		return "held for a decision: " + why + " (danqing jobs show " + r.ID + ")"
	}
	return why + " (to try again: danqing jobs retry " + r.ID + ")"
}

// messageReason encodes what a message says about a job that is held or has failed, in the
// fields of asynq.proto: retried, error_msg, last_failed_at and no completed_at.
func messageReason(rec *Record) []byte {
	text := rec.MessageError()
	b := binary.AppendUvarint([]byte{6 << 3}, uint64(max(rec.Attempt-1, 0)))
	b = binary.AppendUvarint(append(b, 7<<3|2), uint64(len(text)))
	b = append(b, text...)
	b = binary.AppendUvarint(append(b, 11<<3), uint64(max(rec.UpdatedAt.Unix(), 0)))
	return append(b, 13<<3, 0)
}

var archiveScript = redis.NewScript(luaArchive + `return archive(KEYS, ARGV[1], ARGV[2], ARGV[3])`)

// ArchiveCompleted moves the messages of those records that are held or have failed to the
// archive, if asynq took them for completed: the handler of a message returned just before the
// job was held, or failed, elsewhere. It fails with Redis's own error.
func (s *Store) ArchiveCompleted(ctx context.Context, records []*Record) error {
	var keys []string
	var over []*Record
	for _, rec := range records {
		if rec.messageArchived() {
			keys = append(keys, asynqMessage(Queue(rec.Model, rec.Priority), rec.ID))
			over = append(over, rec)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	states, err := statesScript.Run(ctx, s.redis, keys).StringSlice()
	if err != nil {
		return fmt.Errorf("read messages: %w", err)
	}
	for i, rec := range over {
		if states[i] != "completed" {
			continue
		}
		if err := archiveScript.Run(ctx, s.redis, archiveKeys(rec), rec.ID, messageReason(rec), rec.UpdatedAt.Unix()).Err(); err != nil {
			return fmt.Errorf("archive message of %s: %w", rec.ID, err)
		}
	}
	return nil
}

// dropScript deletes a message unless it is active, or, unless its second argument is 1, waits.
// asynq's own command fails for one that is not in the list of its state, which then blocks its
// ID forever. It returns 0 if the message stays.
var dropScript = redis.NewScript(`
local state = redis.call('HGET', KEYS[1], 'state') or ''
if state == 'active' and redis.call('LPOS', KEYS[7], ARGV[1]) then return 0 end
local waits = state == 'pending' or state == 'scheduled' or state == 'retry'
if waits and ARGV[2] ~= '1' then return 0 end
if state == 'pending' then redis.call('LREM', KEYS[2], 0, ARGV[1]) end
for i = 3, 6 do redis.call('ZREM', KEYS[i], ARGV[1]) end
redis.call('ZREM', KEYS[8], ARGV[1])
redis.call('DEL', KEYS[1])
return 1
`)

// drop deletes a message unless it is active; one that waits only if waiting is true. It reports
// whether there is no message now.
func (s *Store) drop(ctx context.Context, queue, id string, waiting bool) (bool, error) {
	keys := []string{
		asynqMessage(queue, id), asynqPending(queue), asynqScheduled(queue), asynqRetry(queue), asynqCompleted(queue), asynqArchived(queue),
		asynqActive(queue), asynqLeases(queue),
	}
	dropped, err := dropScript.Run(ctx, s.redis, keys, id, waiting).Bool()
	if err != nil {
		return false, fmt.Errorf("delete message %s of %s: %w", id, queue, err)
	}
	return dropped, nil
}

// requeueScript puts an active message back at the head of its queue, as asynq does
// itself at a shutdown (rdb.requeueCmd). Its keys are the active list, the leases, the
// pending list and the message.
var requeueScript = redis.NewScript(`
if redis.call('LREM', KEYS[1], 0, ARGV[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('RPUSH', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[4], 'state', 'pending', 'pending_since', ARGV[2])
return 1
`)

// postponeScript takes a pending message out of its queue until a time, as asynq does after a
// failure (rdb.retryCmd). Its keys are the pending list, the set of messages to retry, and the
// message.
var postponeScript = redis.NewScript(`
if redis.call('LREM', KEYS[1], 0, ARGV[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[3], 'state', 'retry')
return 1
`)

// PostponeMessage delays the message of a waiting job, if it is in its queue, until a time, as asynq
// delays the message of a handler that has failed. It fails with Redis's own error.
func (s *Store) PostponeMessage(ctx context.Context, rec *Record, until time.Time) error {
	queue := Queue(rec.Model, rec.Priority)
	keys := []string{asynqPending(queue), asynqRetry(queue), asynqMessage(queue, rec.ID)}
	if err := postponeScript.Run(ctx, s.redis, keys, rec.ID, until.Unix()).Err(); err != nil {
		return fmt.Errorf("postpone message of %s: %w", rec.ID, err)
	}
	return nil
}

// abandonedAfter is how long after the end of its lease an active message counts as left behind:
// asynq recovers it within 90 s, if a server of its queue runs.
const abandonedAfter = 3 * time.Minute

// releaseScript takes out of the active list what asynq has left there: an entry whose lease has
// ended long ago, or that has none, goes back to the head of its queue, so that a handler does
// what the job's record says; one without a message is deleted. It returns their IDs.
var releaseScript = redis.NewScript(`
local left = {}
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local lease = redis.call('ZSCORE', KEYS[2], id)
  if not lease or tonumber(lease) < tonumber(ARGV[2]) then
    redis.call('LREM', KEYS[1], 0, id)
    redis.call('ZREM', KEYS[2], id)
    local key = ARGV[1] .. id
    local found = redis.call('HMGET', key, 'state', 'msg')
    if not found[2] then
      redis.call('DEL', key)
    elseif found[1] == 'active' then
      redis.call('RPUSH', KEYS[3], id)
      redis.call('HSET', key, 'state', 'pending', 'pending_since', ARGV[3])
    end
    left[#left + 1] = id
  end
end
return left
`)

// ReleaseAbandoned takes messages out of the active list of a queue that asynq has left behind
// there, after a crash or a loss of data, and returns their IDs. It fails with Redis's own error.
func (s *Store) ReleaseAbandoned(ctx context.Context, queue string) ([]string, error) {
	now := time.Now()
	keys := []string{asynqActive(queue), asynqLeases(queue), asynqPending(queue)}
	ids, err := releaseScript.Run(ctx, s.redis, keys, strings.TrimSuffix(asynqMessage(queue, "x"), "x"), now.Add(-abandonedAfter).Unix(), now.UnixNano()).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("release active messages of %s: %w", queue, err)
	}
	if len(ids) > 0 {
		s.announceMessage(ctx, queue)
	}
	return ids, nil
}

// Resume removes the pause of a queue that may not be paused, and reports whether there was one.
// It fails with Redis's own error.
func (s *Store) Resume(ctx context.Context, queue string) (bool, error) {
	n, err := s.redis.Del(ctx, asynqPaused(queue)).Result()
	if err != nil {
		return false, fmt.Errorf("resume queue %s: %w", queue, err)
	}
	return n > 0, nil
}

// usedScript returns for each group of as many keys as its argument says whether one exists.
var usedScript = redis.NewScript(`
local used, each = {}, tonumber(ARGV[1])
for i = 1, #KEYS, each do
  used[#used + 1] = redis.call('EXISTS', unpack(KEYS, i, i + each - 1)) > 0 and 1 or 0
end
return used
`)

// RegisterQueues makes the queues of these models visible to asynq's tools and web UI, if they
// have messages or are paused. A process registers a queue only with its first message, so that
// the queue is hidden once Redis has lost its data, or somebody has deleted the empty queue: call
// it at the start, after an outage and now and then. It fails with Redis's own error.
func (s *Store) RegisterQueues(ctx context.Context, models []string) error {
	queues := []string{QueueStore, QueueNotify, QueueAlert}
	for _, model := range models {
		for queue := range LaneQueues(model) {
			queues = append(queues, queue)
		}
	}
	var keys []string
	for _, queue := range queues {
		keys = append(keys, asynqPending(queue), asynqActive(queue), asynqScheduled(queue), asynqRetry(queue), asynqCompleted(queue), asynqArchived(queue), asynqPaused(queue))
	}
	// One command: a long pipeline blocks on the embedded Redis.
	exist, err := usedScript.Run(ctx, s.redis, keys, len(keys)/len(queues)).BoolSlice()
	var used []any
	for i, isUsed := range exist {
		if isUsed {
			used = append(used, queues[i])
		}
	}
	if err == nil && len(used) > 0 {
		err = s.redis.SAdd(ctx, asynqQueues, used...).Err()
	}
	if err != nil {
		return fmt.Errorf("register queues: %w", err)
	}
	return nil
}
