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

// getAllScript reads records. A missing one is empty strings, a key of another type is a record
// that is not JSON.
var getAllScript = redis.NewScript(`
local list = {}
for i, key in ipairs(KEYS) do
  local rec = redis.pcall('HMGET', key, ` + luaStoredFields + `)
  if rec.err then rec = {rec.err} end
  for f = 1, 8 do list[#list + 1] = rec[f] or '' end
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
		for i, fields := range slices.Collect(slices.Chunk(read, len(storedFields()))) {
			if !recordExists(fields) {
				list = append(list, nil)
				continue
			}
			rec, err := decodeRecord(page[i], fields)
			if err != nil {
				return nil, err
			}
			list = append(list, &rec.Job)
		}
	}
	return list, nil
}
