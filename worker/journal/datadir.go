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

// DataDir is the directory of one process: journal, spend log, spool and, where used, the
// embedded bucket. While it is open no other process can open it.
type DataDir struct {
	Path    string // absolute
	Journal *Journal
	Spend   *SpendLog
	// WorkerID identifies this directory's process among lease holders; it is the same
	// after a restart.
	WorkerID string
	// Dataset is the ID of the Redis dataset that the directory's last process replayed its
	// journal into, "" if there was none.
	Dataset string

	lock *flock.Flock
}

// ErrDataDirInUse means that another process uses the data directory.
var ErrDataDirInUse = errors.New("the data directory is in use by another danqing process")

// ErrDataDir means that the data directory cannot be created, read or written.
var ErrDataDir = errors.New("data directory")

// OpenDataDir creates and locks the directory at path and opens its journal and spend log.
// The caller must Close it. It fails with [ErrDataDirInUse] if another process uses it, and
// with [ErrDataDir] if it cannot be created or locked.
func OpenDataDir(path string) (*DataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDataDir, err)
	}
	lock := flock.New(filepath.Join(path, "lock"))
	locked, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("%w: lock: %w", ErrDataDir, err)
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
	dataset, err := os.ReadFile(filepath.Join(path, datasetFile)) //nolint:gosec // in the data directory
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), d.Close())
	}
	d.Dataset = string(dataset)
	return d, nil
}

// workerIDAt reads the worker ID from path; if there is none it creates one.
func workerIDAt(path string) (string, error) {
	name, err := os.ReadFile(path) //nolint:gosec // in the data directory
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

// SetDataset stores the ID of the Redis dataset that the journal was replayed into, for the
// directory's next process.
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

// SpoolPath returns the directory of downloaded images that are not in the bucket yet.
func (d *DataDir) SpoolPath() string { return filepath.Join(d.Path, "spool") }

// BucketPath returns the directory of the embedded bucket.
func (d *DataDir) BucketPath() string { return filepath.Join(d.Path, "bucket") }

// SimulatorPath returns the directory in which the embedded simulator stores its tasks.
func (d *DataDir) SimulatorPath() string { return filepath.Join(d.Path, "dashscope") }

// Close closes the journal and the spend log and unlocks the directory.
func (d *DataDir) Close() error {
	return errors.Join(d.Journal.Close(), d.Spend.Close(), d.lock.Unlock())
}
