package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/journal"
)

// onJobs calls onQueue with the queue, or, if there is none, onFiles with a data directory that
// was used before.
func (p *program) onJobs(ctx context.Context, simulate bool, onQueue func(context.Context, *jobQueue) error, onFiles func(context.Context, *dataDirView) error) error {
	cfg, err := config.LoadWithFile(p.configFile, p.getenv, p.environ)
	if err != nil {
		return err
	}
	dir := cfg.DataDir
	if simulate {
		dir = simulatedDir(dir)
	}
	if _, err := readInstance(ctx, dir); cfg.RedisURL.IsSet() || !errors.Is(err, errNoInstance) {
		return p.onQueue(ctx, simulate, onQueue)
	}
	view, err := openView(cfg, simulate)
	if err != nil {
		return err
	}
	if view.mode == "" { // no worker has used it
		return p.onQueue(ctx, simulate, onQueue)
	}
	for _, w := range cfg.Warnings {
		p.stderrf("warning: %s", w)
	}
	if view.mode == jobs.ModeSimulated && !simulate {
		p.stderrf(simulatedNotice)
	}
	p.stderrf("no danqing up runs on %s: this is what its files tell", view.path)
	return p.untilSignal(ctx, nil, func(ctx context.Context) error { return onFiles(ctx, view) })
}

// open returns the jobs in the journal that are not finished, by ID.
func (v *dataDirView) open(ctx context.Context) (map[string]*jobs.Job, error) {
	open := map[string]*jobs.Job{}
	for _, e := range v.journal.OpenJobs() {
		if e.Record == nil {
			continue
		}
		finished, err := v.finished(ctx, e.JobID)
		if err != nil {
			return nil, err
		}
		if finished == nil || finished.Attempt < e.Attempt {
			job := e.Record.Job
			job.UpdatedAt = e.At
			open[e.JobID] = &job
		}
	}
	return open, nil
}

// finished reads a job from its sidecar, nil if it has none.
func (v *dataDirView) finished(ctx context.Context, id string) (*jobs.Job, error) {
	if v.bucket == nil {
		return nil, nil //nolint:nilnil // "not finished" is an answer
	}
	job, err := finishedJob(ctx, v.bucket, v.cfg.Serve.URL, id)
	if errors.Is(err, storage.ErrNotExist) {
		return nil, nil //nolint:nilnil // as above
	}
	return job, err
}

// listing is what a list of jobs tells.
type listing struct {
	// jobs are those of the filter, the last changed first, and more is set if there are others.
	jobs []*jobs.Job
	more bool
	// counts are the numbers of all jobs that are not finished, by state.
	counts map[jobs.State]int64
	// finished are the IDs of all that are.
	finished []string
}

// list returns the jobs of a filter.
func (v *dataDirView) list(ctx context.Context, filter jobs.ListFilter) (*listing, error) {
	open, err := v.open(ctx)
	if err != nil {
		return nil, err
	}
	l := &listing{counts: map[jobs.State]int64{}}
	if v.bucket != nil {
		prefix := filter.Batch
		if jobs.ValidID(prefix) != nil { // the IDs of its jobs have other characters
			prefix = ""
		}
		if l.finished, err = newestSidecars(ctx, v.bucket, prefix); err != nil {
			return nil, err
		}
	}
	known := map[string]bool{}
	for _, id := range l.finished {
		known[id] = true
	}
	l.finished = slices.DeleteFunc(l.finished, func(id string) bool { return open[id] != nil })
	for _, job := range append(v.notBegun(known, open), slices.Collect(maps.Values(open))...) {
		l.counts[job.State]++
		if filter.Matches(job) {
			l.jobs = append(l.jobs, job)
		}
	}
	if len(filter.States) == 0 || slices.ContainsFunc(filter.States, jobs.State.Final) {
		ended, err := v.readFinished(ctx, l.finished, filter)
		if err != nil {
			return nil, err
		}
		l.jobs = append(l.jobs, ended...)
	}
	slices.SortFunc(l.jobs, func(a, b *jobs.Job) int {
		return cmp.Or(b.UpdatedAt.Compare(a.UpdatedAt), cmp.Compare(a.ID, b.ID))
	})
	if l.more = len(l.jobs) > filter.Limit; l.more {
		l.jobs = l.jobs[:filter.Limit]
	}
	return l, nil
}

