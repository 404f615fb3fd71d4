package recorder

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/storage"
)

// SidecarOf returns the sidecar of a finished job.
func SidecarOf(rec *jobs.Record) (*storage.Sidecar, error) {
	side := &storage.Sidecar{
		JobID: rec.ID, Digest: rec.Digest, State: string(rec.State), Simulated: rec.Simulated, Account: rec.Account,
		Model: rec.Model, Priority: rec.Priority,
		CreatedAt: rec.EnqueuedAt, SubmittedAt: rec.SubmittedAt, FinishedAt: rec.FinishedAt,
		CostMicroYuan: rec.CostMicroYuan, Code: rec.Code, Message: rec.Message, Warnings: rec.Warnings,
		Attempts: []storage.SidecarAttempt{}, Images: []storage.SidecarImage{},
	}
	if req := rec.Request; req != nil {
		kept := *req
		kept.Callback = "" // the URL may be a credential
		encoded, err := compactjson.Marshal(kept)
		if err != nil {
			return nil, fmt.Errorf("sidecar of %s: %w", rec.ID, err)
		}
		side.Request, side.Labels, side.RedoOf, side.Batch = encoded, req.Labels, req.RedoOf, req.Batch
		if req.Seed != nil {
			side.Seed = *req.Seed
		}
	}
	for _, d := range rec.Decisions {
		side.Decisions = append(side.Decisions, storage.SidecarDecision(d))
	}
	for _, a := range rec.PastAttempts {
		outcome := jobs.StateFailed
		if a.Images > 0 {
			outcome = jobs.StateSucceeded
		}
		side.Attempts = append(side.Attempts, storage.SidecarAttempt{
			Attempt: a.Attempt, Term: a.Term, TaskID: a.TaskID, SubmittedAt: a.SubmittedAt, EndedAt: a.EndedAt,
			Outcome: string(outcome), Images: a.Images, Code: a.Code, Message: a.Message,
		})
	}
	if rec.Attempt > len(rec.PastAttempts) {
		side.Attempts = append(side.Attempts, storage.SidecarAttempt{
			Attempt: rec.Attempt, Term: rec.Term, TaskID: rec.TaskID, SubmittedAt: rec.SubmittedAt, EndedAt: rec.GeneratedAt,
			Outcome: string(rec.State), Code: rec.Code, Message: rec.Message,
		})
	}
	for _, image := range rec.Images {
		state := storage.ImageStored
		if image.Key == "" {
			state = storage.ImageFailed
		}
		side.Images = append(side.Images, storage.SidecarImage{
			N: image.N, State: state, Key: image.Key, Bytes: image.Bytes, SHA256: image.SHA256,
			Width: image.Width, Height: image.Height, ContentType: image.ContentType, AILabel: image.AILabel, SourceName: image.SourceName,
			Seed: rec.ImageSeed(image), ActualPrompt: image.ActualPrompt, Code: image.Code, Message: image.Message,
		})
	}
	return side, nil
}

// RecordOf rebuilds a job's record from its sidecar. It lacks the links, which have
// expired, and what only the queue stores. It fails with [storage.ErrUnreadable] if the
// request is corrupt.
func RecordOf(side *storage.Sidecar) (*jobs.Record, error) {
	rec := &jobs.Record{Job: jobs.Job{
		ID: side.JobID, Digest: side.Digest, State: jobs.State(side.State), Simulated: side.Simulated, Account: side.Account,
		Model: side.Model, Priority: side.Priority, TaskID: side.TaskID(), Batch: side.Batch, Labels: side.Labels,
		EnqueuedAt: side.CreatedAt, SubmittedAt: side.SubmittedAt, FinishedAt: side.FinishedAt, UpdatedAt: side.FinishedAt,
		CostMicroYuan: side.CostMicroYuan, Code: side.Code, Message: side.Message, Warnings: side.Warnings,
	}}
	if at := side.PrunedAt; !at.IsZero() {
		rec.Warnings = append(slices.Clip(rec.Warnings), "images deleted by prune on "+at.Format(time.DateOnly))
	}
	if len(side.Request) > 0 {
		rec.Request = &jobs.Request{}
		if err := json.Unmarshal(side.Request, rec.Request); err != nil {
			return nil, fmt.Errorf("sidecar of %s: request: %w: %w", side.JobID, storage.ErrUnreadable, err)
		}
		rec.Producer, rec.NotBefore, rec.Deadline, rec.FollowUp = rec.Request.Producer, rec.Request.NotBefore, rec.Request.Deadline, rec.Request.FollowUp
	}
	for _, d := range side.Decisions {
		rec.Decisions = append(rec.Decisions, jobs.Decision(d))
	}
	for i, a := range side.Attempts {
		rec.Attempt, rec.Term = a.Attempt, a.Term
		if i == len(side.Attempts)-1 && a.Outcome == side.State && a.Code == side.Code {
			rec.TaskID, rec.GeneratedAt = a.TaskID, a.EndedAt
			break
		}
		rec.PastAttempts = append(rec.PastAttempts, jobs.Attempt{
			Attempt: a.Attempt, Term: a.Term, TaskID: a.TaskID, SubmittedAt: a.SubmittedAt, EndedAt: a.EndedAt, Images: a.Images,
			Code: a.Code, Message: a.Message,
		})
	}
	for _, image := range side.Images {
		read := jobs.Image{
			N: image.N, Key: image.Key, Bytes: image.Bytes, SHA256: image.SHA256, Width: image.Width, Height: image.Height,
			ContentType: image.ContentType, AILabel: image.AILabel, SourceName: image.SourceName, ActualPrompt: image.ActualPrompt,
			Code: image.Code, Message: image.Message,
		}
		if image.Seed != rec.ImageSeed(read) && image.Key != "" {
			read.Seed = &image.Seed
		}
		rec.Images = append(rec.Images, read)
	}
	return rec, nil
}
