package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/cmd/danqing/input"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
)

// groupSize is how many lines are looked up or enqueued together: enough to hide the latency
// of Redis, and few enough to stop between two groups at once.
const groupSize = 500

// line is what a command keeps of a line of a batch file, or of the one job that its flags
// describe. The request takes more memory than all of it: [batchFile.requests] parses it
// again.
type line struct {
	file               *batchFile
	number             int
	raw                []byte
	id, lineID, digest string
	model              string
	images             int // that were asked for
	deadline           time.Time
	kind               *kind
	// refs are the staged names of local reference images.
	refs []string
	// request is the request of a job that is described by flags, else nil.
	request *jobs.Request

	// queued is set if the job waits in a queue since an earlier command, and started if a lane
	// has begun with it: both were decided upon then.
	queued, started bool
	// enqueued is set once the job is on the queue.
	enqueued bool
	// settled is set when the job has ended or is held. result is its result then; before,
	// it is what is known of a job that a lane has taken, or nil.
	settled bool
	result  *result
}

// position names the line for people, as in "row 17".
func (l *line) position() string { return fmt.Sprintf("%s %d", l.file.unit, l.number) }

// kind is the lines that share a queue: those of one model and one priority, or those that
// are for later.
type kind struct {
	model string
	// waiting are the groups that are not enqueued yet, in order.
	waiting [][]*line
	// open is how many enqueued lines are not settled.
	open int
	// later is set if the lines have a NotBefore.
	later bool
}

// singleJob is a file with the one job that is described by flags. Its line has a number, or 0
// for errors that name none.
func singleJob(number int, req jobs.Request) *batchFile {
	s := &batchFile{unit: "line"}
	s.lines = []*line{{
		file: s, number: number, raw: []byte("{}"), id: req.ID, lineID: req.LineID, digest: req.Digest(),
		model: req.Model, images: req.N, deadline: req.Deadline, kind: &kind{}, refs: req.References(), request: &req,
	}}
	return s
}

// batchFile is a validated batch file.
type batchFile struct {
	name string
	// unit is what the numbers of its lines count: "line", or "row" of a table.
	unit string
	// columns are those of a table, in order; empty for any other file. The values are in
	// [line.raw], under their names.
	columns []input.Column
	lines   []*line
	results string // path of the results file
	// outputs are all files of results: that one, and others with the same lines.
	outputs []*resultsFile
	// begin, if set, is called before the first job is queued.
	begin func() error
	// options parse a line again.
	options jobs.BatchOptions
}

// The lines of a large file are in memory until the end. From largeFileLines on, the garbage
// collector may add half of that, and not as much again: 100,000 lines then take 160 MB instead
// of 220 (measured; it costs a twelfth of a core).
const (
	largeFileLines = 10_000
	largeFileGC    = 50
)

// batchReader is how a command reads files of jobs.
type batchReader struct {
	command     string
	options     *input.Options
	cfg         *config.Config
	localImages bool
	refs        references
}

// readBatch reads and checks a batch file, and prints how it was read, and its warnings.
func (p *program) readBatch(ctx context.Context, b batchReader, file, name string) (*batchFile, error) {
	in, dir, name, err := p.openBatch(b.command, file, name)
	if err != nil {
		return nil, err
	}
	return p.readOpened(ctx, b, in, file, dir, name)
}

