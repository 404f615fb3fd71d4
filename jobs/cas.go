package jobs

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// updateScript writes a record if its state, attempt and term are what the caller read,
// moves it in the index of states, makes the job the owner of its task, and publishes the
// write, as one command. A record that does not exist reads as three empty strings. A
// found task that belongs to another job is not given to this one; a task that the job
// has rejected loses its owner.
//
// An intent that the write settles without a task goes to the lane's index of intents.
//
// It also updates the producer's limits: its numbers of waiting and of scheduled jobs, and
// the cost on the day when the job was enqueued; and the index of its jobs. A new job beyond the limits is refused. A job that has
// ended becomes due for its notifications.
var updateScript = redis.NewScript(`
local cur = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'term', 'write')
if cur[4] == ARGV[11] then return 1 end
for i = 1, 3 do
  if (cur[i] or '') ~= ARGV[i] then return 0 end
end
if ARGV[16] == '1' then
  local owner = redis.call('HGET', KEYS[4], 'job')
  if owner and owner ~= ARGV[10] then return owner end
end
local producer, counts = ARGV[17], ARGV[18]
local depth, waiting, day = tonumber(ARGV[20]), tonumber(ARGV[21]), tonumber(ARGV[22])
if depth > 0 then
  local n = 0
  for i = 8, 10 do n = n + redis.call('ZCARD', KEYS[i]) end
  if n >= depth then return -1 end
end
if waiting > 0 and redis.call('SCARD', KEYS[5]) >= waiting then return -2 end
if ARGV[26] == '1' and tonumber(ARGV[27]) > 0 and redis.call('SCARD', KEYS[13]) >= tonumber(ARGV[27]) then return -4 end
if day > 0 and tonumber(redis.call('GET', KEYS[6]) or '0') + tonumber(counts) > day then return -3 end
redis.call('HSET', KEYS[1], 'state', ARGV[4], 'attempt', ARGV[5], 'term', ARGV[6], 'record', ARGV[7], 'write', ARGV[11])
if ARGV[14] == '1' then redis.call('HDEL', KEYS[1], 'cancel') end
if ARGV[23] == '1' then
  if redis.call('HGET', KEYS[4], 'job') == ARGV[10] then redis.call('HDEL', KEYS[4], 'job') end
elseif KEYS[4] ~= KEYS[1] then
  redis.call('HSETNX', KEYS[4], 'job', ARGV[10])
  redis.call('EXPIRE', KEYS[4], ARGV[15])
end
if producer == 'waits' then redis.call('SADD', KEYS[5], ARGV[10]) end
if producer == 'waits no more' then redis.call('SREM', KEYS[5], ARGV[10]) end
if producer ~= '' then
  redis.call(ARGV[26] == '1' and 'SADD' or 'SREM', KEYS[13], ARGV[10])
  redis.call('ZADD', KEYS[14], ARGV[28], ARGV[10])
  redis.call('ZREMRANGEBYSCORE', KEYS[14], '-inf', ARGV[29])
end
if counts ~= '0' then
  redis.call('INCRBY', KEYS[6], counts)
  redis.call('EXPIRE', KEYS[6], ARGV[15])
end
if ARGV[24] ~= '' then redis.call('HSET', KEYS[11], ARGV[10] .. '.' .. ARGV[5], ARGV[24]) end
if ARGV[25] == '0' then
  redis.call('ZREM', KEYS[12], ARGV[10])
elseif ARGV[25] ~= '' then
  redis.call('ZADD', KEYS[12], ARGV[25], ARGV[10])
end
if ARGV[19] == '1' then redis.call('ZADD', KEYS[7], ARGV[12], ARGV[10]) end
if KEYS[2] ~= KEYS[3] then redis.call('ZREM', KEYS[2], ARGV[10]) end
redis.call('ZADD', KEYS[3], ARGV[12], ARGV[10])
if ARGV[8] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[8])
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[13])
else
  redis.call('PERSIST', KEYS[1])
end
redis.call('PUBLISH', ARGV[9], ARGV[10])
return 1
`)

// Update replaces the record old by next if the record in Redis still has the state,
// attempt and term of old. A nil old means that there must be no record yet. It sets
// next.UpdatedAt and next.StartedAt.
//
// It fails with [ErrConflict] if the record was changed, with a [*TaskOwnedError] if next
// has adopted a task that belongs to another job, or with Redis's own error. After the
// last one the record may or may not be written.
func (s *Store) Update(ctx context.Context, old, next *Record) error {
	return s.UpdateOnce(ctx, rand.Text(), old, next)
}

// UpdateOnce is [Store.Update] with an ID for the write: repeated with the same ID after
// an error that left the outcome open, it writes once.
func (s *Store) UpdateOnce(ctx context.Context, write string, old, next *Record) error {
	return s.update(ctx, old, next, updateOptions{writeID: write})
}

// updateOptions are the options of a write.
type updateOptions struct {
	writeID string // identifies the write; "" means a random one
	// clearCancel removes a cancel request.
	clearCancel bool
	limits      Limits
}

