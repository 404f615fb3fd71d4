package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/danqing-queue/danqing/cmd/danqing/input"
)

// byteOrderMark begins a CSV file that Excel reads as UTF-8.
const byteOrderMark = "\ufeff"

// resultColumn is a column of a table of results.
type resultColumn struct {
	header string
	cell   func(*line, *result) string
}

// stateColumn is in every table of results, and in no batch file.
const stateColumn = input.ResultPrefix + "state"

// resultColumns are the columns of a table of results, after those of the batch file.
func resultColumns() []resultColumn {
	return []resultColumn{
		{input.ResultPrefix + "id", func(l *line, _ *result) string { return l.lineID }},
		{stateColumn, func(_ *line, r *result) string { return string(r.State) }},
		{input.ResultPrefix + "reason", func(_ *line, r *result) string { return strings.Join(r.reasons(), "\n") }},
		{input.ResultPrefix + "cost_yuan", func(_ *line, r *result) string { return strconv.FormatFloat(r.CostYuan, 'f', -1, 64) }},
		{input.ResultPrefix + "seeds", func(_ *line, r *result) string {
			return r.eachStored(" ", func(image resultImage) string { return strconv.FormatInt(image.Seed, 10) })
		}},
		{input.ResultPrefix + "images", func(_ *line, r *result) string {
			return r.eachStored("\n", func(image resultImage) string { return cmp.Or(image.File, image.URL) })
		}},
	}
}

// csvPath is the path of the table beside a results file.
func csvPath(results string) string {
	return strings.TrimSuffix(results, filepath.Ext(results)) + ".csv"
}

// newResultsTable returns the table of the results of a batch file, in CSV. It fails, before
// anything is spent, if it cannot be written at path, or would replace anything else.
func newResultsTable(path, file string, s *batchFile) (*resultsFile, error) {
	if path == s.results {
		return nil, usageErrorf("as in --results "+strings.TrimSuffix(path, ".csv")+".jsonl", "results %s: --results names the JSON Lines; the table is written beside them as .csv", path)
	}
	f, err := checkOutput(path, file, isResultsTable)
	if err != nil {
		return nil, err
	}
	f.columns = slices.DeleteFunc(slices.Clone(s.columns), func(c input.Column) bool { return strings.HasPrefix(c.Name, input.ResultPrefix) })
	if len(s.columns) == 0 {
		if f.columns, err = columnsOf(s.lines); err != nil {
			return nil, err
		}
	}
	var headers []string
	for _, c := range f.columns {
		headers = append(headers, c.Header)
	}
	for _, c := range resultColumns() {
		headers = append(headers, c.header)
	}
	f.head = append([]byte(byteOrderMark), csvRow(headers)...)
	return f, nil
}

// isResultsTable reports whether a file is empty or begins with the header of a table of
// results.
func isResultsTable(path string) bool {
	file, err := os.Open(path) //nolint:gosec // the user's own file
	if err != nil {
		return false
	}
	defer file.Close() //nolint:errcheck // read only
	head := make([]byte, 64<<10)
	n, _ := file.Read(head) // an unreadable file is none
	first, _, _ := bytes.Cut(head[:n], []byte("\n"))
	return len(first) == 0 || bytes.Contains(first, []byte(stateColumn))
}

// columnsOf returns the names in lines of JSON as columns, in the order in which they come.
func columnsOf(lines []*line) ([]input.Column, error) {
	var columns []input.Column
	known := map[string]bool{"danqing": true}
	for _, l := range lines {
		names, _, err := membersOf(l)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if !known[name] && !strings.HasPrefix(name, input.ResultPrefix) {
				known[name] = true
				columns = append(columns, input.Column{Header: name, Name: name})
			}
		}
	}
	return columns, nil
}

// membersOf returns the names in a line of JSON, in order, and its values.
func membersOf(l *line) (names []string, values map[string]json.RawMessage, err error) {
	values = map[string]json.RawMessage{}
	in := json.NewDecoder(bytes.NewReader(l.raw))
	_, err = in.Token()
	for err == nil && in.More() {
		var name json.Token
		var value json.RawMessage
		if name, err = in.Token(); err == nil {
			err = in.Decode(&value)
		}
		names = append(names, fmt.Sprint(name))
		values[names[len(names)-1]] = value
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", l.position(), err)
	}
	return names, values, nil
}

// tableRow returns a line with its result as a row of a table.
func tableRow(columns []input.Column, l *line, r *result) ([]byte, error) {
	_, values, err := membersOf(l)
	if err != nil {
		return nil, err
	}
	var cells []string
	for _, c := range columns {
		cells = append(cells, cellOf(values[c.Name]))
	}
	for _, c := range resultColumns() {
		cells = append(cells, c.cell(l, r))
	}
	return csvRow(cells), nil
}

// reasons say why the job or one of its images failed.
func (r *result) reasons() (reasons []string) {
	if why := reason(r.Code, r.Message); why != "" {
		reasons = append(reasons, why)
	}
	for _, image := range r.Images {
		if why := reason(image.Code, image.Message); why != "" {
			reasons = append(reasons, fmt.Sprintf("image %d: %s", image.N, why))
		}
	}
	return reasons
}

// eachStored returns a text of each image that is in the bucket.
func (r *result) eachStored(separator string, text func(resultImage) string) string {
	var texts []string
	for _, image := range r.Images {
		if image.Key != "" {
			texts = append(texts, text(image))
		}
	}
	return strings.Join(texts, separator)
}

// cellOf returns a value of a line as a text: a string's own, and any other value's JSON.
func cellOf(value json.RawMessage) string {
	var text string
	switch {
	case len(value) == 0 || string(value) == "null":
		return ""
	case value[0] == '"' && json.Unmarshal(value, &text) == nil:
		return text
	}
	return string(value)
}

// csvRow returns a row of a CSV file as Excel writes it. Line ends within a cell stay as they
// are. No cell is calculated.
func csvRow(cells []string) []byte {
	var row []byte
	for i, cell := range cells {
		if i > 0 {
			row = append(row, ',')
		}
		cell = input.EscapeCell(cell)
		if strings.ContainsAny(cell, ",\"\r\n") || strings.TrimSpace(cell) != cell {
			cell = `"` + strings.ReplaceAll(cell, `"`, `""`) + `"`
		}
		row = append(row, cell...)
	}
	return append(row, '\r', '\n')
}
