package jobs

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// writeScript writes records, each if its state, attempt and term are what the caller read,
// moves them in the index of states, makes each job the owner of its task, queues the message
// that comes with it, and publishes the write and the queue, as one command. A record that does not exist
// reads as three empty strings. A found task that belongs to another job is not given to this
// one; a task that the job has rejected loses its owner.
//
// An intent that the write settles without a task goes to the lane's index of intents.
//
// The message of a job that is held or has failed goes to asynq's archive, with the reason.
//
// It also updates the producer's limits: its numbers of waiting and of scheduled jobs, and the
// cost on the day when the job was enqueued; and the index of its jobs. A new job beyond the
// limits is refused. A job that has ended becomes due for its notifications.
//
// Its first argument is the time in Unix milliseconds; [write.append] adds the keys and
// arguments of each write. It returns the answer to each: 1, or 2 if there is a message with the
// job's ID, so that none was queued; the owner of the task; 0 or less if nothing was written. In
// place of 0, a write with a message has the storedFields of the existing record, and the state
// of its message.
var writeScript = redis.NewScript(fmt.Sprintf(`
local events, lifetime, taskLifetime, producerLifetime = '%s', '%d', '%d', %d
local call, find = redis.call, string.find
local now, k, a = ARGV[1], 0, 1
%s
local function since(seconds) return string.format('%%.0f', now - 1000 * seconds) end
local answers, announced = {}, {}

while k < #KEYS do
  local answer = 1
  local parts, state, record, id, digest, lane, enqueuedAt = unpack(ARGV, a + 1, a + 7)
  local own, from = KEYS[k + 1], KEYS[k + 2]
  k, a = k + 2, a + 7
  local message, list, msg
  if find(parts, 'm', 1, true) then
    message, list, msg = KEYS[k + 1], KEYS[k + 2], ARGV[a + 1]
    k, a = k + 2, a + 1
  end
  local to = from
  local old, oldAttempt, oldTerm, attempt, term, writeID, task, waiting, day, later, all, waits, counts, enqueued, intents, intent, deadlines, deadline, due, queues, queue, at
  local maxDepth, maxWaiting, maxScheduled, maxDay, scheduled, queued, retrying, reason, endedAt
  local archiving = {}
  if parts ~= 'm' then
    local function key(part)
      if find(parts, part, 1, true) then k = k + 1; return KEYS[k] end
    end
    local function arg(part)
      if find(parts, part, 1, true) then a = a + 1; return ARGV[a] end
    end
    to, old, oldAttempt, oldTerm = key('o') or from, arg('o'), arg('o'), arg('o')
    attempt, term, writeID, task = arg('a'), arg('a'), arg('w'), key('t')
    waiting, day, later, all, waits, counts, enqueued = key('p'), key('p'), key('p'), key('p'), arg('p'), arg('p'), arg('p')
    intents, intent, deadlines, deadline, due = key('i'), arg('i'), key('d'), arg('d'), key('n')
    queues, queue, at = key('q'), arg('q'), arg('s')
    scheduled, queued, retrying = key('l'), key('l'), key('l')
    maxDepth, maxWaiting, maxScheduled, maxDay = arg('l'), arg('l'), arg('l'), arg('l')
    for i = 1, 6 do archiving[i] = key('x') end
    reason, endedAt = arg('x'), arg('x')
  end

  repeat
    local cur = call('HMGET', own, 'state', 'attempt', 'term', 'write')
    if writeID and cur[4] == writeID then break end
    if (cur[1] or nil) ~= old or (cur[2] or nil) ~= oldAttempt or (cur[3] or nil) ~= oldTerm then
      answer = 0
      if message then
        local found = call('HMGET', own, %s)
        for f = 1, 8 do found[f] = found[f] or '' end
        found[9] = call('HGET', message, 'state') or ''
        answer = found
      end
      break
    end
    if find(parts, 'f', 1, true) then
      local owner = call('HGET', task, 'job')
      if owner and owner ~= id then answer = owner; break end
    end
    if scheduled then
      local function reached(most, n) return tonumber(most) > 0 and n >= tonumber(most) end
      if reached(maxDepth, call('ZCARD', scheduled) + call('ZCARD', queued) + call('ZCARD', retrying)) then answer = -1; break end
      if waiting and reached(maxWaiting, call('SCARD', waiting)) then answer = -2; break end
      if waiting and state == 'scheduled' and reached(maxScheduled, call('SCARD', later)) then answer = -4; break end
      if waiting and tonumber(maxDay) > 0 and (call('GET', day) or 0) + counts > tonumber(maxDay) then answer = -3; break end
    end
    call('HSET', own, 'state', state, 'attempt', attempt or '0', 'term', term or '0', 'digest', digest, 'queue', lane, 'enqueued', enqueuedAt)
    if record ~= '' then call('HSET', own, 'record', record) elseif old then call('HDEL', own, 'record') end
    call('ZADD', to, now, id)
    if parts ~= 'm' then
      if queues then call('SADD', queues, queue) end
      if writeID then call('HSET', own, 'write', writeID) elseif old then call('HDEL', own, 'write') end
      if find(parts, 'c', 1, true) then call('HDEL', own, 'cancel') end
      if find(parts, 'r', 1, true) then
        if call('HGET', task, 'job') == id then call('HDEL', task, 'job') end
      elseif task then
        call('HSETNX', task, 'job', id)
        call('EXPIRE', task, taskLifetime)
      end
      if waiting then
        call(waits == '1' and 'SADD' or 'SREM', waiting, id)
        call(state == 'scheduled' and 'SADD' or 'SREM', later, id)
        call('ZADD', all, enqueued, id)
        call('ZREMRANGEBYSCORE', all, '-inf', since(producerLifetime))
        if counts ~= '0' then
          call('INCRBY', day, counts)
          call('EXPIRE', day, taskLifetime)
        end
      end
      if intents then call('HSET', intents, id .. '.' .. (attempt or '0'), intent) end
      if deadline == '0' then call('ZREM', deadlines, id) elseif deadline then call('ZADD', deadlines, deadline, id) end
      if due then call('ZADD', due, now, id) end
      if from ~= to then call('ZREM', from, id) end
      if reason then archive(archiving, id, reason, endedAt) end
      if find(parts, 'e', 1, true) then
        call('EXPIRE', own, lifetime)
        call('ZREMRANGEBYSCORE', to, '-inf', since(lifetime))
      elseif old then
        call('PERSIST', own)
      end
    end
    if message then
      if call('EXISTS', message) == 1 then
        answer = 2
      elseif at then
        call('ZADD', list, at, id)
        call('HSET', message, 'msg', msg, 'state', 'scheduled')
      else
        call('LPUSH', list, id)
        call('HSET', message, 'msg', msg, 'state', 'pending', 'pending_since', now .. '000000')
        if not announced[list] then call('PUBLISH', events, list) end
        announced[list] = true
      end
    end
    call('PUBLISH', events, id)
  until true
  answers[#answers + 1] = answer
end
return answers
`, rediskey.Events, int(RecordLifetime.Seconds()), int(rediskey.TaskLifetime.Seconds()), int(rediskey.ProducerJobsLifetime.Seconds()), luaArchive, luaStoredFields))

