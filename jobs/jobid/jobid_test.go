package jobid

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOfText(t *testing.T) {
	t.Parallel()
	const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for prompt, want := range map[string]string{
		"有一只黑色的小猫":                         "有一只黑色的小猫-0123456789ab",
		"  A cat -- in a hat, by Monet.  ": "A-cat-in-a-hat-by-Monet-0123456789ab",
		"近景镜头,18岁的中国女孩":                    "近景镜头-18岁的中国女孩-0123456789ab",
		strings.Repeat("长", 17):            strings.Repeat("长", 16) + "-0123456789ab",
		"../etc\\passwd\x00con:":           "etc-passwd-con-0123456789ab",
		"con":                              "con-0123456789ab",
		"😀 \u202e…":                        "0123456789ab",
		"":                                 "0123456789ab",
		strings.Repeat("x", 47) + " y":     strings.Repeat("x", 47) + "-0123456789ab",
		strings.Repeat("x", 60) + " it stops here": strings.Repeat("x", 48) + "-0123456789ab",
	} {
		assert.Equal(t, want, OfText(prompt, digest), "%q", prompt)
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	for id, want := range map[string][2]string{"a": {"", "a"}, "春季主图.A-017": {"春季主图", "A-017"}, "a.b.c": {"a.b", "c"}} {
		folder, name := Split(id)
		assert.Equal(t, want, [2]string{folder, name})
	}
}

// Any two names have a valid ID, and no other two have it. The ID gives the parts back.
func FuzzOf(f *testing.F) {
	f.Add("a-b", "c", "a", "b-c")
	f.Add("spring", "v2.A-17", "spring.v2", "A-17")
	f.Add("a.b", "c", "a", "b.c")
	f.Add("a b", "c", "a_b", "c")
	f.Add("a", "b c", "a", Of("a", "b c")[2:])
	f.Add("", "", "\xff", "\ufffd")
	f.Add("con", "nul.png", "CON", "\u202e猫")
	f.Add(strings.Repeat("春", 27), strings.Repeat("a", 120), strings.Repeat("春", 28), strings.Repeat("a", 121))
	f.Fuzz(func(t *testing.T, batchA, lineA, batchB, lineB string) {
		a, b := Of(batchA, lineA), Of(batchB, lineB)
		require.True(t, Valid(a), a)
		require.True(t, utf8.ValidString(a))
		if batchA != batchB || lineA != lineB {
			require.NotEqual(t, a, b)
		}
		folder, name := Split(a)
		require.Equal(t, a, folder+"."+name)
		require.Equal(t, batchA == batchB, strings.HasPrefix(b, folder+".") && !strings.Contains(b[len(folder)+1:], "."))
		if Valid(lineA) && !strings.Contains(lineA, ".") && len(lineA) <= maxLineBytes && !hashedPattern.MatchString(lineA) {
			require.Equal(t, lineA, name, "a readable name stays as it is")
		}
		text := OfText(lineA, "0123456789abcdef")
		require.True(t, Valid(text), text)
		require.Equal(t, text, part(text, maxLineBytes, false), "it needs no hash of its own")
	})
}
