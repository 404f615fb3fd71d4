package worker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// entryKind says what happened to a job.
type entryKind string

const (
	// entryIntent is written and synced before a create is sent. It carries the
	// request, so that the job can be finished by whoever finds it.
	entryIntent entryKind = "intent"
	// entryRefused ends an intent: the service certainly made no task.
	entryRefused entryKind = "refused"
	// entryAmbiguous marks an intent whose create had an unknown outcome.
	entryAmbiguous entryKind = "ambiguous"
	// entryTask names the task that the create made.
	entryTask entryKind = "task"
	// entryResults holds the URLs of a finished task, each with its deadline.
	entryResults entryKind = "results"
	// entryHeld says that a person must look at a task's images.
	entryHeld entryKind = "held"
	// entryAttemptOver says that the attempt's task ended without an image.
	entryAttemptOver entryKind = "attempt_over"
	// entryOver says that the job is over and its sidecar is in the bucket.
	entryFinished entryKind = "over"
	// entryNotMade ends an intent of which, as far as the account's list tells, no
	// task came. It carries the record, by which a task that shows up later is known.
	entryNotCreated entryKind = "not_created"
	// entryOwned names a task of a job that has no other entry any more, or has
	// another task.
	entryOwned entryKind = "owned"
	// entryKey tells the api_key_id of a key, by the key's mark.
	entryKey entryKind = "key"
)

// taskMemory is how long the journal knows whose a task was: a day, while the service
// lists it, and what two clocks may differ by.
const taskRetention = 26 * time.Hour

// entry is one line of the journal.
type entry struct {
	At      time.Time `json:"at"`
	Kind    entryKind `json:"kind"`
	JobID   string    `json:"job_id,omitempty"`
	Attempt int       `json:"attempt,omitempty"`
	Term    int64     `json:"term,omitempty"`

	// Record is the job's record as of this entry; in entries that need it to go
	// on after a crash: all but refused, attempt_over and over.
	Record *jobs.Record `json:"record,omitempty"`

	// TaskID is an owned entry's task, KeyMark the key that it was made with, or an
	// entry of a key is about, and KeyID that one's api_key_id.
	TaskID  string `json:"task_id,omitempty"`
	Account string `json:"account,omitempty"`
	Model   string `json:"model,omitempty"`
	KeyMark string `json:"key_mark,omitempty"`
	KeyID   string `json:"key_id,omitempty"`
}

// taskID and keyMark are the entry's own, or its record's.
func (e entry) taskID() string {
	if e.Record == nil {
		return e.TaskID
	}
	return e.Record.TaskID
}

func (e entry) keyMark() string {
	switch {
	case e.Record == nil:
		return e.KeyMark
	case e.Record.Adopted || !e.Record.ResolvedAt.IsZero():
		return "" // somebody found the task: it need not be of the key of the intent
	}
	return e.Record.KeyMark
}

// mayBe reports whether the entry holds a job that a task may be of, or gives the task
// up.
func (e entry) isCandidate(task string) bool {
	return e.Record != nil && (slices.Contains(e.Record.Candidates, task) || slices.Contains(e.Record.Rejected, task))
}

// Journal is the worker's own append-only file of what it spent: JSON lines,
// each synced before the step that it announces. It is what survives when the
// process, or the queue, does not. It is safe for concurrent use.
type Journal struct {
	path string

	mu   sync.Mutex
	file *os.File
	// open is the last entry of each job that is not over.
	open map[string]entry
	// owned are the tasks of the last taskMemory by their IDs, notMade the entries of
	// that kind of as long, by job and attempt, and keys the api_key_ids by mark.
	owned       map[string]entry
	resubmitted map[string]entry
	keys        map[string]string
	// size is where the next entry goes.
	size int64
	// broken is set when the file's tail is unknown: nothing may be spent on its
	// word any more.
	broken error
}

// OpenJournal opens or creates the journal at path, which one process may use at
// a time: the caller holds a lock. A torn last line, left by a crash in the
// middle of a write, is dropped: what it announced had not begun. A broken line
// before the last is an error, since it may hide money spent.
func OpenJournal(path string) (*Journal, error) {
	j := &Journal{path: path, open: map[string]entry{}, owned: map[string]entry{}, resubmitted: map[string]entry{}, keys: map[string]string{}}
	if err := j.load(); err != nil {
		return nil, err
	}
	// Rewritten at every start, so that it does not grow without bound.
	if err := j.compact(); err != nil {
		return nil, fmt.Errorf("compact journal %s: %w", path, err)
	}
	return j, nil
}

func (j *Journal) load() error {
	file, err := os.Open(j.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	defer file.Close() //nolint:errcheck // read only
	lines := bufio.NewReader(file)
	var torn error
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if torn != nil {
				return fmt.Errorf("%w: restore the file from a backup, or move it away if you are sure that nothing of it is unfinished", torn)
			}
			if bad := j.apply(line); bad != nil {
				torn = fmt.Errorf("journal %s, line %d is damaged: %w", j.path, number, bad)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read journal %s: %w", j.path, err)
		}
	}
}

