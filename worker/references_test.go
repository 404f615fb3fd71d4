package worker_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// A reference image that was staged over HTTP is deleted when it was not used for 48 hours
// and no job in Redis uses it. The operator's own stay. A job finds its own token's image.
func TestReferencesExpire(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		name := s.stage()
		hash := name[len(jobs.StagedPrefix):]
		path := s.dir + "/reference.png"
		member := func(producer string) string { return rediskey.ReferenceName(storage.Owner(producer), hash) }
		for _, producer := range []string{"gone", "used", "new"} {
			ref, err := storage.ReferenceLimits{}.Inspect(path)
			require.NoError(t, err)
			ref.Owner = storage.Owner(producer)
			require.NoError(t, s.bucket.StageReference(t.Context(), ref))
			require.NoError(t, s.redis.SAdd(t.Context(), rediskey.ReferenceJobs(member(producer)), "not-in-redis").Err())
		}
		require.NoError(t, s.redis.SAdd(t.Context(), rediskey.ReferenceJobs(member("used")), "job-1").Err())
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "a cat", RefImg: name, Producer: "used"})
		require.NoError(t, s.bucket.DeleteReference(t.Context(), "", hash)) // the token's own is found
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.stage()
		long := float64(time.Now().Add(-49 * time.Hour).UnixMilli())
		for producer, used := range map[string]float64{"gone": long, "used": long, "new": float64(time.Now().UnixMilli())} {
			require.NoError(t, s.redis.ZAdd(t.Context(), rediskey.References, redis.Z{Score: used, Member: member(producer)}).Err())
		}
		require.NoError(t, s.redis.Del(t.Context(), rediskey.Maintenance).Err())
		<-time.After(6 * time.Minute)
		has := func(owner string) bool {
			body, _, err := s.bucket.OpenReference(t.Context(), hash, owner)
			if err != nil {
				require.ErrorIs(t, err, storage.ErrNotExist)
				return false
			}
			require.NoError(t, body.Close())
			return true
		}
		assert.Equal(t, []bool{false, true, true, true}, []bool{has("@gone"), has("@used"), has("@new"), has("")})
		assert.ElementsMatch(t, []string{member("used"), member("new")}, s.redis.ZRange(t.Context(), rediskey.References, 0, -1).Val())
		assert.Equal(t, []string{"job-1"}, s.redis.SMembers(t.Context(), rediskey.ReferenceJobs(member("used"))).Val())
		assert.Empty(t, s.redis.SMembers(t.Context(), rediskey.ReferenceJobs(member("gone"))).Val())
		assert.Greater(t, s.redis.ZScore(t.Context(), rediskey.References, member("used")).Val(), long)
	})
}
