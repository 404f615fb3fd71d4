// Package recorder writes what happens to a job: to its record, the journal, the sidecar
// and the ledger, in the order that makes each step repeatable after a crash.
//
// A task is in the journal before it is in the record. A job ends in its sidecar, then in
// the journal, then in the record.
package recorder

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/journal"
	"github.com/danqing-queue/danqing/worker/metrics"
)

// Recorder writes the steps of a worker's jobs. All fields but ServeURL are required.
type Recorder struct {
	Redis  redis.UniversalClient
	Store  *jobs.Store
	Ledger *ledger.Ledger
	Data   *journal.DataDir
	Bucket *storage.Bucket
	Spool  *storage.Spool
	Log    *slog.Logger
	// ServeURL is the base URL of a gateway for image links, "" for none.
	ServeURL string
	// Stopping ends when the worker stops: writes are not repeated any more.
	Stopping context.Context //nolint:containedctx // the worker's, not a call's
	Metrics  *metrics.Metrics
	// Simulated reports whether the services are simulators.
	Simulated func() bool
}

// Update writes a record. It repeats the write while Redis is unavailable: the change has
// already happened, and the slot cannot be reused before it is recorded. It ignores the
// cancellation of ctx, for the same reason.
func (r *Recorder) Update(ctx context.Context, old, next *jobs.Record) error {
	write := rand.Text()
	err := r.Retry(ctx, next.ID, func(ctx context.Context) error { return r.Store.UpdateOnce(ctx, write, old, next) })
	if err == nil && old != nil {
		r.Metrics.Transition(old, next)
	}
	return err
}

// Retry repeats do while Redis is unavailable, until the worker stops. do gets a context
// that is not canceled.
func (r *Recorder) Retry(ctx context.Context, jobID string, do func(context.Context) error) error {
	return loop.RetryRedis(context.WithoutCancel(ctx), r.Stopping, r.Log.With("job_id", jobID), do)
}

// Transition writes the next record and publishes it to the queue's web UI.
func (r *Recorder) Transition(ctx context.Context, old, next *jobs.Record) error {
	if err := r.Update(ctx, old, next); err != nil {
		return err
	}
	if err := r.Store.PublishResult(context.WithoutCancel(ctx), next); err != nil {
		r.Log.Debug("result not published to the queue", "job_id", next.ID, "err", err)
	}
	return nil
}

// Journal appends an entry for a step that is done. If the append fails, the journal lacks
// that step: the next start then assumes less progress, never more.
//
// For a job that another worker has stored, it also discards this worker's spool files.
func (r *Recorder) Journal(kind journal.Kind, rec *jobs.Record) {
	if last, ok := r.Data.Journal.OpenJob(rec.ID); ok && kind == journal.KindFinished && last.Record != nil {
		defer r.discardSpool(last.Record, rec)
	}
	if err := r.Data.Journal.Append(kind, rec); err != nil {
		r.Log.Error("journal not written", "job_id", rec.ID, "kind", string(kind), "err", err)
	}
}

// discardSpool removes the images of a finished job that are in the bucket from the spool.
func (r *Recorder) discardSpool(journaled, finished *jobs.Record) {
	for _, image := range finished.Images {
		if image.Key == "" {
			continue
		}
		if err := r.Spool.Remove(SpoolName(journaled, image.N)); err != nil {
			r.Log.Warn("spool file not removed", "job_id", finished.ID, "err", err)
		}
	}
}

// ImageName returns the name of an image of an attempt, as in JOB.1-1.
func ImageName(rec *jobs.Record, n int) string {
	return rec.ID + "." + strconv.Itoa(rec.Attempt) + "-" + strconv.Itoa(n)
}

// SpoolName returns the name of an image's file in the spool: its name and a checksum, so
// that a damaged name is never another image's.
func SpoolName(rec *jobs.Record, n int) string { return withSum(ImageName(rec, n)) }

func withSum(name string) string {
	return fmt.Sprintf("%s.%08x", name, crc32.Checksum([]byte(name), crc32.MakeTable(crc32.Castagnoli)))
}

// SpooledAttempt returns the job and the attempt whose image a file in the spool is, "" and
// 0 for another file.
func SpooledAttempt(file string) (jobID string, attempt int) {
	name := file[:max(0, strings.LastIndexByte(file, '.'))]
	at := strings.LastIndexByte(name, '.')
	if at < 0 || withSum(name) != file {
		return "", 0
	}
	number, _, _ := strings.Cut(name[at+1:], "-")
	attempt, err := strconv.Atoi(number)
	if err != nil {
		return "", 0
	}
	return name[:at], attempt
}

// Hold holds a job for an operator.
func (r *Recorder) Hold(ctx context.Context, rec, next *jobs.Record) error {
	r.Journal(journal.KindHeld, next)
	r.Log.Error("job held for operator", "job_id", rec.ID, "task_id", rec.TaskID, "attempt", rec.Attempt, "err", next.Message)
	return r.Transition(ctx, rec, next)
}

