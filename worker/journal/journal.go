package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// entryKind says what happened to a job.
type Kind string

const (
	// entryIntent is written and synced before a create is sent. It carries the
	// request, so that the job can be finished by whoever finds it.
	KindIntent Kind = "intent"
	// entryRefused ends an intent: the service certainly made no task.
	KindRefused Kind = "refused"
	// entryAmbiguous marks an intent whose create had an unknown outcome.
	KindAmbiguous Kind = "ambiguous"
	// entryTask names the task that the create made.
	KindTask Kind = "task"
	// entryResults holds the URLs of a finished task, each with its deadline.
	KindResults Kind = "results"
	// entryHeld says that a person must look at a task's images.
	KindHeld Kind = "held"
	// entryAttemptOver says that the attempt's task ended without an image.
	KindAttemptOver Kind = "attempt_over"
	// entryOver says that the job is over and its sidecar is in the bucket.
	KindFinished Kind = "over"
	// entryNotMade ends an intent of which, as far as the account's list tells, no
	// task came. It carries the record, by which a task that shows up later is known.
	KindNotCreated Kind = "not_created"
	// entryOwned names a task of a job that has no other entry any more, or has
	// another task.
	kindOwned Kind = "owned"
	// entryKey tells the api_key_id of a key, by the key's mark.
	kindKey Kind = "key"
)

// taskMemory is how long the journal knows whose a task was: a day, while the service
// lists it, and what two clocks may differ by.
const TaskRetention = 26 * time.Hour

// entry is one line of the journal.
type Entry struct {
	At      time.Time `json:"at"`
	Kind    Kind      `json:"kind"`
	JobID   string    `json:"job_id,omitempty"`
	Attempt int       `json:"attempt,omitempty"`
	Term    int64     `json:"term,omitempty"`

	// Record is the job's record as of this entry; in entries that need it to go
	// on after a crash: all but refused, attempt_over and over.
	Record *jobs.Record `json:"record,omitempty"`

	// TaskID is an owned entry's task, KeyMark the key that it was made with, or an
	// entry of a key is about, and KeyID that one's api_key_id.
	TaskID         string `json:"task_id,omitempty"`
	Account        string `json:"account,omitempty"`
	Model          string `json:"model,omitempty"`
	KeyFingerprint string `json:"key_mark,omitempty"`
	KeyID          string `json:"key_id,omitempty"`
}

// task and keyFingerprint are the entry's own, or its record's.
func (e Entry) task() string {
	if e.Record == nil {
		return e.TaskID
	}
	return e.Record.TaskID
}

func (e Entry) keyFingerprint() string {
	switch {
	case e.Record == nil:
		return e.KeyFingerprint
	case e.Record.Adopted || !e.Record.ResolvedAt.IsZero():
		return "" // somebody found the task: it need not be of the key of the intent
	}
	return e.Record.KeyFingerprint
}

// mayBe reports whether the entry holds a job that a task may be of, or gives the task
// up.
func (e Entry) isCandidate(task string) bool {
	return e.Record != nil && (slices.Contains(e.Record.Candidates, task) || slices.Contains(e.Record.Rejected, task))
}

// Journal is the worker's own append-only file of what it spent: JSON lines,
// each synced before the step that it announces. It is what survives when the
// process, or the queue, does not. It is safe for concurrent use.
type Journal struct {
	mu   sync.Mutex
	file appendFile
	// open is the last entry of each job that is not over.
	open map[string]Entry
	// owned are the tasks of the last [TaskRetention] by their IDs, resubmitted the
	// entries of that kind of as long, by job and attempt, and keys the api_key_ids by
	// the key's fingerprint.
	owned       map[string]Entry
	resubmitted map[string]Entry
	keys        map[string]string
	// compactAt is the size at which the file is rewritten without what nobody needs.
	compactAt int64
}

// minCompactBytes is the size below which the file is not worth rewriting: some 700
// jobs.
const minCompactBytes = 1 << 20

// Open opens or creates the journal at path, which one process may use at a time:
// the caller holds a lock. A torn last line, left by a crash in the middle of a
// write, is dropped: what it announced had not begun. A broken line before the last
// is an error, since it may hide money spent.
func Open(path string) (*Journal, error) {
	j := &Journal{
		file: appendFile{path: path, name: "journal", sync: true},
		open: map[string]Entry{}, owned: map[string]Entry{}, resubmitted: map[string]Entry{}, keys: map[string]string{},
	}
	if err := j.load(); err != nil {
		return nil, err
	}
	if err := j.compact(); err != nil {
		return nil, fmt.Errorf("compact journal %s: %w", path, err)
	}
	return j, nil
}

