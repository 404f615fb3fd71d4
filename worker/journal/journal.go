package journal

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
)

// Kind is the kind of an entry: what happened to a job.
type Kind string

const (
	// KindIntent is synced before a create is sent. It carries the request, so that any
	// worker can finish the job.
	KindIntent Kind = "intent"
	// KindRefused ends an intent: the service certainly created no task.
	KindRefused Kind = "refused"
	// KindAmbiguous marks an intent whose create had an unknown outcome.
	KindAmbiguous Kind = "ambiguous"
	// KindTask names the task that the create made.
	KindTask Kind = "task"
	// KindResults holds the URLs of a succeeded task, each with its expiry.
	KindResults Kind = "results"
	// KindHeld means that the job is held for an operator.
	KindHeld Kind = "held"
	// KindAttemptOver means that the attempt's task ended without an image.
	KindAttemptOver Kind = "attempt_over"
	// KindFinished means that the job has ended and its sidecar is in the bucket.
	KindFinished Kind = "over"
	// KindNotCreated ends an intent that created no task, according to the account's list.
	// It carries the record, which identifies a task that appears later.
	KindNotCreated Kind = "not_created"
	// kindOwned names a task of a job that has no other entry any more, or has another
	// task.
	kindOwned Kind = "owned"
	// kindKey maps a key's fingerprint to its api_key_id.
	kindKey Kind = "key"
	// kindWorker names the worker whose journal it is. It is the first line.
	kindWorker Kind = "worker"
)

// TaskRetention is how long the journal keeps the owner of a task: the 24 hours for which
// the service lists it, and two hours for clock differences.
const TaskRetention = 26 * time.Hour

// Entry is one line of the journal.
type Entry struct {
	At      time.Time `json:"at"`
	Kind    Kind      `json:"kind"`
	JobID   string    `json:"job_id,omitempty"`
	Attempt int       `json:"attempt,omitempty"`
	Term    int64     `json:"term,omitempty"`

	// Record is the job's record at this entry, nil in the kinds refused, attempt_over and
	// over, which need none to continue after a crash.
	Record *jobs.Record `json:"record,omitempty"`

	// TaskID, Account, Model and KeyFingerprint belong to an owned entry: its task, the
	// lane, and the key that created it. KeyFingerprint and KeyID belong to a key entry.
	TaskID         string `json:"task_id,omitempty"`
	Account        string `json:"account,omitempty"`
	Model          string `json:"model,omitempty"`
	KeyFingerprint string `json:"key_mark,omitempty"`
	KeyID          string `json:"key_id,omitempty"`
	// WorkerID belongs to a worker entry.
	WorkerID string `json:"worker_id,omitempty"`

	// line is the entry as it is in the file, if it has a record: the record itself may be
	// changed by whoever appended it.
	line []byte
}

// task returns the task ID of the entry or of its record.
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
		return "" // the task may have been created with another key
	}
	return e.Record.KeyFingerprint
}

// isCandidate reports whether the entry holds a job for which the task is a candidate, or
// rejects the task.
func (e Entry) isCandidate(task string) bool {
	return e.Record != nil && (slices.Contains(e.Record.Candidates, task) || slices.Contains(e.Record.Rejected, task))
}

// Journal is the worker's append-only file of what it spent: JSON lines, each synced before
// the step that it announces. It survives the loss of the process and of the queue. It is
// safe for concurrent use.
type Journal struct {
	mu   sync.Mutex
	file appendFile
	// workerID is in the first line, "" if the file had no line.
	workerID string
	// open is the last entry of each unfinished job.
	open map[string]Entry
	// owned are the tasks of the last [TaskRetention], by ID. resubmitted are the
	// not_created entries of the same time, by job and attempt. keys are the api_key_ids by
	// key fingerprint.
	owned       map[string]Entry
	resubmitted map[string]Entry
	keys        map[string]string
	// buyAgain are the entries of the held jobs that are to be bought again: see
	// [jobs.Job.BuyAgainAt]. If the later attempt ends without a task, such an entry is the
	// job's last one again. Each of the jobs is open.
	buyAgain map[string]Entry
	// compactAt is the size in bytes at which the file is compacted, and compacting is set
	// while it is, in the background.
	compactAt  int64
	compacting bool
	background sync.WaitGroup
}

