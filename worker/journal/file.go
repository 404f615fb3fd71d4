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

// appendFile is a file of JSON lines that only grows, or is replaced as a whole.
type appendFile struct {
	path, name string
	// sync makes each line durable before append returns.
	sync bool

	file *os.File
	// size is where the next line goes.
	size int64
	// broken is set when the file's tail is unknown: nothing may be appended any more.
	broken error
}

// append writes a line. After an error the line is not there. A full disk may be tried
// again; a failed sync may not, since the kernel then no longer says what is on the disk,
// and the file refuses all further lines.
func (a *appendFile) append(line []byte) error {
	if a.broken != nil {
		return fmt.Errorf("%s %s: %w", a.name, a.path, a.broken)
	}
	if _, err := a.file.WriteAt(line, a.size); err != nil {
		// No half line may stay in front of the next one.
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

// replace makes the file hold these lines alone. After an error it holds what it held,
// or it is broken.
func (a *appendFile) replace(entries []Entry) error {
	next, err := os.CreateTemp(filepath.Dir(a.path), "."+a.name+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) //nolint:errcheck // it is gone after the rename
	size := int64(0)
	for _, e := range entries {
		line, err := encodeLine(e)
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
		_ = a.file.Close() // nothing of it is read any more
	}
	a.file, a.size = next, size
	// Until the folder is synced a crash may bring the old file back, without later lines.
	a.broken = atomicfile.SyncDir(filepath.Dir(a.path))
	return a.broken
}

func (a *appendFile) close() error { return a.file.Close() }

// lines returns the lines of a file, each with its newline, but for a last one that was
// torn. An error ends them.
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

// encodeLine is v as a line of JSON.
func encodeLine(v any) ([]byte, error) {
	line, err := compactjson.Marshal(v)
	if err != nil {
		return nil, err
	}
	return append(line, '\n'), nil
}
