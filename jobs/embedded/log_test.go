package embedded

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// logOf returns the bytes of a log with a snapshot and frames, and the end of each frame,
// the snapshot's first.
func logOf(tb testing.TB, snapshot []entry, frames ...[]entry) ([]byte, []int) {
	tb.Helper()
	l := newWriteLog(filepath.Join(tb.TempDir(), "queue.log"), createFile, slog.New(slog.DiscardHandler))
	require.NoError(tb, l.rewrite(func(add func(entry)) {
		for _, e := range snapshot {
			add(e)
		}
	}))
	ends := []int{int(l.size)}
	for _, frame := range frames {
		for _, e := range frame {
			l.append(e)
		}
		require.NoError(tb, l.wait(l.lastEntry()))
		ends = append(ends, int(l.size))
	}
	require.NoError(tb, l.close())
	data, err := os.ReadFile(l.path)
	require.NoError(tb, err)
	require.Len(tb, data, ends[len(ends)-1])
	return data, ends
}

func clockAt(ms int64) time.Time { return time.UnixMilli(ms) }

// sample returns a log with a snapshot of two entries, and three frames of one, two and one
// entries.
func sample(tb testing.TB) (data []byte, ends []int, entries []entry) {
	tb.Helper()
	snapshot := []entry{{clockAt(1), [][]string{{"SET", "a", "1"}}}, {clock: clockAt(1)}}
	frames := [][]entry{
		{{clockAt(2), [][]string{{"SET", "b", "\x00\xff\r\n"}, {"DEL", ""}}}},
		{{clockAt(2), [][]string{{"RPUSH", "l", strings.Repeat("x", 300)}}}, {clockAt(3), [][]string{{"INCR", "n"}}}},
		{{clockAt(4), [][]string{{"SET", "c", "3"}}}},
	}
	data, ends = logOf(tb, snapshot, frames...)
	entries = append(entries, snapshot...)
	for _, frame := range frames {
		entries = append(entries, frame...)
	}
	return data, ends, entries
}

func read(data []byte) (int, []entry, error) {
	var got []entry
	size, err := readLog(data, func(e entry) { got = append(got, e) })
	return size, got, err
}

func TestLogRoundTrip(t *testing.T) {
	t.Parallel()
	data, _, want := sample(t)
	size, got, err := read(data)
	require.NoError(t, err)
	assert.Equal(t, len(data), size)
	assert.Equal(t, want, got)
}

// A crash may leave any part of the last frame: only that frame is dropped.
func TestTornTail(t *testing.T) {
	t.Parallel()
	data, ends, want := sample(t)
	last := ends[len(ends)-2]
	check := func(tail []byte, what string, at int) {
		size, got, err := read(append(bytes.Clone(data[:last]), tail...))
		require.NoError(t, err, "%s %d", what, at)
		require.Equal(t, last, size, "%s %d", what, at)
		require.Equal(t, want[:len(want)-1], got, "%s %d", what, at)
	}
	for cut := last; cut < len(data); cut++ {
		check(data[last:cut], "cut at", cut)
		check(append(bytes.Clone(data[last:cut]), make([]byte, len(data)-cut)...), "zeros from", cut)
	}
	for at := last; at < len(data); at++ {
		tail := bytes.Clone(data[last:])
		tail[at-last] ^= 0x55
		check(tail, "flipped at", at)
	}
	random := rand.NewChaCha8([32]byte{1})
	for n := range 200 {
		garbage := make([]byte, n+1)
		_, _ = random.Read(garbage)
		check(garbage, "garbage of", n)
		garbage[0] = ^data[len(data)-1] // must differ from the missing byte
		check(append(bytes.Clone(data[last:len(data)-1]), garbage...), "torn, then garbage of", n)
	}
}

// Corruption before the last frame cannot be caused by a crash, so it is an error.
func TestCorruptLog(t *testing.T) {
	t.Parallel()
	data, ends, _ := sample(t)
	for at := range ends[len(ends)-2] {
		corrupt := bytes.Clone(data)
		corrupt[at] ^= 0x55
		_, _, err := read(corrupt)
		var damage *corruptError
		require.ErrorAs(t, err, &damage, "flipped at %d", at)
		require.ErrorContains(t, err, "restore the file from a backup, or move it away")
	}
	for cut := range ends[0] {
		_, _, err := read(data[:cut])
		require.Error(t, err, "cut within the snapshot, at %d", cut)
	}
	// The last frame is torn and the one before it is corrupt.
	torn := bytes.Clone(data[:len(data)-1])
	torn[ends[1]+frameHeader] ^= 0x55
	_, _, err := read(torn)
	require.Error(t, err, "a frame that a later one proves synced")
}

// Data of a client is never mistaken for a frame, even if it is a frame of another file.
func TestFramesOfOtherFilesAreIgnored(t *testing.T) {
	t.Parallel()
	other, ends, _ := sample(t)
	frame := string(other[ends[0]:ends[1]])
	data, _ := logOf(t, []entry{{clock: clockAt(1)}}, []entry{{clockAt(2), [][]string{{"SET", "k", frame}}}})
	size, _, err := read(data[:len(data)-1])
	require.NoError(t, err)
	assert.Less(t, size, len(data)-len(frame))
}

