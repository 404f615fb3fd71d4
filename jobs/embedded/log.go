package embedded

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// The log is one file: a header, a snapshot, and the writes since.
//
//	file    = magic salt frame…
//	frame   = length of body, 4 | CRC of length, 4 | CRC of body, 4 | body
//	body    = entry…
//	entry   = clock, ms | number of commands | command…
//	command = number of words | (length | bytes)…
//
// Numbers in a body are varints, those of a frame little-endian; the CRCs are
// Castagnoli's, begun with the salt, so that neither an older file's blocks nor
// what a client wrote can pass for a frame. An entry without commands ends the
// snapshot. A frame is written at once and synced before the next is: only the
// last can be torn, and nobody was told of what is in it.
const (
	logMagic    = "danqing queue 1\n"
	logSaltSize = 8
	frameHeader = 12
)

// entry is what one command, script or transaction changed.
type entry struct {
	// clock is the moment up to which TTLs had run before it.
	clock    time.Time
	commands [][]string
}

func appendEntry(b []byte, e entry) []byte {
	b = binary.AppendVarint(b, e.clock.UnixMilli())
	b = binary.AppendUvarint(b, uint64(len(e.commands)))
	for _, command := range e.commands {
		b = binary.AppendUvarint(b, uint64(len(command)))
		for _, word := range command {
			b = binary.AppendUvarint(b, uint64(len(word)))
			b = append(b, word...)
		}
	}
	return b
}

var errEntry = errors.New("malformed entry")

// cutEntry takes the first entry off a body.
func cutEntry(b []byte) (entry, []byte, error) {
	clock, n := binary.Varint(b)
	if n <= 0 {
		return entry{}, nil, errEntry
	}
	b = b[n:]
	e := entry{clock: time.UnixMilli(clock)}
	commands, b, err := cutCount(b)
	for range commands {
		var words int
		if words, b, err = cutCount(b); err != nil {
			break
		}
		if words == 0 {
			return entry{}, nil, errEntry
		}
		command := make([]string, 0, words)
		for range words {
			var size int
			if size, b, err = cutCount(b); err != nil {
				return entry{}, nil, err
			}
			command = append(command, string(b[:size]))
			b = b[size:]
		}
		e.commands = append(e.commands, command)
	}
	return e, b, err
}

// cutCount takes a number of things off, each at least a byte long and still
// to come.
func cutCount(b []byte) (int, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || v > uint64(len(b)-n) { //nolint:gosec // n is at most len(b)
		return 0, nil, errEntry
	}
	return int(v), b[n:], nil //nolint:gosec // at most len(b)
}

// framer makes and knows the frames of one file.
type framer struct{ salt uint32 }

func newFramer(salt []byte) framer { return framer{crc32.Checksum(salt, castagnoli)} }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (f framer) sum(b []byte) uint32 { return crc32.Update(f.salt, castagnoli, b) }

// write fills in the header of a frame, for which it has room at its start, and
// writes it.
func (f framer) write(w io.Writer, frame []byte) error {
	body := frame[frameHeader:]
	if uint64(len(body)) > math.MaxUint32 {
		return fmt.Errorf("%d bytes at once are too many for the log", len(body))
	}
	binary.LittleEndian.PutUint32(frame, uint32(len(body))) //nolint:gosec // just checked
	binary.LittleEndian.PutUint32(frame[4:], f.sum(frame[:4]))
	binary.LittleEndian.PutUint32(frame[8:], f.sum(body))
	_, err := w.Write(frame)
	return err
}

// length is the whole length of the frame whose header b starts with.
func (f framer) length(b []byte) (int, bool) {
	if len(b) < frameHeader || binary.LittleEndian.Uint32(b[4:]) != f.sum(b[:4]) {
		return 0, false
	}
	return frameHeader + int(binary.LittleEndian.Uint32(b)), true
}

// body is that of the whole and sound frame that b starts with.
func (f framer) body(b []byte) ([]byte, bool) {
	n, ok := f.length(b)
	if !ok || n > len(b) || binary.LittleEndian.Uint32(b[8:]) != f.sum(b[frameHeader:n]) {
		return nil, false
	}
	return b[frameHeader:n], true
}

// torn reports whether nothing that was ever synced follows the unsound frame
// that b starts with.
func (f framer) torn(b []byte) bool {
	if n, ok := f.length(b); ok && n < len(b) {
		if _, next := f.length(b[n:]); next {
			return false // its successor was begun, so it had been synced
		}
	}
	for i := 1; i < len(b); i++ {
		if _, ok := f.body(b[i:]); ok {
			return false
		}
	}
	return true
}

// damageError is a log that no crash leaves behind.
type damageError struct {
	offset, size int
	what         string
}

func (e *damageError) Error() string {
	return fmt.Sprintf("damaged at byte %d of %d (%s): nothing was changed; restore the file from a backup, or move it away to start with an empty queue (images that were bought are known to the journal and the bucket)", e.offset, e.size, e.what)
}

// readLog gives every entry of a log to apply and returns the offset up to
// which it is sound: len(data), or less if its end is torn. It fails with a
// [*damageError].
func readLog(data []byte, apply func(entry)) (int, error) {
	start := len(logMagic) + logSaltSize
	if len(data) < start || string(data[:len(logMagic)]) != logMagic {
		return 0, &damageError{0, len(data), "no queue log of this version"}
	}
	f := newFramer(data[len(logMagic):start])
	whole := false // the snapshot has been read
	offset := start
	for offset < len(data) {
		body, ok := f.body(data[offset:])
		if !ok {
			if whole && f.torn(data[offset:]) {
				break
			}
			return 0, &damageError{offset, len(data), "checksum"}
		}
		for rest := body; len(rest) > 0; {
			e, left, err := cutEntry(rest)
			if err != nil {
				return 0, &damageError{offset, len(data), err.Error()}
			}
			rest = left
			whole = whole || len(e.commands) == 0
			apply(e)
		}
		offset += frameHeader + len(body)
	}
	if !whole {
		return 0, &damageError{offset, len(data), "the snapshot has no end"}
	}
	return offset, nil
}