func (j *Journal) load() error {
	file, err := os.Open(j.file.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	defer file.Close() //nolint:errcheck // read only
	var torn error
	number := 0
	for line, err := range lines(file) {
		if err != nil {
			return fmt.Errorf("read journal %s: %w", j.file.path, err)
		}
		number++
		if torn != nil {
			return fmt.Errorf("%w: restore the file from a backup, or move it away if you are sure that nothing of it is unfinished", torn)
		}
		if bad := j.apply(line); bad != nil {
			torn = fmt.Errorf("journal %s, line %d is damaged: %w", j.file.path, number, bad)
		}
	}
	return nil
}

func attemptOf(e Entry) string { return e.JobID + "." + strconv.Itoa(e.Attempt) }

// apply reads one line, newline included.
func (j *Journal) apply(line []byte) error {
	var e Entry
	if !bytes.HasSuffix(line, []byte("\n")) {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	if e.Kind == "" || e.JobID == "" && e.Kind != kindKey {
		return errors.New("no kind or job_id")
	}
	j.note(e)
	return nil
}

// note keeps what a later start must know: the last entry of each open job, and
// whose the tasks were that the service may still list.
func (j *Journal) note(e Entry) {
	// Whose a task is that was adopted shows when it has ended.
	if task := e.task(); task != "" && (e.Kind != KindTask || e.Record == nil || !e.Record.Adopted) {
		own := Entry{At: e.At, Kind: kindOwned, JobID: e.JobID, Attempt: e.Attempt, TaskID: task, Account: e.Account, Model: e.Model, KeyFingerprint: e.keyFingerprint()}
		if e.Record != nil {
			own.Account, own.Model = e.Record.Account, e.Record.Model
		}
		j.owned[task] = own
	}
	switch e.Kind {
	case kindKey:
		j.keys[e.KeyFingerprint] = e.KeyID
	case kindOwned:
	case KindNotCreated:
		j.resubmitted[attemptOf(e)] = e
		delete(j.open, e.JobID)
	case KindRefused, KindAttemptOver, KindFinished:
		delete(j.open, e.JobID)
	case KindIntent, KindAmbiguous, KindTask, KindResults, KindHeld:
		last, ok := j.open[e.JobID]
		if ok && last.Attempt == e.Attempt && last.task() != "" && e.task() == "" && !e.isCandidate(last.task()) {
			return // a task that is known is never forgotten for doubt
		}
		j.open[e.JobID] = e
	default:
		// A newer version's entry: keep what is known of the job.
	}
}

// compact rewrites the file without what nobody needs any more.
func (j *Journal) compact() error {
	j.forget()
	if err := j.file.replace(j.kept()); err != nil {
		return err
	}
	j.compactAt = max(minCompactBytes, 2*j.file.size)
	return nil
}

// forget drops what is older than [TaskRetention] from memory.
func (j *Journal) forget() {
	old := func(_ string, e Entry) bool { return time.Since(e.At) > TaskRetention }
	maps.DeleteFunc(j.owned, old)
	maps.DeleteFunc(j.resubmitted, old)
}

// kept is what a new file must hold.
func (j *Journal) kept() []Entry {
	var entries []Entry
	for mark, id := range j.keys {
		entries = append(entries, Entry{Kind: kindKey, KeyFingerprint: mark, KeyID: id})
	}
	for _, e := range j.resubmitted {
		entries = append(entries, e)
	}
	for _, e := range j.owned {
		entries = append(entries, e)
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool {
		return e.Kind == kindOwned && j.open[e.JobID].task() == e.TaskID
	})
	oldest := func(a, b Entry) int { return a.At.Compare(b.At) }
	slices.SortStableFunc(entries, oldest)
	// What is open comes last, whatever the clock was when: it was not ended since.
	return append(entries, slices.SortedFunc(maps.Values(j.open), oldest)...)
}

// append writes an entry of a record and syncs it. After an error nothing may be spent. A
// full disk may be tried again; a failed sync may not, since the kernel then no
// longer says what is on the disk, and the journal refuses all further entries.
func (j *Journal) Append(kind Kind, rec *jobs.Record) error {
	e := Entry{At: time.Now().UTC(), Kind: kind, JobID: rec.ID, Attempt: rec.Attempt, Term: rec.Term}
	switch kind {
	case KindRefused, KindAttemptOver, KindFinished:
	default:
		e.Record = rec
	}
	return j.write(e)
}

// setKeyID notes the api_key_id of the key with a mark, unless it is known.
func (j *Journal) SetKeyID(mark, keyID string) error {
	if j.KeyID(mark) == keyID {
		return nil
	}
	return j.write(Entry{At: time.Now().UTC(), Kind: kindKey, KeyFingerprint: mark, KeyID: keyID})
}

// keyID returns the api_key_id of the key with a mark, "" if it is not known.
func (j *Journal) KeyID(mark string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.keys[mark]
}

// ownedTasks returns the entries of the tasks of the last day or so, by their IDs.
func (j *Journal) OwnedTasks() map[string]Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.forget()
	return maps.Clone(j.owned)
}

// CreatedTask is a task's ID and when it was known to exist.
type CreatedTask struct {
	ID string    `json:"id"`
	At time.Time `json:"at"`
}

// LastCreated returns the task that a lane is known to have created last.
func (j *Journal) LastCreated(account, model string) (last CreatedTask) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for task, e := range j.owned {
		if e.Account == account && e.Model == model && e.At.After(last.At) {
			last = CreatedTask{task, e.At}
		}
	}
	return last
}

// notMadeEntries returns the intents of the last day or so that were bought again.
func (j *Journal) Resubmitted() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.resubmitted))
}

// write appends an entry and syncs it, and rewrites the file when it has grown.
func (j *Journal) write(e Entry) error {
	line, err := encodeLine(e)
	if err != nil {
		return fmt.Errorf("encode journal entry of %s: %w", e.JobID, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.file.append(line); err != nil {
		return err
	}
	j.note(e)
	if j.file.size < j.compactAt {
		return nil
	}
	// The entry is written whatever becomes of the smaller file.
	if err := j.compact(); err != nil {
		j.compactAt = 2 * j.file.size
	}
	return nil
}

// openEntries returns the last entry of each open job, oldest first.
func (j *Journal) OpenJobs() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	entries := slices.Collect(maps.Values(j.open))
	slices.SortFunc(entries, func(a, b Entry) int { return a.At.Compare(b.At) })
	return entries
}

// of returns the last entry of an open job.
func (j *Journal) OpenJob(jobID string) (Entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.open[jobID]
	return e, ok
}

// Close closes the file.
func (j *Journal) Close() error { return j.file.close() }
