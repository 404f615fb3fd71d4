package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/danqing-queue/danqing/jobs"
)

// ReadMode returns the mode of the data directory at path, "" if no worker has used it. It
// needs no lock.
func ReadMode(path string) (jobs.Mode, error) {
	s, err := readState(path)
	return s.Mode, err
}

// Mode returns the directory's mode, "" if no worker has used it.
func (d *DataDir) Mode() jobs.Mode {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.Mode
}

// ClaimMode gives the directory a mode if it has none, and returns the one that it has.
func (d *DataDir) ClaimMode(mode jobs.Mode) (jobs.Mode, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state.Mode != "" {
		return d.state.Mode, nil
	}
	next := d.state
	next.Mode = mode
	return mode, d.setState(next)
}

// ErrNotSimulated means that a data directory is not simulated, so that nothing is deleted.
var ErrNotSimulated = errors.New("the data directory is not simulated")

// PurgeSimulated deletes what workers have stored in a simulated data directory, and the
// files and folders of the given names, and at last the mode, so that the directory can be
// used for real jobs. Everything else stays. While it calls before, no other process can
// open the directory; if before fails nothing is deleted. It may be repeated after an error.
// It fails with [ErrDataDirInUse], [ErrNotSimulated] or [ErrDataDir].
func PurgeSimulated(path string, more []string, before func() error) (err error) {
	lock, err := lockDir(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if mode, err := ReadMode(path); err != nil || mode != jobs.ModeSimulated {
		return errors.Join(err, ErrNotSimulated)
	}
	if err := before(); err != nil {
		return err
	}
	d := &DataDir{Path: path}
	names := append([]string{journalFile, SpendLogName, filepath.Base(d.SpoolPath()), filepath.Base(d.BucketPath()), filepath.Base(d.SimulatorPath())}, more...)
	for _, name := range append(names, stateFile) {
		if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
			return fmt.Errorf("%w: %w", ErrDataDir, err)
		}
	}
	return nil
}
