package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"

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
	// step is called at each step of a compaction, in tests.
	step func(string)
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

// replacement is a file beside an append file that is to take its place.
type replacement struct {
	file *os.File
	size int64
}

// replacementPrefix begins the names of replacements. A crash may leave one behind.
func (a *appendFile) replacementPrefix() string { return "." + a.name + "-" }

// prepare writes entries to a replacement and syncs it. The caller must discard it.
func (a *appendFile) prepare(entries []Entry) (*replacement, error) {
	file, err := os.CreateTemp(filepath.Dir(a.path), a.replacementPrefix()+"*")
	if err != nil {
		return nil, err
	}
	r := &replacement{file: file}
	out := bufio.NewWriterSize(file, 1<<16)
	for _, e := range entries {
		line := e.line
		if line == nil {
			line, err = compactjson.MarshalLine(e)
		}
		if err != nil {
			break
		}
		_, _ = out.Write(line) // Flush reports the error
		r.size += int64(len(line))
	}
	if err = errors.Join(err, out.Flush()); err == nil {
		err = file.Sync()
	}
	if err != nil {
		r.discard()
		return nil, err
	}
	return r, nil
}

// follow copies what was appended to the old file between two offsets, and syncs it.
func (r *replacement) follow(old io.ReaderAt, from, to int64) error {
	if from == to {
		return nil
	}
	n, err := io.Copy(r.file, io.NewSectionReader(old, from, to-from))
	if r.size += n; err != nil {
		return err
	}
	return r.file.Sync()
}

// discard removes a replacement that has not taken the file's place.
func (r *replacement) discard() {
	if r.file != nil {
		_ = r.file.Close()
		_ = os.Remove(r.file.Name())
	}
}

// replace puts a replacement in the file's place. After an error the file has its old content,
// or it is broken.
func (a *appendFile) replace(next *replacement) error {
	if a.broken != nil {
		return a.broken
	}
	if err := os.Rename(next.file.Name(), a.path); err != nil {
		return err
	}
	a.reached(stepRenamed)
	if a.file != nil {
		_ = a.file.Close() // the old file, no longer read
	}
	a.file, a.size = next.file, next.size
	next.file = nil
	// Until the directory is synced a crash may restore the old file, without later lines.
	a.broken = atomicfile.SyncDir(filepath.Dir(a.path))
	return a.broken
}

// removeReplacements removes the replacements that crashes have left behind.
func (a *appendFile) removeReplacements() error {
	files, err := os.ReadDir(filepath.Dir(a.path))
	for _, file := range files {
		if strings.HasPrefix(file.Name(), a.replacementPrefix()) {
			err = errors.Join(err, os.Remove(filepath.Join(filepath.Dir(a.path), file.Name())))
		}
	}
	return err
}

// Steps of a compaction, for tests.
const (
	stepPrepared = "prepared"
	stepFollowed = "followed"
	stepComplete = "complete"
	stepRenamed  = "renamed"
)

func (a *appendFile) reached(step string) {
	if a.step != nil {
		a.step(step)
	}
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
