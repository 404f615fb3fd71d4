package compactjson_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/compactjson"
)

func TestMarshal(t *testing.T) {
	t.Parallel()
	got, err := compactjson.Marshal(map[string]any{"style": "<auto>", "prompt": "猫 & 狗\n", "n": 1})
	require.NoError(t, err)
	assert.Equal(t, `{"n":1,"prompt":"猫 & 狗\n","style":"<auto>"}`, string(got))
	_, err = compactjson.Marshal(func() {})
	assert.Error(t, err)
}

// A line with any one byte changed is refused, its newline included. A beginning of a line is
// told from that: a crash leaves it.
func TestLine(t *testing.T) {
	t.Parallel()
	line, err := compactjson.MarshalLine(map[string]any{"a": "<猫>", "b": 1})
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, compactjson.UnmarshalLine(line, &got))
	assert.Equal(t, "<猫>", got["a"])
	for at := range line {
		for _, flip := range []byte{1, 0x20, 0x80} {
			damaged := bytes.Clone(line)
			damaged[at] ^= flip
			require.ErrorIs(t, compactjson.UnmarshalLine(damaged, &got), compactjson.ErrSum, "byte %d", at)
		}
		require.ErrorIs(t, compactjson.UnmarshalLine(line[:at], &got), compactjson.ErrTorn, "cut at %d", at)
	}
	_, err = compactjson.MarshalLine(func() {})
	require.Error(t, err)
}
