package gallery

import (
	"bytes"
	"encoding/json"
	"html"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Text of users neither ends an element of the page nor is changed. The page names the only
// style and script that may run, and refers to nothing else.
func TestPage(t *testing.T) {
	t.Parallel()
	const evil = `</title></script><script>alert("1")</script>&amp;` + "\u2028"
	g := Gallery{Title: evil, Key: evil, File: "{{script}}", Lines: []Line{{
		JobID: "j", Prompt: evil, Reason: evil, Raw: `{"a":"` + "</script>" + `","n":12345678901234567890}`,
		Images: []Image{{N: 1, Sources: []string{"./" + evil}}},
	}}}
	var page bytes.Buffer
	require.NoError(t, g.Write(&page))

	text := page.String()
	between := func(from, to string) string {
		_, after, found := strings.Cut(text, from)
		require.True(t, found, from)
		inside, _, found := strings.Cut(after, to)
		require.True(t, found, to)
		return inside
	}
	assert.Equal(t, 2, strings.Count(text, "<script"))
	assert.Equal(t, 2, strings.Count(text, "</script>"))
	assert.Equal(t, evil, html.UnescapeString(between("<title>", "</title>")))
	assert.Equal(t, evil, html.UnescapeString(between("<h1>", "</h1>")))
	var got Gallery
	require.NoError(t, json.Unmarshal([]byte(between(`<script type="application/json" id="data">`, "</script>")), &got))
	assert.Equal(t, g.Lines, got.Lines)
	assert.Equal(t, g.File, got.File)
	assert.Equal(t, script, between("<script>", "</script>"))
	assert.Equal(t, style, between("<style>", "</style>"))
	for _, request := range []string{"<link", "<img", "<iframe", "url(", "@import", "fetch("} {
		assert.NotContains(t, text, request)
	}
	assert.Contains(t, text, "default-src &#39;none&#39;")
	assert.Equal(t, 2, strings.Count(policy(), "'sha256-"))
}
