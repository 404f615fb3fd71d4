package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/cmd/danqing/input"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

type enqueueFlags struct {
	requestFlags
	inputFlags
	simulate, json bool
	name           string
	labels         map[string]string
	key            string
	notBefore      string
	deadline       string
	followUp       string
	budget         budgetFlag
	dryRun, yes    bool
}

func (p *program) enqueueCommand() *cobra.Command {
	var f enqueueFlags
	cmd := &cobra.Command{
		Use:   "enqueue [FILE...]",
		Short: "Put jobs on the queue",
		Long: `Enqueue puts one job, given by flags, or the jobs of files on the queue and prints their
IDs. It does not wait. It reads files as "danqing batch" does, with the same flags, and
gives the same IDs; running it again queues nothing twice. All lines are checked before any is
queued. "-" reads standard input and needs --name. On a terminal it asks before it queues
what may cost more than DANQING_CONFIRM_ABOVE (10 yuan).

The queue is the Redis at REDIS_URL, or that of the "danqing up" that runs on the
data directory. No API key is needed.`,
		Example: `  danqing enqueue --prompt "有一只黑色的小猫" --label sku=A-17
  danqing enqueue prompts.xlsx more.jsonl
  danqing enqueue prompts.jsonl --budget 20
  danqing enqueue --prompt "a cat" --key "order 17" --callback https://shop.example.com/hook
  danqing enqueue --prompt "a cat" --not-before 2h --deadline 2026-12-24T18:00:00+08:00
  danqing enqueue --prompt "a cat" --ref-img https://example.com/cat.png --stage --follow-up image:ready@shop
  danqing jobs wait $(danqing enqueue prompts.jsonl)`,
		RunE: func(cmd *cobra.Command, files []string) error {
			if given := givenFlags(cmd, strings.Fields("id priority label redo-of key not-before deadline callback follow-up stage")); len(files) > 0 && len(given) > 0 {
				return usageErrorf("write it into the lines (a key: as the line's id)", "%s is for one job, and files were given", strings.Join(given, ", "))
			}
			if given := givenFlags(cmd, inputFlagNames()); len(files) == 0 && len(given) > 0 {
				return usageErrorf("name a file", "%s is for files, none was given", strings.Join(given, ", "))
			}
			if len(files) != 1 && f.name != "" {
				return usageErrorf("name one file", "--name is for one file, %d were given", len(files))
			}
			if len(files) == 0 && f.budget != 0 {
				return usageErrorf("name a file", "--budget is for files, none was given")
			}
			if len(files) == 0 && f.request.Prompt == "" {
				return usageErrorf("as in: danqing enqueue prompts.jsonl, or: danqing enqueue --prompt \"a cat\"", "there is nothing to enqueue: neither a file nor --prompt was given")
			}
			return p.onQueue(cmd.Context(), f.simulate, func(ctx context.Context, q *jobQueue) error {
				e := &enqueuer{program: p, jobQueue: q, refs: references{}, json: f.json, dryRun: f.dryRun, yes: f.yes}
				if len(files) == 0 {
					return e.enqueueOne(ctx, cmd, f)
				}
				options, err := f.options(cmd, &f.requestFlags, f.request.Prompt)
				if err != nil {
					return err
				}
				return e.enqueueFiles(ctx, files, options, f)
			})
		},
	}
	f.requestFlags.register(cmd)
	f.inputFlags.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.request.Prompt, "prompt", "", "the prompt; with files a template over their columns, as in 'a {{.animal}}'")
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
	planFlags(cmd, &f.dryRun, &f.yes)
	return cmd
}

// enqueuer is one run of the enqueue command.
type enqueuer struct {
	*program
	*jobQueue
	refs references
	json bool
	// dryRun prints the plan alone, and yes asks nothing.
	dryRun, yes bool
}

