package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/compactjson"
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
// Redis it is one hash, see [storedRecord]. The record decides; a message in a queue only
// wakes a worker.
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
	// SentLater is set if the create was prepared at SubmittedAt, and is not known to have been
	// sent: if it was, then at any time until AmbiguousAt.
	SentLater bool `json:"sent_later,omitempty"`
	// Dataset is the ID of the Redis dataset in which a job was prepared. If Redis may have
	// lost data since then, the create may have been sent.
	Dataset string `json:"dataset,omitempty"`
	// TaskSeed is the seed of the task's first image if the task makes some of the job's images,
	// nil if it makes all: those have the seeds of the request.
	TaskSeed *int64 `json:"task_seed,omitempty"`
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
	r.Candidates, r.Rejected, r.Adopted, r.RequestID, r.CutShort, r.SentLater, r.Dataset = nil, nil, false, "", false, false, ""
	r.TaskSeed = nil
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

// storedRecord is the JSON of a record in Redis. It lacks what stands beside it in the hash:
// state, attempt and term, for the compare-and-set; digest, queue and enqueued, so that a job
// that waits needs no JSON at all, unless it has labels or the like. Redis stores a hash
// without a value of more than 64 bytes in a third of the memory.
type storedRecord struct {
	*Record
	ID         string    `json:"id,omitempty"`
	State      State     `json:"state,omitempty"`
	Attempt    int       `json:"attempt,omitempty"`
	Term       int64     `json:"term,omitempty"`
	Digest     string    `json:"digest,omitempty"`
	Model      string    `json:"model,omitempty"`
	Priority   string    `json:"priority,omitempty"`
	EnqueuedAt time.Time `json:"enqueued_at,omitzero"`
	// UpdatedAt is that of the record, if it is not EnqueuedAt.
	UpdatedAt time.Time `json:"updated_at,omitzero"`
}

// encodeRecord returns the JSON of a record in Redis, "" for none.
func encodeRecord(rec *Record) (string, error) {
	stored := storedRecord{Record: rec}
	if !rec.UpdatedAt.Equal(rec.EnqueuedAt) {
		stored.UpdatedAt = rec.UpdatedAt
	}
	encoded, err := compactjson.Marshal(stored)
	if err != nil || string(encoded) == "{}" {
		return "", err
	}
	return string(encoded), nil
}

// storedFields returns the fields of a record in Redis, in the order of decodeRecord.
func storedFields() []string {
	return []string{"record", "cancel", "state", "attempt", "term", "digest", "queue", "enqueued"}
}

// luaStoredFields are storedFields as arguments in a script.
var luaStoredFields = "'" + strings.Join(storedFields(), "', '") + "'"

// Get returns a record. It fails with [ErrNotFound] if there is none, with [ErrCorrupt]
// if it cannot be read, or with Redis's own error.
func (s *Store) Get(ctx context.Context, id string) (*Record, error) {
	values, err := s.redis.HMGet(ctx, rediskey.Record(id), storedFields()...).Result()
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		return nil, fmt.Errorf("read record of %s: %w: %w", id, ErrCorrupt, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read record of %s: %w", id, err)
	}
	fields := make([]string, len(values))
	for i, value := range values {
		fields[i], _ = value.(string) // or nil
	}
	if !recordExists(fields) {
		return nil, fmt.Errorf("read record of %s: %w", id, ErrNotFound)
	}
	return decodeRecord(id, fields)
}

// recordExists reports whether any of storedFields exists.
func recordExists(fields []string) bool { return strings.Join(fields, "") != "" }

// decodeRecord decodes the values of storedFields, "" for those that do not exist.
func decodeRecord(id string, fields []string) (*Record, error) {
	encoded, cancel, queue, enqueued := fields[0], fields[1], fields[6], fields[7]
	rec := Record{Job: Job{ID: id, State: State(fields[2]), Digest: fields[5]}}
	if at := strings.LastIndexByte(queue, ':'); at >= 0 {
		rec.Model, rec.Priority = queue[:at], queue[at+1:]
	}
	var errs [6]error
	if fields[3] != "" {
		rec.Attempt, errs[0] = strconv.Atoi(fields[3])
	}
	if fields[4] != "" {
		rec.Term, errs[1] = strconv.ParseInt(fields[4], 10, 64)
	}
	if enqueued != "" {
		rec.EnqueuedAt, errs[2] = time.Parse(time.RFC3339Nano, enqueued)
	}
	if encoded != "" {
		errs[3] = json.Unmarshal([]byte(encoded), &rec)
	}
	if rec.UpdatedAt.IsZero() {
		rec.UpdatedAt = rec.EnqueuedAt
	}
	if cancel != "" {
		var made Decision
		errs[4] = json.Unmarshal([]byte(cancel), &made)
		rec.CancelRequestedAt = made.At
		rec.Decide(made)
	}
	switch {
	case rec.ID != id:
		errs[5] = fmt.Errorf("it belongs to job %q", rec.ID)
	case !slices.Contains(States(), rec.State), rec.Attempt < 0:
		errs[5] = fmt.Errorf("it is from another version: state %q, attempt %d", rec.State, rec.Attempt)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("read record of %s: %w (%w)", id, ErrCorrupt, err)
	}
	return &rec, nil
}
