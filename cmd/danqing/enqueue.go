package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

type enqueueFlags struct {
	requestFlags
	simulate, json bool
	name           string
	labels         map[string]string
	key            string
	notBefore      string
	deadline       string
	followUp       string
	budget         budgetFlag
}

func (p *program) enqueueCommand() *cobra.Command {
	var f enqueueFlags
	cmd := &cobra.Command{
		Use:   "enqueue [FILE...]",
		Short: "Put jobs on the queue",
		Long: `Enqueue puts one job, given by flags, or the jobs of JSON Lines files on the queue and
prints their IDs. It does not wait. It reads files as "danqing batch" does and gives the
same IDs; running it again queues nothing twice. All lines are checked before any is
queued. "-" reads standard input and needs --name.

The queue is the Redis at REDIS_URL, or that of the "danqing up" that runs on the
data directory. No API key is needed.`,
		Example: `  danqing enqueue --prompt "有一只黑色的小猫" --label sku=A-17
  danqing enqueue prompts.jsonl more.jsonl
  danqing enqueue prompts.jsonl --budget 20
  danqing enqueue --prompt "a cat" --key "order 17" --callback https://shop.example.com/hook
  danqing enqueue --prompt "a cat" --not-before 2h --deadline 2026-12-24T18:00:00+08:00
  danqing enqueue --prompt "a cat" --ref-img https://example.com/cat.png --stage --follow-up image:ready@shop
  danqing jobs wait $(danqing enqueue prompts.jsonl)`,
		RunE: func(cmd *cobra.Command, files []string) error {
			if given := f.given(cmd); len(files) > 0 && len(given) > 0 {
				return usage("write it into the lines (a key: as the line's id)", "%s is for one job, and files were given", strings.Join(given, ", "))
			}
			if len(files) != 1 && f.name != "" {
				return usage("name one file", "--name is for one file, %d were given", len(files))
			}
			if len(files) == 0 && f.budget != 0 {
				return usage("name a file", "--budget is for files, none was given")
			}
			if len(files) == 0 && f.request.Prompt == "" {
				return usage("as in: danqing enqueue prompts.jsonl, or: danqing enqueue --prompt \"a cat\"", "there is nothing to enqueue: neither a file nor --prompt was given")
			}
			return p.onQueue(cmd.Context(), f.simulate, func(ctx context.Context, q *jobQueue) error {
				e := &enqueuing{program: p, jobQueue: q, refs: references{}, json: f.json}
				if len(files) == 0 {
					return e.one(ctx, cmd, f)
				}
				return e.files(ctx, files, f)
			})
		},
	}
	f.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.request.Prompt, "prompt", "", "the prompt")
	flags.StringVar(&f.request.Priority, "priority", "", "critical, default or bulk")
	flags.StringToStringVar(&f.labels, "label", nil, "a label of your own, name=value; may be given several times")
	flags.StringVar(&f.request.RedoOf, "redo-of", "", "ID of the job to repeat with another seed")
	flags.StringVar(&f.key, "key", "", "idempotency key, any text: the same key is the same job")
	flags.StringVar(&f.notBefore, "not-before", "", "earliest submission: a time as in 2026-11-28T18:30:00+08:00, or a duration from now, as in 2h")
	flags.StringVar(&f.deadline, "deadline", "", "latest submission, given like --not-before; after it the job fails at no cost")
	flags.StringVar(&f.request.Callback, "callback", "", "URL that gets a signed POST when the job ends")
	flags.StringVar(&f.followUp, "follow-up", "", "TYPE or TYPE@QUEUE of your own asynq task, queued when the job ends")
	flags.BoolVar(&f.request.Stage, "stage", false, "copy the reference image at its URL into the bucket first")
	flags.StringVar(&f.name, "name", "", "the batch's name, which job IDs begin with (default: the file's name)")
	flags.Var(&f.budget, "budget", budgetUsage)
	flags.BoolVar(&f.simulate, "simulate", false, "use the queue of a simulated instance on this machine")
	flags.BoolVar(&f.json, "json", false, "print each job's record as a JSON line")
	return cmd
}

