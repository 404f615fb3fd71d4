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

	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// updateScript writes a record if its (state, attempt, term) is what the caller
// read, moves it in the index of states, names the job as its task's owner, and says
// so, all as one command. An absent record reads as three empty strings. A task that
// was found, and is another job's, is not given to this one; one that the job has
// rejected is nobody's again.
//
// It also updates the producer's limits: its number of waiting jobs, and the cost on
// the day when the job was enqueued. A new job beyond the limits is refused. A job that
// has ended becomes due for its notifications.
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
if counts ~= '0' then
  redis.call('INCRBY', KEYS[6], counts)
  redis.call('EXPIRE', KEYS[6], ARGV[15])
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

// Update replaces the record old by next, if it still has old's state, attempt
// and term; otherwise it fails with [ErrConflict]. A nil old means that there
// must be no record yet. It fails with [*TaskOwnedError] if next has Adopted
// a task, old had not, and it is another job's. It sets next.UpdatedAt.
func (c *Client) Update(ctx context.Context, old, next *Record) error {
	return c.UpdateOnce(ctx, rand.Text(), old, next)
}

// UpdateOnce is [Client.Update] under a name of the caller's: repeated with the same
// name, after an error that left open whether it was done, it is done once.
func (c *Client) UpdateOnce(ctx context.Context, write string, old, next *Record) error {
	return c.update(ctx, old, next, updateOptions{writeID: write})
}

// updateOptions says how a record is swapped.
type updateOptions struct {
	writeID string // the name of the write; "" is a random one
	// afresh takes back that somebody asked to cancel the job.
	clearCancel bool
	limits      Limits
}

func (c *Client) update(ctx context.Context, old, next *Record, how updateOptions) error {
	next.UpdatedAt = time.Now().UTC()
	if how.clearCancel {
		next.CancelRequestedAt = time.Time{}
	}
	encoded, err := encodeJSON(next)
	if err != nil {
		return fmt.Errorf("write record of %s: %w", next.ID, err)
	}
	swapped, err := updateScript.Run(ctx, c.redis, updateKeys(old, next), updateArgs(old, next, encoded, how)...).Result()
	switch answer := swapped.(type) {
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
		_ = c.Notify(ctx, next) // a worker's rounds find what is due
	}
	return nil
}

// updateKeys are the keys of updateScript; the record's own stands for what there is none
// of.
func updateKeys(old, next *Record) []string {
	own := rediskey.Record(next.ID)
	index, task, waiting, day := indexKey(next.State), own, own, own
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
	}
	return []string{
		own, index, indexKey(next.State), task, waiting, day, rediskey.NotificationsDue,
		indexKey(StateScheduled), indexKey(StateQueued), indexKey(StateRetrying),
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
	return append(args, producer, strconv.FormatInt(counts, 10), next.hasNotifications(), how.limits.Depth, how.limits.Waiting, how.limits.DayMicroYuan, rejectsTask(old, next))
}

// rejectsTask reports whether a job gives the task up that it had adopted.
func rejectsTask(old, next *Record) bool {
	return old != nil && old.TaskID != "" && next.TaskID == "" && slices.Contains(next.Rejected, old.TaskID)
}

// producerOf is who asked for the job, whichever of the two records says so.
func producerOf(old, next *Record) string {
	if next.Producer == "" && old != nil {
		return old.Producer
	}
	return next.Producer
}

// producerCharge is what the job counts against its producer's day: what it may cost, and
// once it is over, what it has cost. A nil record counts nothing.
func (r *Record) producerCharge() int64 {
	switch {
	case r == nil:
		return 0
	case r.State.Final():
		return r.CostMicroYuan
	}
	return max(r.PriceMicroYuan, r.CostMicroYuan)
}

// Limits bound what [Client.EnqueueWithin] accepts. Zero is no bound.
type Limits struct {
	// Depth is how many jobs may wait in all, whoever asked for them.
	Depth int
	// Waiting is how many jobs of the request's producer may wait.
	Waiting int
	// DayMicroYuan is what the producer's jobs of one day (UTC+8) may cost, in
	// millionths of a yuan. A job counts with PriceMicroYuan until it is over, and then
	// with what it has cost.
	DayMicroYuan int64
	// PriceMicroYuan is what this job may cost.
	PriceMicroYuan int64
}

// The kinds of a [LimitError].
const (
	LimitDepth   = "depth"   // the queue is full: later there is room
	LimitWaiting = "waiting" // the producer's part of it is
	LimitDay     = "day"     // the producer has spent what it may: until midnight, UTC+8
)

// LimitError says that a job was not accepted, which bound stands in the way and how
// far it reaches. Nothing of the job was queued.
type LimitError struct {
	Kind string // one of the Limit constants
	Most int64  // jobs, or millionths of a yuan
}

// Error names the bound.
func (e *LimitError) Error() string {
	switch e.Kind {
	case LimitDepth:
		return fmt.Sprintf("the queue is full: %d jobs wait, as many as may", e.Most)
	case LimitWaiting:
		return fmt.Sprintf("%d jobs of this producer wait, as many as may", e.Most)
	}
	return fmt.Sprintf("the %s yuan that this producer's jobs may cost a day (UTC+8) do not leave enough for this one", ledger.FormatYuan(e.Most))
}

// limitError reads what updateScript answers in place of 1.
func (l Limits) limitError(answer int64) error {
	switch answer {
	case -1:
		return &LimitError{LimitDepth, int64(l.Depth)}
	case -2:
		return &LimitError{LimitWaiting, int64(l.Waiting)}
	case -3:
		return &LimitError{LimitDay, l.DayMicroYuan}
	}
	return ErrConflict
}

// expiredBefore is the score below which a job that is over has left Redis.
func expiredBefore(now time.Time) int64 { return now.Add(-RecordLifetime).UnixMilli() }