// readFinished reads sidecars, until one more than the limit match the filter.
func (v *dataDirView) readFinished(ctx context.Context, ids []string, filter jobs.ListFilter) (list []*jobs.Job, err error) {
	for page := range slices.Chunk(ids, 4*maxLookups) {
		var mu sync.Mutex
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(maxLookups)
		for _, id := range page {
			group.Go(func() error {
				job, err := v.finished(ctx, id)
				if errors.Is(err, storage.ErrUnreadable) {
					return nil // as in a list of the bucket
				}
				mu.Lock()
				defer mu.Unlock()
				if err == nil && job != nil && filter.Matches(job) {
					list = append(list, job)
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
		if len(list) > filter.Limit {
			break
		}
	}
	return list, nil
}

// notBegun returns the jobs that the results of batches have and that no run has submitted.
func (v *dataDirView) notBegun(finished map[string]bool, open map[string]*jobs.Job) []*jobs.Job {
	var list []*jobs.Job
	for name, batch := range readBatches(v.path) {
		file, err := os.Open(batch.Results)
		if err != nil { // it may have been moved
			continue
		}
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, maxResultLine)
		for lines.Scan() {
			var line struct {
				Model  string `json:"model"`
				Result result `json:"danqing"`
			}
			if json.Unmarshal(lines.Bytes(), &line) != nil || line.Result.JobID == "" || line.Result.State.Final() {
				continue
			}
			if id := line.Result.JobID; !finished[id] && open[id] == nil {
				job := &jobs.Job{ID: id, State: line.Result.State, Model: cmp.Or(line.Model, v.cfg.Models[0]), Batch: strings.TrimSuffix(name, redosOf), EnqueuedAt: batch.At, UpdatedAt: batch.At}
				if !job.State.Waiting() && job.State != jobs.StateHeld {
					job.State = jobs.StateQueued
				}
				if job.Code, job.Message = line.Result.Code, line.Result.Message; job.Message == "" {
					job.Message = "not submitted yet"
				}
				list = append(list, job)
			}
		}
		_ = file.Close() // read only
	}
	return list
}

// maxResultLine limits a line of results: a line of a batch file has 1 MiB, and as much for
// what became of it.
const maxResultLine = 2 << 20

// goOn returns what continues a job that is not finished, "" for one that is.
func (v *dataDirView) goOn(job *jobs.Job, batches map[string]startedBatch) string {
	name := batchOf(job)
	batch, known := batches[name+redosOf]
	if !known || !redoPattern.MatchString(job.ID) {
		batch, known = batches[name]
	}
	switch {
	case job.State.Final():
		return ""
	case job.State == jobs.StateHeld && job.BuyAgainAt.IsZero() && !job.AwaitsBudget():
		return "" // to be decided first
	case known:
		return batch.goOn()
	case name != "":
		return "danqing batch with the file of batch " + name
	}
	return "the same danqing generate with --id " + job.ID
}

// batchOf returns the name of a job's batch, "" if it has none.
func batchOf(job *jobs.Job) string {
	if job.Batch == "" && job.Request != nil {
		return job.Request.Batch
	}
	return job.Batch
}

// jobsOfFiles is jobs list on a data directory.
func (p *program) jobsOfFiles(ctx context.Context, v *dataDirView, filter jobs.ListFilter, asJSON bool) error {
	l, err := v.list(ctx, filter)
	if err != nil {
		return err
	}
	if asJSON {
		return p.printJobs(l.jobs, l.more)
	}
	if len(l.jobs) > 0 {
		if err := p.printJobsTable(l.jobs, l.more); err != nil {
			return err
		}
	}
	line := countsLine(l.counts)
	if n := len(l.finished); n > 0 {
		if line = fmt.Sprintf("%d finished", n); len(l.counts) > 0 {
			line += ", " + countsLine(l.counts)
		}
	}
	var text strings.Builder
	text.WriteString(line + "\n")
	batches := readBatches(v.path)
	for _, name := range slices.Sorted(maps.Keys(batches)) {
		if strings.HasSuffix(name, redosOf) { // its jobs are among those of the batch
			continue
		}
		done := 0
		for _, id := range l.finished {
			if strings.HasPrefix(id, name+".") && !redoPattern.MatchString(id) {
				done++
			}
		}
		if batch := batches[name]; done < batch.Jobs && (filter.Batch == "" || filter.Batch == name) {
			fmt.Fprintf(&text, "batch %s: %d of %d finished; to go on: %s\n", name, done, batch.Jobs, batch.goOn())
		}
	}
	for _, job := range l.jobs {
		if next := v.goOn(job, batches); next != "" && (batchOf(job) == "" || redoPattern.MatchString(job.ID)) {
			fmt.Fprintf(&text, "job %s: to go on: %s\n", job.ID, next)
		}
	}
	_, err = fmt.Fprint(p.stdout, terminal.Wrap(text.String(), terminal.Width(p.stdout), "  "))
	return err
}

// reportOfFiles is the report of a job on a data directory.
func (v *dataDirView) reportOfFiles(ctx context.Context, id string) (*jobReport, error) {
	if err := validIDs([]string{id}); err != nil {
		return nil, err
	}
	open, err := v.open(ctx)
	if err != nil {
		return nil, err
	}
	job := open[id]
	if job == nil {
		if job, err = v.finished(ctx, id); err != nil {
			return nil, err
		}
	}
	if job == nil {
		all := v.notBegun(nil, nil)
		if at := slices.IndexFunc(all, func(j *jobs.Job) bool { return j.ID == id }); at >= 0 {
			job = all[at]
		}
	}
	if job == nil {
		return nil, fmt.Errorf("job %s: %w", id, jobs.ErrNotFound)
	}
	s := &jobReport{Job: redactRecord(job), GoOn: v.goOn(job, readBatches(v.path))}
	q := &jobQueue{localBucket: v.local}
	remote, _ := v.bucket.(*storage.Bucket)
	s.Links, err = q.imagesWithLinks(ctx, remote, s.Job)
	return s, err
}

// resolveInFiles decides about held jobs of a data directory that no process uses.
func (p *program) resolveInFiles(ctx context.Context, v *dataDirView, f *jobsFlags, b *bulkFlags, action bulkAction, ids []string, decision jobs.Resolution) (err error) {
	by, err := p.decider(v.cfg, b.by)
	if err != nil {
		return err
	}
	if len(ids) == 0 || b.dryRun {
		if ids, err = p.chooseInFiles(ctx, v, f, b, action, ids); ids == nil || err != nil {
			return err
		}
	}
	dir, err := journal.OpenDataDir(v.path)
	if err != nil {
		return err
	}
	rt := &runtime{cfg: v.cfg, log: slog.New(slog.DiscardHandler), metrics: newMetrics(), dataPath: v.path}
	rt.closers = append(rt.closers, dir)
	memory := queue.Open()
	rt.closers = append(rt.closers, memory)
	defer func() { err = errors.Join(err, rt.Close()) }()
	if err := rt.openBucket(dir, f.simulate); err != nil {
		return err
	}
	offline := &worker.Offline{DataDir: dir, Bucket: rt.bucket, Redis: memory.Client()}
	resolve := func(ctx context.Context, id string) (*jobs.Job, error) {
		job, err := offline.Resolve(ctx, id, decision, by)
		if err == nil {
			if next := v.goOn(job, readBatches(v.path)); next != "" {
				p.stderrf("%s: it takes effect with: %s", id, next)
			}
		}
		return job, err
	}
	if b.isSet() {
		return p.actOn(ctx, ids, 1, action.verb, f.json, resolve)
	}
	return p.eachOf(ids, f.json, func(id string) (*jobs.Job, error) { return resolve(ctx, id) })
}

// chooseInFiles returns the held jobs of a data directory that are selected, or the named ones;
// nil if nothing is to be done.
func (p *program) chooseInFiles(ctx context.Context, v *dataDirView, f *jobsFlags, b *bulkFlags, action bulkAction, ids []string) ([]string, error) {
	filter := b.ListFilter
	filter.Limit = math.MaxInt
	held, err := v.list(ctx, filter)
	if err != nil {
		return nil, err
	}
	c, now := &chosen{seen: map[string]time.Time{}, images: map[string]int{}, simulated: f.simulate}, time.Now()
	for _, job := range held.jobs {
		if len(ids) > 0 && !slices.Contains(ids, job.ID) {
			continue
		}
		if err := c.add(ctx, nil, action, job, (&paces{cfg: v.cfg}).price, now); err != nil {
			return nil, err
		}
	}
	if run, err := p.confirmBulk(ctx, c, f, b, action); !run || err != nil {
		return nil, err
	}
	return c.ids, nil
}
