package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
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

// ReferenceLimits returns what a model allows of a reference image.
func ReferenceLimits(model string) storage.ReferenceLimits {
	m, _ := jobs.ModelNamed(model)
	return storage.ReferenceLimits{MinSide: m.Inputs.MinSide, MaxSide: m.Inputs.MaxSide, MaxBytes: m.Inputs.MaxBytes}
}

// unfitError is what is wrong with a reference image, for the client.
type unfitError struct{ text string }

func (e *unfitError) Error() string { return e.text }

// referenceUnavailableError means that a reference image cannot be staged at present.
type referenceUnavailableError struct {
	field string
	err   error
}

func (e *referenceUnavailableError) Error() string { return e.field + ": " + e.err.Error() }
func (e *referenceUnavailableError) Unwrap() error { return e.err }

// mapReferences replaces the reference images of a request, each once. It fails with an
// [*jobs.InvalidError] that has all that are unfit, or with the first other error.
func mapReferences(req jobs.Request, replace func(name string) (string, error)) (jobs.Request, error) {
	type outcome struct {
		name string
		err  error
	}
	replaced := map[string]outcome{}
	var failed error
	req, problems := req.WithReferences(func(field, name string) (string, error) {
		if failed != nil {
			return name, failed
		}
		now, known := replaced[name]
		if !known {
			now.name, now.err = replace(name)
			replaced[name] = now
		}
		var unfit *unfitError
		var source *storage.StageError
		switch {
		case now.err == nil, errors.As(now.err, &unfit):
		case errors.As(now.err, &source) && source.Temporary:
			failed = &referenceUnavailableError{field, now.err}
		default:
			failed = now.err
		}
		return now.name, now.err
	})
	switch {
	case failed != nil:
		return req, failed
	case len(problems) > 0:
		return req, &jobs.InvalidError{Fields: problems}
	}
	return req, nil
}

// checkStaged fails unless the caller has staged a reference image with this hash, and it is
// within the limits. Without tokens the operator's are the caller's own.
func (a *api) checkStaged(ctx context.Context, c caller, hash string, limits storage.ReferenceLimits) error {
	owners := []string{storage.Owner(c.Name)}
	if c.all {
		owners = append(owners, "")
	}
	if err := a.keepReference(ctx, c, hash, ""); err != nil { // before it is looked up
		return err
	}
	body, info, err := a.cfg.Bucket.OpenReference(ctx, hash, owners...)
	if errors.Is(err, storage.ErrNotExist) {
		return &unfitError{"staged image does not exist: upload it first"}
	}
	if err != nil {
		return err
	}
	err = limits.Check(body, info.Bytes)
	if closeErr := body.Close(); err == nil {
		return closeErr
	}
	return &unfitError{err.Error()}
}
