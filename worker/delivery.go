package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/hibiken/asynq"
	"golang.org/x/sync/semaphore"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/journal"
)

// deliveryServer copies finished images into the bucket, many jobs at once.
type deliveryServer struct {
	*Worker
	server *asynq.Server
	// memoryFetch allows one image at a time in memory while the disk is full.
	memoryFetch *semaphore.Weighted
}

const (
	// storeShutdownTimeout is how long copies may continue after the second signal.
	storeShutdownTimeout = time.Second
	storeRetry           = time.Second
	storeRetryMax        = time.Minute
	// drainInterval is how often a stopping worker checks whether the queue is empty.
	// drainTimeout bounds the wait.
	drainInterval = 50 * time.Millisecond
	drainTimeout  = 10 * time.Second
)

func (s *deliveryServer) start() (*deliveryServer, error) {
	s.server = asynq.NewServerFromRedisClient(s.cfg.Redis, asynq.Config{
		Concurrency:              s.cfg.StoreConcurrency,
		Queues:                   map[string]int{jobs.QueueStore: 1},
		TaskCheckInterval:        s.cfg.QueueInterval,
		DelayedTaskCheckInterval: delayedFactor * s.cfg.QueueInterval,
		JanitorInterval:          asynqJanitorInterval,
		ShutdownTimeout:          storeShutdownTimeout,
		RetryDelayFunc: func(tried int, err error, _ *asynq.Task) time.Duration {
			if errors.Is(err, asynq.ErrLeaseExpired) {
				return 0
			}
			return min(storeRetry<<min(tried, 10), storeRetryMax)
		},
		Logger:   newAsynqLog(s.log),
		LogLevel: asynq.WarnLevel,
	})
	if err := s.server.Start(asynq.HandlerFunc(s.handle)); err != nil {
		return nil, fmt.Errorf("start store: %w", err)
	}
	return s, nil
}

func (s *deliveryServer) shutdown() { s.server.Shutdown() }

// drain waits until the ready messages of a queue (store or notify) have been handled,
// for drainTimeout at most. What remains stays in the queue; images are in the journal
// too.
func (w *Worker) drain(ctx context.Context, queue string) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	inspector := asynq.NewInspectorFromRedisClient(w.cfg.Redis)
	tick := time.NewTicker(drainInterval)
	defer tick.Stop()
	for {
		info, err := inspector.GetQueueInfo(queue)
		if err != nil || info.Pending+info.Active == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// handle adapts the store stage to asynq.
func (s *deliveryServer) handle(ctx context.Context, message *asynq.Task) error {
	var m jobs.StoreMessage
	err := json.Unmarshal(message.Payload(), &m)
	if err == nil {
		err = jobs.ValidID(m.JobID)
	}
	if err != nil {
		return fmt.Errorf("the payload is not a danqing store message: %w: %w", err, asynq.SkipRetry)
	}
	rec, err := s.jobs.Get(ctx, m.JobID)
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
	if err := s.settleTask(ctx, rec, rec.TaskID, rec.TaskImages, rec.TaskMicroYuan); err != nil {
		return err
	}
	err = s.claimSpool(ctx, rec, got)
	if err == nil {
		err = s.storeImages(ctx, rec, got)
	}
	if errors.Is(err, jobs.ErrConflict) {
		return nil
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("image not stored, retrying", "job_id", rec.ID, "task_id", rec.TaskID, "err", err)
		s.publishReason(ctx, rec, err)
	}
	return err
}

// storeImages stores a job's images and then writes its sidecar: a sidecar means that
// the job is finished. An image that is unavailable does not stop the others.
func (s *deliveryServer) storeImages(ctx context.Context, rec *jobs.Record, got []fetched) error {
	over, err := s.Finished(ctx, rec.ID, rec.Digest)
	taken := ""
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, ErrSimulated), errors.Is(err, storage.ErrUnreadable):
		taken = err.Error()
	case err != nil:
		return err
	}
	if over != nil && !retriedSince(rec, over) {
		return s.adoptFinished(ctx, rec, over)
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
	s.setLocation(ctx, &next)
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

// setLocation records where a job's images are: the bucket, and their permanent links.
func (w *Worker) setLocation(ctx context.Context, rec *jobs.Record) {
	rec.Images = slices.Clone(rec.Images)
	for i, image := range rec.Images {
		if image.Key != "" {
			rec.Bucket = w.cfg.Bucket.Name()
			rec.Images[i].Link, _ = w.permanentLink(ctx, &rec.Job, image)
		}
	}
}

// permanentLink returns the URL of an image in a public bucket, or at the configured
// gateway; "" if there is neither.
func (w *Worker) permanentLink(ctx context.Context, job *jobs.Job, image jobs.Image) (string, error) {
	link, expiresAt, err := w.cfg.Bucket.Link(ctx, image.Key)
	if err != nil || expiresAt.IsZero() {
		return link, err
	}
	if path := job.ImagePath(image); w.cfg.ServeURL != "" && path != "" {
		return w.cfg.ServeURL + path, nil
	}
	return "", nil
}

// writeDown gives a job that a person has ended its sidecar, unless it has one.
func (s *deliveryServer) ensureSidecar(ctx context.Context, rec *jobs.Record) error {
	over, err := s.Finished(ctx, rec.ID, rec.Digest)
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, ErrSimulated), errors.Is(err, storage.ErrUnreadable):
		return nil // the object is not this job's: do not overwrite it
	case err != nil:
		return err
	case over != nil && !retriedSince(rec, over):
		return nil
	}
	sidecar, err := sidecarOf(rec)
	if err != nil {
		return err
	}
	return s.cfg.Bucket.PutSidecar(ctx, sidecar)
}

