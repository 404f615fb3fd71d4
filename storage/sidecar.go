package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/aws/smithy-go"
)

// maxSidecarBytes limits the size of a sidecar: a thousand times the usual size.
const maxSidecarBytes = 4 << 20

// States of a SidecarImage.
const (
	ImageStored = "stored" // in the bucket under Key
	ImageFailed = "failed" // no image; Code and Message give the reason
)

// Sidecar is the permanent record of a finished job, including failed ones:
// PREFIX/_jobs/JOB_ID.json, indented JSON in UTF-8. It is written after the
// images, so its presence means that the job is finished.
//
// Fields are only ever added: an existing field keeps its name and meaning, and a
// reader ignores unknown fields.
type Sidecar struct {
	JobID     string `json:"job_id"`
	Digest    string `json:"digest"`    // SHA-256 of the canonical request, hex
	State     string `json:"state"`     // succeeded, failed or canceled
	Simulated bool   `json:"simulated"` // made by the simulator; never accepted as the result of a real run
	Account   string `json:"account"`   // name of the account that paid
	Model     string `json:"model"`
	// Request is the job's original request.
	Request  json.RawMessage   `json:"request,omitempty"`
	Batch    string            `json:"batch,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Priority string            `json:"priority,omitempty"`
	Seed     int64             `json:"seed"` // of the first task; image n has Seed + n - 1 unless a later attempt made it
	RedoOf   string            `json:"redo_of,omitempty"`

	Attempts    []SidecarAttempt `json:"attempts"`
	CreatedAt   time.Time        `json:"created_at,omitzero"`
	SubmittedAt time.Time        `json:"submitted_at,omitzero"` // of the last attempt
	FinishedAt  time.Time        `json:"finished_at,omitzero"`
	// CostMicroYuan is the cost of all attempts, in millionths of a yuan.
	CostMicroYuan int64 `json:"cost_micro_yuan"`

	Images []SidecarImage `json:"images"`
	// Code and Message give the reason why the whole job failed.
	Code     string   `json:"code,omitempty"`
	Message  string   `json:"message,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Decisions are what people decided about the job.
	Decisions []SidecarDecision `json:"decisions,omitempty"`
	// PrunedAt is when the images were deleted on request; zero if they were not.
	PrunedAt time.Time `json:"pruned_at,omitzero"`
}

// SidecarAttempt is one submission of the job to DashScope: it created one task, or
// none if the request was refused.
type SidecarAttempt struct {
	Attempt     int       `json:"attempt"` // from 1
	Term        int64     `json:"term"`    // of the lane's lease
	TaskID      string    `json:"task_id,omitempty"`
	RequestID   string    `json:"request_id,omitempty"`
	SubmittedAt time.Time `json:"submitted_at,omitzero"`
	EndedAt     time.Time `json:"ended_at,omitzero"`
	Outcome     string    `json:"outcome,omitempty"` // outcome, in the worker's vocabulary
	Images      int       `json:"images,omitempty"`  // how many images it made; only of attempts before the last
	Code        string    `json:"code,omitempty"`    // DashScope's
	Message     string    `json:"message,omitempty"`
}

// SidecarDecision is what a person decided about the job.
type SidecarDecision struct {
	Action string    `json:"action"`        // retry, cancel, adopt, buy-again or give-up
	By     string    `json:"by,omitempty"`  // a user or the name of a token
	Why    string    `json:"why,omitempty"` // the reason that was given
	At     time.Time `json:"at"`
}

// SidecarImage is one image, or the reason why it is missing.
type SidecarImage struct {
	N            int    `json:"n"`     // from 1
	State        string `json:"state"` // ImageStored or ImageFailed
	Key          string `json:"key,omitempty"`
	Bytes        int64  `json:"bytes,omitempty"`
	SHA256       string `json:"sha256,omitempty"` // hex
	Width        int    `json:"width,omitempty"`  // pixels
	Height       int    `json:"height,omitempty"`
	ContentType  string `json:"content_type,omitempty"`
	AILabel      string `json:"ai_label,omitempty"`    // AILabelPresent or AILabelAbsent; "" if nobody has looked
	SourceName   string `json:"source_name,omitempty"` // file name at DashScope
	Seed         int64  `json:"seed"`
	ActualPrompt string `json:"actual_prompt,omitempty"` // as rewritten by the model
	Code         string `json:"code,omitempty"`
	Message      string `json:"message,omitempty"`
}

// TaskID returns the task of the last attempt that created one, or "" if none did.
func (s *Sidecar) TaskID() string {
	for _, a := range slices.Backward(s.Attempts) {
		if a.TaskID != "" {
			return a.TaskID
		}
	}
	return ""
}

// ErrUnreadable means that the sidecar object exists but is damaged or belongs to
// another job. An operator must repair or delete it.
var ErrUnreadable = errors.New("unreadable sidecar")

// Sidecar returns the sidecar of a job. It fails with [ErrNotExist] if the bucket
// has none, and with [ErrUnreadable] if the object is damaged. After any other
// error it is unknown whether there is one.
func (b *Bucket) Sidecar(ctx context.Context, jobID string) (*Sidecar, error) {
	if err := checkJobID(jobID); err != nil {
		return nil, err
	}
	body, _, err := b.Get(ctx, b.sidecarKey(jobID))
	// The embedded bucket answers so if the file is damaged, or if it is that of a key which the
	// disk cannot tell apart.
	if answer := smithy.APIError(nil); errors.As(err, &answer) && (answer.ErrorCode() == "BadDigest" || answer.ErrorCode() == "InvalidArgument") {
		return nil, fmt.Errorf("read %s: %w: %s", b.sidecarKey(jobID), ErrUnreadable, answer.ErrorMessage())
	}
	if err != nil {
		return nil, err
	}
	defer body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(io.LimitReader(body, maxSidecarBytes))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", b.sidecarKey(jobID), err)
	}
	var s Sidecar
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", b.sidecarKey(jobID), ErrUnreadable, err)
	}
	if s.JobID != jobID {
		return nil, fmt.Errorf("read %s: %w: it belongs to job %q", b.sidecarKey(jobID), ErrUnreadable, s.JobID)
	}
	return &s, nil
}

// PutSidecar stores s, verified like an image, and replaces an existing one. The
// images in it must be stored before.
func (b *Bucket) PutSidecar(ctx context.Context, s *Sidecar) error {
	if err := checkJobID(s.JobID); err != nil {
		return err
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // for readability
	enc.SetIndent("", "  ")
	if err := enc.Encode(s); err != nil {
		return fmt.Errorf("sidecar of job %s: %w", s.JobID, err)
	}
	return b.putBytes(ctx, b.sidecarKey(s.JobID), text.Bytes(), "application/json; charset=utf-8", nil)
}