// Held returns a copy of a record that is held.
func Held(rec *jobs.Record, code, why string) *jobs.Record {
	next := *rec
	next.State, next.Code, next.Message = jobs.StateHeld, code, why
	return &next
}

// Finish ends a job: sidecar, journal, record, in this order. An error before the record is
// written means that the call must be repeated.
func (r *Recorder) Finish(ctx context.Context, rec, next *jobs.Record) error {
	sidecar, err := SidecarOf(next)
	if err != nil {
		return err
	}
	if err := r.Bucket.PutSidecar(ctx, sidecar); err != nil {
		return &SidecarError{err}
	}
	r.Journal(journal.KindFinished, next)
	next.Results, next.SpoolOwner, next.SpoolLocation = nil, "", "" // not needed any more
	return r.Transition(ctx, rec, next)
}

// SidecarError means that [Recorder.Finish] could not write the sidecar: the job has not
// ended.
type SidecarError struct{ cause error }

func (e *SidecarError) Error() string { return e.cause.Error() }
func (e *SidecarError) Unwrap() error { return e.cause }

// Ended returns a copy of a record that has ended now.
func Ended(rec *jobs.Record, state jobs.State, code, message string) *jobs.Record {
	next := *rec
	next.End(state, code, message, time.Now().UTC())
	return &next
}

// ErrSimulated means that the bucket holds a simulated job with the ID of a real job.
var ErrSimulated = errors.New("the bucket holds a simulated job with this ID: use another prefix or bucket for real images")

// Finished returns the record of a finished job, read from its sidecar, or nil if the job
// has none. After an error it is unknown whether the job is finished, and nothing may be
// spent on it. It fails with [jobs.ErrDigestConflict] if the ID belongs to another request
// and with [ErrSimulated] if it belongs to a simulated job.
func (r *Recorder) Finished(ctx context.Context, jobID, digest string) (*jobs.Record, error) {
	sidecar, err := r.Bucket.Sidecar(ctx, jobID)
	if errors.Is(err, storage.ErrNotExist) {
		return nil, nil //nolint:nilnil // "not finished" is an answer, not a failure
	}
	if err != nil {
		return nil, err
	}
	if sidecar.Digest != digest {
		return nil, fmt.Errorf("job %s: %w", jobID, jobs.ErrDigestConflict)
	}
	if sidecar.Simulated && !r.Simulated() {
		return nil, fmt.Errorf("job %s: %w", jobID, ErrSimulated)
	}
	return RecordOf(sidecar)
}

// IsForeign reports whether an error of [Recorder.Finished] means that the object under the
// job's sidecar key is not its sidecar and must not be overwritten.
func IsForeign(err error) bool {
	return errors.Is(err, jobs.ErrDigestConflict) || errors.Is(err, ErrSimulated) || errors.Is(err, storage.ErrUnreadable)
}

// AdoptFinished ends a job that is finished according to the bucket.
func (r *Recorder) AdoptFinished(ctx context.Context, rec, finished *jobs.Record) error {
	r.Journal(journal.KindFinished, finished)
	finished.EnqueuedAt, finished.Priority = rec.EnqueuedAt, rec.Priority
	finished.Producer, finished.PriceMicroYuan, finished.Callback, finished.FollowUp = rec.Producer, rec.PriceMicroYuan, rec.Callback, rec.FollowUp
	if len(rec.Decisions) > len(finished.Decisions) {
		finished.Decisions = rec.Decisions
	}
	finished.SetLocation(ctx, r.Bucket, r.ServeURL)
	return r.Transition(ctx, rec, finished)
}

// RetriedSince reports whether a job was retried after the end that its sidecar records:
// the record has archived that attempt, or has a later one, or was retried later.
//
// Times are compared only if the job has no image: a wrong clock must not cause images to
// be bought twice.
func RetriedSince(rec, finished *jobs.Record) bool {
	if len(finished.Missing()) == 0 {
		return false
	}
	closed := finished.Attempt > 0 && slices.ContainsFunc(rec.PastAttempts, func(a jobs.Attempt) bool { return a.Attempt == finished.Attempt })
	hasImages := finished.State == jobs.StateSucceeded
	return closed || rec.Attempt > finished.Attempt || !hasImages && rec.RetriedAt.After(finished.FinishedAt)
}

// MarkInFlight records in Redis that a lane works on a job.
func (r *Recorder) MarkInFlight(ctx context.Context, account, model, id string) error {
	if err := r.Redis.HSet(ctx, rediskey.Lane(account, model, rediskey.LaneInFlight), id, time.Now().UTC().Format(time.RFC3339)).Err(); err != nil {
		return fmt.Errorf("mark job %s in flight: %w", id, err)
	}
	return nil
}