func (s *Store) update(ctx context.Context, old, next *Record, how updateOptions) error {
	next.UpdatedAt = time.Now().UTC()
	next.StartedAt = startedAt(old, next)
	if how.clearCancel {
		next.CancelRequestedAt = time.Time{}
	}
	encoded, err := compactjson.Marshal(next)
	if err != nil {
		return fmt.Errorf("write record of %s: %w", next.ID, err)
	}
	result, err := updateScript.Run(ctx, s.redis, updateKeys(old, next), updateArgs(old, next, encoded, how)...).Result()
	switch answer := result.(type) {
	case string:
		err = &TaskOwnedError{TaskID: next.TaskID, JobID: answer}
	case int64:
		if answer <= 0 {
			err = how.limits.limitError(answer)
		}
	}
	if err != nil {
		return fmt.Errorf("write record of %s: %w", next.ID, err)
	}
	if next.hasNotifications() {
		_ = s.notify(ctx, next, next.UpdatedAt.UnixMilli()) // a worker repeats it after an error
	}
	return nil
}

// startedAt returns [Job.StartedAt] of next. A client that was told that its job is running is
// never told that it waits. A job that is restored from a journal may have been running.
func startedAt(old, next *Record) time.Time {
	restored := old == nil && (next.TaskID != "" || len(next.PastAttempts) > 0)
	if old == nil {
		old = next
	}
	for _, at := range []time.Time{next.StartedAt, old.StartedAt, old.RunningAt, next.RunningAt} {
		if !at.IsZero() {
			return at
		}
	}
	if restored || next.State == StateStoring || next.State == StateHeld {
		return next.UpdatedAt
	}
	return time.Time{}
}

// updateKeys are the keys of updateScript. The record's own key stands for those that do
// not apply.
func updateKeys(old, next *Record) []string {
	own := rediskey.Record(next.ID)
	index, task, waiting, day, scheduled, all := indexKey(next.State), own, own, own, own, own
	if old != nil {
		index = indexKey(old.State)
	}
	switch {
	case next.TaskID != "":
		task = rediskey.Task(next.TaskID)
	case rejectsTask(old, next):
		task = rediskey.Task(old.TaskID)
	}
	if name := producerOf(old, next); name != "" {
		waiting, day = rediskey.ProducerWaiting(name), rediskey.ProducerDay(name, ledger.Day(next.EnqueuedAt))
		scheduled, all = rediskey.ProducerScheduled(name), rediskey.ProducerJobs(name)
	}
	return []string{
		own, index, indexKey(next.State), task, waiting, day, rediskey.NotificationsDue,
		indexKey(StateScheduled), indexKey(StateQueued), indexKey(StateRetrying),
		rediskey.Lane(next.Account, next.Model, rediskey.LaneIntents), rediskey.Deadlines,
		scheduled, all,
	}
}

func updateArgs(old, next *Record, encoded []byte, how updateOptions) []any {
	expect := []any{"", "", ""}
	if old != nil {
		expect = []any{string(old.State), strconv.Itoa(old.Attempt), strconv.FormatInt(old.Term, 10)}
	}
	found := next.Adopted && next.TaskID != "" && (old == nil || old.TaskID != next.TaskID)
	lifetime := time.Duration(0)
	if next.State.Final() {
		lifetime = RecordLifetime
	}
	producer, counts := "", int64(0)
	if producerOf(old, next) != "" {
		producer, counts = "waits no more", next.producerCharge()-old.producerCharge()
		if next.State.Waiting() {
			producer = "waits"
		}
	}
	args := append(expect, string(next.State), next.Attempt, next.Term, encoded, int(lifetime.Seconds()), rediskey.Events, next.ID, cmp.Or(how.writeID, rand.Text()),
		next.UpdatedAt.UnixMilli(), expiredBefore(next.UpdatedAt), how.clearCancel, int(rediskey.TaskLifetime.Seconds()), found)
	return append(args, producer, strconv.FormatInt(counts, 10), next.hasNotifications(), how.limits.Depth, how.limits.Waiting, how.limits.DayMicroYuan, rejectsTask(old, next), next.SettledIntent, deadlineScore(next),
		next.State == StateScheduled, how.limits.Scheduled, next.EnqueuedAt.UnixMilli(), next.UpdatedAt.Add(-rediskey.ProducerJobsLifetime).UnixMilli())
}

// deadlineScore returns a waiting job's entry in [rediskey.Deadlines], "0" to remove it, and
// "" for a job without a deadline.
func deadlineScore(rec *Record) string {
	switch {
	case rec.Deadline.IsZero():
		return ""
	case rec.State.Waiting():
		return strconv.FormatInt(rec.Deadline.UnixMilli(), 10)
	}
	return "0"
}

// rejectsTask reports whether a job rejects the task that it had adopted.
func rejectsTask(old, next *Record) bool {
	return old != nil && old.TaskID != "" && next.TaskID == "" && slices.Contains(next.Rejected, old.TaskID)
}

// expiredBefore is the score below which an ended job has left Redis, in Unix
// milliseconds.
func expiredBefore(now time.Time) int64 { return now.Add(-RecordLifetime).UnixMilli() }
