package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
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
	// ref is the staged name of a local reference image, "" if the line has none.
	ref string
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
		model: req.Model, images: req.N, deadline: req.Deadline, kind: &kind{}, ref: req.RefImg, request: &req,
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

// readBatch reads and checks a batch file for a command, and prints its warnings, each
// begun with a text.
func (p *program) readBatch(ctx context.Context, command, file, name string, cfg *config.Config, localImages bool, refs references, warning string) (*batchFile, error) {
	in, dir, name, err := p.openBatch(command, file, name)
	if err != nil {
		return nil, err
	}
	return p.readOpened(ctx, in, dir, name, cfg, localImages, refs, warning)
}

// readOpened is readBatch for an open file, which it closes. Paths in it are relative to dir.
func (p *program) readOpened(ctx context.Context, in *os.File, dir, name string, cfg *config.Config, localImages bool, refs references, warning string) (*batchFile, error) {
	defer in.Close() //nolint:errcheck // read only
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	source := input.Open(in, info.Size())
	staged := map[string]string{}
	known := func(stage func(string) (string, error)) func(string) (string, error) {
		return func(from string) (string, error) {
			if name, ok := staged[from]; ok { // the file may have changed since
				return name, nil
			}
			name, err := stage(from)
			if err == nil {
				staged[from] = name
			}
			return name, err
		}
	}
	s := &batchFile{name: name, unit: source.Unit, columns: source.Columns}
	s.options = jobs.BatchOptions{Name: name, Unit: source.Unit, Model: cfg.Models[0], Priority: jobs.PriorityBulk, Normalize: normalizeName, Resolve: known(refs.resolver(dir)), Stage: known(p.stager(ctx, refs))}
	if localImages {
		s.options.Fold = foldName
	}
	models := map[string]string{} // one string for all lines
	kinds := map[string]*kind{}
	var warnings []string
	options := s.options
	options.Each = func(l jobs.Line) {
		for _, w := range l.Warnings {
			warnings = append(warnings, fmt.Sprintf("warning: %s%s %d: %s", warning, source.Unit, l.Number, w))
		}
		model, ok := models[l.Request.Model]
		if !ok {
			model = l.Request.Model
			models[model] = model
		}
		later := !l.Request.NotBefore.IsZero()
		name := fmt.Sprint(model, l.Request.Priority, later)
		if kinds[name] == nil {
			kinds[name] = &kind{model: model, later: later}
		}
		kept := &line{file: s, number: l.Number, raw: l.Raw, id: l.ID, lineID: l.Request.LineID, digest: l.Digest, model: model, images: l.Request.N, deadline: l.Request.Deadline, kind: kinds[name]}
		if refs[l.Request.RefImg] != nil {
			kept.ref = l.Request.RefImg
		}
		s.lines = append(s.lines, kept)
	}
	_, err = jobs.ReadBatchLines(source.Lines(), options)
	var wrong *jobs.BatchError
	if err != nil && !errors.As(err, &wrong) {
		return nil, usageErrorf("give one JSON object a line, as in {\"prompt\": \"a cat\"}", "%w", err)
	}
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		p.stderrf("%s", w)
	}
	return s, nil
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
func enqueueGroup(ctx context.Context, rdb redis.UniversalClient, lines []*line) ([]enqueued, error) {
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
		if err == nil && !awaitsBudget(queued[i]) {
			list[i].job = queued[i]
			continue
		}
		group.Go(func() error { // each with its own error
			list[i].job, list[i].err = enqueueWithinBudget(ctx, rdb, req)
			return nil
		})
	}
	return list, group.Wait()
}
