package embedded

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// On a disk that cannot tell names apart by case, no object replaces that of a key which
// differs from its own only in case.
func TestKeysThatDifferInCase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := openStore(dir, "images")
	require.NoError(t, err)
	defer s.root.Close() //nolint:errcheck // a test
	probe := filepath.Join(dir, "Probe")
	require.NoError(t, os.WriteFile(probe, nil, 0o600))
	_, err = os.Stat(filepath.Join(dir, "pROBE"))
	assert.Equal(t, err == nil, s.foldsCase)

	s.foldsCase = true // as on macOS and Windows
	put := func(key string) error {
		_, err := s.PutObject(t.Context(), "images", key, nil, strings.NewReader(key), int64(len(key)))
		return err
	}
	require.NoError(t, put("A/A-1.png"))
	require.NoError(t, put("A/A-1.png"), "the same key again")
	require.NoError(t, put("b/b-1.png"))
	for _, key := range []string{"a/a-1.png", "A/a-1.png", "a/other.png", "A/A-1.PNG"} {
		require.ErrorContains(t, put(key), "differs from it only in case", key)
	}
	for name, want := range map[string]bool{"images/A/A-1.png": false, "images/a/A-1.png": true, "images/A/a-1.png": true, "images/c": false} {
		other, err := s.otherSpelling(filepath.FromSlash(name))
		require.NoError(t, err)
		assert.Equal(t, want, other, name)
	}
	o, err := s.HeadObject(t.Context(), "images", "A/A-1.png")
	require.NoError(t, err)
	assert.EqualValues(t, len("A/A-1.png"), o.Size)
}
