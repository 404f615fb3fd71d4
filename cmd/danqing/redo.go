package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/input"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

func (p *program) redoCommand() *cobra.Command {
	var f fileFlags
	cmd := &cobra.Command{
		Use:   "redo FILE ID...",
		Short: "Make new images of some lines of a batch file, beside the old ones",
		Long: `Redo makes the images of lines of a batch file again, each with a new seed. The new ones
are jobs of the same batch, as in A-017-redo-1, beside the old ones, which stay. ID is the
id of a line, or its job's.

It keeps its lines in FILE.redo.results.jsonl, which is a batch file too. Interrupted or
killed, the same command continues and buys nothing twice; once the redo has ended, it
makes the next one.`,
		Example: `  danqing redo prompts.jsonl A-017 A-023
  danqing redo prompts.jsonl A-017 --simulate
  danqing redo prompts.jsonl 有一只黑色的小猫-e75ac4d3f6ac`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if f.options, err = f.inputFlags.options(cmd, &f.requestFlags, f.Prompt); err != nil {
				return err
			}
			return p.redo(cmd.Context(), args[0], args[1:], f)
		},
	}
	p.runFlags(cmd, &f.batchFlags)
	p.addBatchFlags(cmd, &f.batchFlags)
	f.registerFileFlags(cmd)
	return cmd
}

// redoRound is the lines that one redo command makes: those that an earlier one has not
// finished, and new ones. Its file is replaced only once all of them have ended, so that a
// command that is repeated before finds them, and makes no others.
type redoRound struct {
	path string
	// ended are the lines of earlier rounds with their results, and open those of this one, as
	// in the file; jobs are those of the open ones.
	ended, open [][]byte
	jobs        []string
	// ids are the job IDs of all of them, and of those of the batch file.
	ids map[string]bool
	// again are the jobs that open lines make again.
	again map[string]bool
}

func (p *program) redo(ctx context.Context, file string, names []string, f fileFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if file == "-" {
		return usageErrorf("save it in a file first", "redo needs a batch file, not standard input")
	}
	refs := references{}
	reader := batchReader{command: "redo", options: f.options, cfg: cfg, localImages: f.makesFiles(cfg), refs: refs}
	original, err := p.readBatch(ctx, reader, file, f.name)
	if err != nil {
		return inFile([]string{file}, err)
	}
	lines, err := original.pick(names)
	if err != nil {
		return err
	}
	round, err := readRound(redoPath(file, f.simulate))
	if err != nil {
		return err
	}
	if n := len(round.open); n > 0 {
		p.stderrf("continuing %s of an earlier redo: %s", count(n, "line"), round.path)
	}
	for _, l := range original.lines {
		round.ids[l.id] = true
	}
	exists, err := sidecarExists(ctx, cfg, f.simulate)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if err := round.add(l, exists); err != nil {
			return err
		}
	}
	s, err := p.readRoundLines(ctx, reader, round, filepath.Dir(file), original)
	if err != nil {
		return fmt.Errorf("%s: %w", round.path, err)
	}
	return p.runBatch(ctx, []string{round.path}, []*batchFile{s}, f.batchFlags, cfg, refs)
}

// redoPath is the path of the redos of a batch file.
func redoPath(file string, simulate bool) string {
	base := filepath.Join(filepath.Dir(file), jobs.BatchName(file)+".redo")
	return resultsPath(base+".jsonl", "", simulate)
}

// otherRedos returns the lines of other redos in the results file of lines that a gallery has
// exported: that file is the one of the redo command too, which goes on with those that have not
// ended.
func otherRedos(s *batchFile) (head []byte) {
	own := map[string]bool{}
	for _, l := range s.lines {
		own[l.id] = true
	}
	for text, result := range resultLines(s.results) {
		if !own[result.JobID] {
			head = append(append(head, text...), '\n')
		}
	}
	return head
}

// pick returns the lines with these ids, or these jobs.
func (s *batchFile) pick(names []string) ([]*line, error) {
	byName := map[string]*line{}
	for _, l := range s.lines {
		byName[l.id] = l
	}
	for _, l := range s.lines { // a line's id goes before another one's job
		byName[l.lineID] = l
	}
	var lines []*line
	var unknown []string
	for _, name := range names {
		l := byName[normalizeName(strings.TrimSpace(name))]
		switch {
		case l == nil:
			unknown = append(unknown, strconv.Quote(name))
		case !slices.Contains(lines, l):
			lines = append(lines, l)
		}
	}
	if len(unknown) > 0 {
		return nil, usageErrorf("name lines by their id, as in "+s.lines[0].lineID, "batch %s has no line %s", s.name, strings.Join(unknown, ", "))
	}
	return lines, nil
}

