package jobs

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// RecordLifetime is how long a record stays in Redis after the job's end. From
// then on the sidecar in the bucket answers.
const RecordLifetime = 7 * 24 * time.Hour

// Errors of the records.
var (
	// ErrNotFound means that Redis knows no such job. It may have ended more
	// than [RecordLifetime] ago: the sidecar in the bucket tells.
	ErrNotFound = errors.New("no such job")
	// ErrDamaged means that what Redis holds as the job's record is none: somebody else
	// has written there. Nothing is done for the job. To ask for it anew, delete the
	// key danqing:job:ID and enqueue it again: what was paid for is in the worker's
	// journal and in the bucket.
	ErrDamaged = errors.New("the job's record in Redis is damaged")
	// ErrConflict means that the record was changed by somebody else since it
	// was read: read it again and decide anew.
	ErrConflict = errors.New("the record changed meanwhile")
	// ErrDigestConflict means that the ID belongs to a job with another request.
	ErrDigestConflict = errors.New("this job ID belongs to another request")
	// ErrOver means that the job is over, so that what was asked for cannot be
	// done any more.
	ErrOver = errors.New("the job is over")
	// ErrState means that what was asked for cannot be done as the job stands; the
	// text says what can.
	ErrState = errors.New("not possible as the job stands")
	// ErrNoRequest means that neither the job's record nor its message tells what
	// was asked for. The producer that enqueues the job again brings it back.
	ErrNoRequest = errors.New("the job's request is lost")
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

	// Request is the normalised request with its seed; nil while the job waits,
	// when the message in the queue holds it.
	Request *Request `json:"request,omitempty"`
	Account string   `json:"account,omitempty"`
	// KeyMark tells apart the API keys of an account without showing any; it is the
	// submitting client's, "" before the first intent.
	KeyMark string `json:"key_mark,omitempty"`
	// Simulated marks a job whose task was made by the simulator.
	Simulated bool   `json:"simulated,omitempty"`
	TaskID    string `json:"task_id,omitempty"`
	// Adopted says that the task was found in the account's list after the reply to
	// its create was lost: whether it is this job's shows once more when it ends.
	Adopted bool `json:"adopted,omitempty"`
	// Candidates are tasks of which one may be a held job's. Their images are kept
	// under _held/ in the bucket.
	Candidates []string `json:"candidates,omitempty"`
	// SpoolHolder names the data directory whose spool has the images while they
	// are not in the bucket: once their links are dead its worker alone can tell
	// that there are none. SpoolPlace says where that is, for a person: host:path.
	SpoolHolder string `json:"spool_holder,omitempty"`
	SpoolPlace  string `json:"spool_place,omitempty"`
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

	// CancelRequestedAt is when a person asked to cancel the job while it had a
	// create on its way, or a task. The task is cancelled only if DashScope still
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
	// ServiceAt is the intent by the service's own clock, and DoubtAt when it became
	// unknown whether a task was made, by that clock too; zero while it is known.
	ServiceAt time.Time `json:"service_at,omitzero"`
	DoubtAt   time.Time `json:"doubt_at,omitzero"`
	// RequestID is the service's name of a create that it answered without a task.
	RequestID string `json:"request_id,omitempty"`
	// ListedAt is when, before the intent, the account's whole list had no task of
	// the same key that nobody owns; zero if that is not known.
	ListedAt    time.Time `json:"listed_at,omitzero"`
	GeneratedAt time.Time `json:"generated_at,omitzero"` // when its task was seen to have ended
	FinishedAt  time.Time `json:"finished_at,omitzero"`
	UpdatedAt   time.Time `json:"updated_at"`
}

// AsAsked is the request that the job's digest stands for: without the seed, if
// that was derived. The record must hold its request.
func (r *Record) AsAsked() Request {
	req := *r.Request
	if req.Seed = nil; req.Digest() == r.Digest {
		return req
	}
	return *r.Request
}

