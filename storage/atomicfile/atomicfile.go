// Package atomicfile replaces files as a whole: whatever happens, a reader finds the
// old content or the new one, and after a crash of the machine too.
package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// Write replaces the file at path by what write writes. Until then that is in a hidden
// file beside it, which is removed on failure.
func Write(path string, perm fs.FileMode, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(perm))
	if err != nil {
		err = errors.Join(err, f.Close())
	} else {
		err = Commit(f, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Commit makes a written file durable, closes it and renames it to path, which must be
// on the same file system. It always closes f; on failure the caller must remove the
// file.
func Commit(f *os.File, path string) error {
	return (&Dir{Path: filepath.Dir(path)}).Commit(f, filepath.Base(path))
}

// Dir is a directory into which files are committed concurrently. Those that wait at the same
// time share one sync of the directory.
type Dir struct {
	Path string

	mu sync.Mutex
	// last is the sync that began last, and next the one that has not begun; nil if there
	// is none.
	last, next *dirSync
	// syncDir replaces SyncDir in tests.
	syncDir func(dir string) error
}

// dirSync is one sync of a directory. err is valid once done is closed.
type dirSync struct {
	done chan struct{}
	err  error
}

// Commit is the function of that name, for the file name in the directory.
func (d *Dir) Commit(f *os.File, name string) error {
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(d.Path, name)); err != nil {
		return err
	}
	return d.sync()
}

// sync returns after a sync of the directory that began after the call.
func (d *Dir) sync() error {
	d.mu.Lock()
	s := d.next
	if s != nil {
		d.mu.Unlock()
		<-s.done
		return s.err
	}
	s, before := &dirSync{done: make(chan struct{})}, d.last
	d.next = s
	d.mu.Unlock()
	if before != nil {
		<-before.done // meanwhile others may join
	}
	d.mu.Lock()
	d.last, d.next = s, nil
	d.mu.Unlock()
	run := SyncDir
	if d.syncDir != nil {
		run = d.syncDir
	}
	s.err = run(d.Path)
	close(s.done)
	return s.err
}

// SyncDir makes what was created, renamed and removed in a directory durable. On
// Windows, which cannot sync a directory, it does nothing.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir) //nolint:gosec // the caller's own directory
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	return d.Sync()
}
