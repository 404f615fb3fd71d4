package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
)

// lookUp finds the jobs that are settled already, in the bucket or in Redis, and reports IDs
// that belong to other requests.
func (r *batchRun) lookUp(ctx context.Context) error {
	wrong := &jobs.BatchError{}
	var settled []*jobs.Job
	for _, s := range r.files {
		before := len(wrong.Lines)
		known, err := r.sidecars(ctx, s)
		if err != nil {
			return fmt.Errorf("look up what is done already: %w", err)
		}
		_, err = r.finished(ctx, known, func(l *line, rec *jobs.Job, conflict error) error {
			if conflict != nil {
				wrong.Lines = append(wrong.Lines, jobs.LineError{Number: l.number, Unit: l.file.unit, Err: conflict})
			} else {
				r.settle(l, rec, true)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("look up what is done already: %w", err)
		}
		for lines := range slices.Chunk(s.lines, groupSize) {
			if r.runtime.worker.Stopped() {
				return worker.ErrStopped
			}
			list, err := jobs.NewClient(r.runtime.redis).GetAll(ctx, ids(lines))
			if err != nil {
				return err
			}
			for i, rec := range list {
				l := lines[i]
				switch {
				case rec == nil || l.settled:
				case rec.Digest != l.digest:
					wrong.Lines = append(wrong.Lines, jobs.LineError{Number: l.number, Unit: l.file.unit, Err: fmt.Errorf("job %s: %w", rec.ID, jobs.ErrDigestConflict)})
				case isSettled(rec) && !awaitsBudget(rec) && rec.Code != jobs.CodeMessageLost: // those are enqueued again
					settled = append(settled, rec)
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

// sidecars returns the lines of a file whose jobs have a sidecar in the bucket.
func (r *batchRun) sidecars(ctx context.Context, s *batchFile) ([]*line, error) {
	if len(s.lines) <= maxLookups {
		return s.lines, nil // they are read without a list
	}
	var known []*line
	err := r.runtime.bucket.SidecarIDs(ctx, s.idPrefix(), func(id string) {
		if l := r.byID[id]; l != nil {
			known = append(known, l)
		}
	})
	return known, err
}

// finished reads the sidecars of lines that may have one. It calls found, one call at a time,
// with each finished job, or with the error if the ID belongs to another request, and returns
// the lines that have no sidecar.
func (r *batchRun) finished(ctx context.Context, lines []*line, found func(*line, *jobs.Job, error) error) (others []*line, err error) {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLookups)
	for _, l := range lines {
		group.Go(func() error {
			if r.runtime.worker.Stopped() {
				return worker.ErrStopped
			}
			rec, err := jobOf(r.runtime.worker.Finished(ctx, l.id, l.digest))
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
