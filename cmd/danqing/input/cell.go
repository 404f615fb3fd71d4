package input

import (
	"regexp"
	"strings"
)

// ResultPrefix begins the headers of the columns that a table of results adds. They are
// ignored when it is read as a batch file, like the field danqing of a line of JSON.
const ResultPrefix = "danqing."

var (
	// formulaPattern matches a cell that Excel or WPS would calculate instead of showing it, in
	// full-width characters too, and such a cell after apostrophes.
	formulaPattern = regexp.MustCompile(`^'*[\s"]*[=+\-@＝＋－＠\t\r\n]`)
	// numberPattern matches the numbers among them.
	numberPattern = regexp.MustCompile(`^[+-][0-9]+([.,][0-9]+)*([eE][+-]?[0-9]+)?%?$`)
)

// isFormula reports whether a cell must not be written as it is.
func isFormula(cell string) bool {
	return formulaPattern.MatchString(cell) && !numberPattern.MatchString(cell)
}

// EscapeCell returns the text of a cell of a table of results. One that Excel would take for a
// formula gets an apostrophe before it, and is shown.
func EscapeCell(cell string) string {
	if isFormula(cell) {
		return "'" + cell
	}
	return cell
}

// unescapeCell returns the cell of which [EscapeCell] has made a text.
func unescapeCell(text string) string {
	if cell, escaped := strings.CutPrefix(text, "'"); escaped && isFormula(cell) {
		return cell
	}
	return text
}
