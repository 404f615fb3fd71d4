package jobs

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Job is a job as producers and operators see it.
type Job struct {
	ID       string `json:"id"`
	State    State  `json:"state"`
	Digest   string `json:"digest"` // see [Request.Digest]
	Model    string `json:"model"`
	Priority string `json:"priority"`

	// Attempt is the number of the last attempt, from 1; 0 before the first submit. A
	// submit that DashScope rejected is not an attempt.
	Attempt int `json:"attempt"`
	// Term is the term of the lane that wrote last; 0 before the first submit. Each worker
	// that acquires the lane begins a new term.
	Term int64 `json:"term"`
	// Request is the normalized request with its seed; nil while the job waits and the
	// message in the queue has it.
	Request *Request `json:"request,omitempty"`
	// Account is the account of the last submit, "" before the first.
	Account string `json:"account,omitempty"`
	// Simulated is set if the simulator created the job's task.
	Simulated bool `json:"simulated,omitempty"`
	// TaskID is DashScope's ID of the current attempt's task, "" while there is none.
	TaskID string `json:"task_id,omitempty"`
	// Candidates are tasks of which one may be a held job's. Their images are under _held/
	// in the bucket.
	Candidates []string `json:"candidates,omitempty"`
	// SpoolLocation is the data directory, as HOST:PATH, whose spool has the images that
	// are not in the bucket yet; "" if there are none.
	SpoolLocation string `json:"spool_location,omitempty"`
	// PastAttempts are the attempts that ended without all the images.
	PastAttempts []Attempt `json:"past_attempts,omitempty"`
	// Bucket is the name of the bucket that has the images with a Key; "" while there are
	// none.
	Bucket string `json:"bucket,omitempty"`
	// Images are the job's images in the order of their numbers: all of them once it has
	// succeeded, each in the bucket or with the reason why it is not.
	Images []Image `json:"images,omitempty"`
	// CostMicroYuan is what DashScope charges for the job, in millionths of a yuan: the
	// model's price times the images that it reports.
	CostMicroYuan int64 `json:"cost_micro_yuan,omitempty"`

	// Code and Message say why the job failed, is held or waits longer. The code is one of
	// the Code constants or DashScope's own; the message is a sentence for people.
	Code     string   `json:"code,omitempty"`
	Message  string   `json:"message,omitempty"`
	Warnings []string `json:"warnings,omitempty"`

	// Labels to FollowUp are the request's.
	Labels    map[string]string `json:"labels,omitempty"`
	Batch     string            `json:"batch,omitempty"`
	Producer  string            `json:"producer,omitempty"`
	NotBefore time.Time         `json:"not_before,omitzero"`
	Deadline  time.Time         `json:"deadline,omitzero"`
	Callback  string            `json:"callback,omitempty"`
	FollowUp  *FollowUp         `json:"follow_up,omitempty"`

	// CancelRequestedAt is when [Client.Cancel] was called for a job with a create on its
	// way or a task; zero if it was not. The task is canceled if DashScope still has it
	// PENDING; otherwise it is paid for, and its images are kept.
	CancelRequestedAt time.Time `json:"cancel_requested_at,omitzero"`
	// RetriedAt is when an operator last retried the job, ResolvedAt when one last resolved
	// a hold; zero if none did.
	RetriedAt  time.Time `json:"retried_at,omitzero"`
	ResolvedAt time.Time `json:"resolved_at,omitzero"`
	// BuyAgainAt is when an operator decided, without a queue, that a held job is to be bought
	// again; zero if none did. It stays held until it is enqueued again, as by the next run of
	// its batch.
	BuyAgainAt time.Time `json:"buy_again_at,omitzero"`

	// Decisions are what people decided about the job, the last 20 in the order in which they
	// were made.
	Decisions []Decision `json:"decisions,omitempty"`

	EnqueuedAt time.Time `json:"enqueued_at"`
	// StartedAt is when a task of the job was first seen RUNNING or to have ended, or the job
	// was held; zero before. Unlike RunningAt it is kept when the job is tried again.
	StartedAt time.Time `json:"started_at,omitzero"`
	// SubmittedAt is when the create of the last attempt was sent; in the state prepared, when the job
	// was prepared: its money is reserved on that day. RunningAt is when its task was first seen RUNNING,
	// GeneratedAt when it was first seen to have ended; zero before.
	SubmittedAt time.Time `json:"submitted_at,omitzero"`
	RunningAt   time.Time `json:"running_at,omitzero"`
	GeneratedAt time.Time `json:"generated_at,omitzero"`
	FinishedAt  time.Time `json:"finished_at,omitzero"` // the job's end; zero before
	UpdatedAt   time.Time `json:"updated_at"`           // the last write
}

