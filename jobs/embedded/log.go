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

// The log is one file: a header, a snapshot, and the writes after it.
//
//	file    = magic salt frame…
//	frame   = length of body, 4 | CRC of length, 4 | CRC of body, 4 | body
//	body    = entry…
//	entry   = clock, ms | number of commands | command…
//	command = number of words | (length | bytes)…
//
// Numbers in a body are varints, those of a frame header little-endian. The CRCs are
// Castagnoli's and start with the salt, so that neither blocks of an older file nor data
// of a client can be mistaken for a frame. An entry without commands ends the snapshot.
// A frame is written at once and synced before the next one: only the last can be torn,
// and none of its writes was acknowledged.
const (
	logMagic    = "danqing queue 1\n"
	logSaltSize = 8
	frameHeader = 12
)

// entry has the writes of one command, script or transaction.
type entry struct {
	// clock is miniredis's time when it was executed.
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

// decodeEntry decodes the first entry of a body and returns the rest.
func decodeEntry(b []byte) (entry, []byte, error) {
	clock, n := binary.Varint(b)
	if n <= 0 {
		return entry{}, nil, errEntry
	}
	b = b[n:]
	e := entry{clock: time.UnixMilli(clock)}
	commands, b, err := decodeCount(b)
	for range commands {
		var words int
		if words, b, err = decodeCount(b); err != nil {
			break
		}
		if words == 0 {
			return entry{}, nil, errEntry
		}
		command := make([]string, 0, words)
		for range words {
			var size int
			if size, b, err = decodeCount(b); err != nil {
				return entry{}, nil, err
			}
			command = append(command, string(b[:size]))
			b = b[size:]
		}
		e.commands = append(e.commands, command)
	}
	return e, b, err
}

// decodeCount decodes the count of the following elements, each at least one byte long,
// and returns the rest.
func decodeCount(b []byte) (int, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || v > uint64(len(b)-n) { //nolint:gosec // n is at most len(b)
		return 0, nil, errEntry
	}
	return int(v), b[n:], nil //nolint:gosec // at most len(b)
}

// frameCodec encodes and decodes the frames of one file.
type frameCodec struct{ salt uint32 }

func newFrameCodec(salt []byte) frameCodec { return frameCodec{crc32.Checksum(salt, castagnoli)} }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (f frameCodec) sum(b []byte) uint32 { return crc32.Update(f.salt, castagnoli, b) }

// write fills in the header at the start of frame, and writes it.
func (f frameCodec) write(w io.Writer, frame []byte) error {
	body := frame[frameHeader:]
	if uint64(len(body)) > math.MaxUint32 {
		return fmt.Errorf("%d bytes are too large for one log frame", len(body))
	}
	binary.LittleEndian.PutUint32(frame, uint32(len(body))) //nolint:gosec // just checked
	binary.LittleEndian.PutUint32(frame[4:], f.sum(frame[:4]))
	binary.LittleEndian.PutUint32(frame[8:], f.sum(body))
	_, err := w.Write(frame)
	return err
}

// length returns the total length of the frame at the start of b, if its header is valid.
func (f frameCodec) length(b []byte) (int, bool) {
	if len(b) < frameHeader || binary.LittleEndian.Uint32(b[4:]) != f.sum(b[:4]) {
		return 0, false
	}
	return frameHeader + int(binary.LittleEndian.Uint32(b)), true
}

// body returns the body of the frame at the start of b, if it is complete and valid.
func (f frameCodec) body(b []byte) ([]byte, bool) {
	n, ok := f.length(b)
	if !ok || n > len(b) || binary.LittleEndian.Uint32(b[8:]) != f.sum(b[frameHeader:n]) {
		return nil, false
	}
	return b[frameHeader:n], true
}

// isTorn reports whether the invalid frame at the start of b is followed by nothing that
// was synced.
func (f frameCodec) isTorn(b []byte) bool {
	if n, ok := f.length(b); ok && n < len(b) {
		if _, next := f.length(b[n:]); next {
			return false // the next frame was begun, so this one was synced
		}
	}
	for i := 1; i < len(b); i++ {
		if _, ok := f.body(b[i:]); ok {
			return false
		}
	}
	return true
}

// corruptError reports damage of a log that a crash cannot cause.
type corruptError struct {
	offset, size int
	what         string
}

func (e *corruptError) Error() string {
	return fmt.Sprintf("corrupt at byte %d of %d (%s): nothing was changed; restore the file from a backup, or move it away to start with an empty queue (paid images are recorded in the journal and in the bucket)", e.offset, e.size, e.what)
}

// readLog calls apply with every entry of a log. It returns the offset up to which the
// log is valid: len(data), or less if its end is torn. It fails with a [*corruptError].
func readLog(data []byte, apply func(entry)) (int, error) {
	start := len(logMagic) + logSaltSize
	if len(data) < start || string(data[:len(logMagic)]) != logMagic {
		return 0, &corruptError{0, len(data), "not a queue log of this version"}
	}
	f := newFrameCodec(data[len(logMagic):start])
	complete := false // whether the snapshot has been read
	offset := start
	for offset < len(data) {
		body, ok := f.body(data[offset:])
		if !ok {
			if complete && f.isTorn(data[offset:]) {
				break
			}
			return 0, &corruptError{offset, len(data), "checksum"}
		}
		for rest := body; len(rest) > 0; {
			e, left, err := decodeEntry(rest)
			if err != nil {
				return 0, &corruptError{offset, len(data), err.Error()}
			}
			rest = left
			complete = complete || len(e.commands) == 0
			apply(e)
		}
		offset += frameHeader + len(body)
	}
	if !complete {
		return 0, &corruptError{offset, len(data), "the snapshot has no end"}
	}
	return offset, nil
}

// logFile is the part of *os.File that the log uses.
type logFile interface {
	io.WriteCloser
	Sync() error
}

func createFile(path string) (logFile, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600) //nolint:gosec // in the queue's folder
}

