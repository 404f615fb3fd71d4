package journal

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
)

func journaled(id string) *jobs.Record {
	return &jobs.Record{Job: jobs.Job{ID: id, State: jobs.StateSubmitting, Attempt: 1, Request: &jobs.Request{Prompt: "<auto> 小猫"}}}
}

// open opens a journal as a data directory does.
func open(path string) (*Journal, error) {
	j, err := load(path)
	if err != nil {
		return nil, err
	}
	return j, j.start("worker-1")
}

func openJournal(t *testing.T, path string) *Journal {
	t.Helper()
	j, err := open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func openJobs(j *Journal) []string {
	var ids []string
	for _, e := range j.OpenJobs() {
		ids = append(ids, e.JobID+" "+string(e.Kind))
	}
	return ids
}

func TestJournalKeepsOpenJobs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	for _, step := range []struct {
		kind Kind
		id   string
	}{
		{KindIntent, "a"}, {KindRefused, "a"},
		{KindIntent, "b"},
		{KindIntent, "c"}, {KindTask, "c"},
		{KindIntent, "d"}, {KindTask, "d"}, {KindResults, "d"}, {KindFinished, "d"},
		{KindIntent, "e"}, {KindTask, "e"}, {KindAttemptOver, "e"},
		{KindIntent, "f"}, {KindAmbiguous, "f"},
	} {
		require.NoError(t, j.Append(step.kind, journaled(step.id)))
	}
	want := []string{"b intent", "c task", "f ambiguous"}
	assert.Equal(t, want, openJobs(j))
	require.NoError(t, j.Close())

	// A start keeps open entries and drops the rest.
	j = openJournal(t, path)
	assert.Equal(t, want, openJobs(j))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, 4, strings.Count(string(text), "\n"), "with the worker's")
	assert.Contains(t, string(text), "<auto> 小猫")
	require.NoError(t, j.Append(KindTask, journaled("b")))
	assert.Equal(t, []string{"c task", "f ambiguous", "b task"}, openJobs(j))
}

// A crash during a write leaves a torn last line, of any length. The step that it announced
// had not begun.
func TestJournalDropsATornTail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	require.NoError(t, j.Append(KindTask, journaled("a")))
	whole := j.file.size
	require.NoError(t, j.Append(KindTask, journaled("b")))
	require.NoError(t, j.Close())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	for cut := whole; cut < int64(len(text)); cut++ {
		torn := filepath.Join(t.TempDir(), "torn.jsonl")
		require.NoError(t, os.WriteFile(torn, text[:cut], 0o600))
		j, err := open(torn)
		require.NoError(t, err)
		require.Equal(t, []string{"a task"}, openJobs(j))
		require.NoError(t, j.Close())
	}
}

// An entry whose record is of another job or attempt is refused, whatever its checksum.
func TestJournalRefusesContradiction(t *testing.T) {
	t.Parallel()
	for _, change := range []func(*Entry){
		func(e *Entry) { e.Record.ID = "b" },
		func(e *Entry) { e.Attempt++ },
		func(e *Entry) { e.JobID = "" },
	} {
		path := filepath.Join(t.TempDir(), "journal.jsonl")
		e := Entry{At: time.Now(), Kind: KindTask, JobID: "a", Attempt: 1, Record: journaled("a")}
		e.Record.Attempt = 1
		change(&e)
		line, err := compactjson.MarshalLine(e)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, line, 0o600))
		_, err = open(path)
		require.ErrorContains(t, err, "line 1 is damaged")
	}
}

// A full disk fails the entry, and the next one does not follow a partial line.
func TestJournalOnAFullDisk(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatalf("this test needs Linux's /dev/full: %v", err)
	}
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	require.NoError(t, j.Append(KindTask, journaled("a")))
	good := j.file.file
	j.file.file = full
	require.ErrorContains(t, j.Append(KindIntent, journaled("b")), "no space left")
	require.NoError(t, full.Close())
	j.file.file, j.file.broken = good, nil
	require.NoError(t, j.Append(KindIntent, journaled("c")))
	require.NoError(t, j.Close())
	assert.Equal(t, []string{"a task", "c intent"}, openJobs(openJournal(t, path)))
}

// Any file content is read or refused, and entries that were read survive a restart.
func FuzzJournal(f *testing.F) {
	f.Add([]byte("{\"kind\":\"task\",\"job_id\":\"a\",\"record\":{}}\n"))
	f.Add([]byte("{\"kind\":\"task\"\n"))
	f.Add([]byte("\n\n{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "journal.jsonl")
		require.NoError(t, os.WriteFile(path, text, 0o600))
		j, err := open(path)
		if err != nil {
			return
		}
		before := openJobs(j)
		require.NoError(t, j.Close())
		j, err = open(path)
		require.NoError(t, err)
		require.ElementsMatch(t, before, openJobs(j))
		require.NoError(t, j.Close())
	})
}

// The clock is set back between a lost create and the next one: after later starts the
// journal still has the later entry as the open one.
func TestJournalAfterClockSetBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	now := time.Now().UTC()
	again := journaled("a")
	again.Attempt, again.TaskID = 2, "task-2"
	require.NoError(t, j.write(Entry{At: now, Kind: KindNotCreated, JobID: "a", Attempt: 1, Record: journaled("a")}))
	require.NoError(t, j.write(Entry{At: now.Add(-time.Hour), Kind: KindTask, JobID: "a", Attempt: 2, Record: again}))
	for range 2 {
		require.NoError(t, j.Close())
		j = openJournal(t, path)
		assert.Equal(t, []string{"a task"}, openJobs(j))
	}
}

