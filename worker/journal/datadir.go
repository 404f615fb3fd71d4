package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// DataDir is the folder of one process: journal, spool, and the embedded bucket
// where one is used. While it is open no other process may open it.
type DataDir struct {
	Path    string // absolute
	Journal *Journal
	Spend   *SpendLog
	// WorkerID names this folder's process among the holders of leases; the same
	// after a restart.
	WorkerID string
	// Dataset is the ID of the Redis dataset that the folder's last process has replayed
	// its journal into, "" if there was none.
	Dataset string

	lock *flock.Flock
}

// ErrDataDirInUse means that another process works in the data directory.
var ErrDataDirInUse = errors.New("the data directory is in use by another danqing process")

// OpenDataDir creates and locks the folder at path and opens its journal and its
// spend log. The caller must Close it. It fails with [ErrDataDirInUse] if another process has it.
func OpenDataDir(path string) (*DataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock := flock.New(filepath.Join(path, "lock"))
	locked, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock data directory %s: %w", path, err)
	}
	if !locked {
		return nil, fmt.Errorf("%s: %w", path, ErrDataDirInUse)
	}
	journal, err := Open(filepath.Join(path, "journal.jsonl"))
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	spend, err := OpenSpendLog(filepath.Join(path, SpendLogName))
	if err != nil {
		return nil, errors.Join(err, journal.Close(), lock.Unlock())
	}
	d := &DataDir{Path: path, Journal: journal, Spend: spend, lock: lock}
	if d.WorkerID, err = workerIDAt(filepath.Join(path, "worker_id")); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	dataset, err := os.ReadFile(filepath.Join(path, datasetFile)) //nolint:gosec // in our own folder
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), d.Close())
	}
	d.Dataset = string(dataset)
	return d, nil
}

// workerIDAt reads the folder's worker ID, and makes one up the first time.
func workerIDAt(path string) (string, error) {
	name, err := os.ReadFile(path) //nolint:gosec // in our own folder
	if err == nil && len(name) > 0 {
		return string(name), nil
	}
	name = []byte(rand.Text())
	if err := os.WriteFile(path, name, 0o600); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return string(name), nil
}

// datasetFile holds the ID of the Redis dataset that the journal was replayed into last.
const datasetFile = "dataset"

// SetDataset records the ID of the Redis dataset that the journal was replayed into, for
// the folder's next process.
func (d *DataDir) SetDataset(id string) error {
	err := atomicfile.Write(filepath.Join(d.Path, datasetFile), 0o600, func(w io.Writer) error {
		_, err := io.WriteString(w, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// SpoolPath is where downloaded images wait for the bucket.
func (d *DataDir) SpoolPath() string { return filepath.Join(d.Path, "spool") }

// BucketPath is where the embedded bucket lives.
func (d *DataDir) BucketPath() string { return filepath.Join(d.Path, "bucket") }

// SimulatorPath is where the embedded simulator keeps its tasks.
func (d *DataDir) SimulatorPath() string { return filepath.Join(d.Path, "dashscope") }

// Close closes the journal and the spend log and unlocks the folder.
func (d *DataDir) Close() error {
	return errors.Join(d.Journal.Close(), d.Spend.Close(), d.lock.Unlock())
}