// apply reads one line, newline included.
func (j *Journal) apply(line []byte) error {
	var e entry
	if !bytes.HasSuffix(line, []byte("\n")) {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	if e.Kind == "" || e.JobID == "" && e.Kind != entryKey {
		return errors.New("no kind or job_id")
	}
	j.note(e)
	return nil
}

// note keeps what a later start must know: the last entry of each open job, and
// whose the tasks were that the service may still list.
func (j *Journal) note(e entry) {
	// Whose a task is that was adopted shows when it has ended.
	if task := e.taskID(); task != "" && (e.Kind != entryTask || e.Record == nil || !e.Record.Adopted) {
		own := entry{At: e.At, Kind: entryOwned, JobID: e.JobID, Attempt: e.Attempt, TaskID: task, Account: e.Account, Model: e.Model, KeyMark: e.keyMark()}
		if e.Record != nil {
			own.Account, own.Model = e.Record.Account, e.Record.Model
		}
		j.owned[task] = own
	}
	switch e.Kind {
	case entryKey:
		j.keys[e.KeyMark] = e.KeyID
	case entryOwned:
	case entryNotCreated:
		j.resubmitted[intentField(e.JobID, e.Attempt)] = e
		delete(j.open, e.JobID)
	case entryRefused, entryAttemptOver, entryFinished:
		delete(j.open, e.JobID)
	case entryIntent, entryAmbiguous, entryTask, entryResults, entryHeld:
		last, ok := j.open[e.JobID]
		if ok && last.Attempt == e.Attempt && last.taskID() != "" && e.taskID() == "" && !e.isCandidate(last.taskID()) {
			return // a task that is known is never forgotten for doubt
		}
		j.open[e.JobID] = e
	default:
		// A newer version's entry: keep what is known of the job.
	}
}

func (j *Journal) compact() error {
	next, err := os.CreateTemp(filepath.Dir(j.path), ".journal-*")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) //nolint:errcheck // it is gone after the rename
	for _, e := range j.kept() {
		line, err := encodeEntry(e)
		if err == nil {
			_, err = next.Write(line)
			j.size += int64(len(line))
		}
		if err != nil {
			return errors.Join(err, next.Close())
		}
	}
	if err := next.Sync(); err != nil {
		return errors.Join(err, next.Close())
	}
	if err := os.Rename(next.Name(), j.path); err != nil {
		return errors.Join(err, next.Close())
	}
	j.file = next
	return syncDir(filepath.Dir(j.path))
}

// kept is what a new file must hold.
func (j *Journal) kept() []entry {
	var entries []entry
	for mark, id := range j.keys {
		entries = append(entries, entry{Kind: entryKey, KeyMark: mark, KeyID: id})
	}
	for _, e := range j.resubmitted {
		entries = append(entries, e)
	}
	for _, e := range j.owned {
		entries = append(entries, e)
	}
	entries = slices.DeleteFunc(entries, func(e entry) bool {
		return e.Kind == entryOwned && j.open[e.JobID].taskID() == e.TaskID || e.Kind != entryKey && time.Since(e.At) > taskRetention
	})
	oldest := func(a, b entry) int { return a.At.Compare(b.At) }
	slices.SortStableFunc(entries, oldest)
	// What is open comes last, whatever the clock was when: it was not ended since.
	return append(entries, slices.SortedFunc(maps.Values(j.open), oldest)...)
}

// append writes an entry of a record and syncs it. After an error nothing may be spent. A
// full disk may be tried again; a failed sync may not, since the kernel then no
// longer says what is on the disk, and the journal refuses all further entries.
func (j *Journal) append(kind entryKind, rec *jobs.Record) error {
	e := entry{At: time.Now().UTC(), Kind: kind, JobID: rec.ID, Attempt: rec.Attempt, Term: rec.Term}
	switch kind {
	case entryRefused, entryAttemptOver, entryFinished:
	default:
		e.Record = rec
	}
	return j.write(e)
}

// setKeyID notes the api_key_id of the key with a mark, unless it is known.
func (j *Journal) setKeyID(mark, keyID string) error {
	if j.keyID(mark) == keyID {
		return nil
	}
	return j.write(entry{At: time.Now().UTC(), Kind: entryKey, KeyMark: mark, KeyID: keyID})
}

// keyID returns the api_key_id of the key with a mark, "" if it is not known.
func (j *Journal) keyID(mark string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.keys[mark]
}

// ownedTasks returns the entries of the tasks of the last day or so, by their IDs.
func (j *Journal) ownedTasks() map[string]entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	maps.DeleteFunc(j.owned, func(_ string, e entry) bool { return time.Since(e.At) > taskRetention })
	return maps.Clone(j.owned)
}

// lastTask is the task that a lane is known to have made last.
func (j *Journal) lastCreated(account, model string) (last createdTask) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for task, e := range j.owned {
		if e.Account == account && e.Model == model && e.At.After(last.At) {
			last = createdTask{task, e.At}
		}
	}
	return last
}

// notMadeEntries returns the intents of the last day or so that were bought again.
func (j *Journal) resubmittedEntries() []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.resubmitted))
}

// write appends an entry and syncs it.
func (j *Journal) write(e entry) error {
	line, err := encodeEntry(e)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return fmt.Errorf("journal %s: %w", j.path, j.broken)
	}
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		// No half line may stay in front of the next entry.
		if undo := j.file.Truncate(j.size); undo != nil {
			j.broken = errors.Join(err, undo)
		}
		return fmt.Errorf("write journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		j.broken = err
		return fmt.Errorf("sync journal: %w", err)
	}
	j.size += int64(len(line))
	j.note(e)
	return nil
}

// openEntries returns the last entry of each open job, oldest first.
func (j *Journal) openEntries() []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	entries := slices.Collect(maps.Values(j.open))
	slices.SortFunc(entries, func(a, b entry) int { return a.At.Compare(b.At) })
	return entries
}

// of returns the last entry of an open job.
func (j *Journal) of(jobID string) (entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.open[jobID]
	return e, ok
}

// Close closes the file.
func (j *Journal) Close() error { return j.file.Close() }

func encodeEntry(e entry) ([]byte, error) {
	line, err := encode(e) // ends in a newline
	if err != nil {
		return nil, fmt.Errorf("encode journal entry of %s: %w", e.JobID, err)
	}
	return line, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // our own folder
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	return d.Sync()
}
