//go:build unix

package storage

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A pipe without a writer would be waited for for ever.
func TestReferenceIsARegularFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe.png")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for _, path := range []string{pipe, dir, "/dev/null"} {
		_, err := ReferenceLimits{}.Inspect(path)
		require.ErrorContains(t, err, "not a regular file")
	}
}
