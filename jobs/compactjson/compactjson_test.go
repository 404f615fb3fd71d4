package compactjson_test

import (
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