// closed reports whether an attempt is among the past ones; 0, before the first,
// always is.
func (r *Record) closed(attempt int) bool {
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

const (
	recordPrefix = "danqing:job:"
	// eventsChannel is where every change of a record is published.
	eventsChannel = "danqing:events"
)

// indexKey is the sorted set of the IDs of all jobs in a state, by the time of
// their last write in milliseconds.
func indexKey(state State) string { return "danqing:jobs:" + string(state) }

// swapScript writes a record if its (state, attempt, term) is what the caller
// read, moves it in the index of states, names the job as its task's owner, and says
// so, all as one command. An absent record reads as three empty strings. A task that
// was found, and is another job's, is not given to this one.
var swapScript = redis.NewScript(`
local cur = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'term', 'write')
if cur[4] == ARGV[11] then return 1 end
for i = 1, 3 do
  if (cur[i] or '') ~= ARGV[i] then return 0 end
end
if ARGV[16] == '1' then
  local owner = redis.call('HGET', KEYS[4], 'job')
  if owner and owner ~= ARGV[10] then return owner end
end
redis.call('HSET', KEYS[1], 'state', ARGV[4], 'attempt', ARGV[5], 'term', ARGV[6], 'record', ARGV[7], 'write', ARGV[11])
if ARGV[14] == '1' then redis.call('HDEL', KEYS[1], 'cancel') end
if KEYS[4] then
  redis.call('HSETNX', KEYS[4], 'job', ARGV[10])
  redis.call('EXPIRE', KEYS[4], ARGV[15])
end
if KEYS[2] ~= KEYS[3] then redis.call('ZREM', KEYS[2], ARGV[10]) end
redis.call('ZADD', KEYS[3], ARGV[12], ARGV[10])
if ARGV[8] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[8])
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[13])
else
  redis.call('PERSIST', KEYS[1])
end
redis.call('PUBLISH', ARGV[9], ARGV[10])
return 1
`)

// Swap replaces the record old by next, if it still has old's state, attempt
// and term; otherwise it fails with [ErrConflict]. A nil old means that there
// must be no record yet. It fails with [*TaskOwnedError] if next has Adopted
// a task, old had not, and it is another job's. It sets next.UpdatedAt.
func (c *Client) Swap(ctx context.Context, old, next *Record) error {
	return c.SwapAs(ctx, rand.Text(), old, next)
}

// SwapAs is [Client.Swap] under a name of the caller's: repeated with the same
// name, after an error that left open whether it was done, it is done once.
func (c *Client) SwapAs(ctx context.Context, write string, old, next *Record) error {
	return c.swap(ctx, write, old, next, false)
}

// swap is SwapAs; afresh takes back that somebody asked to cancel the job.
func (c *Client) swap(ctx context.Context, write string, old, next *Record, afresh bool) error {
	next.UpdatedAt = time.Now().UTC()
	expect, index := []any{"", "", ""}, indexKey(next.State)
	if old != nil {
		expect = []any{string(old.State), strconv.Itoa(old.Attempt), strconv.FormatInt(old.Term, 10)}
		index = indexKey(old.State)
	}
	if afresh {
		next.CancelRequestedAt = time.Time{}
	}
	found := next.Adopted && next.TaskID != "" && (old == nil || old.TaskID != next.TaskID)
	encoded, err := encodeJSON(next)
	if err != nil {
		return fmt.Errorf("write record of %s: %w", next.ID, err)
	}
	lifetime := time.Duration(0)
	if next.State.Final() {
		lifetime = RecordLifetime
	}
	args := append(expect, string(next.State), next.Attempt, next.Term, encoded, int(lifetime.Seconds()), eventsChannel, next.ID, write,
		next.UpdatedAt.UnixMilli(), forgottenBefore(next.UpdatedAt), afresh, int(bookedLifetime.Seconds()), found)
	keys := []string{recordPrefix + next.ID, index, indexKey(next.State)}
	if next.TaskID != "" {
		keys = append(keys, taskPrefix+next.TaskID)
	}
	swapped, err := swapScript.Run(ctx, c.redis, keys, args...).Result()
	if owner, owned := swapped.(string); owned {
		err = &TaskOwnedError{TaskID: next.TaskID, JobID: owner}
	}
	if err == nil && swapped == int64(0) {
		err = ErrConflict
	}
	if err != nil {
		return fmt.Errorf("write record of %s: %w", next.ID, err)
	}
	return nil
}

// forgottenBefore is the score below which a job that is over has left Redis.
func forgottenBefore(now time.Time) int64 { return now.Add(-RecordLifetime).UnixMilli() }

// Get reads a record. It fails with [ErrNotFound] if there is none, and with
// [ErrDamaged] if it cannot be read.
func (c *Client) Get(ctx context.Context, id string) (*Record, error) {
	values, err := c.redis.HMGet(ctx, recordPrefix+id, "record", "cancel").Result()
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
		err = fmt.Errorf("it is of job %q", rec.ID)
	case !slices.Contains(States(), rec.State), rec.Attempt < 0:
		err = fmt.Errorf("it is of another version: state %q, attempt %d", rec.State, rec.Attempt)
	}
	if err != nil {
		return nil, fmt.Errorf("read record of %s: %w (%w)", id, ErrDamaged, err)
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
