package input

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
)

// openTable makes a source of a table whose header is among its first rows.
func (o *Options) openTable(h *header, all iter.Seq2[row, error]) *Source {
	s := &Source{Unit: "row"}
	s.lines = o.tableLines(s, h, all)
	for _, c := range h.columns {
		if !c.result {
			s.Columns = append(s.Columns, c.Column)
		}
	}
	add := func(name string) {
		if !slices.ContainsFunc(s.Columns, func(c Column) bool { return c.Name == name }) {
			s.Columns = append(s.Columns, Column{Header: name, Name: name})
		}
	}
	if o.template != nil {
		add("prompt")
	}
	for _, v := range o.Vary {
		add(v.Name)
	}
	for _, d := range o.Defaults {
		add(d.Field)
	}
	s.Headers = map[string]string{}
	var read, kept []string
	for _, c := range h.columns {
		switch {
		case c.result:
		case c.field != "":
			s.Headers[c.field] = c.Header
			if headerKey(c.Header) != headerKey(c.field) {
				read = append(read, c.Header+" → "+c.field)
			}
		case c.Header != "":
			kept = append(kept, c.Header)
		}
	}
	var parts []string
	if h.number > 1 {
		parts = append(parts, fmt.Sprintf("the header is row %d", h.number))
	}
	if len(read) > 0 {
		parts = append(parts, strings.Join(read, ", "))
	}
	if len(kept) > 0 {
		parts = append(parts, "kept for the results: "+listed(kept))
	}
	if len(parts) > 0 {
		s.Notes = append(s.Notes, strings.Join(parts, "; "))
	}
	return s
}

// tableLines makes the lines of the rows below a header.
func (o *Options) tableLines(s *Source, h *header, all iter.Seq2[row, error]) iter.Seq2[jobs.SourceLine, error] {
	return func(yield func(jobs.SourceLine, error) bool) {
		for r, err := range all {
			if err != nil {
				yield(jobs.SourceLine{}, err)
				return
			}
			if r.number <= h.number || r.empty() && !h.isBroken(r) || o.isRepeated(h, r.cells) {
				continue
			}
			if r.hidden && !o.HiddenRows {
				s.hidden++
				continue
			}
			for _, line := range o.lines(o.rowRecord(h, r)) {
				if !yield(line, nil) {
					return
				}
			}
		}
	}
}

// rowRecord reads a row.
func (o *Options) rowRecord(h *header, r row) record {
	rec := record{number: r.number}
	if o.template != nil {
		rec.columns = map[string]string{}
	}
	for i := range max(len(r.cells), len(h.columns)) {
		c := headerColumn{index: i}
		if i < len(h.columns) {
			c = h.columns[i]
		} else {
			c.Name = ownName("", i, nil)
		}
		cell := ""
		if i < len(r.cells) {
			cell = cleanCell(r.cells[i])
		}
		if c.result {
			continue
		}
		if h.results {
			cell = unescapeCell(cell)
		}
		if o.template != nil {
			if _, taken := rec.columns[c.meaning]; !taken {
				rec.columns[c.meaning] = cell
			}
			rec.columns[c.Header] = cell
		}
		o.addCell(&rec, c, r, cell)
		if h.width > 0 && i == h.width && slices.ContainsFunc(r.cells[i:], isText) {
			rec.problems = append(rec.problems, jobs.FieldError{
				Field: "cells", Value: strconv.Itoa(len(r.cells)), Allowed: fmt.Sprintf("%d, as the header has", h.width),
				Remedy: `put quotation marks around a text with a separator in it, as in "a cat, black"`,
			})
		}
	}
	if o.template == nil && r.repeatsAbove(h) {
		rec.problems = append(rec.problems, jobs.FieldError{
			Field: "prompt", Value: "merged with the row above", Remedy: "the same would be made twice: unmerge the cell, or leave this row empty",
		})
	}
	return rec
}

// repeatsAbove reports whether the row's prompt is that of a merged cell above, and none of its
// fields is its own.
func (r row) repeatsAbove(h *header) bool {
	merged := false
	for _, c := range h.columns {
		below := slices.Contains(r.below, c.index)
		merged = merged || below && c.field == "prompt"
		if c.field != "" && !below && c.index < len(r.cells) && isText(r.cells[c.index]) {
			return false
		}
	}
	return merged
}

// isText reports whether a cell is not blank.
func isText(cell string) bool { return strings.TrimSpace(cell) != "" }

// addCell adds the value of a cell to a record.
func (o *Options) addCell(rec *record, c headerColumn, r row, cell string) {
	problem := func(value, allowed, remedy string) {
		rec.problems = append(rec.problems, jobs.FieldError{Field: c.field, Value: value, Allowed: allowed, Remedy: remedy})
	}
	switch {
	case c.field == "":
		if cell != "" {
			rec.object = append(rec.object, member{c.Name, quote(cell)})
		}
	case slices.Contains(r.broken, c.index):
		problem("a formula", "", "its value is not in the file: open it in Excel or WPS, and save it again")
	case cell == "":
	case c.field == "prompt" && slices.Contains(r.wide, c.index):
		problem(showText(cell), "", "the cell is merged over several columns, as a heading is: delete the row, or unmerge it")
	default:
		value, allowed := convert(c.field, cell)
		if allowed != "" {
			problem(showText(cell), allowed, "")
			return
		}
		rec.object = append(rec.object, member{c.Name, value})
	}
}

// cleanCell is a cell without blanks around it, and with one kind of line ends.
func cleanCell(cell string) string {
	if strings.Contains(cell, "\r") {
		cell = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(cell)
	}
	return strings.Trim(strings.TrimSpace(cell), "\ufeff\u200b")
}

// firstRows returns the rows that may be the header, and the error of reading them.
func firstRows(all iter.Seq2[row, error]) ([]row, error) {
	var list []row
	for r, err := range all {
		if err != nil {
			var wrong jobs.LineError
			if errors.As(err, &wrong) {
				err = errorf(`correct it, or say --format text if each line is a prompt`, "row %d: %w", wrong.Number, wrong.Err)
			}
			return list, err
		}
		if list = append(list, r); len(list) == headerRows {
			break
		}
	}
	return list, nil
}

// needsColumns reports whether there must be a header: a text has prompts alone.
func (o *Options) needsColumns() bool {
	return len(o.Map) > 0 || o.template != nil && slices.ContainsFunc(o.template.names, func(name string) bool { return name != "prompt" && !o.varies(name) })
}

// errNoHeader is the error of a table whose columns are unknown.
func (o *Options) errNoHeader(first []row) error {
	var cells []string
	for _, r := range first {
		if !r.empty() {
			cells = r.cells
			break
		}
	}
	if o.template != nil {
		for _, name := range o.template.names {
			if !o.varies(name) && !slices.ContainsFunc(cells, func(cell string) bool { return cleanHeader(cell) == name }) {
				return &Error{Err: errColumn(name, cells), Hint: templateHint}
			}
		}
	}
	column := "COLUMN"
	for _, cell := range cells {
		if text := cleanHeader(cell); text != "" {
			column = text
			break
		}
	}
	return errorf(fmt.Sprintf("name the column in its first row prompt, or 提示词; or say which one it is, as in: --map %q; or --format text if each line is a prompt", column+"=prompt"),
		"no column is known to have the prompts; the first row is: %s", listed(cells))
}
