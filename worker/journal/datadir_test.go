package journal

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func openDataDir(t *testing.T, path string) *DataDir {
	t.Helper()
	d, err := OpenDataDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() }) // the test may have closed it
	return d
}

// usedDataDir returns the path of a directory with a purchase, its cost and a dataset.
func usedDataDir(t *testing.T) (path, workerID string) {
	t.Helper()
	path = t.TempDir()
	d := openDataDir(t, path)
	require.Zero(t, d.JournalLostAt(), "a new directory has lost nothing")
	require.False(t, d.SpendLost())
	bought := journaled("a")
	bought.TaskID = "task-a"
	require.NoError(t, d.Journal.Append(KindIntent, journaled("b")))
	require.NoError(t, d.Journal.Append(KindTask, bought))
	require.NoError(t, d.Journal.SetKeyID("fingerprint", "1234"))
	require.NoError(t, d.Spend.Append(spendCharge("a", 0), "task-a"))
	require.NoError(t, d.SetDataset("dataset-1"))
	require.NoError(t, d.Close())
	return path, d.WorkerID
}

func TestDataDirIsForOneProcess(t *testing.T) {
	t.Parallel()
	path, worker := usedDataDir(t)
	d := openDataDir(t, path)
	_, err := OpenDataDir(path)
	require.ErrorIs(t, err, ErrDataDirInUse)
	assert.Equal(t, worker, d.WorkerID, "the same after a restart")
	assert.Equal(t, "dataset-1", d.Dataset())
	assert.Zero(t, d.JournalLostAt())
	assert.False(t, d.SpendLost())
	known, err := WorkerIDAt(path)
	require.NoError(t, err)
	assert.Equal(t, worker, known)
}

// One changed byte, anywhere in any file of a data directory, may hide money spent: the
// directory does not open, and the error names the file and what to do.
func TestDataDirRefusesDamage(t *testing.T) {
	t.Parallel()
	path, _ := usedDataDir(t)
	for _, name := range []string{"journal.jsonl", SpendLogName, stateFile} {
		file := filepath.Join(path, name)
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for at := range text {
			damaged := bytes.Clone(text)
			damaged[at] ^= 1
			require.NoError(t, os.WriteFile(file, damaged, 0o600))
			_, err := OpenDataDir(path)
			require.ErrorContains(t, err, " is damaged: ", "%s, byte %d", name, at)
			require.ErrorContains(t, err, file)
			require.ErrorContains(t, err, "restore")
		}
		require.NoError(t, os.WriteFile(file, text, 0o600))
	}
	require.NoError(t, openDataDir(t, path).Close())
}

// A file that is missing or empty is recognized as lost by the others, and the loss is
// remembered.
func TestDataDirRecognizesLostFiles(t *testing.T) {
	t.Parallel()
	remove := func(path string) error { return os.Remove(path) }
	empty := func(path string) error { return os.Truncate(path, 0) }
	for name, lose := range map[string]func(string) error{"missing": remove, "empty": empty} {
		t.Run("journal "+name, func(t *testing.T) {
			t.Parallel()
			path, worker := usedDataDir(t)
			require.NoError(t, lose(filepath.Join(path, "journal.jsonl")))
			for range 2 {
				d := openDataDir(t, path)
				assert.NotZero(t, d.JournalLostAt())
				assert.Equal(t, worker, d.WorkerID)
				assert.Equal(t, []string{"task-a"}, spendTasks(t, d.Spend))
				require.NoError(t, d.Close())
			}
		})
		t.Run("spend log "+name, func(t *testing.T) {
			t.Parallel()
			path, worker := usedDataDir(t)
			require.NoError(t, lose(filepath.Join(path, SpendLogName)))
			for range 2 {
				d := openDataDir(t, path)
				assert.True(t, d.SpendLost())
				assert.Equal(t, worker, d.WorkerID)
				assert.Equal(t, []string{"b intent", "a task"}, openJobs(d.Journal))
				require.NoError(t, d.Spend.Append(spendCharge("a", 0), "task-a"))
				require.NoError(t, d.Close())
			}
			d := openDataDir(t, path)
			assert.Empty(t, spendTasks(t, d.Spend), "restoring it begins anew")
			require.NoError(t, d.SpendRestored())
			require.NoError(t, d.Close())
			assert.False(t, openDataDir(t, path).SpendLost())
		})
	}
	t.Run("state", func(t *testing.T) {
		t.Parallel()
		path, worker := usedDataDir(t)
		require.NoError(t, os.Remove(filepath.Join(path, stateFile)))
		d := openDataDir(t, path)
		assert.Equal(t, worker, d.WorkerID)
		assert.Zero(t, d.JournalLostAt())
		assert.Equal(t, "1234", d.Journal.KeyID("fingerprint"))
	})
	t.Run("journal and state", func(t *testing.T) {
		t.Parallel()
		path, worker := usedDataDir(t)
		require.NoError(t, os.Remove(filepath.Join(path, stateFile)))
		require.NoError(t, os.Remove(filepath.Join(path, "journal.jsonl")))
		d := openDataDir(t, path)
		assert.Equal(t, worker, d.WorkerID, "from the spend log")
		assert.NotZero(t, d.JournalLostAt())
	})
	t.Run("all but an image", func(t *testing.T) {
		t.Parallel()
		path := t.TempDir()
		image := filepath.Join(path, "spool", "verified", "a.1-1")
		require.NoError(t, os.MkdirAll(filepath.Dir(image), 0o700))
		require.NoError(t, os.WriteFile(image, []byte("image"), 0o600))
		assert.NotZero(t, openDataDir(t, path).JournalLostAt())
	})
}

// Files of two workers in one directory are refused.
func TestDataDirRefusesFilesOfAnother(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"journal.jsonl", SpendLogName} {
		path, worker := usedDataDir(t)
		other, otherWorker := usedDataDir(t)
		text, err := os.ReadFile(filepath.Join(other, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(path, name), text, 0o600))
		_, err = OpenDataDir(path)
		require.ErrorContains(t, err, name+" in "+path+" is of worker "+otherWorker+", and the directory is of worker "+worker)
	}
}
