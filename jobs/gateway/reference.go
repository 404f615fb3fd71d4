package gateway

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
)

const (
	// defaultMaxUploads is the default number of reference images that a token may upload
	// or have staged a day.
	defaultMaxUploads = 500
	// uploadBytes is the mean size of an upload; the limit in bytes follows from it.
	uploadBytes = 2 << 20
	// uploadDayLifetime is how long the day's counters are kept.
	uploadDayLifetime = 48 * time.Hour
)

// leftoverAge is longer than an upload and the storing of its file take.
const leftoverAge = time.Hour

// removeLeftovers removes the temporary files of uploads that a killed process left behind.
func removeLeftovers(dir string) {
	for _, pattern := range []string{"danqing-upload-*", "danqing-reference-*"} {
		left, _ := filepath.Glob(filepath.Join(cmp.Or(dir, os.TempDir()), pattern)) // the pattern is valid
		for _, path := range left {
			if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > leftoverAge {
				_ = os.Remove(path) // another user's stays
			}
		}
	}
}

// keepReference records that a caller uses a reference image now, for a job if jobID is not
// "". Otherwise a worker deletes it from the bucket after 48 hours.
func (a *api) keepReference(ctx context.Context, c caller, hash, jobID string) error {
	name := rediskey.ReferenceName(storage.Owner(c.Name), hash)
	_, err := a.redis.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		tx.ZAdd(ctx, rediskey.References, redis.Z{Score: float64(time.Now().UnixMilli()), Member: name})
		if jobID != "" {
			tx.SAdd(ctx, rediskey.ReferenceJobs(name), jobID)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record use of reference image: %w", err)
	}
	return nil
}

// countUpload counts an upload of the caller, and fails if it would exceed the day's limit.
func (a *api) countUpload(ctx context.Context, c caller) error {
	if c.all {
		return nil
	}
	most, now := int64(c.MaxUploads), time.Now()
	if most == 0 {
		most = defaultMaxUploads
	}
	key := rediskey.ProducerUploads(c.Name, ledger.Day(now))
	count := a.redis.HIncrBy(ctx, key, "count", 1)
	bytes := a.redis.HIncrBy(ctx, key, "bytes", 0)
	for _, cmd := range []redis.Cmder{count, bytes, a.redis.Expire(ctx, key, uploadDayLifetime)} {
		if err := cmd.Err(); err != nil {
			return fmt.Errorf("count upload: %w", err)
		}
	}
	if count.Val() > most || bytes.Val() >= most*uploadBytes {
		return newAPIError(http.StatusTooManyRequests, codeQuota, fmt.Sprintf("this token has uploaded %d reference images or %d MiB today (UTC+8), which is the limit (DANQING_TOKEN_MAX_UPLOADS)", most, most*uploadBytes>>20), untilMidnight(now))
	}
	return nil
}

// countUploadBytes adds the size of an upload that was stored.
func (a *api) countUploadBytes(ctx context.Context, c caller, ref *storage.Reference) error {
	if c.all {
		return nil
	}
	if err := a.redis.HIncrBy(ctx, rediskey.ProducerUploads(c.Name, ledger.Day(time.Now())), "bytes", ref.Bytes).Err(); err != nil {
		return fmt.Errorf("count upload: %w", err)
	}
	return nil
}

// storeReference stores a reference image of the caller, which a worker deletes when nothing
// uses it, also if this process dies now.
func (a *api) storeReference(ctx context.Context, c caller, ref *storage.Reference) error {
	ref.Owner = storage.Owner(c.Name)
	if err := a.keepReference(ctx, c, ref.SHA256, ""); err != nil {
		return err
	}
	if err := a.cfg.Bucket.StageReference(ctx, ref); err != nil {
		return err
	}
	return a.countUploadBytes(ctx, c, ref)
}
