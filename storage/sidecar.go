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
)

// maxSidecarBytes bounds what is read of a sidecar: a thousand times the usual.
const maxSidecarBytes = 4 << 20

// States of a SidecarImage.
const (
	ImageStored = "stored" // it is in the bucket under Key
	ImageFailed = "failed" // there is none; Code and Message say why
)

// Sidecar is the permanent record of a job that is over, for failed jobs too:
// PREFIX/_jobs/JOB_ID.json, indented JSON in UTF-8. It is written after the
// images, so that its presence means that the job is over.
//
// The format only ever grows: a field, once there, keeps its name and meaning,
// and a reader ignores what it does not know.
type Sidecar struct {
	JobID     string `json:"job_id"`
	Digest    string `json:"digest"`    // SHA-256 of the canonical request, hex
	State     string `json:"state"`     // succeeded, failed or canceled
	Simulated bool   `json:"simulated"` // made by the simulator: never an answer to a real run
	Account   string `json:"account"`   // name of the account that paid
	Model     string `json:"model"`
	// Request is the job's request as it was asked for.
	Request  json.RawMessage   `json:"request,omitempty"`
	Batch    string            `json:"batch,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Priority string            `json:"priority,omitempty"`
	Seed     int64             `json:"seed"` // as first sent; image n has Seed + n - 1 unless it was bought later
	RedoOf   string            `json:"redo_of,omitempty"`

	Attempts    []SidecarAttempt `json:"attempts"`
	CreatedAt   time.Time        `json:"created_at,omitzero"`
	SubmittedAt time.Time        `json:"submitted_at,omitzero"` // of the last attempt
	FinishedAt  time.Time        `json:"finished_at,omitzero"`
	// CostMicroYuan is what all attempts cost, in millionths of a yuan.
	CostMicroYuan int64 `json:"cost_micro_yuan"`

	Images []SidecarImage `json:"images"`
	// Code and Message say why the job failed as a whole.
	Code     string   `json:"code,omitempty"`
	Message  string   `json:"message,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// SidecarAttempt is one try to have the job made: one task, or none if it was
// refused.
type SidecarAttempt struct {
	Attempt     int       `json:"attempt"` // from 1
	Term        int64     `json:"term"`    // of the lane's holder
	TaskID      string    `json:"task_id,omitempty"`
	RequestID   string    `json:"request_id,omitempty"`
	SubmittedAt time.Time `json:"submitted_at,omitzero"`
	EndedAt     time.Time `json:"ended_at,omitzero"`
	Verdict     string    `json:"verdict,omitempty"` // how it ended, in the worker's words
	Images      int       `json:"images,omitempty"`  // how many it made, of an attempt that another followed
	Code        string    `json:"code,omitempty"`    // DashScope's
	Message     string    `json:"message,omitempty"`
}

// SidecarImage is one image, or why there is none.
type SidecarImage struct {
	N            int    `json:"n"`     // from 1
	State        string `json:"state"` // ImageStored or ImageFailed
	Key          string `json:"key,omitempty"`
	Bytes        int64  `json:"bytes,omitempty"`
	SHA256       string `json:"sha256,omitempty"` // hex
	Width        int    `json:"width,omitempty"`  // pixels
	Height       int    `json:"height,omitempty"`
	ContentType  string `json:"content_type,omitempty"`
	SourceName   string `json:"source_name,omitempty"` // file name at DashScope
	Seed         int64  `json:"seed"`
	ActualPrompt string `json:"actual_prompt,omitempty"` // as rewritten by the model
	Code         string `json:"code,omitempty"`
	Message      string `json:"message,omitempty"`
}

// TaskID returns the task that made the job: that of the last attempt that had
// one, or "" if none had.
func (s *Sidecar) TaskID() string {
	for _, a := range slices.Backward(s.Attempts) {
		if a.TaskID != "" {
			return a.TaskID
		}
	}
	return ""
}

// ErrUnreadable means that an object is there but is no sidecar of that job: move
// it away, or repair it.
var ErrUnreadable = errors.New("unreadable sidecar")

// Sidecar returns the sidecar of a job, or [ErrNotExist] if the bucket says
// that there is none, and fails with [ErrUnreadable] if what is there is damaged;
// any other error leaves open whether there is one.
func (b *Bucket) Sidecar(ctx context.Context, jobID string) (*Sidecar, error) {
	if err := checkJobID(jobID); err != nil {
		return nil, err
	}
	body, _, err := b.Get(ctx, b.sidecarKey(jobID))
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
		return nil, fmt.Errorf("read %s: %w: it is of job %q", b.sidecarKey(jobID), ErrUnreadable, s.JobID)
	}
	return &s, nil
}

// PutSidecar stores s, verified like an image, in place of one that is there.
// The images that it names must be stored before.
func (b *Bucket) PutSidecar(ctx context.Context, s *Sidecar) error {
	if err := checkJobID(s.JobID); err != nil {
		return err
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // people read it
	enc.SetIndent("", "  ")
	if err := enc.Encode(s); err != nil {
		return fmt.Errorf("sidecar of job %s: %w", s.JobID, err)
	}
	return b.putBytes(ctx, b.sidecarKey(s.JobID), text.Bytes(), "application/json; charset=utf-8", nil)
}
