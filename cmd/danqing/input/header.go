package input

import (
	"fmt"
	"slices"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
)

// headerRows is in how many rows the header is looked for: a table may have a title and notes
// above it.
const headerRows = 20

// header is the row of a table that names its columns.
type header struct {
	number int // of its row
	// width is how many cells a row can have at most, or 0 for any number. In a table of text a
	// comma without quotation marks ends a prompt: it is seen by the cell that is too many.
	width   int
	columns []headerColumn
	// results is set for a table of results, whose cells are escaped.
	results bool
}

// headerColumn is a column with a header.
type headerColumn struct {
	Column
	index int
	// field is the field that the column has, "" for a column of the producer. meaning is the
	// field that its header names.
	field, meaning string
	// result is set for a column of results, which is ignored.
	result bool
}

// ignored is the field of --map COLUMN=- for a column that is the producer's.
const ignored = "-"

// findHeader returns the header among the first rows of a table: the row with the most columns
// that are known, with the prompt among them, or with all that the template needs. It is nil
// if there is none.
func (o *Options) findHeader(first []row) (*header, error) {
	best, most := -1, 0
	for i, r := range first {
		known, prompt := o.knownCells(r.cells)
		alone := 0 // a title has one cell, and is no header with a single column
		for _, cell := range r.cells {
			if cleanHeader(cell) != "" {
				alone++
			}
		}
		if !prompt || known <= most || alone == 1 && slices.ContainsFunc(first[:i], func(r row) bool { return !r.empty() }) {
			continue
		}
		best, most = i, known
	}
	if best < 0 {
		return nil, nil //nolint:nilnil // there is none, which is no error here
	}
	h := &header{number: first[best].number}
	return h, o.columns(h, first[best].cells)
}

// knownCells counts the cells that are known headers, and reports whether the row has what
// makes the prompts.
func (o *Options) knownCells(cells []string) (known int, prompt bool) {
	var headers []string
	for _, cell := range cells {
		if len(cell) > maxHeaderBytes {
			continue
		}
		text := cleanHeader(cell)
		headers = append(headers, text)
		field := o.fieldOf(text).field
		if field != "" {
			known++
		}
		prompt = prompt || field == "prompt"
	}
	if o.template != nil {
		for _, name := range o.template.names {
			if !slices.ContainsFunc(headers, func(text string) bool { return text == name || o.fieldOf(text).field == name }) && !o.varies(name) {
				return known, false
			}
			known++
		}
		return known, known > 0
	}
	return known, prompt
}

// maxHeaderBytes is longer than any known header.
const maxHeaderBytes = 120

// cleanHeader is a header in one line, without blanks around it.
func cleanHeader(cell string) string { return strings.Join(strings.Fields(cell), " ") }

// fieldOf returns the field of a header: what --map says of it, else what it is known as.
func (o *Options) fieldOf(text string) alias {
	if text == "" {
		return alias{}
	}
	if i := o.mapping(text); i >= 0 {
		return alias{field: o.Map[i].Field}
	}
	return fieldNamed(text, o.known())
}

// mapping returns the index of the --map of a column, or -1.
func (o *Options) mapping(column string) int {
	return slices.IndexFunc(o.Map, func(m Mapping) bool { return headerKey(m.Column) == headerKey(column) })
}

// columns makes the columns of a header.
func (o *Options) columns(h *header, cells []string) error {
	meanings := make([]alias, len(cells))
	strong := map[string]bool{}
	for i, cell := range cells {
		meanings[i] = o.fieldOf(cleanHeader(cell))
		strong[meanings[i].field] = strong[meanings[i].field] || !meanings[i].weak
	}
	for len(cells) > 0 && cleanHeader(cells[len(cells)-1]) == "" {
		cells = cells[:len(cells)-1]
	}
	used := map[string]int{}
	names := map[string]bool{}
	for i, cell := range cells {
		text := cleanHeader(cell)
		if strings.HasPrefix(text, ResultPrefix) {
			h.results = true
			h.columns = append(h.columns, headerColumn{Column: Column{Header: text}, index: i, result: true})
			continue
		}
		field := meanings[i].field
		mapped := field == ignored
		if mapped || meanings[i].weak && strong[field] || field == "prompt" && o.template != nil {
			field = ""
		}
		if before, twice := used[field]; twice && field != "" {
			return errorf(fmt.Sprintf("keep one of them out: --map %q", cells[i]+"=-"), "row %d: two columns have the %s: %s (column %s) and %s (column %s)",
				h.number, field, cleanHeader(cells[before]), columnName(before), text, columnName(i))
		}
		if field == "" && text != "" && !mapped && meanings[i].field == "" {
			if remedy := jobs.ColumnRemedy(text); remedy != "" {
				return errorf(fmt.Sprintf("if the column is your own: --map %q", text+"=-"), "row %d, column %s: %s would have no effect; %s", h.number, columnName(i), text, remedy)
			}
		}
		column := headerColumn{Column: Column{Header: text, Name: field}, index: i, field: field, meaning: meanings[i].field}
		if field == "" {
			column.Name = ownName(text, i, names)
		}
		used[field] = i
		names[column.Name] = true
		h.columns = append(h.columns, column)
	}
	for _, m := range o.Map {
		if !slices.ContainsFunc(cells, func(cell string) bool { return headerKey(m.Column) == headerKey(cell) }) {
			return errorf("the columns are: "+listed(cells), "--map %s=%s: row %d has no column %s", m.Column, m.Field, h.number, m.Column)
		}
	}
	return nil
}

// ownName returns the name of a column of the producer in the lines.
func ownName(text string, index int, taken map[string]bool) string {
	if text == "" {
		text = "column " + columnName(index)
	}
	name := text
	for i := 1; taken[name] || jobs.ColumnRemedy(name) != "" || name == "danqing"; i++ {
		name = text + " (own)"
		if i > 1 {
			name = fmt.Sprintf("%s (own %d)", text, i)
		}
	}
	return name
}

// listed shows cells for people.
func listed(cells []string) string {
	const most = 20
	var texts []string
	for _, cell := range cells {
		if text := cleanHeader(cell); text != "" {
			texts = append(texts, showCell(text))
		}
	}
	if len(texts) > most {
		texts = append(texts[:most], fmt.Sprintf("and %d more", len(texts)-most))
	}
	return strings.Join(texts, ", ")
}

// showCell shortens a cell for people.
func showCell(text string) string {
	const most = 24
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

// isBroken reports whether the value of a field is not in the file.
func (h *header) isBroken(r row) bool {
	return slices.ContainsFunc(h.columns, func(c headerColumn) bool { return c.field != "" && slices.Contains(r.broken, c.index) })
}

// isRepeated reports whether a row names the fields of its columns, as a second header in
// another language does, or one at the top of each page.
func (o *Options) isRepeated(h *header, cells []string) bool {
	prompt := false
	for _, c := range h.columns {
		if c.field == "" || c.index >= len(cells) || cleanHeader(cells[c.index]) == "" {
			continue
		}
		if len(cells[c.index]) > maxHeaderBytes || o.fieldOf(cleanHeader(cells[c.index])).field != c.field {
			return false
		}
		prompt = prompt || c.field == "prompt"
	}
	return prompt
}
