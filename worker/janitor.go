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
	// houseInterval is how often one of all workers looks after what no single
	// job's handler does. A job whose message was lost waits that long.
	janitorInterval = 5 * time.Minute
	// houseKey holds when that was done last, in Unix milliseconds.
	janitorKey = rediskey.Maintenance
	// sweepAge leaves alone what is on its way from the record to the message.
	sweepAge  = 2 * time.Minute
	sweepPage = 200
	// archiveKept is how many messages stay in the archive of a queue; asynq's own
	// trimming fails for ever once it must drop some 8,000 at a time.
	archiveKept = 1000
	archivePage = 100
)

// keepHouse looks after the queues until the returned function is called.
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

// tidy does the rounds, unless another worker just has.
func (w *Worker) runMaintenance(ctx context.Context) error {
	w.discoverOwners(ctx)
	w.Unfinished(ctx) // so that the journal forgets what others have finished
	models := w.models()
	if err := w.jobs.RegisterQueues(ctx, models); err != nil {
		return err
	}
	last, err := w.cfg.Redis.Get(ctx, janitorKey).Int64()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("read %s: %w", janitorKey, err)
	}
	now := time.Now()
	// Two workers at once do no harm.
	if now.Sub(time.UnixMilli(last)) < janitorInterval {
		return nil
	}
	if err := w.cfg.Redis.Set(ctx, janitorKey, strconv.FormatInt(now.UnixMilli(), 10), 0).Err(); err != nil {
		return fmt.Errorf("write %s: %w", janitorKey, err)
	}
	// What a sweep finds in an archive must not be trimmed before.
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

// trimArchives bounds the archives of our queues.
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
				// What a person has archived did not fail, and has no date.
				young := message.LastFailedAt.IsZero() || time.Since(message.LastFailedAt) < jobs.RecordLifetime
				if archived-deleted <= archiveKept && young {
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

// sweep sees to it that each job which waits for a lane, or for the bucket, has a
// message that will wake somebody, and each that has a task, or may have, a note.
func (w *Worker) requeueOrphans(ctx context.Context) error {
	filter := jobs.ListFilter{
		States:        []jobs.State{jobs.StateScheduled, jobs.StateQueued, jobs.StateRetrying, jobs.StateSubmitting, jobs.StateGenerating, jobs.StateStoring},
		UpdatedBefore: time.Now().Add(-sweepAge), Limit: sweepPage,
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

// writeDown makes sure of the sidecars of jobs that a person has ended, since the
// rounds before the last: who did so may have died before a store server knew.
func (w *Worker) ensureSidecars(ctx context.Context) error {
	records, _, err := w.jobs.List(ctx, jobs.ListFilter{
		States: []jobs.State{jobs.StateCanceled, jobs.StateFailed}, UpdatedBefore: time.Now().Add(-sweepAge), Limit: sweepPage,
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

// due has a job whose time has come wait for its turn: its message does so already.
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
