package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// RecordLifetime is how long a record stays in Redis after the job's end. After that the
// sidecar in the bucket has the job.
const RecordLifetime = 7 * 24 * time.Hour

// Errors of the records.
var (
	// ErrNotFound means that Redis has no such job. It may have ended more than
	// [RecordLifetime] ago: its sidecar is in the bucket then.
	ErrNotFound = errors.New("no such job")
	// ErrCorrupt means that the job's record in Redis cannot be read: another program has
	// written there. The job is left alone. To enqueue it again, delete the key
	// danqing:job:ID first: what was paid for is in the worker's journal and in the
	// bucket.
	ErrCorrupt = errors.New("the job's record in Redis is corrupt")
	// ErrConflict means that the record was changed since it was read: read it again and
	// repeat the decision.
	ErrConflict = errors.New("the record changed meanwhile")
	// ErrDigestConflict means that the ID belongs to a job with another request.
	ErrDigestConflict = errors.New("this job ID belongs to another request")
	// ErrFinished means that the job has ended, and the call is no longer possible.
	ErrFinished = errors.New("the job is finished")
	// ErrInvalidState means that the call is not possible in the job's state; the text
	// says what is.
	ErrInvalidState = errors.New("not possible in the job's state")
	// ErrRequestLost means that neither the job's record nor its message has the request.
	// Enqueuing the job again restores it.
	ErrRequestLost = errors.New("the job's request is lost")
)

// Record is a job as workers store it: a [Job] and what they need to continue it. In
// Redis it is one hash: the record as JSON, with state, attempt and term beside it for the
// compare-and-set. The record decides; a message in a queue only wakes a worker.
type Record struct {
	Job

	// KeyFingerprint identifies the API key of the last submit without revealing it; ""
	// before the first.
	KeyFingerprint string `json:"key_fingerprint,omitempty"`
	// Adopted is set if the task was found in the account's list after the reply to its
	// create was lost. Its output must match the request before it is stored.
	Adopted bool `json:"adopted,omitempty"`
	// Rejected are tasks that this attempt adopted and whose output did not match.
	Rejected []string `json:"rejected,omitempty"`
	// SpoolOwner is the ID of the worker whose spool has the images that are not in the
	// bucket yet, "" for none. After their links have expired that worker alone may give
	// up on them. See [Job.SpoolLocation].
	SpoolOwner string `json:"spool_owner,omitempty"`
	// Results are what DashScope reported for each image, until they are in the bucket.
	Results []Result `json:"results,omitempty"`
	// TaskImages are the images that DashScope charged for the task at TaskID, and
	// TaskMicroYuan is their price in millionths of a yuan; 0 until the task has succeeded.
	TaskImages    int   `json:"task_images,omitempty"`
	TaskMicroYuan int64 `json:"task_micro_yuan,omitempty"`
	// PriceMicroYuan is the most that the job may cost, in millionths of a yuan, as
	// [Limits] said when it was enqueued; 0 if they did not. It counts against the
	// producer's day until the job has ended.
	PriceMicroYuan int64 `json:"price_micro_yuan,omitempty"`

	// ServiceAt is the time of the last submit by DashScope's clock.
	ServiceAt time.Time `json:"service_at,omitzero"`
	// AmbiguousAt is when the outcome of the create became unknown, by DashScope's clock;
	// zero while it is known.
	AmbiguousAt time.Time `json:"ambiguous_at,omitzero"`
	// CutShort is set if the create's reply was not awaited to the end: the worker crashed,
	// stopped or lost the lane. DashScope may still be processing the request.
	CutShort bool `json:"cut_short,omitempty"`
	// RequestID is DashScope's ID of a create that it answered without a task.
	RequestID string `json:"request_id,omitempty"`
	// ListedAt is when, before the submit, the account's whole list had no task of the same
	// key without an owner; zero if that is not known.
	ListedAt time.Time `json:"listed_at,omitzero"`

	// SettledIntent is the intent of this attempt as JSON, if this write settles it without
	// a task: it is written to the lane's index of intents together with the record, and
	// is not part of it.
	SettledIntent []byte `json:"-"`
}

// NewRecord returns the record of a job that is enqueued now. The request must be
// normalized and have its ID.
func NewRecord(req Request, warnings []string) *Record {
	rec := &Record{Job: Job{
		ID: req.ID, State: StateQueued, Digest: req.Digest(), Model: req.Model, Priority: req.Priority, Warnings: warnings,
		EnqueuedAt: time.Now().UTC(),
	}}
	rec.copyRequestFields(&req)
	if req.NotBefore.After(rec.EnqueuedAt) {
		rec.State = StateScheduled
	}
	return rec
}

// ClearIntent resets the fields about the create of the current attempt.
func (r *Record) ClearIntent() {
	r.ServiceAt, r.AmbiguousAt, r.ListedAt = time.Time{}, time.Time{}, time.Time{}
	r.Candidates, r.Rejected, r.Adopted, r.RequestID, r.CutShort = nil, nil, false, "", false
}

// Result is what DashScope reported for one image: a URL that is valid until ExpiresAt,
// or a code and a message with the reason. N counts from 1.
type Result struct {
	N            int       `json:"n"`
	URL          string    `json:"url,omitempty"`
	ExpiresAt    time.Time `json:"expires_at,omitzero"`
	ActualPrompt string    `json:"actual_prompt,omitempty"`
	Code         string    `json:"code,omitempty"`
	Message      string    `json:"message,omitempty"`
}

func indexKey(state State) string { return rediskey.Index(string(state)) }

// Get returns a record. It fails with [ErrNotFound] if there is none, with [ErrCorrupt]
// if it cannot be read, or with Redis's own error.
func (s *Store) Get(ctx context.Context, id string) (*Record, error) {
	values, err := s.redis.HMGet(ctx, rediskey.Record(id), "record", "cancel").Result()
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		return nil, fmt.Errorf("read record of %s: %w: %w", id, ErrCorrupt, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read record of %s: %w", id, err)
	}
	encoded, ok := values[0].(string)
	if !ok {
		return nil, fmt.Errorf("read record of %s: %w", id, ErrNotFound)
	}
	cancel, _ := values[1].(string)
	return decodeRecord(id, encoded, cancel)
}

// decodeRecord decodes a record and the time of the cancel request beside it, "" for
// none.
func decodeRecord(id, encoded, cancel string) (*Record, error) {
	var rec Record
	err := json.Unmarshal([]byte(encoded), &rec)
	if err == nil && cancel != "" {
		rec.CancelRequestedAt, err = time.Parse(time.RFC3339Nano, cancel)
	}
	switch {
	case err != nil:
	case rec.ID != id:
		err = fmt.Errorf("it belongs to job %q", rec.ID)
	case !slices.Contains(States(), rec.State), rec.Attempt < 0:
		err = fmt.Errorf("it is from another version: state %q, attempt %d", rec.State, rec.Attempt)
	}
	if err != nil {
		return nil, fmt.Errorf("read record of %s: %w (%w)", id, ErrCorrupt, err)
	}
	return &rec, nil
}
