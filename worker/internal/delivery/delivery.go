// Package delivery copies finished images into the bucket.
package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/hibiken/asynq"
	"golang.org/x/sync/semaphore"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/internal/account"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/internal/watch"
)

// Config configures a [Server]. All fields are required.
type Config struct {
	Recorder *recorder.Recorder
	Accounts *account.Set // for new links of images whose links have expired
	// Concurrency is the number of jobs whose images are copied concurrently.
	Concurrency int
	Watcher     *watch.Watcher
	Log         *slog.Logger
}

// Server copies finished images into the bucket, many jobs at once.
type Server struct {
	cfg      Config
	recorder *recorder.Recorder
	spool    *storage.Spool
	bucket   *storage.Bucket
	log      *slog.Logger
	server   *watch.Server
	// memoryFetch allows one image at a time in memory while the disk is full.
	memoryFetch *semaphore.Weighted
}

// New returns a server that is not started.
func New(cfg Config) *Server {
	return &Server{
		cfg: cfg, recorder: cfg.Recorder, spool: cfg.Recorder.Spool, bucket: cfg.Recorder.Bucket, log: cfg.Log,
		memoryFetch: semaphore.NewWeighted(1),
	}
}

const (
	// storeShutdownTimeout is how long copies may continue after the second signal.
	storeShutdownTimeout = time.Second
	storeRetry           = time.Second
	storeRetryMax        = time.Minute
)

// Start starts the server. The caller must call Shutdown.
func (s *Server) Start() error {
	s.server = s.cfg.Watcher.NewServer(s.log, asynq.Config{
		Concurrency: s.cfg.Concurrency, Queues: map[string]int{jobs.QueueStore: 1}, ShutdownTimeout: storeShutdownTimeout,
		RetryDelayFunc: func(tried int, err error, _ *asynq.Task) time.Duration {
			if errors.Is(err, asynq.ErrLeaseExpired) {
				return 0
			}
			return min(storeRetry<<min(tried, 10), storeRetryMax)
		},
	})
	if err := s.server.Start(asynq.HandlerFunc(s.handle)); err != nil {
		return fmt.Errorf("start store: %w", err)
	}
	return nil
}

// Shutdown stops the server. Copies in progress get one more second.
func (s *Server) Shutdown() { s.server.Shutdown() }

// handle adapts the store stage to asynq.
func (s *Server) handle(ctx context.Context, message *asynq.Task) error {
	var m jobs.StoreMessage
	err := json.Unmarshal(message.Payload(), &m)
	if err == nil {
		err = jobs.ValidID(m.JobID)
	}
	if err != nil {
		return fmt.Errorf("the payload is not a danqing store message: %w: %w", err, asynq.SkipRetry)
	}
	rec, err := s.recorder.Store.Get(ctx, m.JobID)
	if err != nil {
		return err
	}
	switch {
	case rec.Attempt != m.Attempt:
		return nil
	case rec.State.Final():
		return s.ensureSidecar(ctx, rec)
	case rec.State != jobs.StateStoring:
		return nil
	}
	// All images are downloaded before any request to the bucket: the links expire
	// within a day, and a bucket outage may last longer.
	got := s.fetchAll(ctx, rec)
	if err := s.recorder.Settle(ctx, rec, rec.TaskID, rec.TaskImages, rec.TaskMicroYuan); err != nil {
		return err
	}
	err = s.claimSpool(ctx, rec, got)
	if err == nil || loop.IsRefused(err) {
		err = s.storeImages(ctx, rec, got)
	}
	if errors.Is(err, jobs.ErrConflict) {
		return nil
	}
	if loop.IsRefused(err) { // the images are in the bucket, and what was decided is in the journal
		s.log.Error("job stored, but redis refuses its record", "job_id", rec.ID, "task_id", rec.TaskID, "err", err)
		return fmt.Errorf("%s: redis refuses the record of the job, whose images are in the bucket: %w: %w", jobs.CodeRecordRefused, err, asynq.SkipRetry)
	}
	if err != nil && ctx.Err() == nil {
		if tried, _ := asynq.GetRetryCount(ctx); tried == 0 { // a job has one line, and another when it is stored
			s.log.Warn("image not stored, retrying", "job_id", rec.ID, "task_id", rec.TaskID, "err", err)
		}
		s.publishReason(ctx, rec, err)
	}
	return err
}