// A job whose adopted task does not match its request stays held over restarts.
func TestRule7MismatchStaysHeld(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	adopted, wrong := journaled("a"), journaled("a")
	adopted.State, adopted.TaskID, adopted.Adopted = jobs.StateGenerating, "task-1", true
	wrong.State, wrong.Candidates, wrong.Rejected = jobs.StateHeld, []string{"task-1"}, []string{"task-1"}
	require.NoError(t, j.Append(KindTask, adopted))
	require.NoError(t, j.Append(KindHeld, wrong))
	require.NoError(t, j.Close())
	j = openJournal(t, path)
	assert.Equal(t, []string{"a held"}, openJobs(j))
}

// The create's reply named another job's task: the journal does not claim that task for the job
// any more, which a replay after data loss would write to Redis. A task of an earlier attempt stays.
func TestRejectedTaskIsNotOwned(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	first, named, rejects := journaled("a"), journaled("a"), journaled("a")
	first.TaskID, named.TaskID, named.Attempt, rejects.Attempt = "task-1", "task-2", 2, 2
	rejects.Rejected = []string{"task-1", "task-2"}
	require.NoError(t, j.Append(KindTask, first))
	require.NoError(t, j.Append(KindTask, named))
	require.NoError(t, j.Append(KindAmbiguous, rejects))
	for range 2 {
		assert.Equal(t, []string{"task-1"}, slices.Collect(maps.Keys(j.OwnedTasks())))
		require.NoError(t, j.Close())
		j = openJournal(t, path)
	}
	assert.Equal(t, []string{"a ambiguous"}, openJobs(j))
}

// The file is compacted while the worker runs: neither the file nor memory grows with the
// number of finished jobs, and open entries are kept.
func TestJournalDoesNotGrow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(dir, "journal.jsonl")
		j, err := open(path)
		require.NoError(t, err)
		j.file.sync = false // 20,000 jobs would take minutes on a slow disk
		held := journaled("held")
		held.State = jobs.StateHeld
		require.NoError(t, j.Append(KindHeld, held))
		total := 20_000
		if testing.Short() { // the race detector's run
			total /= 10
		}
		most := int64(0)
		for i := range total {
			rec := journaled(fmt.Sprintf("job-%d", i))
			require.NoError(t, j.Append(KindIntent, rec))
			rec.TaskID = fmt.Sprintf("task-%d", i)
			for _, kind := range []Kind{KindTask, KindResults, KindFinished} {
				require.NoError(t, j.Append(kind, rec))
			}
			j.mu.Lock()
			most = max(most, j.file.size)
			j.mu.Unlock()
			<-time.After(30 * time.Second)
		}
		assert.Less(t, most, int64(minCompactBytes+4<<20))
		perDay := int(TaskRetention / (30 * time.Second))
		assert.LessOrEqual(t, len(j.OwnedTasks()), perDay+1)
		assert.Equal(t, []string{"held held"}, openJobs(j))
		require.NoError(t, j.Close())
		j, err = open(path)
		require.NoError(t, err)
		assert.Equal(t, []string{"held held"}, openJobs(j))
		assert.LessOrEqual(t, len(j.OwnedTasks()), perDay+1)
		require.NoError(t, j.Close())
	})
}

// A compaction that fails leaves the old file, and entries are still written.
func TestJournalSurvivesAFailedRewrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.jsonl")
	j := openJournal(t, path)
	require.NoError(t, j.Append(KindTask, journaled("a")))
	require.NoError(t, os.Rename(dir, dir+"-moved")) // no new file can be created
	j.compactAt = 1
	require.NoError(t, j.Append(KindTask, journaled("b")), "the entry is written all the same")
	j.background.Wait()
	require.NoError(t, os.Rename(dir+"-moved", dir))
	require.NoError(t, j.Append(KindTask, journaled("c")))
	require.NoError(t, j.Close())
	assert.Equal(t, []string{"a task", "b task", "c task"}, openJobs(openJournal(t, path)))
}

// A held job that is to be bought again stays so if the later attempt ends without a task, and
// over restarts and compactions; another decision, or the job's end, closes it.
func TestJournalKeepsWhatIsToBeBoughtAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	j := openJournal(t, path)
	held := journaled("a")
	held.State, held.TaskID = jobs.StateHeld, "task-a"
	require.NoError(t, j.Append(KindHeld, held))
	decided := *held
	decided.BuyAgainAt = time.Now().UTC()
	require.NoError(t, j.Append(KindHeld, &decided))
	again := journaled("a")
	again.Attempt = 2
	is := func(kind Kind, attempt int) {
		t.Helper()
		for range 2 {
			e, ok := j.OpenJob("a")
			require.True(t, ok)
			assert.Equal(t, kind, e.Kind)
			assert.Equal(t, attempt, e.Attempt)
			require.NoError(t, j.compact())
			require.NoError(t, j.Close())
			j = openJournal(t, path)
		}
	}
	is(KindHeld, 1)
	for _, end := range []Kind{KindRefused, KindAttemptOver, KindNotCreated} {
		require.NoError(t, j.Append(KindIntent, again))
		is(KindIntent, 2)
		require.Len(t, j.BoughtAgain(), 1)
		assert.Equal(t, 1, j.BoughtAgain()[0].Attempt)
		require.NoError(t, j.Append(end, again))
		is(KindHeld, 1)
		assert.Empty(t, j.BoughtAgain())
	}
	require.NoError(t, j.Append(KindIntent, again))
	require.NoError(t, j.Append(KindFinished, again))
	require.NoError(t, j.compact())
	require.NoError(t, j.Close())
	j = openJournal(t, path)
	assert.Empty(t, j.OpenJobs())

	require.NoError(t, j.Append(KindHeld, &decided))
	require.NoError(t, j.Append(KindTask, held)) // a task is adopted instead
	require.NoError(t, j.Append(KindAttemptOver, held))
	assert.Empty(t, j.OpenJobs())
}
