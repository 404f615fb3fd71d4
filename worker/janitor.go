package worker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/internal/account"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// janitorInterval is how often one of all workers does the maintenance that no
	// job's handler does. A job whose message was lost waits that long.
	janitorInterval = 5 * time.Minute
	// requeueAge excludes records whose message may still be on its way.
	requeueAge  = 2 * time.Minute
	requeuePage = 200
)

// janitor does the maintenance of the queue.
type janitor struct {
	recorder *recorder.Recorder
	accounts *account.Set
	recovery *recovery
	models   []string
}

func (j *janitor) run(ctx context.Context) {
	if err := j.runMaintenance(ctx); err != nil && ctx.Err() == nil {
		j.recorder.Log.Warn("maintenance failed, retrying", "err", err, "wait", janitorInterval)
	}
}

// runMaintenance runs the maintenance, unless another worker has just done so.
func (j *janitor) runMaintenance(ctx context.Context) error {
	j.accounts.DiscoverOwners(ctx)
	j.recovery.unfinished(ctx, "") // removes jobs that others have finished from the journal
	if err := j.recorder.Store.RegisterQueues(ctx, j.models); err != nil {
		return err
	}
	last, err := j.recorder.Redis.Get(ctx, rediskey.Maintenance).Int64()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("read %s: %w", rediskey.Maintenance, err)
	}
	now := time.Now()
	// Two workers at the same time do no harm.
	if now.Sub(time.UnixMilli(last)) < janitorInterval {
		return nil
	}
	if err := j.recorder.Redis.Set(ctx, rediskey.Maintenance, strconv.FormatInt(now.UnixMilli(), 10), 0).Err(); err != nil {
		return fmt.Errorf("write %s: %w", rediskey.Maintenance, err)
	}
	// requeueOrphans must see archived messages before they are trimmed.
	if err := j.requeueOrphans(ctx); err != nil {
		return err
	}
	if err := j.ensureSidecars(ctx); err != nil {
		return err
	}
	if err := j.releaseLeakedReservations(ctx); err != nil {
		return err
	}
	if err := j.repairMessages(ctx, time.UnixMilli(last)); err != nil {
		return err
	}
	if err := j.trimArchives(ctx); err != nil {
		return err
	}
	return j.expireReferences(ctx)
}

// requeueOrphans ensures that each job that waits for a lane, or for the bucket, has a
// message, and each job that has or may have a task an in-flight mark.
func (j *janitor) requeueOrphans(ctx context.Context) error {
	filter := jobs.ListFilter{
		States:        []jobs.State{jobs.StateScheduled, jobs.StateQueued, jobs.StatePrepared, jobs.StateRetrying, jobs.StateSubmitting, jobs.StateGenerating, jobs.StateStoring},
		UpdatedBefore: time.Now().Add(-requeueAge), Limit: requeuePage,
	}
	for {
		records, cursor, err := j.recorder.Store.List(ctx, filter)
		if err != nil {
			return err
		}
		if err := j.repair(ctx, records); err != nil {
			return err
		}
		if filter.Cursor = cursor; cursor == "" {
			return nil
		}
	}
}

// ensureSidecars ensures the sidecars of jobs that an operator has ended within the
// last two intervals: the process that ended a job may have crashed before it enqueued
// the store message.
func (j *janitor) ensureSidecars(ctx context.Context) error {
	records, _, err := j.recorder.Store.List(ctx, jobs.ListFilter{
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
		if err := j.recorder.Store.EnqueueStore(ctx, rec); err != nil {
			return err
		}
	}
	return nil
}

// promoteScheduled marks a scheduled job as queued when its time has come; its message
// is already in the queue.
func (j *janitor) promoteScheduled(ctx context.Context, rec *jobs.Record) (*jobs.Record, error) {
	if time.Now().Before(rec.NotBefore) {
		return rec, nil
	}
	next := *rec
	next.State = jobs.StateQueued
	switch err := j.recorder.Store.Update(ctx, rec, &next); {
	case errors.Is(err, jobs.ErrConflict): // a lane has drawn it
		return rec, nil
	case err != nil:
		return nil, err
	}
	return &next, nil
}

func (j *janitor) repair(ctx context.Context, records []*jobs.Record) error {
	for i, rec := range records {
		var err error
		if rec.Overdue(time.Now()) {
			if _, err = j.recorder.Store.Expire(ctx, rec); err != nil && !errors.Is(err, jobs.ErrConflict) {
				return err
			}
			continue
		}
		switch rec.State {
		case jobs.StateStoring:
			err = j.recorder.Store.EnqueueStore(ctx, rec)
		case jobs.StateSubmitting, jobs.StateGenerating:
			err = j.recorder.MarkInFlight(ctx, rec.Account, rec.Model, rec.ID)
		case jobs.StateScheduled:
			records[i], err = j.promoteScheduled(ctx, rec)
		default:
		}
		if err != nil {
			return err
		}
	}
	orphans, err := j.recorder.Store.WithoutMessage(ctx, records)
	if err != nil {
		return err
	}
	for _, rec := range orphans {
		requeued, err := j.recorder.Store.RequeueOrphan(ctx, rec)
		if err != nil && !errors.Is(err, jobs.ErrConflict) {
			return fmt.Errorf("requeue job %s: %w", rec.ID, err)
		}
		if err == nil && requeued != nil {
			j.recorder.Log.Warn("job without a message requeued", "job_id", rec.ID, "state", string(requeued.State), "code", requeued.Code)
		}
	}
	return nil
}

// releaseLeakedReservations releases the reservations of attempts that have ended or
// were never started because their worker crashed. It checks the days on which an attempt
// can be open.
func (j *janitor) releaseLeakedReservations(ctx context.Context) error {
	for _, a := range j.accounts.All {
		for _, day := range []time.Time{time.Now().Add(-24 * time.Hour), time.Now()} {
			open, err := j.recorder.Ledger.OpenReservations(ctx, a.Name, day)
			if err != nil {
				return err
			}
			for _, charge := range open {
				if time.Since(charge.At) < requeueAge {
					continue
				}
				needed, err := j.reservationNeeded(ctx, charge)
				if err != nil {
					return err
				}
				if needed {
					continue
				}
				if err := j.recorder.Ledger.Release(ctx, charge); err != nil {
					return fmt.Errorf("release reservation: %w", err)
				}
			}
		}
	}
	return nil
}

// reservationNeeded reports whether an attempt may still cost something.
func (j *janitor) reservationNeeded(ctx context.Context, charge ledger.Charge) (bool, error) {
	if e, open := j.recorder.Data.Journal.OpenJob(charge.JobID); open && e.Attempt == charge.Attempt && e.Kind != journal.KindHeld {
		return true, nil
	}
	rec, err := j.recorder.Store.Get(ctx, charge.JobID)
	if errors.Is(err, jobs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	open := !rec.State.Final() && !rec.State.Waiting() || rec.State == jobs.StatePrepared
	return open && rec.Attempt == charge.Attempt, nil
}
