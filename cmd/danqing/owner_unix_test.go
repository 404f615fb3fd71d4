//go:build unix

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A file of another owner, or one that others can write, is not trusted: it could name any
// Redis.
func TestInstanceOfAnotherOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, writeInstance(dir, instance{RedisURL: "redis://127.0.0.1:1/0"}))
	path := filepath.Join(dir, instanceFile)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, checkOwner(info, os.Geteuid()))
	require.ErrorContains(t, checkOwner(info, os.Geteuid()+1), "it belongs to another user")
	require.NoError(t, os.Chmod(path, 0o666))
	_, err = readInstance(t.Context(), dir)
	require.ErrorContains(t, err, "is not trusted: other users can write it (mode 0666)")
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	_, err = readInstance(t.Context(), dir)
	require.ErrorContains(t, err, "is not a regular file")
}
