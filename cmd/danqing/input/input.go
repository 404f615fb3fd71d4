// Package input turns the files that people have into the lines of JSON that describe jobs:
// JSON Lines, JSON lists, lines of OpenAI's Batch API, tables (.xlsx, .csv, .tsv) and texts
// with a prompt a line, in the encodings in which Chinese is written.
package input

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"strings"

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
	// Unit is what the numbers of lines count: "line", "row" of a table, or "item" of a list.
	Unit string
	// Columns are the columns of a table, in order, with those that options add; empty for
	// any other file.
	Columns []Column
	// Headers are the headers of the fields of a table.
	Headers map[string]string
	// Notes tell a person how the file was read.
	Notes []string

	lines   iter.Seq2[jobs.SourceLine, error]
	without map[string]int // lines with a field that has no effect
	hidden  int            // rows that were left out
	close   func() error
}

// Lines returns the lines, for [jobs.ReadBatchLines]. They can be read once. Their error is a
// [jobs.LineError], an [*Error] or that of the file.
func (s *Source) Lines() iter.Seq2[jobs.SourceLine, error] { return s.lines }

// Warnings are what is to be said after the lines were read.
func (s *Source) Warnings() []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(s.without)) {
		list = append(list, fmt.Sprintf("%s has no effect, and is left out of %d lines", name, s.without[name]))
	}
	if s.hidden > 0 {
		list = append(list, fmt.Sprintf("%d hidden rows are left out; --hidden-rows takes them too", s.hidden))
	}
	return list
}

// Close frees what the lines are read from. The file itself is the caller's.
func (s *Source) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close()
}

// sniffBytes is how much of a file its encoding and format are found from.
const sniffBytes = 64 << 10

// Open finds the encoding and the format of a file with a name, and reads its header. A
// mistake is an [*Error]. The caller closes the source.
func Open(file io.ReaderAt, size int64, name string, o *Options) (*Source, error) {
	t := text{file, size}
	head, err := t.head(sniffBytes)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(head, []byte("PK\x03\x04")) {
		return o.openZip(file, size)
	}
	if o.Sheet != "" {
		return nil, errorf("leave it out", "--sheet is for .xlsx files")
	}
	if err := refuseKnown(head); err != nil {
		return nil, err
	}
	var c charset
	if o.Encoding != "" {
		c, err = t.charsetNamed(o.Encoding)
	} else {
		c, err = t.charset()
	}
	if err != nil {
		return nil, err
	}
	decoded, err := io.ReadAll(io.LimitReader(c.reader(io.NewSectionReader(file, 0, size)), sniffBytes))
	if err != nil {
		return nil, err
	}
	p := plainFile{
		options: o, open: func() io.Reader { return c.reader(t.bytes()) },
		head: strings.TrimPrefix(string(decoded), "\ufeff"), whole: len(decoded) < sniffBytes,
		extension: strings.ToLower(filepath.Ext(name)),
	}
	s, err := p.source()
	if err == nil && c.name != utf8Name {
		s.Notes = append(s.Notes, "read as "+c.name)
	}
	return s, err
}
