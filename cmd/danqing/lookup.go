package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
)

// jobSource is what tells of jobs of earlier runs.
type jobSource interface {
	// SidecarIDs lists the jobs with a sidecar: see [storage.Bucket.SidecarIDs].
	SidecarIDs(ctx context.Context, prefix string, visit func(jobID string, modified time.Time)) error
	// Finished reads a job from its sidecar: see [worker.Worker.Finished].
	Finished(ctx context.Context, jobID, digest string) (*jobs.Record, error)
	// GetAll returns jobs in the order of their IDs, nil for one that is not known.
	GetAll(ctx context.Context, ids []string) ([]*jobs.Job, error)
}

// workerSource tells what a prepared worker finds.
type workerSource struct{ *runtime }

func (s workerSource) SidecarIDs(ctx context.Context, prefix string, visit func(string, time.Time)) error {
	return s.bucket.SidecarIDs(ctx, prefix, visit)
}

func (s workerSource) Finished(ctx context.Context, jobID, digest string) (*jobs.Record, error) {
	if s.worker.Stopped() {
		return nil, worker.ErrStopped
	}
	return s.worker.Finished(ctx, jobID, digest)
}

func (s workerSource) GetAll(ctx context.Context, ids []string) ([]*jobs.Job, error) {
	if s.worker.Stopped() {
		return nil, worker.ErrStopped
	}
	return jobs.NewClient(s.redis).GetAll(ctx, ids)
}

// lookUp finds the jobs that are settled already, in the bucket or in Redis, and reports IDs
// that belong to other requests. simulated is set if the jobs are.
func (r *batchRun) lookUp(ctx context.Context, from jobSource, simulated bool) error {
	wrong := &jobs.BatchError{}
	var settled []*jobs.Job
	for _, s := range r.files {
		before := len(wrong.Lines)
		known, err := r.sidecars(ctx, from, s, simulated)
		if err != nil {
			return fmt.Errorf("look up what is done already: %w", err)
		}
		var incomplete []*jobs.Job
		_, err = r.finished(ctx, from, known, func(l *line, rec *jobs.Job, conflict error) error {
			switch {
			case conflict != nil:
				wrong.Lines = append(wrong.Lines, jobs.LineError{Number: l.number, Unit: l.file.unit, Err: conflict})
			case len(rec.Missing()) > 0:
				incomplete = append(incomplete, rec)
			default:
				r.settle(l, rec, true)
			}
			return nil
		})
		if err == nil {
			err = r.settleUnlessRetried(ctx, from, incomplete)
		}
		if err != nil {
			return fmt.Errorf("look up what is done already: %w", err)
		}
		for lines := range slices.Chunk(s.lines, groupSize) {
			list, err := from.GetAll(ctx, ids(lines))
			if err != nil {
				return err
			}
			for i, rec := range list {
				l := lines[i]
				switch {
				case rec == nil || l.settled:
				case rec.Digest != l.digest:
					wrong.Lines = append(wrong.Lines, jobs.LineError{Number: l.number, Unit: l.file.unit, Err: fmt.Errorf("job %s: %w", rec.ID, jobs.ErrDigestConflict)})
				case isSettled(rec) && !madeAgain(rec) && rec.Code != jobs.CodeMessageLost: // those are enqueued again
					settled = append(settled, rec)
				case !isSettled(rec):
					l.queued = rec.State.Waiting()
					l.started = !l.queued
				}
			}
		}
		slices.SortStableFunc(wrong.Lines[before:], func(a, b jobs.LineError) int { return a.Number - b.Number })
	}
	if len(wrong.Lines) > 0 {
		return wrong
	}
	for _, rec := range settled {
		if err := r.note(ctx, r.byID[rec.ID], rec, true); err != nil {
			return err
		}
	}
	return nil
}

// settleUnlessRetried settles the lines of jobs that have ended without all of their images,
// but for those that an operator has retried since and that are not settled again.
func (r *batchRun) settleUnlessRetried(ctx context.Context, from jobSource, ended []*jobs.Job) error {
	for part := range slices.Chunk(ended, groupSize) {
		var list []string
		for _, rec := range part {
			list = append(list, rec.ID)
		}
		current, err := from.GetAll(ctx, list)
		if err != nil {
			return err
		}
		for i, rec := range part {
			if now := current[i]; now == nil || now.Digest != rec.Digest || now.RetriedAt.IsZero() || isSettled(now) {
				r.settle(r.byID[rec.ID], rec, true)
			}
		}
	}
	return nil
}

// sidecars returns the lines of a file whose jobs have a sidecar in the bucket that must be
// read. Lines are settled whose result an earlier run has written: a large batch that is run
// again is decided by a list.
func (r *batchRun) sidecars(ctx context.Context, from jobSource, s *batchFile, simulated bool) ([]*line, error) {
	if len(s.lines) <= maxLookups {
		return s.lines, nil // they are read without a list
	}
	var known []*line
	earlier := earlierResults(s.results)
	err := from.SidecarIDs(ctx, s.idPrefix(), func(id string, modified time.Time) {
		if l := r.byID[id]; l != nil && !r.settleFromResults(l, earlier[id], modified, simulated) {
			known = append(known, l)
		}
	})
	return known, err
}

// finished reads the sidecars of lines that may have one. It calls found, one call at a time,
// with each finished job, or with the error if the ID belongs to another request, and returns
// the lines that have no sidecar.
func (r *batchRun) finished(ctx context.Context, from jobSource, lines []*line, found func(*line, *jobs.Job, error) error) (others []*line, err error) {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLookups)
	for _, l := range lines {
		group.Go(func() error {
			rec, err := jobOf(from.Finished(ctx, l.id, l.digest))
			mu.Lock()
			defer mu.Unlock()
			if rec != nil || errors.Is(err, jobs.ErrDigestConflict) || errors.Is(err, worker.ErrSimulated) {
				return found(l, rec, err)
			}
			if err == nil {
				others = append(others, l)
			}
			return err
		})
	}
	err = group.Wait()
	return others, err
}
