package input

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
)

// row is a row of a table.
type row struct {
	// number is the row's in the program that shows the table, from 1; empty rows count.
	number int
	cells  []string
	// hidden is set for rows that a person does not see.
	hidden bool
	// wide are the columns whose cell is merged with one at its side, and broken are those
	// with a formula whose value is not in the file.
	wide, broken []int
	// below are the columns whose text is that of a merged cell of a row above.
	below []int
}

// empty reports whether no cell has a text.
func (r row) empty() bool { return !slices.ContainsFunc(r.cells, isText) }

// maxCellBytes limits a cell, like the line of JSON that it becomes a part of.
const maxCellBytes = 1 << 20

// rows reads a table of text. Cells in quotation marks are as Excel writes them: a mark within
// is doubled, and line ends belong to the cell. A mark in any other place is a character.
func rows(r io.Reader, comma rune) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		in := &cellReader{in: bufio.NewReaderSize(r, 64<<10), comma: comma}
		for number := 1; ; number++ {
			cells, err := in.row()
			if err != nil && !errors.Is(err, io.EOF) {
				var wrong cellError
				if errors.As(err, &wrong) {
					err = jobs.LineError{Number: number, Err: err}
				}
				yield(row{}, err)
				return
			}
			if number == 1 && len(cells) == 1 && strings.HasPrefix(strings.ToLower(cells[0]), "sep=") {
				cells = nil // Excel's note of the separator
			}
			last := err != nil
			if last && len(cells) == 1 && cells[0] == "" {
				return
			}
			if !yield(row{number: number, cells: cells}, nil) || last {
				return
			}
		}
	}
}

// cellError is a mistake in how a table is written.
type cellError string

func (e cellError) Error() string { return string(e) }

// cellReader reads the cells of a table of text.
type cellReader struct {
	in    *bufio.Reader
	comma rune
	start bool // the byte order mark was looked for
}

// row reads one row. With the last one it returns io.EOF.
func (c *cellReader) row() ([]string, error) {
	var cells []string
	if first, _, err := c.in.ReadRune(); err == nil && (c.start || first != '\ufeff') {
		_ = c.in.UnreadRune() // it was just read
	}
	c.start = true
	for {
		cell, end, err := c.cell(len(cells))
		cells = append(cells, cell)
		if err != nil || end {
			return cells, err
		}
	}
}

// cell reads one cell, and reports whether it is the row's last.
func (c *cellReader) cell(index int) (text string, end bool, err error) {
	var b strings.Builder
	first, _, err := c.in.ReadRune()
	if err != nil {
		return "", true, err
	}
	if first == '"' {
		if err := c.quoted(&b, index); err != nil {
			return "", true, err
		}
	} else {
		_ = c.in.UnreadRune()
	}
	closed := first == '"'
	for {
		r, _, err := c.in.ReadRune()
		switch {
		case err != nil || r == '\n':
			return b.String(), true, err
		case r == '\r': // alone too, as on old Macs
			if next, _, err := c.in.ReadRune(); err == nil && next != '\n' {
				_ = c.in.UnreadRune()
			}
			return b.String(), true, nil
		case r == c.comma:
			return b.String(), false, nil
		case closed && r != ' ':
			return "", true, cellError(fmt.Sprintf("column %s: after the closing quotation mark comes %q; write a quotation mark within a quoted text twice", columnName(index), r))
		case closed && r == ' ':
			continue
		case b.Len() > maxCellBytes:
			return "", true, cellError(fmt.Sprintf("column %s: longer than %d bytes", columnName(index), maxCellBytes))
		}
		b.WriteRune(r)
	}
}

// quoted reads up to the closing quotation mark.
func (c *cellReader) quoted(b *strings.Builder, index int) error {
	for {
		r, _, err := c.in.ReadRune()
		switch {
		case errors.Is(err, io.EOF):
			return cellError(fmt.Sprintf("column %s: a quotation mark begins a text that does not end", columnName(index)))
		case err != nil:
			return err
		case r == '"':
			next, _, err := c.in.ReadRune()
			if err != nil {
				return nil //nolint:nilerr // the next read returns it
			}
			if next != '"' {
				return c.in.UnreadRune()
			}
		case b.Len() > maxCellBytes:
			return cellError(fmt.Sprintf("column %s: longer than %d bytes", columnName(index), maxCellBytes))
		}
		b.WriteRune(r)
	}
}

// columnName is the letter of a column, as tables show it: A, B, … Z, AA.
func columnName(index int) string {
	name := ""
	for index++; index > 0; index = (index - 1) / 26 {
		name = string(rune('A'+(index-1)%26)) + name
	}
	return name
}
