package atomicfile_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage/atomicfile"
)

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a")
	for _, content := range []string{"first", "second"} {
		require.NoError(t, atomicfile.Write(path, 0o640, text(content)))
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, content, string(got))
	}
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o640), info.Mode().Perm())
}

// What fails leaves the old content, and nothing beside it.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, folder := filepath.Join(dir, "a"), filepath.Join(dir, "folder")
	require.NoError(t, atomicfile.Write(path, 0o600, text("old")))
	require.NoError(t, os.Mkdir(folder, 0o700))
	broken := errors.New("broken")
	require.ErrorIs(t, atomicfile.Write(path, 0o600, func(w io.Writer) error { return errors.Join(text("half")(w), broken) }), broken)
	require.Error(t, atomicfile.Write(folder, 0o600, text("new")), "there is a folder")
	require.ErrorIs(t, atomicfile.Write(filepath.Join(dir, "none", "a"), 0o600, text("new")), os.ErrNotExist)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "old", string(got))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 2)
}
