package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
)

// DataDir is the folder of one process: journal, spool, and the embedded bucket
// where one is used. While it is open no other process may open it.
type DataDir struct {
	path    string
	lock    *flock.Flock
	Journal *Journal
}

// ErrDataDirInUse means that another process works in the data directory.
var ErrDataDirInUse = errors.New("the data directory is in use by another danqing process")

// OpenDataDir creates and locks the folder at path and opens its journal. The
// caller must Close it. It fails with [ErrDataDirInUse] if another process has it.
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
	journal, err := OpenJournal(filepath.Join(path, "journal.jsonl"))
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	return &DataDir{path: path, lock: lock, Journal: journal}, nil
}

// SpoolPath is where downloaded images wait for the bucket.
func (d *DataDir) SpoolPath() string { return filepath.Join(d.path, "spool") }

// BucketPath is where the embedded bucket lives.
func (d *DataDir) BucketPath() string { return filepath.Join(d.path, "bucket") }

// SimulatorPath is where the embedded simulator keeps its tasks.
func (d *DataDir) SimulatorPath() string { return filepath.Join(d.path, "dashscope") }

// Close closes the journal and unlocks the folder.
func (d *DataDir) Close() error { return errors.Join(d.Journal.Close(), d.lock.Unlock()) }
