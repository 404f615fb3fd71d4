package journal_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/journal"
)

// A purge deletes what workers have stored in a simulated data directory and nothing else;
// no process uses the directory meanwhile.
func TestPurgeSimulated(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	dir, err := journal.OpenDataDir(path)
	require.NoError(t, err)
	yes := func() error { return nil }
	for name, text := range map[string]string{"notes.txt": "x", "spool/cat.1-1": "x", "simulated/mode": "simulated", "queue/queue.log": "x"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(path, name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(path, name), []byte(text), 0o600))
	}
	require.ErrorIs(t, journal.PurgeSimulated(path, nil, yes), journal.ErrDataDirInUse)
	require.NoError(t, dir.Close())
	require.ErrorIs(t, journal.PurgeSimulated(path, nil, yes), journal.ErrNotSimulated)

	dir, err = journal.OpenDataDir(path)
	require.NoError(t, err)
	for range 2 {
		mode, err := dir.ClaimMode(jobs.ModeSimulated)
		require.NoError(t, err)
		assert.Equal(t, jobs.ModeSimulated, mode)
	}
	mode, err := dir.ClaimMode(jobs.ModeReal)
	require.NoError(t, err)
	assert.Equal(t, jobs.ModeSimulated, mode)
	require.NoError(t, dir.Close())
	no := errors.New("the user said no")
	require.ErrorIs(t, journal.PurgeSimulated(path, nil, func() error { return no }), no)
	require.FileExists(t, filepath.Join(path, "journal.jsonl"))

	require.NoError(t, journal.PurgeSimulated(path, []string{"queue"}, yes))
	left, err := filepath.Glob(filepath.Join(path, "*"))
	require.NoError(t, err)
	for i, name := range left {
		left[i] = filepath.Base(name)
	}
	assert.ElementsMatch(t, []string{"lock", "notes.txt", "simulated"}, left)
	dir, err = journal.OpenDataDir(path)
	require.NoError(t, err)
	assert.Empty(t, dir.Mode())
	assert.Zero(t, dir.JournalLostAt())
	require.NoError(t, dir.Close())
}