// Attempt is an attempt that ended without all the images of its job.
type Attempt struct {
	Attempt     int       `json:"attempt"`
	Term        int64     `json:"term"` // of the lane that submitted it
	TaskID      string    `json:"task_id,omitempty"`
	SubmittedAt time.Time `json:"submitted_at"`
	EndedAt     time.Time `json:"ended_at"`
	// Images is how many of the job's images it created; 0 if it failed.
	Images  int    `json:"images,omitempty"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// Image is one image of a job: in the bucket, or with the reason why it is not.
type Image struct {
	N int `json:"n"` // from 1
	// Key is the image's whole key in [Job.Bucket]; "" if it is not in the bucket. Code and
	// Message then say why.
	Key string `json:"key,omitempty"`
	// Link is a permanent URL of the image, in a public bucket or at danqing serve; "" if
	// the worker that stored it has neither DANQING_S3_PUBLIC_URL nor DANQING_SERVE_URL. For
	// a job that was read from its sidecar, the settings of the reader decide.
	Link        string `json:"link,omitempty"`
	Bytes       int64  `json:"bytes,omitempty"`
	SHA256      string `json:"sha256,omitempty"` // in hex
	Width       int    `json:"width,omitempty"`  // in pixels
	Height      int    `json:"height,omitempty"`
	ContentType string `json:"content_type,omitempty"` // image/png, image/jpeg or image/webp
	// AILabel tells whether the image bears the implicit label of AI content that GB
	// 45438-2025 asks for: "present" or "absent"; "" if nobody has looked.
	AILabel    string `json:"ai_label,omitempty"`
	SourceName string `json:"source_name,omitempty"` // DashScope's file name
	// ActualPrompt is the prompt as the model rewrote it; "" if it did not.
	ActualPrompt string `json:"actual_prompt,omitempty"`
	// Seed is set if the image has another seed than the request gives to its number; see
	// [Job.ImageSeed].
	Seed    *int64 `json:"seed,omitempty"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// Format returns the format of a stored image: png, jpeg or webp.
func (i Image) Format() string {
	switch i.ContentType {
	case "image/jpeg", "image/webp":
		return strings.TrimPrefix(i.ContentType, "image/")
	}
	return "png"
}

// Extension returns the file name extension of the image's format, with its dot.
func (i Image) Extension() string {
	if format := i.Format(); format != "jpeg" {
		return "." + format
	}
	return ".jpg"
}

// OriginalRequest returns the request as it was enqueued: without the seed, if that was
// derived from the ID. Request must not be nil.
func (j *Job) OriginalRequest() Request {
	req := *j.Request
	if req.Seed = nil; req.Digest() == j.Digest {
		return req
	}
	return *j.Request
}

// Overdue reports whether the job waits and its deadline has passed at a time.
func (j *Job) Overdue(now time.Time) bool {
	return j.State.Waiting() && !j.Deadline.IsZero() && !now.Before(j.Deadline)
}

// AdoptedByOperator reports whether an operator has decided which task is the job's, and no other
// task was made for it since.
func (j *Job) AdoptedByOperator() bool {
	return !j.ResolvedAt.IsZero() && !j.ResolvedAt.Before(j.SubmittedAt)
}

// AwaitsBudget reports whether the job is held because its batch's budget has no room for it.
// Nothing was bought. It goes on when the batch is run again with a larger budget.
func (j *Job) AwaitsBudget() bool {
	return j.State == StateHeld && j.Code == CodeBudgetExceeded
}

// EventID identifies the end of a job: its ID, escaped as in a URL because it is sent in a
// header, a dot, and the end in Unix milliseconds. A job that is retried ends again, with
// another event ID. It is "" before the end.
func (j *Job) EventID() string {
	if !j.State.Final() {
		return ""
	}
	return url.PathEscape(j.ID) + "." + strconv.FormatInt(j.FinishedAt.UnixMilli(), 10)
}

// copyRequestFields copies the request's fields that a job has too.
func (j *Job) copyRequestFields(req *Request) {
	j.Labels, j.Batch, j.Producer = req.Labels, req.Batch, req.Producer
	j.NotBefore, j.Deadline, j.Callback, j.FollowUp = req.NotBefore, req.Deadline, req.Callback, req.FollowUp
}

// isPastAttempt reports whether an attempt is among the past ones; 0 always is.
func (j *Job) isPastAttempt(attempt int) bool {
	return attempt == 0 || slices.ContainsFunc(j.PastAttempts, func(a Attempt) bool { return a.Attempt == attempt })
}

// Retriable reports whether the job has ended and lacks images: see [Inspector.Retry].
func (j *Job) Retriable() bool {
	if j.State == StateSucceeded {
		return j.storedImages() > 0 && len(j.Missing()) > 0
	}
	return j.State.Final()
}

// wasAbandoned reports whether an operator gave the job up, or the images that it lacks.
func (j *Job) wasAbandoned() bool {
	return j.Code == CodeAbandoned || slices.ContainsFunc(j.Images, func(image Image) bool { return image.Code == CodeAbandoned })
}