// writeLog is the open log. Concurrent writes share one sync.
type writeLog struct {
	path   string
	logger *slog.Logger
	create func(path string) (logFile, error)

	mu      sync.Mutex
	flushed sync.Cond // signaled when flushing ends
	file    logFile
	codec   frameCodec
	// size is the file's size, base that of its snapshot.
	size, base int64
	// pending is the next frame: space for its header, and entries.
	pending  []byte
	flushing bool
	err      error // why writes are refused, if not nil
	// appended counts the entries appended so far, synced the synced ones. Both are
	// changed with mu held.
	appended, synced atomic.Uint64
}

func newWriteLog(path string, create func(string) (logFile, error), logger *slog.Logger) *writeLog {
	l := &writeLog{path: path, create: create, logger: logger}
	l.flushed.L = &l.mu
	return l
}

// failed returns the error for which the log cannot be written, or nil.
func (l *writeLog) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// lastEntry returns the number of the last entry.
func (l *writeLog) lastEntry() uint64 {
	return l.appended.Load()
}

// append appends an entry to the pending frame.
func (l *writeLog) append(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appended.Add(1)
	if l.err != nil {
		return // the next snapshot will contain it
	}
	if len(l.pending) == 0 {
		l.pending = append(l.pending, make([]byte, frameHeader)...)
	}
	l.pending = appendEntry(l.pending, e)
}

// wait returns when the first n entries are synced, or with the log's error. The first
// caller syncs for all.
func (l *writeLog) wait(n uint64) error {
	if l.synced.Load() >= n {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.synced.Load() < n && l.err == nil {
		if l.flushing {
			l.flushed.Wait()
		} else {
			l.flush()
		}
	}
	if l.synced.Load() >= n {
		return nil
	}
	return l.err
}

// flush writes and syncs the pending frame. The caller holds mu, which flush releases
// while it writes.
func (l *writeLog) flush() {
	frame, upTo, file := l.pending, l.appended.Load(), l.file
	l.pending, l.flushing = nil, true
	l.mu.Unlock()
	err := l.codec.write(file, frame)
	if err == nil {
		err = file.Sync()
	}
	l.mu.Lock()
	l.flushing = false
	if err != nil {
		l.err, l.pending = err, nil
		l.logger.Error("queue log write failed, writes are refused until it recovers", "path", l.path, "err", err)
	} else {
		l.size += int64(len(frame))
		l.synced.Store(upTo)
	}
	l.flushed.Broadcast()
}

// needsRewrite reports whether the log has failed, or is much larger than its snapshot.
func (l *writeLog) needsRewrite() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil || l.size > 2*l.base+maxLogGrowth
}

// maxLogGrowth is by how much the log may exceed twice its snapshot. The value is our
// choice: the next start reads the whole log.
const maxLogGrowth = 4 << 20

// rewrite replaces the log by the entries that snapshot passes to add. Nothing may be
// appended in the meantime. If it fails, the old log stays in use.
func (l *writeLog) rewrite(snapshot func(add func(entry))) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.flushing {
		l.flushed.Wait()
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
		_ = l.file.Close() // not used any more
	}
	l.file, l.codec, l.size, l.base = file, f, size, size
	l.pending = nil
	l.synced.Store(l.appended.Load())
	l.err = atomicfile.SyncDir(filepath.Dir(l.path)) // before that, a crash may restore the old file
	l.flushed.Broadcast()
	return l.err
}

// snapshotFrameBytes is the approximate size of a snapshot's frames. The value is our
// choice.
const snapshotFrameBytes = 1 << 20

func writeSnapshot(file logFile, snapshot func(add func(entry))) (frameCodec, int64, error) {
	salt := make([]byte, logSaltSize)
	_, _ = rand.Read(salt) // never fails
	f := newFrameCodec(salt)
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
		if len(frame) >= snapshotFrameBytes {
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

// openForAppend opens the log that was read, of which size bytes are valid, and truncates
// the rest.
func (l *writeLog) openForAppend(data []byte, size int) error {
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
	l.codec = newFrameCodec(data[len(logMagic) : len(logMagic)+logSaltSize])
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
