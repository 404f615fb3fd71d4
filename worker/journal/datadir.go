package journal

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// DataDir is the directory of one process: journal, spend log, spool and, where used, the
// embedded bucket. While it is open no other process can open it.
type DataDir struct {
	Path    string // absolute
	Journal *Journal
	Spend   *SpendLog
	// WorkerID identifies this directory's process among lease holders; it is the same
	// after a restart.
	WorkerID string

	lock *flock.Flock
	mu   sync.Mutex
	// state is the content of the state file.
	state state
}

// Errors of [OpenDataDir].
var (
	// ErrDataDirInUse means that another process uses the data directory.
	ErrDataDirInUse = errors.New("the data directory is in use by another danqing process")
	// ErrDataDir means that the data directory cannot be created, read or written.
	ErrDataDir = errors.New("data directory")
)

// OpenDataDir creates and locks the directory at path and opens its journal and spend log.
// The caller must Close it. A journal or spend log that is missing or empty in a directory
// that was used before is begun again, and recorded as lost: see [DataDir.JournalLostAt] and
// [DataDir.SpendLost].
//
// It fails with [ErrDataDirInUse] if another process uses the directory, with [ErrDataDir] if
// it cannot be created or locked, and if a file is damaged or another worker's.
func OpenDataDir(path string) (*DataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	lock, err := lockDir(path)
	if err != nil {
		return nil, err
	}
	d := &DataDir{Path: path, lock: lock}
	if err := d.load(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// lockDir locks an existing data directory.
func lockDir(path string) (*flock.Flock, error) {
	lock := flock.New(filepath.Join(path, "lock"))
	locked, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("%w: lock: %w", ErrDataDir, err)
	}
	if !locked {
		return nil, fmt.Errorf("%s: %w", path, ErrDataDirInUse)
	}
	return lock, nil
}

// load reads the directory's files, and begins those that are missing.
func (d *DataDir) load() (err error) {
	if d.state, err = readState(d.Path); err != nil {
		return err
	}
	if d.Journal, err = load(filepath.Join(d.Path, journalFile)); err != nil {
		return err
	}
	if d.Spend, err = loadSpendLog(filepath.Join(d.Path, SpendLogName)); err != nil {
		return err
	}
	known := d.state.WorkerID
	if d.state.SpendLost { // restoring it was interrupted
		if err := d.Spend.clear(); err != nil {
			return err
		}
	}
	d.WorkerID = cmp.Or(known, d.Journal.workerID, d.Spend.workerID, rand.Text())
	for _, file := range []struct{ name, id string }{{journalFile, d.Journal.workerID}, {SpendLogName, d.Spend.workerID}} {
		if file.id != "" && file.id != d.WorkerID {
			return fmt.Errorf("%s in %s is of worker %s, and the directory is of worker %s: put the directory's own file back", file.name, d.Path, file.id, d.WorkerID)
		}
	}
	spooled, err := hasFiles(d.SpoolPath())
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	next := d.state
	next.WorkerID = d.WorkerID
	journalLost := d.Journal.workerID == "" && (known != "" || d.Spend.workerID != "" || spooled)
	spendLost := d.Spend.workerID == "" && known != ""
	if journalLost {
		next.JournalLostAt = time.Now().UTC()
	}
	next.SpendLost = next.SpendLost || spendLost
	if journalLost || spendLost { // if the process dies before the files exist again, the next start repeats this
		err = d.setState(next)
	}
	if err == nil {
		err = errors.Join(d.Journal.start(d.WorkerID), d.Spend.start(d.WorkerID))
	}
	if err == nil && next != d.state { // a new directory: files without a state are not lost
		err = d.setState(next)
	}
	return err
}

// hasFiles reports whether a directory, which may be missing, or one below it has a file.
func hasFiles(dir string) (found bool, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			found = true
			return fs.SkipAll
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return found, err
}

const journalFile = "journal.jsonl"

// stateFile is the name of the state file: one line of JSON with a checksum.
const stateFile = "worker.json"

// state is what a directory records besides its journal and spend log, to recognize that
// they are lost.
type state struct {
	WorkerID string `json:"worker_id"`
	// Mode is "" until the first worker knows it.
	Mode jobs.Mode `json:"mode,omitempty"`
	// Dataset is the ID of the Redis dataset that the journal was replayed into last.
	Dataset string `json:"dataset,omitempty"`
	// JournalLostAt is when the journal was found to be lost last.
	JournalLostAt time.Time `json:"journal_lost_at,omitzero"`
	// SpendLost is set while the spend log lacks what was spent before it was lost.
	SpendLost bool `json:"spend_lost,omitempty"`
}

// readState reads the state file of a directory. It returns the zero state if there is none.
func readState(dir string) (s state, err error) {
	path := filepath.Join(dir, stateFile)
	line, err := os.ReadFile(path) //nolint:gosec // in the data directory
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = compactjson.UnmarshalLine(line, &s)
	}
	if err == nil && s.WorkerID == "" {
		err = errors.New("no worker_id")
	}
	if err != nil {
		return s, fmt.Errorf("%s is damaged: %w: restore it from a backup, or delete it, if the directory stays with its Redis and bucket: it is recovered from the journal", path, err)
	}
	return s, nil
}

// WorkerIDAt returns the worker ID of the directory at path, "" if it has none. It needs no
// lock.
func WorkerIDAt(path string) (string, error) {
	s, err := readState(path)
	return s.WorkerID, err
}

// setState replaces the state file.
func (d *DataDir) setState(next state) error {
	line, err := compactjson.MarshalLine(next)
	if err == nil {
		err = atomicfile.Write(filepath.Join(d.Path, stateFile), 0o600, func(w io.Writer) error {
			_, err := w.Write(line)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	d.state = next
	return nil
}

// Dataset returns the ID of the Redis dataset that the journal was replayed into last, "" if
// there was none.
func (d *DataDir) Dataset() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.Dataset
}

// SetDataset stores the ID of the Redis dataset that the journal was replayed into, for the
// directory's next process.
func (d *DataDir) SetDataset(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.state
	next.Dataset = id
	return d.setState(next)
}

// JournalLostAt returns when the journal of a directory that was used before was found to be
// missing or empty; zero if that never happened.
func (d *DataDir) JournalLostAt() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.JournalLostAt
}

// SpendLost reports whether the spend log was found to be missing or empty, and has not been
// restored since.
func (d *DataDir) SpendLost() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.SpendLost
}

// SpendRestored records that the spend log was restored as far as possible.
func (d *DataDir) SpendRestored() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.state
	next.SpendLost = false
	return d.setState(next)
}

// SpoolPath returns the directory of downloaded images that are not in the bucket yet.
func (d *DataDir) SpoolPath() string { return filepath.Join(d.Path, "spool") }

// BucketPath returns the directory of the embedded bucket.
func (d *DataDir) BucketPath() string { return filepath.Join(d.Path, "bucket") }

// SimulatorPath returns the directory in which the embedded simulator stores its tasks.
func (d *DataDir) SimulatorPath() string { return filepath.Join(d.Path, "dashscope") }

// Close closes the journal and the spend log and unlocks the directory.
func (d *DataDir) Close() error {
	var errs []error
	if d.Journal != nil {
		errs = append(errs, d.Journal.Close())
	}
	if d.Spend != nil {
		errs = append(errs, d.Spend.Close())
	}
	return errors.Join(append(errs, d.lock.Unlock())...)
}
