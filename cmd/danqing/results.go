package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// result is the value of "danqing" in a line of the results.
type result struct {
	JobID     string        `json:"job_id"`
	State     jobs.State    `json:"state"`
	Simulated bool          `json:"simulated,omitempty"`
	TaskID    string        `json:"task_id,omitempty"`
	Images    []resultImage `json:"images,omitempty"`
	CostYuan  float64       `json:"cost_yuan"`
	Code      string        `json:"code,omitempty"`
	Message   string        `json:"message,omitempty"`
	// FinishedAt and Digest, that of the request, are set if the job has ended.
	FinishedAt time.Time `json:"finished_at,omitzero"`
	Digest     string    `json:"digest,omitempty"`
}

// resultImage is one image, or the reason why it is missing. File is set with the embedded
// bucket, URL with any other.
type resultImage struct {
	N            int       `json:"n"`
	Key          string    `json:"key,omitempty"`
	File         string    `json:"file,omitempty"`
	URL          string    `json:"url,omitempty"`
	URLExpiresAt time.Time `json:"url_expires_at,omitzero"`
	Bytes        int64     `json:"bytes,omitempty"`
	SHA256       string    `json:"sha256,omitempty"`
	Width        int       `json:"width,omitempty"`
	Height       int       `json:"height,omitempty"`
	ContentType  string    `json:"content_type,omitempty"`
	AILabel      string    `json:"ai_label,omitempty"`
	Seed         int64     `json:"seed"`
	Code         string    `json:"code,omitempty"`
	Message      string    `json:"message,omitempty"`
}

// resultOf returns a job's result, without links to its images.
func resultOf(rec *jobs.Job) *result {
	out := &result{
		JobID: rec.ID, State: rec.State, Simulated: rec.Simulated, TaskID: rec.TaskID,
		CostYuan: float64(rec.CostMicroYuan) / 1e6, Code: rec.Code, Message: rec.Message,
	}
	if rec.State.Final() {
		out.FinishedAt, out.Digest = rec.FinishedAt, rec.Digest
	}
	for _, image := range rec.Images {
		out.Images = append(out.Images, imageOf(rec, image))
	}
	return out
}

// imageOf returns an image of a job without a link.
func imageOf(job *jobs.Job, image jobs.Image) resultImage {
	return resultImage{
		N: image.N, Key: image.Key, Bytes: image.Bytes, SHA256: image.SHA256, Width: image.Width, Height: image.Height,
		ContentType: image.ContentType, AILabel: image.AILabel, Seed: job.ImageSeed(image), Code: image.Code, Message: image.Message,
	}
}

func (r *batchRun) link(ctx context.Context, image *resultImage) (err error) {
	switch {
	case image.Key == "":
	case r.runtime.localBucket != nil:
		image.File = r.runtime.localBucket.Path(image.Key)
	default:
		image.URL, image.URLExpiresAt, err = r.runtime.bucket.Link(ctx, image.Key)
	}
	r.downloads.link(image)
	return err
}

// result returns a line's result, with links to its images. A job that no lane has taken yet
// is queued.
func (r *batchRun) result(ctx context.Context, l *line) (*result, error) {
	out := result{JobID: l.id, State: jobs.StateQueued}
	if l.result != nil {
		out = *l.result
	}
	out.Images = slices.Clone(out.Images) // links expire: they are not kept
	for i := range out.Images {
		if err := r.link(ctx, &out.Images[i]); err != nil {
			return nil, fmt.Errorf("result of job %s: %w", l.id, err)
		}
	}
	return &out, nil
}

func (r *batchRun) printResult(ctx context.Context, l *line) error {
	text, err := r.resultLine(ctx, l)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.progress.results(r.stdout), "%s\n", text)
	return err
}

// printSummary prints the outcome of the run.
func (r *batchRun) printSummary() {
	c := r.counts()
	text := fmt.Sprintf("%s in %s: %d done", count(c.total, "job"), time.Since(r.progress.startAt).Round(100*time.Millisecond), c.done)
	if c.finishedBefore == c.total {
		text = fmt.Sprintf("%s, all finished before: nothing was made again; %d done", count(c.total, "job"), c.done)
	}
	for _, part := range []struct {
		n    int
		what string
	}{{c.failed, "failed"}, {c.held, "held: an operator must decide"}, {c.awaitingBudget, "over budget: run again with a larger --budget"}, {c.left, "not finished: run the same command again"}} {
		if part.n > 0 {
			text += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	cost := " made for " + yuan(c.microYuan)
	if r.runtime.worker.Simulated() {
		cost = ", simulated: nothing was charged"
	}
	r.stderrf("%s; %s%s", text, count(c.images, "new image"), cost)
	for _, s := range r.files {
		if folder := s.imageFolder(); folder != "" && r.runtime.localBucket != nil {
			r.stderrf("images: %s", r.runtime.localBucket.Path(folder))
		}
		for _, f := range s.outputs {
			r.stderrf("results: %s", f.path)
		}
		if r.downloads != nil {
			r.stderrf("downloaded: %s", r.downloads.dir)
		}
		if r.gallery {
			r.stderrf("gallery: %s", galleryPath(s.results))
		}
	}
}

// imageFolder returns the folder of the batch's images in the bucket, or "" if they are in
// several, or there are none.
func (s *batchFile) imageFolder() string {
	folder := ""
	for _, l := range s.lines {
		if l.result == nil {
			continue
		}
		for _, image := range l.result.Images {
			switch dir := path.Dir(image.Key); {
			case image.Key == "" || dir == folder:
			case folder != "":
				return ""
			default:
				folder = dir
			}
		}
	}
	return folder
}
