package jobs

import (
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The vectors in docs/digest.md are correct.
func TestDigestPage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/digest.md")
	require.NoError(t, err)
	page := string(text)

	triples := regexp.MustCompile("(?s)```json\n(.*?)```\n\n```text\n(.*?)```\n\n`([0-9a-f]{64})`").FindAllStringSubmatch(page, -1)
	require.GreaterOrEqual(t, len(triples), 4)
	for _, v := range triples {
		var r Request
		require.NoError(t, json.Unmarshal([]byte(v[1]), &r))
		assert.Equal(t, v[2], string(r.canonical().digestBytes()))
		assert.Equal(t, v[3], r.Digest())
	}

	ids := regexp.MustCompile("(?m)^\\| (batch|key) \\| `(.*)`, `(.*)` \\| `(.*)` \\|$").FindAllStringSubmatch(page, -1)
	require.Len(t, ids, 4)
	for _, v := range ids {
		if v[1] == "batch" {
			assert.Equal(t, v[4], BatchID(v[2], v[3]))
		} else {
			assert.Equal(t, v[4], IdempotencyID(v[2], v[3]))
		}
	}

	seeds := regexp.MustCompile("(?m)^\\| `(.*)` \\| ([0-9]+) \\| ([0-9]+) \\|$").FindAllStringSubmatch(page, -1)
	require.Len(t, seeds, 3)
	for _, v := range seeds {
		n, err := strconv.Atoi(v[2])
		require.NoError(t, err)
		assert.Equal(t, v[3], strconv.FormatInt(*Request{Prompt: "a", N: n}.WithSeed(v[1]).Seed, 10))
	}
}
