// Package input turns the files that people have into the lines of JSON that describe jobs.
package input

import (
	"io"
	"iter"

	"github.com/danqing-queue/danqing/jobs"
)

// Column is a column of a table.
type Column struct {
	// Header is its header, as written.
	Header string
	// Name is the name of its values in the lines: a field of a job, or, for a column of the
	// producer, the header, changed where a field has that name.
	Name string
}

// Source is an open file of jobs.
type Source struct {
	// Unit is what the numbers of lines count: "row" for a table, or "line".
	Unit string
	// Columns are the columns of a table, in order; empty for any other file.
	Columns []Column

	lines iter.Seq2[jobs.SourceLine, error]
}

// Open opens a file of JSON Lines.
func Open(r io.ReaderAt, size int64) *Source {
	return &Source{Unit: "line", lines: jobs.JSONLines(io.NewSectionReader(r, 0, size))}
}

// Lines returns the lines, for [jobs.ReadBatchLines].
func (s *Source) Lines() iter.Seq2[jobs.SourceLine, error] { return s.lines }
