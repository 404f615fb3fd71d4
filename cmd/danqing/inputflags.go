package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/input"
	"github.com/danqing-queue/danqing/jobs"
)

// inputFlags are the flags that say how files of jobs are read.
type inputFlags struct{ input.Flags }

// register adds the flags to a command that has those of [requestFlags.registerShape] too:
// with files they are for the lines that do not say otherwise.
func (f *inputFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.Vary, "vary", nil, "NAME=VALUE,VALUE: make each line with each of the values of a field, or of a word of --prompt; may be given several times")
	flags.StringArrayVar(&f.Map, "map", nil, "COLUMN=FIELD: the column has this field; COLUMN=- is your own; may be given several times")
	flags.StringVar(&f.Encoding, "encoding", "", "utf-8, gb18030 or utf-16 (default: found from the content)")
	flags.StringVar(&f.Format, "format", "", strings.Join(input.Formats(), ", ")+" (default: found from the content)")
	flags.StringVar(&f.Sheet, "sheet", "", "sheet of an .xlsx file (default: the first that is visible)")
	flags.BoolVar(&f.HiddenRows, "hidden-rows", false, "take the hidden rows of an .xlsx file too")
}

// inputFlagNames are the flags that are for files alone.
func inputFlagNames() []string {
	return []string{"vary", "map", "encoding", "format", "sheet", "hidden-rows"}
}

// options checks the flags of a command.
func (f *inputFlags) options(cmd *cobra.Command, shape *requestFlags, prompt string) (*input.Options, error) {
	var err error
	if f.Defaults, err = shape.shape(cmd); err != nil {
		return nil, err
	}
	f.Prompt = prompt
	o, err := f.Parse()
	return o, inputError(err)
}

// inputError gives a mistake in a file its hint.
func inputError(err error) error {
	var wrong *input.Error
	if errors.As(err, &wrong) {
		return usageErrorf(wrong.Hint, "%w", err)
	}
	return err
}

// beside returns options for a file in a folder: the paths of reference images in flags are
// relative to the current folder, and those in lines to the file's.
func beside(o *input.Options, dir string) *input.Options {
	relative := func(path string) string {
		if dir == "." || filepath.IsAbs(path) || strings.Contains(path, "://") || strings.HasPrefix(path, "data:") || strings.HasPrefix(path, jobs.StagedPrefix) {
			return path
		}
		from, err := filepath.Abs(dir)
		if err != nil {
			return path
		}
		to, err := filepath.Abs(path)
		if err != nil {
			return path
		}
		if near, err := filepath.Rel(from, to); err == nil {
			return filepath.ToSlash(near)
		}
		return to
	}
	return o.WithReferences(relative)
}

// withHeaders names the columns of a table in the errors of its rows.
func withHeaders(wrong *jobs.BatchError, headers map[string]string) {
	for _, l := range wrong.Lines {
		var invalid *jobs.InvalidError
		if !errors.As(l.Err, &invalid) {
			continue
		}
		for i, f := range invalid.Fields {
			if header := headers[f.Field]; header != "" && header != f.Field {
				invalid.Fields[i].Field = fmt.Sprintf("%s (%s)", header, f.Field)
			}
		}
	}
}

// isNoJSON reports whether no line of a file is JSON: it is another kind of file then.
func isNoJSON(s *batchFile, wrong *jobs.BatchError) bool {
	return len(s.lines) == 0 && len(wrong.Lines) > 1 && !slices.ContainsFunc(wrong.Lines, func(l jobs.LineError) bool {
		return errors.As(l.Err, new(*jobs.InvalidError))
	})
}
