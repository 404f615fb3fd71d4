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

// logOf makes a log of a snapshot and of frames that are written one by one. It
// returns the file's bytes and where each frame ends, the snapshot's first.
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
		require.NoError(tb, l.wait(l.last()))
		ends = append(ends, int(l.size))
	}
	require.NoError(tb, l.close())
	data, err := os.ReadFile(l.path)
	require.NoError(tb, err)
	require.Len(tb, data, ends[len(ends)-1])
	return data, ends
}

func clockAt(ms int64) time.Time { return time.UnixMilli(ms) }

// sample is a log of a snapshot of two entries and three frames of one, two and
// one.
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

func TestLogGivesBackWhatWasAppended(t *testing.T) {
	t.Parallel()
	data, _, want := sample(t)
	size, got, err := read(data)
	require.NoError(t, err)
	assert.Equal(t, len(data), size)
	assert.Equal(t, want, got)
}

// A crash leaves any part of the last frame: it alone is dropped.
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
		garbage[0] = ^data[len(data)-1] // else it may be what was torn off
		check(append(bytes.Clone(data[last:len(data)-1]), garbage...), "torn, then garbage of", n)
	}
}

// Damage before the last frame is no crash's doing: nothing is guessed.
func TestDamage(t *testing.T) {
	t.Parallel()
	data, ends, _ := sample(t)
	for at := range ends[len(ends)-2] {
		damaged := bytes.Clone(data)
		damaged[at] ^= 0x55
		_, _, err := read(damaged)
		var damage *damageError
		require.ErrorAs(t, err, &damage, "flipped at %d", at)
		require.ErrorContains(t, err, "restore the file from a backup, or move it away")
	}
	for cut := range ends[0] {
		_, _, err := read(data[:cut])
		require.Error(t, err, "cut within the snapshot, at %d", cut)
	}
	// The last frame torn and the one before it damaged.
	torn := bytes.Clone(data[:len(data)-1])
	torn[ends[1]+frameHeader] ^= 0x55
	_, _, err := read(torn)
	require.Error(t, err, "a frame that a later one proves synced")
}

// What a client wrote is never taken for a frame, even if it looks like one of
// another file.
func TestFramesOfAnotherFileAreNone(t *testing.T) {
	t.Parallel()
	other, ends, _ := sample(t)
	frame := string(other[ends[0]:ends[1]])
	data, _ := logOf(t, []entry{{clock: clockAt(1)}}, []entry{{clockAt(2), [][]string{{"SET", "k", frame}}}})
	size, _, err := read(data[:len(data)-1])
	require.NoError(t, err)
	assert.Less(t, size, len(data)-len(frame))
}

// FuzzReadLog reads a frame of any body, and anything behind it.
func FuzzReadLog(f *testing.F) {
	body := appendEntry(nil, entry{clockAt(7), [][]string{{"SET", "k", "v"}, {"DEL", "k"}}})
	f.Add(body, []byte("garbage"))
	f.Add([]byte{0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, []byte(nil))
	f.Fuzz(func(t *testing.T, body, tail []byte) {
		file := bytes.NewBufferString(logMagic + "saltsalt")
		frames := newFramer([]byte("saltsalt"))
		file.Write(frame(t, frames, appendEntry(nil, entry{clock: clockAt(1)})))
		file.Write(frame(t, frames, body))
		sound := file.Len()
		file.Write(tail)
		size, entries, err := read(file.Bytes())
		if err != nil {
			return // the body, or a tail that passes for a frame
		}
		if size != sound {
			t.Fatalf("%d bytes are sound, read %d", sound, size)
		}
		var again []byte
		for _, e := range entries[1:] {
			again = appendEntry(again, e)
		}
		_, same, err := read(append(file.Bytes()[:sound-frameHeader-len(body)], frame(t, frames, again)...))
		require.NoError(t, err)
		require.Equal(t, entries, same)
	})
}

func frame(t *testing.T, f framer, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, f.write(&b, append(make([]byte, frameHeader), body...)))
	return b.Bytes()
}

// room is a disk with so many bytes left; less than 0 is no limit.
type room struct {
	left    int
	syncErr error
	full    bool          // write to /dev/full
	gate    chan struct{} // each sync takes one of it, if not nil
	syncs   int
}

type limitedFile struct {
	logFile

	room *room
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
	if f.room.gate != nil {
		<-f.room.gate
	}
	if f.room.syncErr != nil {
		return f.room.syncErr
	}
	return f.logFile.Sync()
}

var errNoSpace = errors.New("no space left on device")

func (r *room) create(path string) (logFile, error) {
	f, err := createFile(path)
	return limitedFile{f, r}, err
}

// Whatever fails while the log is rewritten: the old one, or a whole new one, is
// there.
func TestRewriteFailsAtAnyPoint(t *testing.T) {
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
		disk := &room{left: left}
		l := newWriteLog(path, disk.create, slog.New(slog.DiscardHandler))
		require.NoError(t, l.resume(old, len(old)))
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
		require.NoError(t, l.wait(l.last()))
		require.NoError(t, l.close())
	}
	assert.Greater(t, failures, 30)
}

// A failed append is no entry for anybody; a rewrite ends the failure.
func TestAppendFails(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*room){
		"no room":        func(r *room) { r.left = 5 },
		"sync refused":   func(r *room) { r.syncErr = io.ErrUnexpectedEOF },
		"no room at all": func(r *room) { r.left = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "queue.log")
			disk := &room{left: -1}
			l := newWriteLog(path, disk.create, slog.New(slog.DiscardHandler))
			empty := func(add func(entry)) { add(entry{clock: clockAt(1)}) }
			require.NoError(t, l.rewrite(empty))
			fail(disk)
			for range 2 {
				l.append(entry{clockAt(2), [][]string{{"SET", "a", "1"}}})
				require.Error(t, l.wait(l.last()))
				require.Error(t, l.failed())
			}
			require.Error(t, l.rewrite(empty))
			require.Error(t, l.failed())

			*disk = room{left: -1}
			require.NoError(t, l.rewrite(empty))
			l.append(entry{clockAt(3), [][]string{{"SET", "b", "1"}}})
			require.NoError(t, l.wait(l.last()))
			require.NoError(t, l.close())
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			_, got, err := read(data)
			require.NoError(t, err)
			assert.Equal(t, []entry{{clock: clockAt(1)}, {clockAt(3), [][]string{{"SET", "b", "1"}}}}, got)
		})
	}
}
