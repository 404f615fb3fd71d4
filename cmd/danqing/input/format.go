package input

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
)

const saveAsTable = "save it as .xlsx or as CSV UTF-8"

// refuseKnown refuses files of known formats that have no prompts that can be read.
func refuseKnown(head []byte) error {
	lower := bytes.Clone(head[:min(len(head), 1024)])
	for i, b := range lower {
		if b >= 'A' && b <= 'Z' {
			lower[i] += 'a' - 'A'
		}
	}
	lower = bytes.TrimLeft(bytes.TrimPrefix(lower, []byte("\ufeff")), " \t\r\n")
	for _, known := range []struct{ prefix, what, hint string }{
		{"\xd0\xcf\x11\xe0", "an old Office file (.xls, .et, .doc), or one with a password", "open it in Excel or WPS, and save it as .xlsx, without a password"},
		{"%pdf", "a PDF", "copy the prompts into a table or a text file"},
		{"\x89png", "a picture", "name a table, a text or a file of JSON lines; a picture is a reference in its column ref_img (参考图)"},
		{"\xff\xd8\xff", "a picture", "name a table, a text or a file of JSON lines; a picture is a reference in its column ref_img (参考图)"},
		{"gif8", "a picture", "name a table, a text or a file of JSON lines"},
		{"\x1f\x8b", "a compressed file", "unpack it, and name the file in it"},
		{"7z\xbc\xaf", "a compressed file", "unpack it, and name the file in it"},
		{"rar!\x1a", "a compressed file", "unpack it, and name the file in it"},
		{"{\\rtf", "a rich text (.rtf)", "save it as plain text (.txt, UTF-8), with a prompt a line"},
		{"<!doctype html", "a web page (some programs call it .xls)", "open it in Excel or WPS, and save it as .xlsx"},
		{"<html", "a web page (some programs call it .xls)", "open it in Excel or WPS, and save it as .xlsx"},
		{"<table", "a web page (some programs call it .xls)", "open it in Excel or WPS, and save it as .xlsx"},
		{"<?xml", "an XML file (some programs call it .xls)", "open it in Excel or WPS, and save it as .xlsx"},
	} {
		if bytes.HasPrefix(lower, []byte(known.prefix)) {
			return errorf(known.hint, "it is %s, which is not read", known.what)
		}
	}
	if bytes.HasPrefix(head, []byte("RIFF")) && bytes.Contains(lower, []byte("webp")) {
		return errorf("name a table, a text or a file of JSON lines", "it is a picture, which is not read")
	}
	return nil
}

// plainFile is a file of text whose format is to be found.
type plainFile struct {
	options *Options
	// open returns the whole text, in UTF-8, and head is its beginning. whole is set if that
	// is all.
	open      func() io.Reader
	head      string
	whole     bool
	extension string
}

// listOfObjects matches the beginning of a JSON list that is no prompt in brackets.
var listOfObjects = regexp.MustCompile(`^\[\s*(\{|\]$)`)

// source finds the format and opens the file.
func (p *plainFile) source() (*Source, error) {
	start := strings.TrimSpace(p.head)
	switch {
	case start == "" && p.whole:
		return p.texts(), nil // without a line
	case p.options.Format == formatText:
		return p.texts(), nil
	case p.options.Format == formatCSV:
		return p.table(true)
	case strings.HasPrefix(start, "[") && (p.options.Format == formatJSON || p.extension == ".json" || listOfObjects.MatchString(start)):
		return p.values(isOneLine(start)), nil
	case p.options.Format == formatJSON, strings.HasPrefix(start, "{"):
		return p.objects(start)
	}
	return p.table(false)
}

// objects opens a file of JSON objects: one a line, or each over many lines.
func (p *plainFile) objects(start string) (*Source, error) {
	if !hasJSONLine(p.head) && json.NewDecoder(strings.NewReader(start)).Decode(new(json.RawMessage)) == nil {
		return p.values(false), nil
	}
	s := &Source{Unit: "line"}
	s.lines = p.options.jsonLines(p.open(), s)
	return s, nil
}

// values opens a JSON list.
func (p *plainFile) values(byItem bool) *Source {
	s := &Source{Unit: "line"}
	if byItem {
		s.Unit = "item"
	}
	s.lines = p.options.jsonSource(s, jsonValues(p.open(), byItem))
	return s
}

// texts opens a text with a prompt a line.
func (p *plainFile) texts() *Source {
	s := &Source{Unit: "line"}
	s.lines = func(yield func(jobs.SourceLine, error) bool) {
		for l, err := range jobs.JSONLines(p.open()) {
			if err != nil {
				if !yield(l, err) {
					return
				}
				continue
			}
			prompt := cleanCell(string(l.Text))
			if prompt == "" {
				continue
			}
			r := record{number: l.Number, object: object{{"prompt", quote(prompt)}}}
			r.columns = map[string]string{"prompt": prompt}
			for _, line := range p.options.lines(r) {
				if !yield(line, nil) {
					return
				}
			}
		}
	}
	return s
}