// logFile is what the log needs of an *os.File.
type logFile interface {
	io.WriteCloser
	Sync() error
}

func createFile(path string) (logFile, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600) //nolint:gosec // in our own folder
}

// writeLog is the open log. Writes that come together share one sync.
type writeLog struct {
	path   string
	logger *slog.Logger
	create func(path string) (logFile, error)

	mu     sync.Mutex
	turn   sync.Cond // signaled when flushing ends
	file   logFile
	framer framer
	// size is the file's, base what of it was the snapshot.
	size, base int64
	// pending is a frame in the making: room for its header, and entries.
	pending  []byte
	flushing bool
	err      error // why writes are refused
	// appended counts the entries ever appended, synced those that are safe;
	// both grow with mu held.
	appended, synced atomic.Uint64
}

func newWriteLog(path string, create func(string) (logFile, error), logger *slog.Logger) *writeLog {
	l := &writeLog{path: path, create: create, logger: logger}
	l.turn.L = &l.mu
	return l
}

// failed returns why the log cannot be written, if so.
func (l *writeLog) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// last is the number of the last entry.
func (l *writeLog) last() uint64 {
	return l.appended.Load()
}

// append puts an entry behind those before it.
func (l *writeLog) append(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appended.Add(1)
	if l.err != nil {
		return // the next snapshot has it
	}
	if len(l.pending) == 0 {
		l.pending = append(l.pending, make([]byte, frameHeader)...)
	}
	l.pending = appendEntry(l.pending, e)
}

// wait returns once the first n entries are synced, or cannot be. Whoever comes
// first syncs for all.
func (l *writeLog) wait(n uint64) error {
	if l.synced.Load() >= n {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.synced.Load() < n && l.err == nil {
		if l.flushing {
			l.turn.Wait()
		} else {
			l.flush()
		}
	}
	if l.synced.Load() >= n {
		return nil
	}
	return l.err
}

// flush writes and syncs what is pending. It is called with mu held, which it
// gives up meanwhile.
func (l *writeLog) flush() {
	frame, upTo, file := l.pending, l.appended.Load(), l.file
	l.pending, l.flushing = nil, true
	l.mu.Unlock()
	err := l.framer.write(file, frame)
	if err == nil {
		err = file.Sync()
	}
	l.mu.Lock()
	l.flushing = false
	if err != nil {
		l.err, l.pending = err, nil
		l.logger.Error("queue log cannot be written, writes are refused until it can", "path", l.path, "err", err)
	} else {
		l.size += int64(len(frame))
		l.synced.Store(upTo)
	}
	l.turn.Broadcast()
}

// wantsRewrite reports whether the log has failed, or most of it is no snapshot.
func (l *writeLog) wantsRewrite() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil || l.size > 2*l.base+growth
}

// growth is by how much the log may exceed twice its snapshot; ours. It is read
// whole at the next start.
const growth = 4 << 20

// rewrite replaces the log by the entries that snapshot gives to add. Nothing may be appended meanwhile. If it fails, what was there before
// goes on.
func (l *writeLog) rewrite(snapshot func(add func(entry))) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.flushing {
		l.turn.Wait()
	}
	next := l.path + ".new"
	file, err := l.create(next)
	if err != nil {
		return err
	}
	f, size, err := writeSnapshot(file, snapshot)
	if err == nil {
		err = os.Rename(next, l.path)
	}
	if err != nil {
		return errors.Join(err, file.Close(), os.Remove(next))
	}
	if l.file != nil {
		_ = l.file.Close() // nothing of it is needed any more
	}
	l.file, l.framer, l.size, l.base = file, f, size, size
	l.pending = nil
	l.synced.Store(l.appended.Load())
	l.err = atomicfile.SyncDir(filepath.Dir(l.path)) // until it is, the old file may come back
	l.turn.Broadcast()
	return l.err
}

// snapshotFrame is about how much of a snapshot is written at once; ours.
const snapshotFrame = 1 << 20

func writeSnapshot(file logFile, snapshot func(add func(entry))) (framer, int64, error) {
	salt := make([]byte, logSaltSize)
	_, _ = rand.Read(salt) // never fails
	f := newFramer(salt)
	size, err := file.Write(append([]byte(logMagic), salt...))
	frame := make([]byte, frameHeader)
	flush := func() {
		if err == nil {
			err = f.write(file, frame)
		}
		size += len(frame)
		frame = frame[:frameHeader]
	}
	snapshot(func(e entry) {
		frame = appendEntry(frame, e)
		if len(frame) >= snapshotFrame {
			flush()
		}
	})
	if len(frame) > frameHeader {
		flush()
	}
	if err == nil {
		err = file.Sync()
	}
	return f, int64(size), err
}

// resume goes on behind a log that was read: size bytes of it are sound.
func (l *writeLog) resume(data []byte, size int) error {
	if size < len(data) {
		if err := os.Truncate(l.path, int64(size)); err != nil {
			return err
		}
	}
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return errors.Join(err, file.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file, l.size = file, int64(size)
	l.framer = newFramer(data[len(logMagic) : len(logMagic)+logSaltSize])
	return nil
}

func (l *writeLog) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
