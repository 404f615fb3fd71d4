package terminal

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestWrap(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text   string
		width  int
		indent string
		want   string
	}{
		{"a longer text of words", 0, "  ", "a longer text of words"},
		{"a longer text of words", 12, "  ", "a longer\n  text of\n  words"},
		{"see /a/very/long/path/of/a/file here", 10, "  ", "see\n  /a/very/long/path/of/a/file\n  here"},
		{"    /a/path/that/is/longer", 10, "  ", "    /a/path/that/is/longer"},
		{"一只白瓷茶杯,商业摄影", 10, "", "一只白瓷茶\n杯,商业摄\n影"},
		{"一只白瓷茶杯。", 12, "", "一只白瓷茶\n杯。"},
		{`"一只白瓷茶杯"`, 13, "", "\"一只白瓷茶\n杯\""},
		{"one\ntwo words", 5, "-", "one\ntwo\n-words"},
	} {
		assert.Equal(t, c.want, Wrap(c.text, c.width, c.indent))
	}
}

func TestReflow(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "words of a\nparagraph\n\n  --x  stays\n  as it is", Reflow("words of\na paragraph\n\n  --x  stays\n  as it is", 12))
}

// A text is cut to cells, not to characters, and cannot move the cursor.
func TestShorten(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "春季主…", Shorten("春季主图", 7))
	assert.Equal(t, "春季主图", Shorten("春季主图", 8))
	assert.Equal(t, "a [2Jb", Shorten("a\x1b[2Jb", 80))
	assert.Empty(t, Shorten("a cat", 0))
}

func TestTable(t *testing.T) {
	t.Parallel()
	table := Table{
		Heads: []string{"JOB", "STATE", "CHANGED", "NOTE"},
		Rows: [][]string{
			{"春季主图.A-017", "succeeded", "2026-11-28 17:54:04", "2 images"},
			{"cat", "held", "2026-11-28 17:54:04", "SubmitAmbiguous: the reply was lost,\nand nobody knows what became of it"},
			{"dog", "queued", "2026-11-28 17:54:04", ""},
		},
	}
	for _, c := range []struct {
		name  string
		width int
		want  string
	}{
		{"no terminal: one line a row", 0, `
JOB             STATE      CHANGED              NOTE
春季主图.A-017  succeeded  2026-11-28 17:54:04  2 images
cat             held       2026-11-28 17:54:04  SubmitAmbiguous: the reply was lost, and nobody knows what became of it
dog             queued     2026-11-28 17:54:04
`},
		{"the last column is wrapped", 80, `
JOB             STATE      CHANGED              NOTE
春季主图.A-017  succeeded  2026-11-28 17:54:04  2 images
cat             held       2026-11-28 17:54:04  SubmitAmbiguous: the reply was
                                                lost, and nobody knows what
                                                became of it
dog             queued     2026-11-28 17:54:04
`},
		{"columns without room follow on a line of their own", 40, `
JOB             STATE
  CHANGED
  NOTE
春季主图.A-017  succeeded
  2026-11-28 17:54:04
  2 images
cat             held
  2026-11-28 17:54:04
  SubmitAmbiguous: the reply was lost,
  and nobody knows what became of it
dog             queued
  2026-11-28 17:54:04
`},
	} {
		assert.Equal(t, strings.TrimPrefix(c.want, "\n"), table.text(c.width), c.name)
	}
	right := Table{Heads: []string{"账户", "SPENT", "NOTE"}, Rows: [][]string{{"默认", "0.16 yuan", "a"}, {"b", "12.50 yuan", "b"}}, Right: []int{1}}
	assert.Equal(t, "账户       SPENT  NOTE\n默认   0.16 yuan  a\nb     12.50 yuan  b\n", right.text(80))
	for width := 1; width < 120; width++ {
		for line := range strings.Lines(table.text(width) + right.text(width)) {
			assert.LessOrEqual(t, Cells(strings.TrimRight(line, "\n")), max(width, 4), "%d: %s", width, line)
		}
	}
}