// minCompactBytes is the size in bytes below which the file is not compacted: some 700
// jobs.
const minCompactBytes = 1 << 20

// load reads the journal at path, which may be missing. The caller must hold a lock: one
// process at a time may use it. A torn last line, left by a crash during a write, is
// dropped: the step that it announced had not begun. Any other line whose checksum does not
// match is an error, since it may hide money spent. Nothing may be appended before start.
func load(path string) (*Journal, error) {
	j := &Journal{
		file: appendFile{path: path, name: "journal", sync: true},
		open: map[string]Entry{}, owned: map[string]Entry{}, resubmitted: map[string]Entry{}, keys: map[string]string{},
		buyAgain: map[string]Entry{},
	}
	file, err := os.Open(path) //nolint:gosec // in the data directory
	if errors.Is(err, os.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	defer file.Close() //nolint:errcheck // read only
	number := 0
	for line, err := range lines(file) {
		if err != nil {
			return nil, fmt.Errorf("read journal %s: %w", path, err)
		}
		number++
		err := j.apply(line)
		if errors.Is(err, compactjson.ErrTorn) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("journal %s, line %d is damaged: %w: restore the file from a backup, or move it away: then what was running is looked for in the queue, the bucket, the spool and the account's task list, and held if it is not found", path, number, err)
		}
	}
	return j, nil
}

// ReadJournal reads the journal of the data directory at path as it is now, empty if there is
// none. It needs no lock: a process may use the directory. Nothing can be appended, and there
// is nothing to close.
func ReadJournal(path string) (*Journal, error) { return load(filepath.Join(path, journalFile)) }

// start begins the journal of a worker, which must be the one in its first line, if it has
// lines.
func (j *Journal) start(workerID string) error {
	j.workerID = workerID
	if err := errors.Join(j.file.removeReplacements(), j.compact()); err != nil {
		return fmt.Errorf("compact journal %s: %w", j.file.path, err)
	}
	return nil
}

func attemptOf(e Entry) string { return e.JobID + "." + strconv.Itoa(e.Attempt) }

// apply applies one line, including its newline.
func (j *Journal) apply(line []byte) error {
	var e Entry
	if err := compactjson.UnmarshalLine(line, &e); err != nil {
		return err
	}
	if e.Kind == "" || e.JobID == "" && e.Kind != kindKey && e.Kind != kindWorker {
		return errors.New("no kind or job_id")
	}
	if e.Record != nil && (e.Record.ID != e.JobID || e.Record.Attempt != e.Attempt) {
		return errors.New("its record is of another job or attempt")
	}
	if e.Record != nil {
		e.line = line
	}
	j.note(e)
	return nil
}

