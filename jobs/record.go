package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// RecordLifetime is how long a record stays in Redis after the job's end. From
// then on the sidecar in the bucket answers.
const RecordLifetime = 7 * 24 * time.Hour

// Errors of the records.
var (
	// ErrNotFound means that Redis knows no such job. It may have ended more
	// than [RecordLifetime] ago: the sidecar in the bucket tells.
	ErrNotFound = errors.New("no such job")
	// ErrCorrupt means that what Redis holds as the job's record is none: somebody else
	// has written there. Nothing is done for the job. To ask for it anew, delete the
	// key danqing:job:ID and enqueue it again: what was paid for is in the worker's
	// journal and in the bucket.
	ErrCorrupt = errors.New("the job's record in Redis is corrupt")
	// ErrConflict means that the record was changed by somebody else since it
	// was read: read it again and decide anew.
	ErrConflict = errors.New("the record changed meanwhile")
	// ErrDigestConflict means that the ID belongs to a job with another request.
	ErrDigestConflict = errors.New("this job ID belongs to another request")
	// ErrFinished means that the job is over, so that what was asked for cannot be
	// done any more.
	ErrFinished = errors.New("the job is finished")
	// ErrInvalidState means that what was asked for cannot be done as the job stands; the
	// text says what can.
	ErrInvalidState = errors.New("not possible in the job's state")
	// ErrRequestLost means that neither the job's record nor its message tells what
	// was asked for. The producer that enqueues the job again brings it back.
	ErrRequestLost = errors.New("the job's request is lost")
)

