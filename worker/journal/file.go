package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// appendFile is an append-only file of JSON lines that can be replaced as a whole.
type appendFile struct {
	path, name string
	// sync makes each line durable before append returns.
	sync bool

	file *os.File
	// size is the offset of the next line, in bytes.
	size int64
	// broken is set when the file's tail is unknown: nothing may be appended then.
	broken error
}

// append writes a line. After an error the line is not in the file. After a full disk it
// may be called again. After a failed sync the kernel no longer reports what is on the
// disk, and the file refuses all further lines.
func (a *appendFile) append(line []byte) error {
	if a.broken != nil {
		return fmt.Errorf("%s %s: %w", a.name, a.path, a.broken)
	}
	if _, err := a.file.WriteAt(line, a.size); err != nil {
		// A partial line must not precede the next one.
		if undo := a.file.Truncate(a.size); undo != nil {
			a.broken = errors.Join(err, undo)
		}
		return fmt.Errorf("write %s: %w", a.name, err)
	}
	if a.sync {
		if err := a.file.Sync(); err != nil {
			a.broken = err
			return fmt.Errorf("sync %s: %w", a.name, err)
		}
	}
	a.size += int64(len(line))
	return nil
}

// replace replaces the file's content with the given entries. After an error it has its old
// content, or it is broken.
func (a *appendFile) replace(entries []Entry) error {
	next, err := os.CreateTemp(filepath.Dir(a.path), "."+a.name+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) //nolint:errcheck // it is gone after the rename
	size := int64(0)
	for _, e := range entries {
		line, err := compactjson.MarshalLine(e)
		if err == nil {
			_, err = next.Write(line)
			size += int64(len(line))
		}
		if err != nil {
			return errors.Join(err, next.Close())
		}
	}
	if err := next.Sync(); err != nil {
		return errors.Join(err, next.Close())
	}
	if err := os.Rename(next.Name(), a.path); err != nil {
		return errors.Join(err, next.Close())
	}
	if a.file != nil {
		_ = a.file.Close() // the old file, no longer read
	}
	a.file, a.size = next, size
	// Until the directory is synced a crash may restore the old file, without later lines.
	a.broken = atomicfile.SyncDir(filepath.Dir(a.path))
	return a.broken
}

// close closes the file, if it was opened.
func (a *appendFile) close() error {
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}

// lines returns the lines of a file, each with its newline; a torn last line has none. An
// error ends them.
func lines(from io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for in := bufio.NewReaderSize(from, 1<<16); ; {
			line, err := in.ReadBytes('\n')
			switch {
			case errors.Is(err, io.EOF) && len(line) == 0:
				return
			case err != nil && !errors.Is(err, io.EOF):
				yield(nil, err)
				return
			}
			if !yield(line, nil) || err != nil {
				return
			}
		}
	}
}