// enqueuing is one call of the command.
type enqueuing struct {
	*program
	*jobQueue
	refs references
	json bool
}

// delivery reads when the job is wanted, and who is told.
func (f *enqueueFlags) delivery(now time.Time) error {
	var err error
	if f.request.NotBefore, err = momentOrWhile(f.notBefore, now); err != nil {
		return usage("as in 2026-11-28T18:30:00+08:00 or 2h", "--not-before: %w", err)
	}
	if f.request.Deadline, err = momentOrWhile(f.deadline, now); err != nil {
		return usage("as in 2026-11-28T18:30:00+08:00 or 2h", "--deadline: %w", err)
	}
	if f.followUp != "" {
		kind, queue, _ := strings.Cut(f.followUp, "@")
		f.request.FollowUp = &jobs.FollowUp{Type: kind, Queue: queue}
	}
	if f.key == "" {
		return nil
	}
	if f.request.ID != "" {
		return usage("give one of them", "--id and --key both name the job")
	}
	f.request.ID = jobs.IdempotencyID("", f.key)
	return nil
}

// momentOrWhile reads a time, or one that is a while from now; "" is none.
func momentOrWhile(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(d).UTC(), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time with a zone nor a duration", text)
	}
	return at.UTC(), nil
}

func (e *enqueuing) one(ctx context.Context, cmd *cobra.Command, f enqueueFlags) error {
	f.request.Labels = f.labels
	if err := f.delivery(time.Now()); err != nil {
		return err
	}
	req, err := f.read(cmd, e.cfg.Models[0], e.refs)
	if err != nil {
		return err
	}
	req, warnings, err := req.Normalize()
	if err != nil {
		return err
	}
	if req.Stage && strings.Contains(req.RefImg, "://") {
		if req.RefImg, err = e.stager(ctx, e.refs)(req.RefImg); err != nil {
			return usage("name an image that is there for everybody, or leave --stage out", "%w", err)
		}
	}
	req.Stage = false
	for _, w := range warnings {
		e.say("warning: %s", w)
	}
	if req.ID == "" {
		req.ID = jobs.NewID()
	}
	return e.lines(ctx, nil, 0, []jobs.Line{{ID: req.ID, Digest: req.Digest(), Request: req}})
}

// files reads all files before it queues anything.
func (e *enqueuing) files(ctx context.Context, files []string, f enqueueFlags) error {
	var sheets []sheet
	var lines []jobs.Line
	var wrong []error
	for _, file := range files {
		batch, err := e.readBatch(ctx, file, f.name)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", file, err))
			continue
		}
		sheets = append(sheets, sheet{Batch: batch})
		for _, line := range batch.Lines {
			for _, w := range line.Warnings {
				e.say("warning: %s: line %d: %s", file, line.Number, w)
			}
		}
		lines = append(lines, batch.Lines...)
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	if err := sameName(sheets); err != nil {
		return err
	}
	return e.lines(ctx, sheets, f.budget, lines)
}

func (e *enqueuing) readBatch(ctx context.Context, file, name string) (*jobs.Batch, error) {
	in, dir := e.stdin, "."
	if file == "-" {
		if name == "" {
			return nil, usage("as in: danqing enqueue - --name cats", "standard input has no name: --name is missing")
		}
	} else {
		opened, err := os.Open(file) //nolint:gosec // the user's own file
		if err != nil {
			return nil, usage("name a file of JSON lines", "%w", err)
		}
		defer opened.Close() //nolint:errcheck // read only
		in, dir = opened, filepath.Dir(file)
		if name == "" {
			name = jobs.BatchName(file)
		}
	}
	batch, err := jobs.ReadBatch(in, jobs.BatchOptions{Name: name, Model: e.cfg.Models[0], Resolve: e.refs.resolver(dir), Stage: e.stager(ctx, e.refs)})
	var wrong *jobs.BatchError
	if err != nil && !errors.As(err, &wrong) {
		return nil, usage("give one JSON object a line, as in {\"prompt\": \"a cat\"}", "%w", err)
	}
	return batch, err
}