// usualKeys and usualArgs are as many as the write of a new job has.
const (
	usualKeys = 4
	usualArgs = 8
)

// scriptCall are the keys and arguments of writeScript.
type scriptCall struct {
	keys   []string
	args   []any
	limits Limits
	// registered are the queues that asynq's set has, with those that this call adds.
	registered *sync.Map
	added      []string
}

// part appends the keys and arguments of a part of a write, if it has the part.
func (c *scriptCall) part(letters *string, letter string, has bool, keys []string, args ...any) {
	if has {
		*letters += letter
		c.keys, c.args = append(c.keys, keys...), append(c.args, args...)
	}
}

// append appends a write's keys and arguments. The first argument has a letter for each part
// that the write has: most have few, and each argument costs Redis time.
func (w write) append(to *scriptCall, encoded string) {
	old, next := w.old, w.next
	first, letters := len(to.args), ""
	part := func(letter string, has bool, keys []string, args ...any) {
		to.part(&letters, letter, has, keys, args...)
	}
	to.args = append(to.args, "", string(next.State), encoded, next.ID, next.Digest, next.Model+":"+next.Priority, next.EnqueuedAt.Format(time.RFC3339Nano))
	to.keys = append(to.keys, rediskey.Record(next.ID))
	if old == nil {
		to.keys = append(to.keys, indexKey(next.State))
	} else {
		to.keys = append(to.keys, indexKey(old.State))
	}
	if m := w.message; m != nil {
		list := asynqPending(m.queue)
		if !m.processAt.IsZero() {
			list = asynqScheduled(m.queue)
		}
		part("m", true, []string{asynqMessage(m.queue, next.ID), list}, m.encoded)
	}
	if old != nil {
		part("o", true, []string{indexKey(next.State)}, string(old.State), old.Attempt, old.Term)
	}
	part("a", next.Attempt != 0 || next.Term != 0, nil, next.Attempt, next.Term)
	part("w", w.id != "", nil, w.id)
	rejected := rejectsTask(old, next)
	switch {
	case next.TaskID != "":
		part("t", true, []string{rediskey.Task(next.TaskID)})
		part("f", next.Adopted && (old == nil || old.TaskID != next.TaskID), nil)
	case rejected:
		part("t", true, []string{rediskey.Task(old.TaskID)})
		part("r", true, nil)
	}
	if name := producerOf(old, next); name != "" {
		part("p", true, []string{
			rediskey.ProducerWaiting(name), rediskey.ProducerDay(name, ledger.Day(next.EnqueuedAt)), rediskey.ProducerScheduled(name), rediskey.ProducerJobs(name),
		}, next.State.Waiting(), next.producerCharge()-old.producerCharge(), next.EnqueuedAt.UnixMilli())
	}
	if next.SettledIntent != nil {
		part("i", true, []string{rediskey.Lane(next.Account, next.Model, rediskey.LaneIntents)}, next.SettledIntent)
	}
	part("d", !next.Deadline.IsZero(), []string{rediskey.Deadlines}, deadlineScore(next))
	part("n", next.hasNotifications(), []string{rediskey.NotificationsDue})
	if m := w.message; m != nil {
		_, known := to.registered.Load(m.queue)
		if !known && !slices.Contains(to.added, m.queue) {
			part("q", true, []string{asynqQueues}, m.queue)
			to.added = append(to.added, m.queue)
		}
		part("s", !m.processAt.IsZero(), nil, m.processAt.Unix())
	}
	limits := to.limits
	part("l", limits != Limits{}, []string{indexKey(StateScheduled), indexKey(StateQueued), indexKey(StateRetrying)},
		limits.Depth, limits.Waiting, limits.Scheduled, limits.DayMicroYuan)
	part("x", next.messageArchived(), archiveKeys(next), messageReason(next), next.UpdatedAt.Unix())
	part("c", w.clearCancel, nil)
	part("e", next.State.Final(), nil)
	to.args[first] = letters
}

// deadlineScore returns a waiting job's entry in [rediskey.Deadlines], 0 to remove it.
func deadlineScore(rec *Record) int64 {
	if rec.State.Waiting() {
		return rec.Deadline.UnixMilli()
	}
	return 0
}

// rejectsTask reports whether a job rejects the task that it had adopted.
func rejectsTask(old, next *Record) bool {
	return old != nil && old.TaskID != "" && next.TaskID == "" && slices.Contains(next.Rejected, old.TaskID)
}