// finishJob ends the job: sidecar, journal, record, and only then the spool.
func (s *deliveryServer) finishJob(ctx context.Context, rec, next *jobs.Record) error {
	sidecar, err := sidecarOf(next)
	if err != nil {
		return err
	}
	if err := s.cfg.Bucket.PutSidecar(ctx, sidecar); err != nil {
		return err
	}
	s.journal(journal.KindFinished, next)
	next.Results, next.SpoolOwner, next.SpoolLocation = nil, "", "" // they have done their duty
	if err := s.transition(ctx, rec, next); err != nil {
		return err
	}
	s.log.Info("job stored", "job_id", next.ID, "task_id", next.TaskID, "images", len(next.Images), "duration", next.FinishedAt.Sub(rec.GeneratedAt))
	for _, result := range rec.Results {
		if err := s.cfg.Spool.Remove(spoolName(rec, result.N)); err != nil {
			s.log.Warn("spool file not removed", "job_id", rec.ID, "err", err)
		}
	}
	return nil
}

// holdJob holds a job with an image that could not be stored. The other images are in
// the bucket.
func (s *deliveryServer) holdJob(ctx context.Context, rec, next *jobs.Record, why jobs.Image) error {
	next.State, next.Code, next.Message, next.FinishedAt = jobs.StateHeld, why.Code, why.Message, time.Time{}
	s.journal(journal.KindHeld, next)
	s.log.Error("job held for operator", "job_id", rec.ID, "task_id", rec.TaskID, "attempt", rec.Attempt, "err", why.Message)
	if err := s.transition(ctx, rec, next); err != nil {
		return err
	}
	for _, image := range next.Images {
		// If the job's task is adopted, the image is checked once more.
		if err := s.cfg.Spool.Recheck(spoolName(rec, image.N)); err != nil {
			s.log.Warn("spool file not marked for recheck", "job_id", rec.ID, "err", err)
		}
	}
	return nil
}

func spoolName(rec *jobs.Record, n int) string {
	return rec.ID + "." + strconv.Itoa(rec.Attempt) + "-" + strconv.Itoa(n)
}