// lines queues jobs that are right in themselves, and bounds what the sheets that
// they are from may cost.
func (e *enqueuing) lines(ctx context.Context, sheets []sheet, budget budgetFlag, lines []jobs.Line) error {
	if err := e.checkIDs(ctx, lines); err != nil {
		return err
	}
	if err := e.stageAll(ctx); err != nil {
		return err
	}
	if err := e.warnOfLanes(ctx, lines); err != nil {
		return err
	}
	if err := setBudgets(ctx, ledger.New(e.rdb), sheets, budget); err != nil {
		return err
	}
	for i, line := range lines {
		rec, err := enqueueFunded(ctx, e.rdb, line.Request)
		if err != nil {
			if len(lines) > 1 {
				e.say("%d of %s are queued; the same command again queues the rest", i, count(len(lines), "job"))
				err = fmt.Errorf("line %d: %w", line.Number, err)
			}
			return err
		}
		if err := e.print(rec); err != nil {
			return err
		}
	}
	return nil
}

// checkIDs finds out before anything is queued whether an ID belongs to another
// request, and whether it is too late for a job that is not there yet.
func (e *enqueuing) checkIDs(ctx context.Context, lines []jobs.Line) error {
	taken := make([]error, len(lines))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookups)
	for i, line := range lines {
		group.Go(func() error {
			rec, err := e.jobs.Get(ctx, line.ID)
			switch {
			case errors.Is(err, jobs.ErrNotFound):
				taken[i] = line.Request.CheckDeadline(time.Now())
			case err != nil:
				return err
			case rec.Digest != line.Digest:
				taken[i] = fmt.Errorf("job %s: %w", line.ID, jobs.ErrDigestConflict)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	wrong := &jobs.BatchError{}
	for i, err := range taken {
		switch {
		case err != nil && lines[i].Number == 0:
			return err
		case err != nil:
			wrong.Lines = append(wrong.Lines, jobs.LineError{Number: lines[i].Number, Err: err})
		}
	}
	if len(wrong.Lines) > 0 {
		return wrong
	}
	return nil
}

// stageAll brings local reference images to where the workers find them.
func (e *enqueuing) stageAll(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookups)
	for _, ref := range e.refs {
		group.Go(func() error { return e.stage(ctx, ref) })
	}
	err := group.Wait()
	if errors.Is(err, errNoBucket) {
		return usage("set it, and what it needs, to the workers' bucket; or refer to images by URL", "the workers cannot read local files: %w", err)
	}
	return err
}

// warnOfLanes says which of the jobs nobody works at present.
func (e *enqueuing) warnOfLanes(ctx context.Context, lines []jobs.Line) error {
	lanes, err := e.lanes(ctx)
	if err != nil {
		return err
	}
	warned := map[string]bool{}
	for _, line := range lines {
		model := line.Request.Model
		if why := e.standstill(lanes, model); why != "" && !warned[model] {
			warned[model] = true
			e.say("warning: %s", why)
		}
	}
	return nil
}

func (e *enqueuing) print(rec *jobs.Job) error {
	if e.json {
		return printJSON(e.stdout, shown(rec))
	}
	_, err := fmt.Fprintln(e.stdout, rec.ID)
	return err
}

// shown is a job without what lets its owner speak to a callback.
func shown(rec *jobs.Job) *jobs.Job {
	next := *rec
	next.Callback = shownCallback(rec.Callback)
	if rec.Request != nil {
		next.Request = shownRequest(*rec.Request)
	}
	return &next
}

// shownRequest is a request without what lets its owner speak to its callback.
func shownRequest(req jobs.Request) *jobs.Request {
	req.Callback = shownCallback(req.Callback)
	return &req
}

// shownCallback is a callback without its query.
func shownCallback(link string) string {
	address, _, _ := strings.Cut(link, "?")
	return address
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
