package input

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What Excel would calculate is shown instead; ordinary values stay as they are.
func TestEscapeCell(t *testing.T) {
	t.Parallel()
	for cell, want := range map[string]string{
		"": "", "猫": "猫", "-5": "-5", "+0.5": "+0.5", "-1,000.25": "-1,000.25", "-12%": "-12%", "1-2": "1-2", "a=b": "a=b", "'quoted'": "'quoted'",
		"=1+1": "'=1+1", "=cmd|' /C calc'!A0": "'=cmd|' /C calc'!A0", "+86 138": "'+86 138", "-1+1": "'-1+1", "@SUM(A1)": "'@SUM(A1)", "- 一只猫": "'- 一只猫",
		" =1": "' =1", "\t=1": "'\t=1", "＝1+1": "'＝1+1", "'=1": "''=1", `"=1`: `'"=1`, "\r\n猫": "'\r\n猫",
	} {
		assert.Equal(t, want, EscapeCell(cell), "%q", cell)
	}
}

// No text is calculated, and what was escaped is read back as it was.
func FuzzEscapeCell(f *testing.F) {
	for _, cell := range []string{"=1", "'=1", "''=1", "-5", "'-5", "'", "'a", "@", "+ 1"} {
		f.Add(cell)
	}
	f.Fuzz(func(t *testing.T, cell string) {
		text := EscapeCell(cell)
		require.Equal(t, cell, unescapeCell(text))
		require.True(t, text == "" || !strings.ContainsAny(text[:1], "=+-@\t\r\n") || numberPattern.MatchString(text))
	})
}