// FuzzReadLog reads a frame with any body, followed by any bytes.
func FuzzReadLog(f *testing.F) {
	body := appendEntry(nil, entry{clockAt(7), [][]string{{"SET", "k", "v"}, {"DEL", "k"}}})
	f.Add(body, []byte("garbage"))
	f.Add([]byte{0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, []byte(nil))
	f.Fuzz(func(t *testing.T, body, tail []byte) {
		file := bytes.NewBufferString(logMagic + "saltsalt")
		frames := newFrameCodec([]byte("saltsalt"))
		file.Write(frame(t, frames, appendEntry(nil, entry{clock: clockAt(1)})))
		file.Write(frame(t, frames, body))
		valid := file.Len()
		file.Write(tail)
		size, entries, err := read(file.Bytes())
		if err != nil {
			return // the body is malformed, or the tail is a valid frame
		}
		if size != valid {
			t.Fatalf("%d bytes are valid, read %d", valid, size)
		}
		var again []byte
		for _, e := range entries[1:] {
			again = appendEntry(again, e)
		}
		_, same, err := read(append(file.Bytes()[:valid-frameHeader-len(body)], frame(t, frames, again)...))
		require.NoError(t, err)
		require.Equal(t, entries, same)
	})
}

func frame(t *testing.T, f frameCodec, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, f.write(&b, append(make([]byte, frameHeader), body...)))
	return b.Bytes()
}

// limitedDisk is a disk with a limited number of free bytes; less than 0 means no limit.
type limitedDisk struct {
	left     int
	syncErr  error
	full     bool          // write to /dev/full
	syncGate chan struct{} // each sync receives one value, if not nil
	syncs    int
}

type limitedFile struct {
	logFile

	room *limitedDisk
}

func (f limitedFile) Write(p []byte) (int, error) {
	n := len(p)
	if f.room.left >= 0 {
		n = min(n, f.room.left)
		f.room.left -= n
	}
	if f.room.full {
		return 0, os.WriteFile("/dev/full", p, 0)
	}
	if n, err := f.logFile.Write(p[:n]); err != nil || n == len(p) {
		return n, err
	}
	return n, errNoSpace
}

func (f limitedFile) Sync() error {
	f.room.syncs++
	if f.room.syncGate != nil {
		<-f.room.syncGate
	}
	if f.room.syncErr != nil {
		return f.room.syncErr
	}
	return f.logFile.Sync()
}

var errNoSpace = errors.New("no space left on device")

func (r *limitedDisk) create(path string) (logFile, error) {
	f, err := createFile(path)
	return limitedFile{f, r}, err
}

// If a rewrite of the log fails at any point, the old log or a complete new one is in
// place.
func TestRewriteFailures(t *testing.T) {
	t.Parallel()
	snapshot := func(add func(entry)) {
		add(entry{clockAt(9), [][]string{{"SET", "new", "1"}}})
		add(entry{clock: clockAt(9)})
	}
	old, _, _ := sample(t)
	failures := 0
	for left := 0; ; left++ {
		path := filepath.Join(t.TempDir(), "queue.log")
		require.NoError(t, os.WriteFile(path, old, 0o600))
		disk := &limitedDisk{left: left}
		l := newWriteLog(path, disk.create, slog.New(slog.DiscardHandler))
		require.NoError(t, l.openForAppend(old, len(old)))
		err := l.rewrite(snapshot)
		require.NoFileExists(t, path+".new")
		data, readErr := os.ReadFile(path)
		require.NoError(t, readErr)
		if err == nil {
			require.NotEqual(t, old, data)
			require.NoError(t, l.close())
			break
		}
		failures++
		require.Equal(t, old, data)
		require.NoError(t, l.failed(), "the old log goes on")
		l.append(entry{clockAt(10), [][]string{{"SET", "later", "1"}}})
		require.NoError(t, l.wait(l.lastEntry()))
		require.NoError(t, l.close())
	}
	assert.Greater(t, failures, 30)
}

// A failed append leaves no entry, and a rewrite ends the failure.
func TestAppendFailure(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*limitedDisk){
		"no room":        func(r *limitedDisk) { r.left = 5 },
		"sync refused":   func(r *limitedDisk) { r.syncErr = io.ErrUnexpectedEOF },
		"no room at all": func(r *limitedDisk) { r.left = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "queue.log")
			disk := &limitedDisk{left: -1}
			l := newWriteLog(path, disk.create, slog.New(slog.DiscardHandler))
			empty := func(add func(entry)) { add(entry{clock: clockAt(1)}) }
			require.NoError(t, l.rewrite(empty))
			fail(disk)
			for range 2 {
				l.append(entry{clockAt(2), [][]string{{"SET", "a", "1"}}})
				require.Error(t, l.wait(l.lastEntry()))
				require.Error(t, l.failed())
			}
			require.Error(t, l.rewrite(empty))
			require.Error(t, l.failed())

			*disk = limitedDisk{left: -1}
			require.NoError(t, l.rewrite(empty))
			l.append(entry{clockAt(3), [][]string{{"SET", "b", "1"}}})
			require.NoError(t, l.wait(l.lastEntry()))
			require.NoError(t, l.close())
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			_, got, err := read(data)
			require.NoError(t, err)
			assert.Equal(t, []entry{{clock: clockAt(1)}, {clockAt(3), [][]string{{"SET", "b", "1"}}}}, got)
		})
	}
}