// applyDelivery sets the request's times, ID and follow-up from the flags.
func (f *enqueueFlags) applyDelivery(now time.Time) error {
	var err error
	if f.request.NotBefore, err = parseTimeOrDuration(f.notBefore, now); err != nil {
		return usageErrorf("as in 2026-11-28T18:30:00+08:00 or 2h", "--not-before: %w", err)
	}
	if f.request.Deadline, err = parseTimeOrDuration(f.deadline, now); err != nil {
		return usageErrorf("as in 2026-11-28T18:30:00+08:00 or 2h", "--deadline: %w", err)
	}
	if f.followUp != "" {
		kind, queue, _ := strings.Cut(f.followUp, "@")
		f.request.FollowUp = &jobs.FollowUp{Type: kind, Queue: queue}
	}
	if f.key == "" {
		return nil
	}
	if f.request.ID != "" {
		return usageErrorf("give one of them", "--id and --key both name the job")
	}
	f.request.ID = jobs.IdempotencyID("", f.key)
	return nil
}

// parseTimeOrDuration parses a time, or a duration from now; "" is the zero time.
func parseTimeOrDuration(text string, now time.Time) (time.Time, error) {
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

func (e *enqueuer) enqueueOne(ctx context.Context, cmd *cobra.Command, f enqueueFlags) error {
	f.request.Labels = f.labels
	if err := f.applyDelivery(time.Now()); err != nil {
		return err
	}
	req, warnings, err := f.read(cmd, e.cfg.Models[0], e.refs)
	if err != nil {
		return err
	}
	req, problems := req.WithReferences(func(_, name string) (string, error) {
		if req.Stage && strings.Contains(name, "://") {
			return e.stager(ctx, e.refs)(req.Model, name)
		}
		return name, nil
	})
	for _, p := range problems {
		return usageErrorf("name an image that is there for everybody, or leave --stage out", "%w", p.Err)
	}
	req.Stage = false
	for _, w := range warnings {
		e.stderrf("warning: %s", w)
	}
	if req.ID == "" {
		req.ID = jobs.NewID()
	}
	return e.enqueueLines(ctx, []*batchFile{singleJob(0, req)}, 0)
}

// enqueueFiles reads all files before it enqueues anything.
func (e *enqueuer) enqueueFiles(ctx context.Context, files []string, options *input.Options, f enqueueFlags) error {
	var batchFiles []*batchFile
	var wrong []error
	for _, file := range files {
		reader := batchReader{command: "enqueue", options: options, cfg: e.cfg, localImages: e.localBucket != nil, refs: e.refs}
		s, err := e.readBatch(ctx, reader, file, f.name)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", file, err))
			continue
		}
		batchFiles = append(batchFiles, s)
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	if err := checkNames(batchFiles, e.localBucket != nil); err != nil {
		return err
	}
	return e.enqueueLines(ctx, batchFiles, f.budget)
}

// enqueueLines enqueues the lines of valid files, and sets the files' budgets.
func (e *enqueuer) enqueueLines(ctx context.Context, batchFiles []*batchFile, budget budgetFlag) error {
	var lines []*line
	for _, s := range batchFiles {
		lines = append(lines, s.lines...)
	}
	if err := e.checkIDs(ctx, lines); err != nil {
		return err
	}
	if err := e.announce(ctx, batchFiles, budget); err != nil || e.dryRun {
		return err
	}
	if err := e.stageAll(ctx); err != nil {
		return err
	}
	if err := e.warnIdleLanes(ctx, lines); err != nil {
		return err
	}
	if err := setBudgets(ctx, ledger.New(e.rdb), batchFiles, budget); err != nil {
		return err
	}
	done := 0
	for _, group := range groups(lines) {
		list, err := e.enqueueGroup(ctx, e.cfg, e.rdb, group)
		if err != nil {
			return err
		}
		for i, got := range list {
			if got.err != nil {
				if len(lines) > 1 {
					e.stderrf("%d of %s are queued; the same command again queues the rest", done, count(len(lines), "job"))
					return fmt.Errorf("%s: %w", group[i].position(), got.err)
				}
				return got.err
			}
			done++
			if err := e.print(got.job); err != nil {
				return err
			}
		}
	}
	return nil
}

// announce prints what will be made, and asks whether it may be if it is expensive.
func (e *enqueuer) announce(ctx context.Context, batchFiles []*batchFile, budget budgetFlag) error {
	from := &paces{cfg: e.cfg, simulated: e.simulated, queue: e.jobs}
	var err error
	if from.lanes, err = e.operator.Lanes(ctx); err != nil {
		return err
	}
	source := &dryRunSource{dataDirView: &dataDirView{local: e.localBucket}, redis: e.jobs, listed: map[string]bool{}}
	configured, err := e.bucket(ctx)
	switch {
	case errors.Is(err, errBucketMode): // it does not answer, and is not needed
		err = source.skip("what is finished already", err)
	case configured != nil:
		source.bucket = configured
	case e.localBucket != nil:
		source.bucket = e.localBucket
	}
	if err != nil {
		return err
	}
	r := &batchRun{program: e.program, files: batchFiles, progress: newProgress(e.stderr)}
	r.index()
	if err := r.lookUp(ctx, source, e.simulated); err != nil {
		return err
	}
	pl, err := planOf(batchFiles, r.counts(), budget, from.price, func(model string) (pace, error) { return from.of(ctx, model) })
	if err != nil {
		return err
	}
	pl.simulated = e.simulated
	switch {
	case e.dryRun:
		return e.printDryRun(pl, e.json, source.unchecked)
	case batchFiles[0].name != "": // one job needs no summary
		r.progress.printLine(pl.head())
		if err := pl.writeModels(e.stderr); err != nil {
			return err
		}
	}
	if pl.simulated {
		return nil
	}
	return e.confirmCost(ctx, e.cfg, pl.atMost, e.yes)
}

// checkIDs fails, before anything is queued, if an ID belongs to another request, or if the
// deadline of a new job has passed.
func (e *enqueuer) checkIDs(ctx context.Context, lines []*line) error {
	wrong := &jobs.BatchError{}
	now := time.Now()
	for _, group := range groups(lines) {
		list, err := e.jobs.GetAll(ctx, ids(group))
		if err != nil {
			return err
		}
		for i, rec := range list {
			var err error
			switch {
			case rec == nil:
				err = jobs.Request{Deadline: group[i].deadline}.CheckDeadline(now)
			case rec.Digest != group[i].digest:
				err = fmt.Errorf("job %s: %w", rec.ID, jobs.ErrDigestConflict)
			}
			switch {
			case err != nil && group[i].number == 0:
				return err
			case err != nil:
				wrong.Lines = append(wrong.Lines, jobs.LineError{Number: group[i].number, Unit: group[i].file.unit, Err: err})
			}
		}
	}
	if len(wrong.Lines) > 0 {
		return wrong
	}
	return nil
}

// stageAll stores local reference images where the workers can read them.
func (e *enqueuer) stageAll(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLookups)
	for _, ref := range e.refs {
		group.Go(func() error { return e.stage(ctx, ref) })
	}
	err := group.Wait()
	if errors.Is(err, errNoBucket) {
		return usageErrorf("set it, and what it needs, to the workers' bucket; or refer to images by URL", "the workers cannot read local files: %w", err)
	}
	return err
}