// readRound reads the redos of a batch file; there are none if the file does not exist.
func readRound(path string) (*redoRound, error) {
	r := &redoRound{path: path, ids: map[string]bool{}, again: map[string]bool{}}
	if _, err := newResultsFile(path, path); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path) //nolint:gosec // the user's own file
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for number, raw := range bytes.Split(bytes.TrimSpace(text), []byte("\n")) {
		if len(raw) == 0 {
			continue
		}
		var got struct {
			RedoOf string `json:"redo_of"`
			Result struct {
				JobID string     `json:"job_id"`
				State jobs.State `json:"state"`
			} `json:"danqing"`
		}
		if err := json.Unmarshal(raw, &got); err != nil || got.Result.JobID == "" {
			return nil, usageErrorf("correct the line, or move the file away", "%s: line %d is no line of a redo", path, number+1)
		}
		r.ids[got.Result.JobID] = true
		if got.Result.State.Final() {
			r.ended = append(r.ended, raw)
			continue
		}
		r.open, r.jobs = append(r.open, raw), append(r.jobs, got.Result.JobID)
		r.again[got.RedoOf] = true
	}
	return r, nil
}

// sidecarExists returns a function that reports whether the bucket has a job.
func sidecarExists(ctx context.Context, cfg *config.Config, simulate bool) (func(jobID string) (bool, error), error) {
	view, err := openView(cfg, simulate)
	if err != nil || view.bucket == nil {
		return func(string) (bool, error) { return false, nil }, err
	}
	return func(jobID string) (bool, error) {
		_, err := view.bucket.Sidecar(ctx, jobID)
		if errors.Is(err, storage.ErrNotExist) {
			return false, nil
		}
		return !errors.Is(err, storage.ErrNotExist), err
	}, nil
}

// add adds a redo of a line, unless an open one is there already.
func (r *redoRound) add(l *line, exists func(jobID string) (bool, error)) error {
	if r.again[l.id] {
		return nil
	}
	text, id, err := redoLine(l, func(jobID string) (bool, error) {
		if r.ids[jobID] {
			return true, nil
		}
		return exists(jobID)
	})
	if err != nil {
		return err
	}
	text, err = jobs.Line{Number: l.number, Raw: text}.Result(result{JobID: id, State: jobs.StateQueued})
	if err != nil {
		return err
	}
	r.ids[id], r.again[l.id] = true, true
	r.open, r.jobs = append(r.open, text), append(r.jobs, id)
	return nil
}

// redoPattern matches the end of the id of a redo.
var redoPattern = regexp.MustCompile(`-redo-[0-9]+$`)

// redoLine returns the line of a batch file that makes a line's images again, and the ID of its
// job: the first one that is not taken.
func redoLine(l *line, taken func(jobID string) (bool, error)) (text []byte, jobID string, err error) {
	for n := 1; ; n++ {
		id := jobs.RedoID(redoPattern.ReplaceAllString(l.lineID, ""), n)
		jobID := jobs.BatchID(l.file.name, id)
		if is, err := taken(jobID); err != nil {
			return nil, "", err
		} else if is {
			continue
		}
		text, err := jobs.Line{Number: l.number, ID: l.id, Raw: l.raw}.Redo(id)
		return text, jobID, err
	}
}

// readRoundLines returns the open lines as a batch file, which has the name of the original.
func (p *program) readRoundLines(ctx context.Context, reader batchReader, round *redoRound, dir string, original *batchFile) (*batchFile, error) {
	text := append(bytes.Join(round.open, []byte("\n")), '\n')
	in, err := p.spool(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	if reader.options, err = (input.Flags{}).Parse(); err != nil { // the lines have everything
		return nil, err
	}
	s, err := p.readOpened(ctx, reader, in, round.path, dir, original.name)
	if err != nil {
		return nil, err
	}
	if got := ids(s.lines); !slices.Equal(got, round.jobs) {
		return nil, usageErrorf("finish it with the same --name as before, or move the file away", "it has a redo of another batch: its jobs would be %s instead of %s", strings.Join(got, ", "), strings.Join(round.jobs, ", "))
	}
	head := bytes.Join(append(round.ended, nil), []byte("\n"))
	s.results = round.path
	s.outputs = []*resultsFile{{path: round.path, isInput: true, head: head, onlyComplete: true}}
	s.begin = func() error { return writeText(round.path, append(head, text...)) }
	return s, nil
}