// separators are what is between the columns of a table: Excel writes a semicolon where the
// comma is in numbers.
func separators() []rune { return []rune{'\t', ',', ';'} }

// sample returns the first rows of the head, without one that the head cuts off.
func (p *plainFile) sample(comma rune) []row {
	var list []row
	for r, err := range rows(strings.NewReader(p.head), comma) {
		if err != nil {
			return list
		}
		if list = append(list, r); len(list) > headerRows {
			return list[:headerRows]
		}
	}
	if !p.whole && len(list) > 1 {
		list = list[:len(list)-1]
	}
	return list
}

// table opens a table of text, or else a text with a prompt a line. must is set if it is to be
// a table.
func (p *plainFile) table(must bool) (*Source, error) {
	must = must || slices.Contains([]string{".csv", ".tsv", ".tab"}, p.extension)
	var best *header
	var comma rune
	var wrong error
	for _, separator := range separators() {
		first := p.sample(separator)
		h, err := p.options.findHeader(first)
		if h == nil || best != nil && len(h.columns) <= len(best.columns) || !must && !isTable(h, first) {
			continue
		}
		best, comma, wrong = h, separator, err
		for _, r := range first {
			if r.number == h.number {
				h.width = len(r.cells)
			}
		}
	}
	switch {
	case wrong != nil:
		return nil, wrong
	case best != nil && !must && comma != '\t' && p.options.isDoubtful(best):
		return nil, errorf("say --format csv, or --format text", "it has two readings: a table with the header in row %d, or a text with a prompt a line", best.number)
	case best != nil:
		return p.options.openTable(best, rows(p.open(), comma)), nil
	}
	return p.withoutHeader(must)
}

// isTable reports whether a text that is not called a table is one: its header has two known
// columns, or all its rows are as wide, or it has one column.
func isTable(h *header, first []row) bool {
	known := 0
	for _, c := range h.columns {
		if c.field != "" {
			known++
		}
	}
	return known > 1 || len(h.columns) == 1 || width(first) == len(h.columns)
}

// isDoubtful reports whether a header with several columns may be a prompt: of what it names, one
// thing alone is known, by a word that is in prompts too, as in "a poster, text".
func (o *Options) isDoubtful(h *header) bool {
	known, weak := 0, false
	for _, c := range h.columns {
		if c.field != "" {
			known++
			weak = weak || o.fieldOf(c.Header).weak
		}
	}
	return len(h.columns) > 1 && known == 1 && weak
}

// width is how many cells all rows have that are not empty, or 0 if they differ.
func width(first []row) int {
	n := 0
	for _, r := range first {
		switch {
		case r.empty():
		case n == 0:
			n = len(r.cells)
		case n != len(r.cells):
			return 0
		}
	}
	return n
}

// withoutHeader opens a file without a known header.
func (p *plainFile) withoutHeader(must bool) (*Source, error) {
	for _, separator := range separators() {
		first := p.sample(separator)
		n := width(first)
		if n < 2 || !must && (separator != '\t' || len(first) < 2) {
			continue
		}
		return nil, p.options.errNoHeader(first)
	}
	first := p.sample(',')
	switch {
	case p.options.needsColumns():
		return nil, p.options.errNoHeader(first)
	case p.hasChineseCommas():
		return nil, errorf("write a comma (,) between the columns, or save the table as .xlsx", "its columns are separated by Chinese commas (，)")
	case must && width(first) != 1:
		return nil, p.options.errNoHeader(first)
	case must:
		return p.options.openTable(&header{width: 1, columns: []headerColumn{{Column: Column{Header: "prompt", Name: "prompt"}, field: "prompt"}}}, rows(p.open(), ',')), nil
	case slices.Contains([]string{"", ".txt", ".text", ".prompts"}, p.extension):
		return p.texts(), nil
	case slices.Contains([]string{".json", ".jsonl", ".ndjson"}, p.extension):
		return p.objects(p.head)
	}
	return nil, errorf("say --format text if each line is a prompt, or name a table (.xlsx, .csv), a text (.txt) or a file of JSON lines (.jsonl)",
		"a file %s has no known format, and what is in it does not tell", p.extension)
}

// hasChineseCommas reports whether the first line is a header with commas of Chinese.
func (p *plainFile) hasChineseCommas() bool {
	line, _, _ := strings.Cut(strings.TrimSpace(p.head), "\n")
	cells := strings.Split(line, "，")
	known, prompt := p.options.knownCells(cells)
	return prompt && known > 1 && len(cells) > 1
}