// note updates the state in memory, which a later start needs: the last entry of each open
// job, and the owners of tasks that the service may still list.
func (j *Journal) note(e Entry) {
	// An adopted task's owner is certain only once the task has ended.
	if task := e.task(); task != "" && (e.Kind != KindTask || e.Record == nil || !e.Record.Adopted) {
		own := Entry{At: e.At, Kind: kindOwned, JobID: e.JobID, Attempt: e.Attempt, TaskID: task, Account: e.Account, Model: e.Model, KeyFingerprint: e.keyFingerprint()}
		if e.Record != nil {
			own.Account, own.Model = e.Record.Account, e.Record.Model
		}
		j.owned[task] = own
	}
	if e.Record != nil {
		for _, task := range e.Record.Rejected { // the create's reply named another job's task
			if own := j.owned[task]; own.JobID == e.JobID && own.Attempt == e.Attempt {
				delete(j.owned, task)
			}
		}
	}
	switch e.Kind {
	case kindWorker:
		j.workerID = e.WorkerID
	case kindKey:
		j.keys[e.KeyFingerprint] = e.KeyID
	case kindOwned:
	case KindNotCreated:
		j.resubmitted[attemptOf(e)] = e
		j.endAttempt(e)
	case KindRefused, KindAttemptOver:
		j.endAttempt(e)
	case KindFinished:
		delete(j.open, e.JobID)
		delete(j.buyAgain, e.JobID)
	case KindIntent, KindAmbiguous, KindTask, KindResults, KindHeld:
		last, ok := j.open[e.JobID]
		if ok && last.Attempt == e.Attempt && last.task() != "" && e.task() == "" && !e.isCandidate(last.task()) {
			return // a known task is never replaced by an ambiguous create
		}
		j.open[e.JobID] = e
		switch held, ok := j.buyAgain[e.JobID]; {
		case e.Kind == KindHeld && e.Record != nil && !e.Record.BuyAgainAt.IsZero():
			j.buyAgain[e.JobID] = e
		case ok && (e.Kind == KindHeld || e.Attempt <= held.Attempt): // decided otherwise
			delete(j.buyAgain, e.JobID)
		}
	default:
		// An entry of a newer version: keep the job's last known entry.
	}
}

// endAttempt closes a job whose attempt has ended without a task, unless it was held before and
// is to be bought again.
func (j *Journal) endAttempt(e Entry) {
	if held, ok := j.buyAgain[e.JobID]; ok && e.Attempt > held.Attempt {
		j.open[e.JobID] = held
		return
	}
	delete(j.open, e.JobID)
	delete(j.buyAgain, e.JobID)
}

// compact rewrites the file without obsolete entries. Entries may be appended meanwhile: they
// are copied, and wait only while the new file takes the place of the old one.
func (j *Journal) compact() error {
	j.mu.Lock()
	j.prune()
	closed, open := j.kept()
	old, from := j.file.file, j.file.size
	j.mu.Unlock()
	next, err := j.file.prepare(inOrder(closed, open))
	if err != nil {
		return err
	}
	defer next.discard()
	j.file.reached(stepPrepared)
	j.mu.Lock()
	to := j.file.size
	j.mu.Unlock()
	if err := next.follow(old, from, to); err != nil {
		return err
	}
	j.file.reached(stepFollowed)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := next.follow(old, to, j.file.size); err != nil {
		return err
	}
	j.file.reached(stepComplete)
	if err := j.file.replace(next); err != nil {
		return err
	}
	j.compactAt = max(minCompactBytes, 2*j.file.size)
	return nil
}

// prune removes entries older than [TaskRetention] from memory.
func (j *Journal) prune() {
	old := func(_ string, e Entry) bool { return time.Since(e.At) > TaskRetention }
	maps.DeleteFunc(j.owned, old)
	maps.DeleteFunc(j.resubmitted, old)
}

// kept returns the entries of a compacted file: those of open jobs apart from the others.
func (j *Journal) kept() (closed, open []Entry) {
	closed = append(closed, Entry{Kind: kindWorker, WorkerID: j.workerID})
	for fingerprint, id := range j.keys {
		closed = append(closed, Entry{Kind: kindKey, KeyFingerprint: fingerprint, KeyID: id})
	}
	for _, e := range j.resubmitted {
		closed = append(closed, e)
	}
	for _, e := range j.buyAgain {
		if j.open[e.JobID].Attempt != e.Attempt {
			closed = append(closed, e)
		}
	}
	for _, e := range j.owned {
		if last := j.open[e.JobID]; last.task() != e.TaskID {
			closed = append(closed, e)
		}
	}
	return closed, slices.Collect(maps.Values(j.open))
}

