package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

const (
	// dedupeLifetime is how long a repeated request joins its job. Clients retry within
	// minutes.
	dedupeLifetime = 24 * time.Hour
	// presenceLifetime is how long the requests of a process count as waiting after its last
	// sign of life: it may have been killed. presenceInterval leaves room for a failed write.
	presenceLifetime = 5 * time.Second
	presenceInterval = presenceLifetime / 4
)

// waiters decides, for all gateways of a Redis, which job an OpenAI request gets. Each
// request is a job of its own, unless it is the retry of an earlier one: it says so, or
// nobody waits any more for a job of an equal request whose images were not delivered.
//
// Equal requests share a hash in Redis: JOB for a job that is not delivered, and JOB/WAITER →
// PROCESS for each request that waits for it.
type waiters struct {
	redis   redis.UniversalClient
	process string // of this gateway

	mu   sync.Mutex
	open int    // requests that wait
	stop func() // ends the signs of life
}

func newWaiters(rdb redis.UniversalClient) *waiters {
	return &waiters{redis: rdb, process: uuid.NewString()}
}

// claim is a request that waits for a job.
type claim struct {
	key, waiter string // key is "" for a request with an idempotency key
	job         string
	isNew       bool
}

// claimScript returns the job of a request, and whether it is new. The requests of a process
// without a recent sign of life do not wait; after the next one they do again, since it may only
// have lost Redis. A retry that must share a job shares the one with the fewest requests: those
// of several equal ones get different jobs.
var claimScript = redis.NewScript(`
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', KEYS[2], now + ARGV[5], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local fields, waiting = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #fields, 2 do
  local job, waiter = string.match(fields[i], '^([^/]*)/?(.*)$')
  waiting[job] = waiting[job] or 0
  if waiter ~= '' and redis.call('ZSCORE', KEYS[2], fields[i + 1]) then
    waiting[job] = waiting[job] + 1
  end
end
local id, fewest
for job, n in pairs(waiting) do
  if not id or n < fewest or n == fewest and job < id then id, fewest = job, n end
end
local new = 0
if not id or fewest > 0 and ARGV[4] ~= '1' then
  id, new = ARGV[1], 1
  redis.call('HSET', KEYS[1], id, '')
end
redis.call('HSET', KEYS[1], id .. '/' .. ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[6])
return {id, new}
`)

// claim returns the job of a request, which identity tells from others of its caller. The caller
// must call leave.
func (w *waiters) claim(ctx context.Context, r *request, identity []byte) (claim, error) {
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%q", r.caller.Name) // hashes do not fail
	for _, name := range requestHeaders() {
		_, _ = fmt.Fprintf(sum, "%q", r.Header.Get(name))
	}
	_, _ = sum.Write(identity)
	c := claim{key: rediskey.Dedupe(hex.EncodeToString(sum.Sum(nil))), waiter: uuid.NewString()}
	answer, err := claimScript.Run(ctx, w.redis, []string{c.key, rediskey.WaitingGateways},
		jobs.NewID(), c.waiter, w.process, isRetry(r), presenceLifetime.Milliseconds(), int(dedupeLifetime.Seconds())).Slice()
	if err != nil {
		return c, fmt.Errorf("claim job: %w", err)
	}
	c.job, c.isNew = fmt.Sprint(answer[0]), answer[1] == int64(1)
	w.enter()
	return c, nil
}

// headerRetryCount is the header in which OpenAI's SDKs count the retries of a request: "0" for
// the first one.
const headerRetryCount = "X-Stainless-Retry-Count"

// isRetry returns "1" for a request that says that it repeats another one, as OpenAI's own
// SDKs do.
func isRetry(r *request) string {
	if count := r.Header.Get(headerRetryCount); count != "" && count != "0" {
		return "1"
	}
	return ""
}

// enter gives signs of life as long as a request of this process waits.
func (w *waiters) enter() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open++; w.open > 1 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(presenceInterval)
		defer tick.Stop()
		for ctx.Err() == nil {
			_ = presenceScript.Run(ctx, w.redis, []string{rediskey.WaitingGateways}, w.process, presenceLifetime.Milliseconds()).Err() // tried again
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	w.stop = func() { cancel(); group.Wait() }
}

var presenceScript = redis.NewScript(`
local clock = redis.call('TIME')
return redis.call('ZADD', KEYS[1], clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[2], ARGV[1])
`)

// leaveScript removes a waiting request, and returns how many others wait for its job. A
// delivered job, or one that was not queued, is removed as well.
var leaveScript = redis.NewScript(`
local fields, others = redis.call('HGETALL', KEYS[1]), 0
redis.call('HDEL', KEYS[1], ARGV[1] .. '/' .. ARGV[2])
for i = 1, #fields, 2 do
  local job, waiter = string.match(fields[i], '^([^/]*)/?(.*)$')
  if job == ARGV[1] and waiter ~= ARGV[2] then
    if ARGV[3] == '1' then
      redis.call('HDEL', KEYS[1], fields[i])
    elseif waiter ~= '' and redis.call('ZSCORE', KEYS[2], fields[i + 1]) then
      others = others + 1
    end
  end
end
if ARGV[4] ~= '' then redis.call('ZREM', KEYS[2], ARGV[4]) end
return others
`)

// leave ends a request's wait. With over, no later request joins the job. It returns how many
// other requests wait for the job.
func (w *waiters) leave(c claim, over bool) (others int64, err error) {
	if c.key == "" {
		return 0, nil
	}
	w.mu.Lock()
	stop, last := func() {}, ""
	if w.open--; w.open == 0 {
		stop, last = w.stop, w.process
	}
	w.mu.Unlock()
	stop()
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	flag := ""
	if over {
		flag = "1"
	}
	return leaveScript.Run(ctx, w.redis, []string{c.key, rediskey.WaitingGateways}, c.job, c.waiter, flag, last).Int64()
}

// forget lets no later request join a job, which its last request has left.
func (w *waiters) forget(ctx context.Context, c claim) error {
	return leaveScript.Run(ctx, w.redis, []string{c.key, rediskey.WaitingGateways}, c.job, c.waiter, "1", "").Err()
}
