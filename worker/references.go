package worker

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

const (
	// referenceLifetime is how long a reference image that was staged over HTTP is kept
	// after it was staged or used last: as long as DashScope keeps an upload.
	referenceLifetime = 48 * time.Hour
	// referencePage limits the images of one round, and referenceJobsPage the jobs that are
	// looked up at once.
	referencePage     = 200
	referenceJobsPage = 100
)

// claimReferenceScript removes the entry of a reference image, unless the image was used
// since the entry was read.
var claimReferenceScript = redis.NewScript(`
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then return 0 end
redis.call('DEL', KEYS[2])
return redis.call('ZREM', KEYS[1], ARGV[1])
`)

// expireReferences deletes the reference images that were staged over HTTP, were not used
// for referenceLifetime, and have no job in Redis.
func (j *janitor) expireReferences(ctx context.Context) error {
	rdb, now := j.recorder.Redis, time.Now()
	due, err := rdb.ZRangeByScoreWithScores(ctx, rediskey.References, &redis.ZRangeBy{
		Min: "-inf", Max: strconv.FormatInt(now.Add(-referenceLifetime).UnixMilli(), 10), Count: referencePage,
	}).Result()
	if err != nil {
		return fmt.Errorf("read staged references: %w", err)
	}
	for _, entry := range due {
		name := fmt.Sprint(entry.Member)
		used, err := j.referenceUsed(ctx, name)
		if err != nil {
			return fmt.Errorf("read jobs of reference %s: %w", name, err)
		}
		if used { // look again when another lifetime has passed
			if err := rdb.ZAddXX(ctx, rediskey.References, redis.Z{Score: float64(now.UnixMilli()), Member: name}).Err(); err != nil {
				return fmt.Errorf("keep reference %s: %w", name, err)
			}
			continue
		}
		if err := j.expireReference(ctx, name, entry.Score); err != nil {
			return err
		}
	}
	return nil
}

// referenceUsed reports whether a job that uses a reference image is still in Redis. It
// removes the others from the image's jobs.
func (j *janitor) referenceUsed(ctx context.Context, name string) (bool, error) {
	rdb, key := j.recorder.Redis, rediskey.ReferenceJobs(name)
	ids, err := rdb.SMembers(ctx, key).Result()
	if err != nil {
		return false, err
	}
	used := false
	for len(ids) > 0 {
		page := ids[:min(len(ids), referenceJobsPage)]
		ids = ids[len(page):]
		found := make([]*redis.IntCmd, len(page))
		if _, err := rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i, id := range page {
				found[i] = pipe.Exists(ctx, rediskey.Record(id))
			}
			return nil
		}); err != nil {
			return false, err
		}
		var gone []any
		for i, id := range page {
			if found[i].Val() == 0 {
				gone = append(gone, id)
			}
		}
		used = used || len(gone) < len(page)
		if len(gone) > 0 {
			if err := rdb.SRem(ctx, key, gone...).Err(); err != nil {
				return false, err
			}
		}
	}
	return used, nil
}

// expireReference deletes a reference image, unless it was used since its entry had this
// score.
func (j *janitor) expireReference(ctx context.Context, name string, score float64) error {
	rdb := j.recorder.Redis
	claimed, err := claimReferenceScript.Run(ctx, rdb, []string{rediskey.References, rediskey.ReferenceJobs(name)}, name, int64(score)).Int()
	if err != nil {
		return fmt.Errorf("expire reference %s: %w", name, err)
	}
	if claimed == 0 {
		return nil
	}
	owner, hash, _ := strings.Cut(name, "/")
	if err := j.recorder.Bucket.DeleteReference(ctx, owner, hash); err != nil {
		rdb.ZAddNX(context.WithoutCancel(ctx), rediskey.References, redis.Z{Score: score, Member: name}) // for the next round
		return err
	}
	j.recorder.Log.Info("staged reference expired", "key", name)
	return nil
}