// Record is a job's state in Redis: one hash that holds it as JSON, with state,
// attempt and term beside it for the compare-and-set. The record decides; a
// message in a queue only wakes a worker.
type Record struct {
	ID       string `json:"id"`
	State    State  `json:"state"`
	Digest   string `json:"digest"`
	Model    string `json:"model"`
	Priority string `json:"priority"`

	// Attempt counts the creates whose task, as far as is known, came to exist;
	// 1 for the first. Refusals that made no task do not count.
	Attempt int `json:"attempt"`
	// Term is the term of the lane that wrote last; 0 before the first intent.
	Term int64 `json:"term"`

	// Request is the normalized request with its seed; nil while the job waits,
	// when the message in the queue holds it.
	Request *Request `json:"request,omitempty"`
	Account string   `json:"account,omitempty"`
	// KeyFingerprint tells apart the API keys of an account without showing any; it is the
	// submitting client's, "" before the first intent.
	KeyFingerprint string `json:"key_fingerprint,omitempty"`
	// Simulated marks a job whose task was made by the simulator.
	Simulated bool   `json:"simulated,omitempty"`
	TaskID    string `json:"task_id,omitempty"`
	// Adopted says that the task was found in the account's list after the reply to
	// its create was lost: whether it is this job's shows once more when it ends.
	Adopted bool `json:"adopted,omitempty"`
	// Candidates are tasks of which one may be a held job's. Their images are kept
	// under _held/ in the bucket.
	Candidates []string `json:"candidates,omitempty"`
	// Rejected are tasks that this attempt has adopted, and that have made something
	// else than the job asks for.
	Rejected []string `json:"rejected,omitempty"`
	// SpoolOwner names the data directory whose spool has the images while they
	// are not in the bucket: once their links are dead its worker alone can tell
	// that there are none. SpoolLocation says where that is, for a person: host:path.
	SpoolOwner    string `json:"spool_owner,omitempty"`
	SpoolLocation string `json:"spool_location,omitempty"`
	// PastAttempts are those that ended without all the images that are wanted.
	PastAttempts []Attempt `json:"past_attempts,omitempty"`
	Results      []Result  `json:"results,omitempty"`
	Images       []Image   `json:"images,omitempty"`
	// CostMicroYuan is what DashScope charges for the job, in millionths of a
	// yuan: its price times the images it says it made.
	CostMicroYuan int64 `json:"cost_micro_yuan,omitempty"`
	// TaskImages are the images that the service charged for the task at TaskID, and
	// TaskMicroYuan their price; 0 until it has succeeded.
	TaskImages    int   `json:"task_images,omitempty"`
	TaskMicroYuan int64 `json:"task_micro_yuan,omitempty"`

	// Code and Message say why the job failed, waits or is held. Message is a
	// sentence for a person.
	Code     string   `json:"code,omitempty"`
	Message  string   `json:"message,omitempty"`
	Warnings []string `json:"warnings,omitempty"`

	// Labels and Batch are the request's, so that a job that waits is found by
	// them too.
	Labels map[string]string `json:"labels,omitempty"`
	Batch  string            `json:"batch,omitempty"`
	// Producer, NotBefore, Deadline, Callback and FollowUp are the request's too.
	Producer  string    `json:"producer,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	Deadline  time.Time `json:"deadline,omitzero"`
	Callback  string    `json:"callback,omitempty"`
	FollowUp  *FollowUp `json:"follow_up,omitempty"`
	// PriceMicroYuan is what the job may cost, in millionths of a yuan, by what
	// [Limits] said when it was accepted: it counts against its producer's day until
	// the job is over. 0 if nobody said.
	PriceMicroYuan int64 `json:"price_micro_yuan,omitempty"`

	// CancelRequestedAt is when a person asked to cancel the job while it had a
	// create on its way, or a task. The task is canceled only if DashScope still
	// has it PENDING; otherwise it is paid for, and its images are kept. It lies
	// beside the record, where no other write overwrites it, until the job is
	// retried or resolved.
	CancelRequestedAt time.Time `json:"cancel_requested_at,omitzero"`
	// RetriedAt is when a person asked for the job again after its end: a sidecar
	// that was written before does not answer for it any more.
	RetriedAt time.Time `json:"retried_at,omitzero"`
	// ResolvedAt is when a person decided what becomes of a hold: what a journal
	// says of the hold is older.
	ResolvedAt time.Time `json:"resolved_at,omitzero"`

	EnqueuedAt  time.Time `json:"enqueued_at"`
	SubmittedAt time.Time `json:"submitted_at,omitzero"` // the intent of this attempt
	// ServiceAt is the intent by the service's own clock, and AmbiguousAt when it became
	// unknown whether a task was made, by that clock too; zero while it is known.
	ServiceAt   time.Time `json:"service_at,omitzero"`
	AmbiguousAt time.Time `json:"ambiguous_at,omitzero"`
	// RequestID is the service's name of a create that it answered without a task.
	RequestID string `json:"request_id,omitempty"`
	// ListedAt is when, before the intent, the account's whole list had no task of
	// the same key that nobody owns; zero if that is not known.
	ListedAt time.Time `json:"listed_at,omitzero"`
	// RunningAt is when its task was first seen at work; zero while it waits at
	// DashScope, where it can be canceled.
	RunningAt   time.Time `json:"running_at,omitzero"`
	GeneratedAt time.Time `json:"generated_at,omitzero"` // when its task was seen to have ended
	FinishedAt  time.Time `json:"finished_at,omitzero"`
	UpdatedAt   time.Time `json:"updated_at"`
}

// OriginalRequest is the request that the job's digest stands for: without the seed, if
// that was derived. The record must hold its request.
func (r *Record) OriginalRequest() Request {
	req := *r.Request
	if req.Seed = nil; req.Digest() == r.Digest {
		return req
	}
	return *r.Request
}

// NewRecord is the record of a job that begins to wait now. The request must be
// normalized and have its ID.
func NewRecord(req Request, warnings []string) *Record {
	rec := &Record{
		ID: req.ID, State: StateQueued, Digest: req.Digest(), Model: req.Model, Priority: req.Priority, Warnings: warnings,
		EnqueuedAt: time.Now().UTC(),
	}
	rec.copyRequestFields(&req)
	if req.NotBefore.After(rec.EnqueuedAt) {
		rec.State = StateScheduled
	}
	return rec
}

// copyRequestFields copies what a record repeats of its request.
func (r *Record) copyRequestFields(req *Request) {
	r.Labels, r.Batch, r.Producer = req.Labels, req.Batch, req.Producer
	r.NotBefore, r.Deadline, r.Callback, r.FollowUp = req.NotBefore, req.Deadline, req.Callback, req.FollowUp
}

// Overdue reports whether the job has missed its deadline: nothing is bought for it
// any more.
func (r *Record) Overdue(now time.Time) bool {
	return r.State.Waiting() && !r.Deadline.IsZero() && !now.Before(r.Deadline)
}

// isPastAttempt reports whether an attempt is among the past ones; 0, before the first,
// always is.
func (r *Record) isPastAttempt(attempt int) bool {
	return attempt == 0 || slices.ContainsFunc(r.PastAttempts, func(a Attempt) bool { return a.Attempt == attempt })
}

// Attempt is a task that is over, without an image or without some.
type Attempt struct {
	Attempt     int       `json:"attempt"`
	Term        int64     `json:"term"`
	TaskID      string    `json:"task_id,omitempty"`
	SubmittedAt time.Time `json:"submitted_at"`
	EndedAt     time.Time `json:"ended_at"`
	// Images is how many of the job's images it made; 0 if it failed.
	Images  int    `json:"images,omitempty"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// Result is what DashScope answered for one image: a URL that dies at ExpiresAt,
// or the code and message of why there is none. N counts from 1.
type Result struct {
	N            int       `json:"n"`
	URL          string    `json:"url,omitempty"`
	ExpiresAt    time.Time `json:"expires_at,omitzero"`
	ActualPrompt string    `json:"actual_prompt,omitempty"`
	Code         string    `json:"code,omitempty"`
	Message      string    `json:"message,omitempty"`
}

// Image is one image of a job in the bucket, or the reason why it is not there.
type Image struct {
	N int `json:"n"`
	// Key is empty if the image is not in the bucket; Code and Message say why.
	Key         string `json:"key,omitempty"`
	Bytes       int64  `json:"bytes,omitempty"`
	SHA256      string `json:"sha256,omitempty"`
	Width       int    `json:"width,omitempty"`
	Height      int    `json:"height,omitempty"`
	ContentType string `json:"content_type,omitempty"`
	SourceName  string `json:"source_name,omitempty"`
	// ActualPrompt is what the model rewrote the prompt to, if it did.
	ActualPrompt string `json:"actual_prompt,omitempty"`
	// Seed is set if the image was made with another seed than its number has in
	// the request; see [Record.ImageSeed].
	Seed    *int64 `json:"seed,omitempty"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

func indexKey(state State) string { return rediskey.Index(string(state)) }

// Get reads a record. It fails with [ErrNotFound] if there is none, and with
// [ErrCorrupt] if it cannot be read.
func (c *Client) Get(ctx context.Context, id string) (*Record, error) {
	values, err := c.redis.HMGet(ctx, rediskey.Record(id), "record", "cancel").Result()
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

// decodeRecord reads a record and the moment beside it, "" if there is none.
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

// encodeJSON is compact JSON with < and > as they are: the web UI and people
// read it.
func encodeJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(buf.Bytes()), nil
}
