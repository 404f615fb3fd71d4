// Package terminal prints for people: tables, wrapped text and a progress bar that fit the
// window. Widths are in cells: a Chinese character takes two.
package terminal

import (
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// IsTerminal reports whether a file is a terminal; a reader or writer that is no file is not.
func IsTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// Width returns the number of columns of the terminal that out is, and 0 if it is not one.
func Width(out io.Writer) int {
	file, ok := out.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// cells measures texts. Characters of ambiguous width, such as “…”, take one cell: so do
// terminals unless they are told otherwise, whatever the language.
func cells() *runewidth.Condition {
	return &runewidth.Condition{StrictEmojiNeutral: true}
}

// Cells returns how many cells a text takes.
func Cells(text string) int { return cells().StringWidth(text) }

// Shorten returns a text of at most some cells, with "…" in place of what is cut off. Control
// characters become spaces.
func Shorten(text string, width int) string {
	if width <= 0 {
		return ""
	}
	return cells().Truncate(Clean(text), width, "…")
}

// Pad returns a text with spaces up to a width.
func Pad(text string, width int) string {
	return text + strings.Repeat(" ", max(width-Cells(text), 0))
}

// Clean replaces control characters, which could move the cursor, by spaces.
func Clean(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// Wrap breaks the lines of a text at spaces and between Chinese characters, so that each has
// at most width cells; a longer word, such as a path, stays whole. Lines that follow a break
// begin with the indent. A width of 0 changes nothing.
func Wrap(text string, width int, indent string) string {
	if width <= 0 {
		return text
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = strings.Join(wrapLine(line, width, width-Cells(indent), false), "\n"+indent)
	}
	return strings.Join(lines, "\n")
}

// Reflow joins the lines of each paragraph and wraps them. Lines that begin with a space, and
// what follows them, stay as they are up to the next empty line, but for their width.
func Reflow(text string, width int) string {
	var paragraphs []string
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		if !strings.HasPrefix(paragraph, " ") && !strings.Contains(paragraph, "\n ") {
			paragraph = strings.ReplaceAll(paragraph, "\n", " ")
		}
		paragraphs = append(paragraphs, Wrap(paragraph, width, ""))
	}
	return strings.Join(paragraphs, "\n\n")
}

// wrapLine breaks a line into one of at most first cells and others of at most rest cells. hard
// breaks words that are longer.
func wrapLine(line string, first, rest int, hard bool) []string {
	rest = max(rest, 2) // a character of two cells fits
	measure, limit := cells(), max(first, 2)
	var lines []string
	var text []rune
	used, breakAt := 0, 0 // breakAt is the number of runes before the last place to break
	flush := func(n int) {
		lines = append(lines, strings.TrimRight(string(text[:n]), " "))
		text = []rune(strings.TrimLeft(string(text[n:]), " "))
		used, breakAt, limit = measure.StringWidth(string(text)), 0, rest
	}
	previous := rune(0)
	for _, r := range line {
		if strings.TrimSpace(string(text)) != "" && mayBreak(measure, previous, r) {
			breakAt = len(text)
		}
		width := measure.RuneWidth(r)
		if used+width > limit && r != ' ' {
			switch {
			case breakAt > 0:
				flush(breakAt)
			case hard:
				flush(len(text))
			}
		}
		text = append(text, r)
		used += width
		previous = r
	}
	return append(lines, strings.TrimRight(string(text), " "))
}

// noLineStart are punctuation marks that end what is before them.
const noLineStart = "，。、；：！？）」』》〉】”’…\"',.;:!?)]}"

// mayBreak reports whether a line may be broken between two characters.
func mayBreak(measure *runewidth.Condition, before, after rune) bool {
	switch {
	case after == ' ':
		return false
	case before == ' ':
		return true
	}
	return (measure.RuneWidth(before) == 2 || measure.RuneWidth(after) == 2) && !strings.ContainsRune(noLineStart, after)
}
