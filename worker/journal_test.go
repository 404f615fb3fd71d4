package worker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

func journaled(id string) *jobs.Record {
	return &jobs.Record{ID: id, State: jobs.StateSubmitting, Attempt: 1, Request: &jobs.Request{Prompt: "<auto> 小猫"}}
}

func openJournal(t *testing.T, path string) *Journal {
	t.Helper()
	j, err := OpenJournal(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func openJobs(j *Journal) []string {
	var ids []string
	for _, e := range j.openEntries() {
		ids = append(ids, e.JobID+" "+string(e.Kind))
	}
	return ids
}

func TestJournalRemembersWhatIsOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	for _, step := range []struct {
		kind entryKind
		id   string
	}{
		{entryIntent, "a"}, {entryRefused, "a"},
		{entryIntent, "b"},
		{entryIntent, "c"}, {entryTask, "c"},
		{entryIntent, "d"}, {entryTask, "d"}, {entryResults, "d"}, {entryFinished, "d"},
		{entryIntent, "e"}, {entryTask, "e"}, {entryAttemptOver, "e"},
		{entryIntent, "f"}, {entryAmbiguous, "f"},
	} {
		require.NoError(t, j.append(step.kind, journaled(step.id)))
	}
	want := []string{"b intent", "c task", "f ambiguous"}
	assert.Equal(t, want, openJobs(j))
	require.NoError(t, j.Close())

	// A start keeps what is open and drops the rest.
	j = openJournal(t, path)
	assert.Equal(t, want, openJobs(j))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, 3, strings.Count(string(text), "\n"))
	assert.Contains(t, string(text), "<auto> 小猫")
	require.NoError(t, j.append(entryTask, journaled("b")))
	assert.Equal(t, []string{"c task", "f ambiguous", "b task"}, openJobs(j))
}

// A crash in the middle of a write leaves a torn last line, of any length. What
// it announced had not begun.
func TestJournalDropsATornTail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	require.NoError(t, j.append(entryTask, journaled("a")))
	whole := j.size
	require.NoError(t, j.append(entryTask, journaled("b")))
	require.NoError(t, j.Close())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	for cut := whole; cut < int64(len(text)); cut++ {
		torn := filepath.Join(t.TempDir(), "torn.jsonl")
		require.NoError(t, os.WriteFile(torn, text[:cut], 0o600))
		j, err := OpenJournal(torn)
		require.NoError(t, err)
		require.Equal(t, []string{"a task"}, openJobs(j))
		require.NoError(t, j.Close())
	}
}

// A broken line before the last may hide money spent: no start.
func TestJournalRefusesDamage(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	require.NoError(t, os.WriteFile(path, []byte("{\"kind\":\"int\n{\"kind\":\"task\",\"job_id\":\"a\"}\n"), 0o600))
	_, err := OpenJournal(path)
	require.ErrorContains(t, err, "line 1 is damaged")
	require.ErrorContains(t, err, "restore the file from a backup")
}

// A full disk fails the entry, and the next one does not follow half a line.
func TestJournalOnAFullDisk(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatalf("this test needs Linux's /dev/full: %v", err)
	}
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	require.NoError(t, j.append(entryTask, journaled("a")))
	good := j.file
	j.file = full
	require.ErrorContains(t, j.append(entryIntent, journaled("b")), "no space left")
	require.NoError(t, full.Close())
	j.file, j.broken = good, nil
	require.NoError(t, j.append(entryIntent, journaled("c")))
	require.NoError(t, j.Close())
	assert.Equal(t, []string{"a task", "c intent"}, openJobs(openJournal(t, path)))
}

func TestDataDirIsForOneProcess(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	d, err := OpenDataDir(path)
	require.NoError(t, err)
	_, err = OpenDataDir(path)
	require.ErrorIs(t, err, ErrDataDirInUse)
	holder := d.workerID
	require.NoError(t, d.Close())
	d, err = OpenDataDir(path)
	require.NoError(t, err)
	assert.Equal(t, holder, d.workerID, "the same holder after a restart")
	require.NoError(t, d.Close())
}

// Whatever the file holds, it is read or refused, and what was read is kept.
func FuzzJournal(f *testing.F) {
	f.Add([]byte("{\"kind\":\"task\",\"job_id\":\"a\",\"record\":{}}\n"))
	f.Add([]byte("{\"kind\":\"task\"\n"))
	f.Add([]byte("\n\n{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "journal.jsonl")
		require.NoError(t, os.WriteFile(path, text, 0o600))
		j, err := OpenJournal(path)
		if err != nil {
			return
		}
		before := openJobs(j)
		require.NoError(t, j.Close())
		j, err = OpenJournal(path)
		require.NoError(t, err)
		require.ElementsMatch(t, before, openJobs(j))
		require.NoError(t, j.Close())
	})
}

// The clock is set back between a create that was taken for lost and the next one: the
// journal's next starts know the later one all the same.
func TestJournalOfAClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	now := time.Now().UTC()
	again := journaled("a")
	again.Attempt, again.TaskID = 2, "task-2"
	require.NoError(t, j.write(entry{At: now, Kind: entryNotCreated, JobID: "a", Attempt: 1, Record: journaled("a")}))
	require.NoError(t, j.write(entry{At: now.Add(-time.Hour), Kind: entryTask, JobID: "a", Attempt: 2, Record: again}))
	for range 2 {
		require.NoError(t, j.Close())
		j = openJournal(t, path)
		assert.Equal(t, []string{"a task"}, openJobs(j))
	}
}

// A job whose adopted task has made something else stays held over starts.
func TestRule7MismatchStaysHeld(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	adopted, wrong := journaled("a"), journaled("a")
	adopted.State, adopted.TaskID, adopted.Adopted = jobs.StateGenerating, "task-1", true
	wrong.State, wrong.Candidates, wrong.Rejected = jobs.StateHeld, []string{"task-1"}, []string{"task-1"}
	require.NoError(t, j.append(entryTask, adopted))
	assert.False(t, isBehind(wrong, adopted, time.Now()))
	require.NoError(t, j.append(entryHeld, wrong))
	require.NoError(t, j.Close())
	j = openJournal(t, path)
	assert.Equal(t, []string{"a held"}, openJobs(j))

	// But a reply that named the task is believed whatever others held the job for.
	adopted.Adopted, wrong.Rejected = false, nil
	assert.True(t, isBehind(wrong, adopted, time.Now()))
}
