package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/danqing-queue/danqing/cmd/danqing/input"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// resultsFile is a file with the results of a batch. While the batch runs it has the settled
// lines, in the order in which they were settled, so that they are there after a kill; at the
// end it has all lines, in the order of the batch file.
type resultsFile struct {
	path string
	// columns are those of the batch file in a table; nil for JSON Lines.
	columns []input.Column
	// isInput is set if the file is the batch file itself. It stays as it is until the end,
	// because it has the lines that are not settled.
	isInput bool
	// head is the text before the lines.
	head []byte
	// onlyComplete is set if the file is written only once all jobs have ended.
	onlyComplete bool
	// growing is the file while lines are added to it, else nil.
	growing *os.File
}

// text returns a line with its result, as it is in the file.
func (f *resultsFile) text(ctx context.Context, r *batchRun, l *line) ([]byte, error) {
	if f.columns != nil {
		result, err := r.result(ctx, l)
		if err != nil {
			return nil, err
		}
		return tableRow(f.columns, l, result)
	}
	text, err := r.resultLine(ctx, l)
	return append(text, '\n'), err
}

// write replaces the file by lines, atomically.
func (f *resultsFile) write(ctx context.Context, r *batchRun, lines []*line) error {
	err := atomicfile.Write(f.path, 0o644, func(w io.Writer) error {
		out := bufio.NewWriter(w)
		_, _ = out.Write(f.head)
		for _, l := range lines {
			text, err := f.text(ctx, r, l)
			if err != nil {
				return err
			}
			_, _ = out.Write(text) // Flush reports the error
		}
		return out.Flush()
	})
	if err != nil {
		return fmt.Errorf("write results %s: %w", f.path, err)
	}
	return nil
}

// writeText replaces a file by a text, atomically.
func writeText(path string, text []byte) error {
	return atomicfile.Write(path, 0o644, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
}

// add adds a settled line while the file grows.
func (f *resultsFile) add(ctx context.Context, r *batchRun, l *line) error {
	if f.growing == nil {
		return nil
	}
	text, err := f.text(ctx, r, l)
	if err == nil {
		_, err = f.growing.Write(text) // in one write: a kill leaves whole lines
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("write results %s: %w", f.path, err), f.close())
	}
	return err
}

// close ends the growth of the file.
func (f *resultsFile) close() error {
	if f.growing == nil {
		return nil
	}
	file := f.growing
	f.growing = nil
	return file.Close()
}

// growResults replaces the results files by the lines that are settled already. The others are
// added when they are settled.
func (r *batchRun) growResults(ctx context.Context) error {
	for _, s := range r.files {
		settled := r.linesThat(func(l *line) bool { return l.file == s && l.settled })
		for _, f := range s.outputs {
			if f.isInput {
				continue
			}
			if err := f.write(ctx, r, settled); err != nil {
				return err
			}
			var err error
			if f.growing, err = os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND, 0); err != nil {
				return fmt.Errorf("write results: %w", err)
			}
		}
	}
	return nil
}

// addResult adds a settled line to its results files. The run goes on without a file that
// cannot be written.
func (r *batchRun) addResult(ctx context.Context, l *line) {
	for _, f := range l.file.outputs {
		if err := f.add(context.WithoutCancel(ctx), r, l); err != nil {
			r.progress.printLine("warning: " + err.Error() + "; the whole file is written at the end")
		}
	}
}

// writeResults writes every line of the batch file with its result, in order, and replaces
// the results files atomically.
func (r *batchRun) writeResults(ctx context.Context, s *batchFile) error {
	var errs []error
	c := r.counts()
	for _, f := range s.outputs {
		if f.onlyComplete && c.left+c.held+c.awaitingBudget > 0 {
			continue
		}
		errs = append(errs, f.close(), f.write(ctx, r, s.lines))
	}
	return errors.Join(errs...)
}

// newResultsFile returns the results file at path of a batch file. It fails, before anything
// is spent, if results cannot be written there, or would replace anything but an older results
// file.
func newResultsFile(path, file string) (*resultsFile, error) {
	if isSameFile(path, file) && resultsPath(file, "", false) != path && resultsPath(file, "", true) != path {
		return nil, usageErrorf("name another file with --results", "results %s: that is the batch file itself", path)
	}
	return checkOutput(path, file, isResultsFile)
}

// isSameFile reports whether two paths lead to one file.
func isSameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// checkOutput fails if results of a batch file cannot be written at path, or would replace a
// file that is none of results.
func checkOutput(path, file string, isResults func(path string) bool) (*resultsFile, error) {
	const hint = "name another file with --results"
	if info, err := os.Stat(path); err == nil {
		switch {
		case !info.Mode().IsRegular():
			return nil, usageErrorf(hint, "results %s: not a regular file", path)
		case !isResults(path):
			return nil, usageErrorf(hint, "results %s: the file exists and is not a results file", path)
		}
	}
	if err := checkWritableFolder(path); err != nil {
		return nil, usageErrorf(hint, "results: %w", err)
	}
	return &resultsFile{path: path, isInput: isSameFile(path, file)}, nil
}

// isResultsFile reports whether a file is empty or begins with a result line, which a power
// cut may have cut off.
func isResultsFile(path string) bool {
	file, err := os.Open(path) //nolint:gosec // the user's own file
	if err != nil {
		return false
	}
	defer file.Close() //nolint:errcheck // read only
	var first struct {
		Result *struct {
			JobID string `json:"job_id"`
		} `json:"danqing"`
	}
	err = json.NewDecoder(io.LimitReader(file, 1<<20)).Decode(&first)
	switch {
	case errors.Is(err, io.EOF):
		return true
	case errors.Is(err, io.ErrUnexpectedEOF):
		return strings.HasSuffix(path, ".results.jsonl")
	}
	return err == nil && first.Result != nil && first.Result.JobID != ""
}

// checkWritableFolder fails if no file can be created in the folder of path.
func checkWritableFolder(path string) error {
	probe, err := os.CreateTemp(filepath.Dir(path), ".danqing-*")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// resultLine returns the input line with its result.
func (r *batchRun) resultLine(ctx context.Context, l *line) ([]byte, error) {
	out, err := r.result(ctx, l)
	if err != nil {
		return nil, err
	}
	return jobs.Line{Number: l.number, Raw: l.raw}.Result(out)
}