// readOpened is readBatch for an open file, which it closes. Paths in it are relative to dir.
func (p *program) readOpened(ctx context.Context, b batchReader, in *os.File, file, dir, name string) (s *batchFile, err error) {
	defer in.Close() //nolint:errcheck // read only
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	options := beside(b.options, dir)
	source, err := input.Open(in, info.Size(), file, options)
	if err != nil {
		return nil, inputError(err)
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	s = &batchFile{name: name, unit: source.Unit, columns: source.Columns}
	s.options = jobs.BatchOptions{
		Name: name, Unit: source.Unit, Model: b.cfg.Models[0], Priority: jobs.PriorityBulk, Normalize: normalizeName,
		Resolve: stagedOnce(b.refs.resolver(dir)), Stage: stagedOnce(p.stager(ctx, b.refs)),
	}
	if b.localImages {
		s.options.Fold = foldName
	}
	var warnings []string
	collect := lineCollector{file: s, refs: b.refs, models: map[string]string{}, kinds: map[string]*kind{}}
	reading := s.options
	reading.Each = func(l jobs.Line) {
		for _, w := range l.Warnings {
			warnings = append(warnings, fmt.Sprintf("%s %d: %s", source.Unit, l.Number, w))
		}
		collect.add(l)
	}
	_, err = jobs.ReadBatchLines(source.Lines(), reading)
	if err == nil && len(options.Vary) > 0 {
		err = collect.repeated()
	}
	if err != nil {
		return nil, batchError(s, err, source.Headers)
	}
	for _, note := range source.Notes {
		p.stderrf("%s: %s", file, note)
	}
	for _, warning := range append(source.Warnings(), warnings...) {
		p.stderrf("warning: %s: %s", file, warning)
	}
	return s, nil
}

// batchError is the error of reading a batch file, in the words of its format.
func batchError(s *batchFile, err error, headers map[string]string) error {
	var wrong *jobs.BatchError
	switch {
	case errors.As(err, new(*input.Error)):
		return inputError(err)
	case !errors.As(err, &wrong):
		return usageErrorf("give it a line, as in {\"prompt\": \"a cat\"}, or a table with a column prompt (提示词)", "%w", err)
	case isNoJSON(s, wrong):
		return usageErrorf(`write one JSON object a line, as in {"prompt": "a cat"}; for a prompt a line: --format text; for a table: --format csv`, "no line of it is JSON: %w", wrong.Lines[0])
	}
	withHeaders(wrong, headers)
	return wrong
}

// stagedOnce remembers what was staged: a file may have changed since.
func stagedOnce(stage func(model, from string) (string, error)) func(model, from string) (string, error) {
	staged := map[[2]string]string{}
	return func(model, from string) (string, error) {
		if name, ok := staged[[2]string{model, from}]; ok {
			return name, nil
		}
		name, err := stage(model, from)
		if err == nil {
			staged[[2]string{model, from}] = name
		}
		return name, err
	}
}

// lineCollector makes the lines of a batch file.
type lineCollector struct {
	file   *batchFile
	refs   references
	models map[string]string // one string for all lines
	kinds  map[string]*kind
}

func (c *lineCollector) add(l jobs.Line) {
	model, ok := c.models[l.Request.Model]
	if !ok {
		model = l.Request.Model
		c.models[model] = model
	}
	later := !l.Request.NotBefore.IsZero()
	name := fmt.Sprint(model, l.Request.Priority, later)
	if c.kinds[name] == nil {
		c.kinds[name] = &kind{model: model, later: later}
	}
	kept := &line{file: c.file, number: l.Number, raw: l.Raw, id: l.ID, lineID: l.Request.LineID, digest: l.Digest, model: model, images: l.Request.N, deadline: l.Request.Deadline, kind: c.kinds[name]}
	for _, name := range l.Request.References() {
		if c.refs[name] != nil {
			kept.refs = append(kept.refs, name)
		}
	}
	c.file.lines = append(c.file.lines, kept)
	if len(c.file.lines) == largeFileLines {
		debug.SetGCPercent(largeFileGC)
	}
}

// repeated fails if variations of a line are the same request, as those of two names of a
// style are: it would be bought twice.
func (c *lineCollector) repeated() error {
	seen := map[string]bool{}
	for i, l := range c.file.lines {
		if i > 0 && l.number != c.file.lines[i-1].number {
			clear(seen)
		}
		if seen[l.digest] {
			return usageErrorf("leave one of the values out", "%s: two values of --vary ask for the same image", l.position())
		}
		seen[l.digest] = true
	}
	return nil
}

// groups splits lines into groups of one file, of at most groupSize.
func groups(lines []*line) [][]*line {
	var list [][]*line
	for i, l := range lines {
		if i == 0 || l.file != lines[i-1].file || len(list[len(list)-1]) == groupSize {
			list = append(list, nil)
		}
		list[len(list)-1] = append(list[len(list)-1], l)
	}
	return list
}

// requests parses a group of lines again.
func requests(lines []*line) ([]jobs.Request, error) {
	reqs := make([]jobs.Request, 0, len(lines))
	if lines[0].request != nil {
		for _, l := range lines {
			reqs = append(reqs, *l.request)
		}
		return reqs, nil
	}
	var text bytes.Buffer
	for _, l := range lines {
		text.Write(l.raw)
		text.WriteByte('\n')
	}
	options := lines[0].file.options
	options.Each = func(parsed jobs.Line) {
		l := lines[len(reqs)]
		req := parsed.Request
		req.ID, req.LineID = l.id, l.lineID // without an own id, it counts the equal lines of the whole file
		reqs = append(reqs, req)
	}
	if _, err := jobs.ReadBatch(&text, options); err != nil {
		return nil, fmt.Errorf("read %s to %s again: %w", lines[0].position(), lines[len(lines)-1].position(), err)
	}
	return reqs, nil
}

// idPrefix returns the longest text with which the job IDs of all lines begin.
func (s *batchFile) idPrefix() string {
	prefix := s.lines[0].id
	for _, l := range s.lines {
		n := 0
		for n < min(len(prefix), len(l.id)) && prefix[n] == l.id[n] {
			n++
		}
		prefix = prefix[:n]
	}
	return strings.ToValidUTF8(prefix, "") // a store need not accept half of a character
}

// ids returns the job IDs of lines.
func ids(lines []*line) []string {
	list := make([]string, len(lines))
	for i, l := range lines {
		list[i] = l.id
	}
	return list
}

// enqueued is the job of a line, or why it was not enqueued.
type enqueued struct {
	job     *jobs.Job
	request jobs.Request
	err     error
}

// enqueueGroup enqueues a group of lines. Jobs that are held because they exceeded an earlier
// run's budget are queued again: nothing was bought.
func (p *program) enqueueGroup(ctx context.Context, cfg *config.Config, rdb redis.UniversalClient, lines []*line) ([]enqueued, error) {
	reqs, err := requests(lines)
	if err != nil {
		return nil, err
	}
	list := make([]enqueued, len(lines))
	var group errgroup.Group
	group.SetLimit(maxLookups)
	queued, err := jobs.NewClient(rdb).EnqueueAll(ctx, reqs)
	for i, req := range reqs {
		list[i].request = req
		if err == nil && !madeAgain(queued[i]) {
			list[i].job = queued[i]
			continue
		}
		group.Go(func() error { // each with its own error
			list[i].job, list[i].err = p.enqueueWithinBudget(ctx, cfg, rdb, req)
			return nil
		})
	}
	return list, group.Wait()
}
