package jobs

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// producerScript reads the records of a producer's jobs, and removes from its index, the
// first key, those that are gone. It is one command, as [readScript].
var producerScript = redis.NewScript(`
local list = {}
for i = 2, #KEYS do
  local rec = redis.pcall('HMGET', KEYS[i], ` + luaStoredFields + `) -- the key may have another type
  for f = 1, 8 do list[#list + 1] = rec[f] or '' end
  if not rec[3] then redis.call('ZREM', KEYS[1], ARGV[i - 1]) end
end
return list
`)

// ListProducer returns the jobs that a producer enqueued in a time span, the last enqueued
// first, as far as Redis has them. It reads no job of another producer. Corrupt records are
// left out. It fails with Redis's own error.
func (c *Client) ListProducer(ctx context.Context, producer string, from, to time.Time) ([]*Job, error) {
	index := rediskey.ProducerJobs(producer)
	ids, err := c.store.redis.ZRevRangeByScore(ctx, index, &redis.ZRangeBy{
		Min: strconv.FormatInt(from.UnixMilli(), 10), Max: strconv.FormatInt(to.UnixMilli(), 10),
	}).Result()
	if err != nil {
		return nil, fmt.Errorf("list jobs of %s: %w", producer, err)
	}
	var jobs []*Job
	for len(ids) > 0 {
		page := ids[:min(len(ids), scanSize)]
		ids = ids[len(page):]
		keys, args := []string{index}, make([]any, len(page))
		for i, id := range page {
			keys, args[i] = append(keys, rediskey.Record(id)), id
		}
		read, err := producerScript.Run(ctx, c.store.redis, keys, args...).StringSlice()
		if err != nil {
			return nil, fmt.Errorf("list jobs of %s: %w", producer, err)
		}
		for i, fields := range slices.Collect(slices.Chunk(read, len(storedFields()))) {
			rec, err := decodeRecord(page[i], fields) // fails if it is gone or corrupt
			if err == nil && !rec.expired(time.Now()) {
				jobs = append(jobs, &rec.Job)
			}
		}
	}
	return jobs, nil
}

// expired reports whether an ended job should have left Redis. The embedded one does not
// remove it by itself.
func (r *Record) expired(now time.Time) bool {
	return r.State.Final() && r.UpdatedAt.UnixMilli() <= expiredBefore(now)
}