// inOrder returns the entries in the order of a file. Open entries come last, whatever their
// times: the clock may have been set back, and an earlier entry must not end them.
func inOrder(closed, open []Entry) []Entry {
	oldest := func(a, b Entry) int { return a.At.Compare(b.At) }
	slices.SortStableFunc(closed, oldest)
	slices.SortFunc(open, oldest)
	return append(closed, open...)
}

// Append appends an entry with a record and syncs it. After an error nothing may be spent.
// After a full disk it may be called again. After a failed sync the kernel no longer
// reports what is on the disk, and the journal refuses all further entries.
func (j *Journal) Append(kind Kind, rec *jobs.Record) error {
	e := Entry{At: time.Now().UTC(), Kind: kind, JobID: rec.ID, Attempt: rec.Attempt, Term: rec.Term}
	switch kind {
	case KindRefused, KindAttemptOver, KindFinished:
	default:
		e.Record = rec
	}
	return j.write(e)
}

// SetKeyID stores the api_key_id of the key with a fingerprint, unless it is stored
// already.
func (j *Journal) SetKeyID(fingerprint, keyID string) error {
	if j.KeyID(fingerprint) == keyID {
		return nil
	}
	return j.write(Entry{At: time.Now().UTC(), Kind: kindKey, KeyFingerprint: fingerprint, KeyID: keyID})
}

// KeyID returns the api_key_id of the key with a fingerprint, "" if it is unknown.
func (j *Journal) KeyID(fingerprint string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.keys[fingerprint]
}

// OwnedTasks returns the entries of the tasks of the last [TaskRetention], by task ID.
func (j *Journal) OwnedTasks() map[string]Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.prune()
	return maps.Clone(j.owned)
}

// Owner returns the entry of a task's owner, and whether the task is among those of the
// last [TaskRetention].
func (j *Journal) Owner(taskID string) (Entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.owned[taskID]
	return e, ok
}

// CreatedTask is a task's ID and the time at which its creation was recorded.
type CreatedTask struct {
	ID string    `json:"id"`
	At time.Time `json:"at"`
}

// LastCreated returns the last task that a lane is known to have created.
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

// Resubmitted returns the not_created entries of the last [TaskRetention].
func (j *Journal) Resubmitted() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.resubmitted))
}

// write appends an entry, syncs it, and begins to compact the file once it has grown.
func (j *Journal) write(e Entry) error {
	line, err := compactjson.MarshalLine(e)
	if err != nil {
		return fmt.Errorf("encode journal entry of %s: %w", e.JobID, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.file.append(line); err != nil {
		return err
	}
	if e.Record != nil {
		e.line = line
	}
	j.note(e)
	if j.file.size < j.compactAt || j.compacting {
		return nil
	}
	j.compacting = true
	j.background.Go(func() {
		err := j.compact()
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.compacting = false; err != nil { // all entries are in the old file
			j.compactAt = 2 * j.file.size
		}
	})
	return nil
}

// OpenJobs returns the last entry of each open job, oldest first.
func (j *Journal) OpenJobs() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	entries := slices.Collect(maps.Values(j.open))
	slices.SortFunc(entries, func(a, b Entry) int { return a.At.Compare(b.At) })
	return entries
}

// OpenJob returns the last entry of an open job.
func (j *Journal) OpenJob(jobID string) (Entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.open[jobID]
	return e, ok
}

// BoughtAgain returns the last entry before the present attempt of each open job that was held
// and is bought again.
func (j *Journal) BoughtAgain() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var entries []Entry
	for _, e := range j.buyAgain {
		if j.open[e.JobID].Attempt != e.Attempt {
			entries = append(entries, e)
		}
	}
	return entries
}

// KeyIDs returns the api_key_ids of all known keys by the keys' fingerprints.
func (j *Journal) KeyIDs() map[string]string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.keys)
}

// Close closes the file. Nothing may be appended any more.
func (j *Journal) Close() error {
	j.background.Wait()
	return j.file.close()
}
