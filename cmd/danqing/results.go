package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// result is what a results line says under "danqing".
type result struct {
	JobID     string        `json:"job_id"`
	State     jobs.State    `json:"state"`
	Simulated bool          `json:"simulated,omitempty"`
	TaskID    string        `json:"task_id,omitempty"`
	Images    []resultImage `json:"images,omitempty"`
	CostYuan  float64       `json:"cost_yuan"`
	Code      string        `json:"code,omitempty"`
	Message   string        `json:"message,omitempty"`
}

// resultImage is one image, or why there is none. File is set with the embedded
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
	Seed         int64     `json:"seed"`
	Code         string    `json:"code,omitempty"`
	Message      string    `json:"message,omitempty"`
}

// result tells a job, with a link to each image.
func (r *run) result(ctx context.Context, rec *jobs.Job) (result, error) {
	out := result{
		JobID: rec.ID, State: rec.State, Simulated: rec.Simulated, TaskID: rec.TaskID,
		CostYuan: float64(rec.CostMicroYuan) / 1e6, Code: rec.Code, Message: rec.Message,
	}
	for _, image := range rec.Images {
		shown := resultImage{
			N: image.N, Key: image.Key, Bytes: image.Bytes, SHA256: image.SHA256, Width: image.Width, Height: image.Height,
			Seed: rec.ImageSeed(image), Code: image.Code, Message: image.Message,
		}
		if err := r.link(ctx, &shown); err != nil {
			return result{}, err
		}
		out.Images = append(out.Images, shown)
	}
	return out, nil
}

func (r *run) link(ctx context.Context, image *resultImage) (err error) {
	switch {
	case image.Key == "":
	case r.engine.files != nil:
		image.File = r.engine.files.Path(image.Key)
	default:
		image.URL, image.URLExpiresAt, err = r.engine.bucket.Link(ctx, image.Key)
	}
	return err
}

// resultLine is the line as given with what became of it.
func (r *run) resultLine(ctx context.Context, line jobs.Line, rec *jobs.Job) ([]byte, error) {
	out, err := r.result(ctx, rec)
	if err != nil {
		return nil, fmt.Errorf("result of job %s: %w", rec.ID, err)
	}
	return line.Result(out)
}

func (r *run) printResult(ctx context.Context, line jobs.Line, rec *jobs.Job) error {
	text, err := r.resultLine(ctx, line, rec)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.stdout, "%s\n", text)
	return err
}

// writeResults writes every line of the sheet once, in its order, in place of an
// earlier results file: whole, or not at all.
func (r *run) writeResults(s sheet) (err error) {
	next, err := os.CreateTemp(filepath.Dir(s.results), "."+filepath.Base(s.results)+"-*")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	defer os.Remove(next.Name()) //nolint:errcheck // it is gone after the rename
	out := bufio.NewWriter(next)
	for _, line := range s.Lines {
		text, err := r.resultLine(context.Background(), line, r.records[line.ID])
		if err != nil {
			return err
		}
		_, _ = out.Write(append(text, '\n')) // its error stays until Flush
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write results %s: %w", s.results, err)
	}
	if err := next.Chmod(0o644); err != nil {
		return fmt.Errorf("write results %s: %w", s.results, err)
	}
	if err := next.Close(); err != nil {
		return fmt.Errorf("write results %s: %w", s.results, err)
	}
	if err := os.Rename(next.Name(), s.results); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// checkResults finds out before anything is spent whether results can be written
// at path, and that nothing but an older results file is lost there.
func checkResults(path, input string) error {
	const hint = "name another file with --results"
	if info, err := os.Stat(path); err == nil {
		if !info.Mode().IsRegular() {
			return usage(hint, "results %s: not a regular file", path)
		}
		if in, err := os.Stat(input); err == nil && os.SameFile(in, info) && resultsPath(input, "", false) != path && resultsPath(input, "", true) != path {
			return usage(hint, "results %s: that is the batch file itself", path)
		}
	}
	if err := checkFolder(path); err != nil {
		return usage(hint, "results: %w", err)
	}
	return nil
}

// checkFolder finds out whether a file can be made beside path.
func checkFolder(path string) error {
	probe, err := os.CreateTemp(filepath.Dir(path), ".danqing-*")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// announce says what will be done and what it can cost, before it is done.
func (r *run) announce() {
	var atMost int64
	for _, line := range r.open {
		atMost += r.engine.price(line.Request)
	}
	text := fmt.Sprintf("%s: %d finished already, %d to make, %s at most", count(len(r.lines), "job"), len(r.before), len(r.open), yuan(atMost))
	if r.engine.worker.Simulated() {
		text += " (simulated: nothing is charged)"
	}
	text += "; data in " + r.engine.path
	r.progress.line(text)
}

// summary says what came of it.
func (r *run) summary() {
	c := r.counts()
	text := fmt.Sprintf("%s in %s: %d done", count(c.total, "job"), time.Since(r.progress.startAt).Round(100*time.Millisecond), c.done)
	if c.before == c.total {
		text = fmt.Sprintf("%s, all finished before: nothing was made again; %d done", count(c.total, "job"), c.done)
	}
	for _, part := range []struct {
		n    int
		what string
	}{{c.failed, "failed"}, {c.held, "held: an operator must decide"}, {c.unfunded, "over budget: run again with a larger --budget"}, {c.left, "not finished: run the same command again"}} {
		if part.n > 0 {
			text += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	r.say("%s; %s made for %s", text, count(c.images, "new image"), yuan(c.microYuan))
	if r.engine.files != nil {
		r.say("images: %s", filepath.Dir(r.engine.files.Path("x")))
	}
	for _, s := range r.sheets {
		r.say("results: %s", s.results)
	}
}
