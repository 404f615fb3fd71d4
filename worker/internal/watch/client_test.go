package watch

import (
	"testing"

	"github.com/stretchr/testify/assert"

	queue "github.com/danqing-queue/danqing/jobs/embedded"
)

// A script of asynq that is not recognized is always sent: then its server polls, as another
// version of asynq may have to.
func TestUnrecognizedScript(t *testing.T) {
	t.Parallel()
	q := queue.Open()
	defer q.Close() //nolint:errcheck // in memory
	sha := q.Client().ScriptLoad(t.Context(), "return redis.call('INCR', 'calls of ' .. KEYS[1] .. #KEYS)").Val()
	c := New(q.Client(), 0).newClient(map[string]int{"a": 1})
	for _, keys := range [][]string{
		{"asynq:{a}:pending", "asynq:{a}:paused", "asynq:{a}:active"},
		{"asynq:{b}:pending", "asynq:{b}:paused", "asynq:{b}:active", "asynq:{b}:lease"},
		{"asynq:{a}:scheduled", "asynq:{b}:pending"},
		{"asynq:{a}:leases"},
		{"lease"},
	} {
		assert.Equal(t, int64(1), c.EvalSha(t.Context(), sha, keys).Val(), keys)
		assert.Equal(t, int64(2), c.EvalSha(t.Context(), sha, keys).Val(), keys)
	}
}
