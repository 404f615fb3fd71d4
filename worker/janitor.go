package worker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

const (
	// janitorInterval is how often one of all workers does the maintenance that no
	// job's handler does. A job whose message was lost waits that long.
	janitorInterval = 5 * time.Minute
	// requeueAge excludes records whose message may still be on its way.
	requeueAge  = 2 * time.Minute
	requeuePage = 200
	// archiveSize is how many messages remain in a queue's archive; asynq's own
	// trimming fails permanently once it must delete some 8,000 at a time.
	archiveSize = 1000
	archivePage = 100
)

// runJanitor runs the maintenance until the returned function is called.
func (w *Worker) runJanitor(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			if err := w.runMaintenance(ctx); err != nil && ctx.Err() == nil {
				w.log.Warn("maintenance failed, retrying", "err", err, "wait", janitorInterval)
			}
			if err := w.sleep(ctx, janitorInterval); err != nil {
				return
			}
		}
	})
	return func() { cancel(); group.Wait() }
}

// runMaintenance runs the maintenance, unless another worker has just done so.
func (w *Worker) runMaintenance(ctx context.Context) error {
	w.discoverOwners(ctx)
	w.Unfinished(ctx) // removes jobs that others have finished from the journal
	models := w.models()
	if err := w.jobs.RegisterQueues(ctx, models); err != nil {
		return err
	}
	last, err := w.cfg.Redis.Get(ctx, rediskey.Maintenance).Int64()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("read %s: %w", rediskey.Maintenance, err)
	}
	now := time.Now()
	// Two workers at the same time do no harm.
	if now.Sub(time.UnixMilli(last)) < janitorInterval {
		return nil
	}
	if err := w.cfg.Redis.Set(ctx, rediskey.Maintenance, strconv.FormatInt(now.UnixMilli(), 10), 0).Err(); err != nil {
		return fmt.Errorf("write %s: %w", rediskey.Maintenance, err)
	}
	// requeueOrphans must see archived messages before they are trimmed.
	if err := w.requeueOrphans(ctx); err != nil {
		return err
	}
	if err := w.ensureSidecars(ctx); err != nil {
		return err
	}
	if err := w.releaseLeakedReservations(ctx); err != nil {
		return err
	}
	return w.trimArchives(ctx, models)
}

// trimArchives bounds the archives of Danqing's queues.
func (w *Worker) trimArchives(ctx context.Context, models []string) error {
	queues := []string{jobs.QueueStore, jobs.QueueNotify}
	for _, model := range models {
		for queue := range jobs.LaneQueues(model) {
			queues = append(queues, queue)
		}
	}
	inspector := asynq.NewInspectorFromRedisClient(w.cfg.Redis)
	for _, queue := range queues {
		for {
			archived, err := w.jobs.ArchivedMessages(ctx, queue)
			if err != nil {
				return err
			}
			if archived == 0 {
				break
			}
			// Oldest first, whatever asynq's documentation says.
			page, err := inspector.ListArchivedTasks(queue, asynq.PageSize(archivePage))
			if err != nil {
				return fmt.Errorf("list archive of %s: %w", queue, err)
			}
			deleted := int64(0)
			for _, message := range page {
				// A message that a person has archived did not fail and has no date.
				young := message.LastFailedAt.IsZero() || time.Since(message.LastFailedAt) < jobs.RecordLifetime
				if archived-deleted <= archiveSize && young {
					break
				}
				if err := inspector.DeleteTask(queue, message.ID); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
					return fmt.Errorf("delete %s from archive of %s: %w", message.ID, queue, err)
				}
				deleted++
			}
			if deleted < archivePage {
				break
			}
		}
	}
	return nil
}

// requeueOrphans ensures that each job that waits for a lane, or for the bucket, has a
// message, and each job that has or may have a task an in-flight mark.
func (w *Worker) requeueOrphans(ctx context.Context) error {
	filter := jobs.ListFilter{
		States:        []jobs.State{jobs.StateScheduled, jobs.StateQueued, jobs.StateRetrying, jobs.StateSubmitting, jobs.StateGenerating, jobs.StateStoring},
		UpdatedBefore: time.Now().Add(-requeueAge), Limit: requeuePage,
	}
	for {
		records, cursor, err := w.jobs.List(ctx, filter)
		if err != nil {
			return err
		}
		if err := w.repair(ctx, records); err != nil {
			return err
		}
		if filter.Cursor = cursor; cursor == "" {
			return nil
		}
	}
}

// ensureSidecars ensures the sidecars of jobs that an operator has ended within the
// last two intervals: the process that ended a job may have died before a store server
// was notified.
func (w *Worker) ensureSidecars(ctx context.Context) error {
	records, _, err := w.jobs.List(ctx, jobs.ListFilter{
		States: []jobs.State{jobs.StateCanceled, jobs.StateFailed}, UpdatedBefore: time.Now().Add(-requeueAge), Limit: requeuePage,
	})
	if err != nil {
		return err
	}
	for _, rec := range records {
		ended := rec.Code == jobs.CodeCanceled || rec.Code == jobs.CodeAbandoned
		if !ended || time.Since(rec.UpdatedAt) > 2*janitorInterval {
			continue
		}
		if err := w.jobs.EnqueueStore(ctx, rec); err != nil {
			return err
		}
	}
	return nil
}

// promoteScheduled marks a scheduled job as queued when its time has come; its message
// is already in the queue.
func (w *Worker) promoteScheduled(ctx context.Context, rec *jobs.Record) (*jobs.Record, error) {
	if time.Now().Before(rec.NotBefore) {
		return rec, nil
	}
	next := *rec
	next.State = jobs.StateQueued
	switch err := w.jobs.Update(ctx, rec, &next); {
	case errors.Is(err, jobs.ErrConflict): // a lane has drawn it
		return rec, nil
	case err != nil:
		return nil, err
	}
	return &next, nil
}

func (w *Worker) repair(ctx context.Context, records []*jobs.Record) error {
	for i, rec := range records {
		var err error
		if rec.Overdue(time.Now()) {
			if _, err = w.jobs.Expire(ctx, rec); err != nil && !errors.Is(err, jobs.ErrConflict) {
				return err
			}
			continue
		}
		switch rec.State {
		case jobs.StateStoring:
			err = w.jobs.EnqueueStore(ctx, rec)
		case jobs.StateSubmitting, jobs.StateGenerating:
			err = w.markInFlight(ctx, rec.Account, rec.Model, rec.ID)
		case jobs.StateScheduled:
			records[i], err = w.promoteScheduled(ctx, rec)
		default:
		}
		if err != nil {
			return err
		}
	}
	unwoken, err := w.jobs.WithoutMessage(ctx, records)
	if err != nil {
		return err
	}
	for _, rec := range unwoken {
		mended, err := w.jobs.RequeueOrphan(ctx, rec)
		if err != nil && !errors.Is(err, jobs.ErrConflict) {
			return fmt.Errorf("sweep job %s: %w", rec.ID, err)
		}
		if err == nil && mended != nil {
			w.log.Warn("job without a message requeued", "job_id", rec.ID, "state", string(mended.State), "code", mended.Code)
		}
	}
	return nil
}
