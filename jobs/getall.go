package jobs

import (
	"context"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// getAllSize is how many records one command reads: 1 MB of usual ones.
const getAllSize = 500

// getAllScript reads records and the times of their cancel requests. A missing one is two
// empty strings, a key of another type is a record that is not JSON.
var getAllScript = redis.NewScript(`
local list = {}
for i, key in ipairs(KEYS) do
  local rec = redis.pcall('HMGET', key, 'record', 'cancel')
  if rec.err then rec = {rec.err} end
  list[2 * i - 1], list[2 * i] = rec[1] or '', rec[2] or ''
end
return list
`)

// GetAll returns jobs in the order of their IDs, nil for one that Redis does not have. It
// reads hundreds per command. It fails with [ErrCorrupt] if a record cannot be read, or with
// Redis's own error.
func (c *Client) GetAll(ctx context.Context, ids []string) ([]*Job, error) {
	list := make([]*Job, 0, len(ids))
	for page := range slices.Chunk(ids, getAllSize) {
		keys := make([]string, len(page))
		for i, id := range page {
			keys[i] = rediskey.Record(id)
		}
		read, err := getAllScript.Run(ctx, c.store.redis, keys).StringSlice()
		if err != nil {
			return nil, fmt.Errorf("read records: %w", err)
		}
		for i, id := range page {
			if read[2*i] == "" {
				list = append(list, nil)
				continue
			}
			rec, err := decodeRecord(id, read[2*i], read[2*i+1])
			if err != nil {
				return nil, err
			}
			list = append(list, &rec.Job)
		}
	}
	return list, nil
}
