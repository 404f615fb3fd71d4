package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The process is killed at each step of a compaction: the next start finds every entry that
// was appended until then, those that were appended during the compaction among them, and
// removes what the compaction left behind.
func TestKilledWhileCompacting(t *testing.T) {
	t.Parallel()
	dir, copies := t.TempDir(), t.TempDir()
	j := openJournal(t, filepath.Join(dir, "journal.jsonl"))
	var want []string
	appended := func(id string) {
		require.NoError(t, j.Append(KindIntent, journaled(id)))
		want = append(want, id+" intent")
	}
	for i := range 20 {
		rec := journaled(fmt.Sprintf("done-%d", i))
		rec.TaskID = fmt.Sprintf("task-%d", i)
		require.NoError(t, j.Append(KindTask, rec))
		require.NoError(t, j.Append(KindFinished, rec))
	}
	appended("before")
	var steps []string
	expected := map[string][]string{}
	j.file.step = func(step string) {
		steps = append(steps, step)
		if step == stepPrepared || step == stepFollowed { // others hold the lock
			appended("after-" + step)
		}
		require.NoError(t, os.CopyFS(filepath.Join(copies, step), os.DirFS(dir)))
		expected[step] = append([]string{}, want...)
	}
	require.NoError(t, j.compact())
	j.file.step = nil
	require.Equal(t, []string{stepPrepared, stepFollowed, stepComplete, stepRenamed}, steps)
	require.NoError(t, os.CopyFS(filepath.Join(copies, "end"), os.DirFS(dir)))
	appended("later")
	expected["end"] = want[:len(want)-1]
	for step, want := range expected {
		path := filepath.Join(copies, step)
		killed := openJournal(t, filepath.Join(path, "journal.jsonl"))
		assert.ElementsMatch(t, want, openJobs(killed), step)
		assert.Len(t, killed.OwnedTasks(), 20, step)
		files, err := os.ReadDir(path)
		require.NoError(t, err)
		assert.Len(t, files, 1, step)
	}
	require.NoError(t, j.Close())
	assert.ElementsMatch(t, want, openJobs(openJournal(t, filepath.Join(dir, "journal.jsonl"))))
	text, err := os.ReadFile(filepath.Join(dir, "journal.jsonl"))
	require.NoError(t, err)
	assert.NotContains(t, string(text), "over", "the ends of jobs are gone")
}

// An entry that is appended while the file is compacted does not wait for it: a create may
// depend on it.
func TestAppendDoesNotWaitForACompaction(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	writing, release := make(chan struct{}), make(chan struct{})
	j.file.step = func(step string) {
		if step == stepPrepared {
			close(writing)
			<-release
		}
	}
	j.compactAt = 1
	require.NoError(t, j.Append(KindIntent, journaled("a")))
	<-writing
	require.NoError(t, j.Append(KindIntent, journaled("b")))
	require.NoError(t, j.Append(KindRefused, journaled("a")))
	close(release)
	require.NoError(t, j.Append(KindTask, journaled("c")))
	require.NoError(t, j.Close())
	assert.Equal(t, int64(minCompactBytes), j.compactAt)
	assert.Equal(t, []string{"b intent", "c task"}, openJobs(openJournal(t, path)))
}

// A record that is changed after it was journaled stays in the journal as it was.
func TestCompactionKeepsTheJournaledRecord(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	rec := journaled("a")
	rec.Request.Prompt = "journaled"
	require.NoError(t, j.Append(KindIntent, rec))
	rec.Request.Prompt = "changed"
	require.NoError(t, j.compact())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, 1, strings.Count(string(text), "journaled"))
	assert.NotContains(t, string(text), "changed")
}
