package storage

import (
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
)

// The file name of a URL is bounded: as metadata of an object a longer one would be refused
// for ever.
func TestSourceNameIsBounded(t *testing.T) {
	t.Parallel()
	for _, stem := range []string{strings.Repeat("x", 5000), strings.Repeat("長", 1667)} {
		name := sourceName(&url.URL{Path: "/a/" + stem + ".png"})
		assert.LessOrEqual(t, len(name), 200)
		assert.True(t, strings.HasSuffix(name, ".png"))
		assert.True(t, utf8.ValidString(name))
	}
	assert.Equal(t, "u-1.png", sourceName(&url.URL{Path: "/1d/u-1.png"}))
	assert.Empty(t, sourceName(&url.URL{Path: "/"}))
}