// storeImages stores a job's images and then writes its sidecar: a sidecar means that
// the job is finished. An image that is unavailable does not stop the others.
func (s *Server) storeImages(ctx context.Context, rec *jobs.Record, got []fetched) error {
	over, err := s.recorder.Finished(ctx, rec.ID, rec.Digest)
	taken := ""
	switch {
	case recorder.IsForeign(err):
		taken = err.Error()
	case err != nil:
		return err
	}
	if over != nil && !recorder.RetriedSince(rec, over) {
		return s.recorder.AdoptFinished(ctx, rec, over)
	}
	next := *rec
	var made []jobs.Image
	var later []error
	for i, result := range rec.Results {
		image, err := s.storeImage(ctx, rec, result, got[i], taken)
		switch {
		case err == nil:
			made = append(made, withTaskDetails(rec, i, image))
		case got[i].err == nil: // a bucket error
			return fmt.Errorf("image %d: %w", result.N, err)
		default:
			later = append(later, fmt.Errorf("image %d: %w", result.N, err))
		}
	}
	if len(later) > 0 {
		return errors.Join(later...)
	}
	next.Images = mergeImages(rec.Images, made)
	next.SetLocation(ctx, s.bucket, s.recorder.ServeURL)
	next.FinishedAt, next.State, next.Code, next.Message = time.Now().UTC(), jobs.StateSucceeded, "", ""
	if i := slices.IndexFunc(made, func(image jobs.Image) bool {
		return image.Code == jobs.CodeImageUnverified || image.Code == jobs.CodeSpoolUnavailable
	}); i >= 0 {
		return s.holdJob(ctx, rec, &next, made[i])
	}
	if !slices.ContainsFunc(next.Images, func(image jobs.Image) bool { return image.Key != "" }) {
		next.State, next.Code, next.Message = jobs.StateFailed, next.Images[0].Code, next.Images[0].Message
	}
	return s.finishJob(ctx, rec, &next)
}

// ensureSidecar writes the sidecar of a job that an operator has ended, unless it has one.
func (s *Server) ensureSidecar(ctx context.Context, rec *jobs.Record) error {
	over, err := s.recorder.Finished(ctx, rec.ID, rec.Digest)
	switch {
	case recorder.IsForeign(err):
		return nil // the object is not this job's: do not overwrite it
	case err != nil:
		return err
	case over != nil && !recorder.RetriedSince(rec, over):
		return nil
	}
	sidecar, err := recorder.SidecarOf(rec)
	if err != nil {
		return err
	}
	return s.bucket.PutSidecar(ctx, sidecar)
}

// finishJob ends a job whose images are stored, and then removes all its files from the
// spool.
func (s *Server) finishJob(ctx context.Context, rec, next *jobs.Record) error {
	if err := s.recorder.Finish(ctx, rec, next); err != nil {
		return err
	}
	s.log.Info("job stored", "job_id", next.ID, "task_id", next.TaskID, "images", len(next.Images), "duration", next.FinishedAt.Sub(rec.GeneratedAt))
	for _, result := range rec.Results {
		if err := s.spool.Remove(recorder.SpoolName(rec, result.N)); err != nil {
			s.log.Warn("spool file not removed", "job_id", rec.ID, "err", err)
		}
	}
	return nil
}

// holdJob holds a job with an image that could not be stored. The other images are in the
// bucket.
func (s *Server) holdJob(ctx context.Context, rec, next *jobs.Record, why jobs.Image) error {
	next.FinishedAt = time.Time{}
	if err := s.recorder.Hold(ctx, rec, recorder.Held(next, why.Code, why.Message)); err != nil {
		return err
	}
	for _, image := range next.Images {
		// If the job's task is adopted, the image is checked once more.
		if err := s.spool.Recheck(recorder.SpoolName(rec, image.N)); err != nil {
			s.log.Warn("spool file not marked for recheck", "job_id", rec.ID, "err", err)
		}
	}
	return nil
}