// warnIdleLanes warns about models that no worker serves at present.
func (e *enqueuer) warnIdleLanes(ctx context.Context, lines []*line) error {
	lanes, err := e.lanes(ctx)
	if err != nil {
		return err
	}
	warned := map[string]bool{}
	for _, l := range lines {
		model := l.model
		if warned[model] {
			continue
		}
		warned[model] = true
		if why := e.whyIdle(lanes, model); why != "" {
			e.stderrf("warning: %s", why)
		}
	}
	return nil
}

func (e *enqueuer) print(rec *jobs.Job) error {
	if e.json {
		return printJSON(e.stdout, redactRecord(rec))
	}
	_, err := fmt.Fprintln(e.stdout, rec.ID)
	return err
}

// redactRecord returns a record without the signed links of results, and without the query
// of its callback, which may contain a token.
func redactRecord(rec *jobs.Job) *jobs.Job {
	next := *rec
	next.Callback = redactCallback(rec.Callback)
	if rec.Request != nil {
		next.Request = redactRequest(*rec.Request)
	}
	return &next
}

// redactRequest returns a request without the query of its callback.
func redactRequest(req jobs.Request) *jobs.Request {
	req.Callback = redactCallback(req.Callback)
	return &req
}

// redactCallback returns a callback URL without its query.
func redactCallback(link string) string {
	address, _, _ := strings.Cut(link, "?")
	return address
}

func printJSON(out io.Writer, v any) error {
	line, err := compactjson.Marshal(v)
	if err != nil {
		return err
	}
	_, err = out.Write(append(line, '\n'))
	return err
}
