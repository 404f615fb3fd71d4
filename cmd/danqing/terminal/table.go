package terminal

import (
	"io"
	"slices"
	"strings"
)

// Table is rows of cells under headings.
type Table struct {
	Heads []string
	Rows  [][]string
	// Right are the columns whose cells stand at the right, as numbers do, counted from 0.
	Right []int
}

const (
	gap         = 2 // between two columns
	stackIndent = 2 // of the further lines of a row
	// leastText is how many cells the last column needs at least beside the others; its texts
	// are wrapped.
	leastText = 24
)

// Write prints the table, with its columns in line. On a terminal it fits the width: the last
// column is wrapped, and columns that have no room follow on indented lines. Elsewhere each
// row is one line.
func (t *Table) Write(out io.Writer) error {
	_, err := io.WriteString(out, t.text(Width(out)))
	return err
}

// text returns the table for a width, 0 for any.
func (t *Table) text(width int) string {
	rows := make([][]string, 0, len(t.Rows)+1)
	for _, row := range append([][]string{t.Heads}, t.Rows...) {
		clean := make([]string, len(row))
		for i, cell := range row {
			clean[i] = Clean(cell)
		}
		rows = append(rows, clean)
	}
	lines := layout(columnWidths(rows), width)
	for i := range lines {
		lines[i].right = t.Right
	}
	var b strings.Builder
	for _, row := range rows {
		for _, line := range lines {
			line.write(&b, row)
		}
	}
	return b.String()
}

// columnWidths returns the width of the widest cell of each column.
func columnWidths(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], Cells(cell))
		}
	}
	return widths
}

// tableLine is some columns that stand side by side.
type tableLine struct {
	indent, first int
	widths        []int // of the columns from first on
	right         []int // see Table.Right
}

// layout distributes columns over lines of at most width cells, 0 for one line.
func layout(columns []int, width int) []tableLine {
	lines := []tableLine{{}}
	used := 0
	for i, w := range columns {
		need := w
		if i == len(columns)-1 {
			need = min(w, leastText)
		}
		line := &lines[len(lines)-1]
		if len(line.widths) > 0 {
			used += gap
		}
		if width > 0 && len(line.widths) > 0 && used+need > width {
			lines = append(lines, tableLine{indent: stackIndent, first: i})
			line, used = &lines[len(lines)-1], stackIndent
		}
		if width > 0 {
			w = min(w, max(width-used, 2))
		}
		line.widths = append(line.widths, w)
		used += w
	}
	return lines
}

// write prints the line's cells of a row, wrapped.
func (l tableLine) write(b *strings.Builder, row []string) {
	var wrapped [][]string
	height := 1
	for i, width := range l.widths {
		lines := []string{row[l.first+i]}
		if Cells(lines[0]) > width {
			lines = wrapLine(lines[0], width, width, true)
		}
		wrapped = append(wrapped, lines)
		height = max(height, len(lines))
	}
	for n := range height {
		line := strings.Repeat(" ", l.indent)
		for i, lines := range wrapped {
			cell := ""
			if n < len(lines) {
				cell = lines[n]
			}
			if slices.Contains(l.right, l.first+i) {
				cell = strings.Repeat(" ", max(l.widths[i]-Cells(cell), 0)) + cell
			}
			line += Pad(cell, l.widths[i]) + strings.Repeat(" ", gap)
		}
		if line = strings.TrimRight(line, " "); line != "" {
			b.WriteString(line)
			b.WriteByte('\n')
		}
	}
}
