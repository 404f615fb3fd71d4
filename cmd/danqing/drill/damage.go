package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/danqing-queue/danqing/storage/atomicfile"
)

const (
	// damageTime is how long a killed worker stays down while its journal is damaged,
	// and refusalTime how long it may take to refuse the journal.
	damageTime, refusalTime = time.Second, 20 * time.Second
)

// damageJournal kills a worker and damages its journal before the next process starts.
// A torn last line, as a crash leaves it, and the loss of the whole file must do no harm,
// as the queue is intact. With any other damage the worker must refuse to start; then the
// journal is repaired.
func (d *drill) damageJournal(ctx context.Context, m *process, what action) error {
	d.kill(m, damageTime)
	path := filepath.Join(m.data(), "journal.jsonl")
	content, err := os.ReadFile(path) //nolint:gosec // the drill's own folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil // lost, and not begun again yet
	}
	if err == nil && what == journalLost {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("damage the journal: %w", err)
	}
	switch what {
	case journalLost:
		return nil
	case journalTorn:
		return write(path, append(content, `{"kind":"submitting","record":{"id":"dri`...))
	default: // journalDamaged
	}
	lines := bytes.Count(content, []byte{'\n'})
	if lines < 2 {
		return nil // nothing before its last line
	}
	damaged := bytes.Clone(content)
	end := bytes.LastIndexByte(content[:len(content)-1], '\n')
	damaged[d.rng.IntN(end)] ^= 1
	if err := write(path, damaged); err != nil {
		return err
	}
	if !m.exits(ctx, refusalTime) && ctx.Err() == nil {
		d.counters.problem(m.name + " started with a damaged journal")
	}
	return write(path, content)
}

func write(path string, content []byte) error {
	return atomicfile.Write(path, 0o600, func(to io.Writer) error {
		_, err := to.Write(content)
		return err
	})
}
