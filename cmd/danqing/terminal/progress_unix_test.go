//go:build unix

package terminal

import (
	"bytes"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// paper is what a terminal shows that knows two commands: up some rows, and erase below. A
// narrower window breaks its lines anew. The cursor is always on the last line, which is empty
// but for keys that were pressed.
type paper struct {
	t     *testing.T
	mu    sync.Mutex
	width int
	lines []string
	rest  string // of a line that is not whole yet
}

var eraseRows = regexp.MustCompile(`^[^\r]*\r\x1b\[(\d+)A\x1b\[J`)

func (p *paper) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rest += string(text)
	for {
		line, rest, whole := strings.Cut(p.rest, "\r\n")
		if !whole {
			return len(text), nil
		}
		p.rest = rest
		if command := eraseRows.FindStringSubmatch(line); command != nil {
			line = line[len(command[0]):]
			rows, err := strconv.Atoi(command[1])
			assert.NoError(p.t, err)
			for rows > 0 && assert.NotEmpty(p.t, p.lines) {
				last := len(p.lines) - 1
				rows -= max(1, (Cells(p.lines[last])+p.width-1)/p.width)
				p.lines = p.lines[:last]
			}
			assert.Zero(p.t, rows, "whole lines are erased")
		}
		assert.NotContains(p.t, line, "\x1b", "no other command, and no color")
		p.lines = append(p.lines, line)
	}
}

func (p *paper) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// The bar stays below what is written, fits a window that changes, and is gone at the end.
func TestProgress(t *testing.T) {
	t.Setenv("TERM", "xterm-256color")
	master, tty, err := pty.Open()
	require.NoError(t, err)
	screen := &paper{t: t, width: 80}
	require.NoError(t, pty.Setsize(tty, &pty.Winsize{Rows: 24, Cols: 80}))
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(screen, master)
	}()
	shows := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); screen.text() != want && time.Now().Before(deadline); {
			<-time.After(time.Millisecond)
		}
		require.Equal(t, want, screen.text())
	}
	p := NewProgress(tty)
	write := func(text string) {
		t.Helper()
		_, err := io.WriteString(p, text)
		require.NoError(t, err)
	}
	write("a plan\n")
	shows("a plan")
	p.Show(State{Done: 1, Total: 4, Rows: []string{"一行", strings.Repeat("一只白瓷茶杯", 10)}})
	cut := strings.Repeat("一只白瓷茶杯", 6) + "一只白…"
	shows("a plan\n[=========>----------------------------] 1/4\n一行\n" + cut)
	write("a longer line of the log that is wider than the window: " + strings.Repeat("x", 50) + "\n")
	log := "a plan\na longer line of the log that is wider than the window: " + strings.Repeat("x", 50)
	shows(log + "\n[=========>----------------------------] 1/4\n一行\n" + cut)

	_, err = io.WriteString(master, "key") // which the terminal shows
	require.NoError(t, err)
	require.Eventually(t, func() bool { screen.mu.Lock(); defer screen.mu.Unlock(); return screen.rest == "key" }, time.Minute, time.Millisecond)
	screen.mu.Lock()
	screen.width = 30
	require.NoError(t, pty.Setsize(tty, &pty.Winsize{Rows: 24, Cols: 30}))
	screen.mu.Unlock()
	p.Show(State{Done: 3, Total: 4, Rows: []string{"一行"}})
	shows(log + "\n[=================>------] 3/4\n一行")
	require.NoError(t, pty.Setsize(tty, &pty.Winsize{})) // a window without a size must not stop it
	p.Show(State{Done: 4, Total: 4})
	require.NoError(t, pty.Setsize(tty, &pty.Winsize{Rows: 24, Cols: 30}))
	p.Show(State{Done: 4, Total: 4})
	shows(log + "\n[=======================>] 4/4")
	write("the last line\n")
	p.Close()
	write("a summary\n")
	shows(log + "\nthe last line\na summary")
	require.NoError(t, tty.Close())
	<-read
	require.NoError(t, master.Close())
}

// Without a terminal that can move the cursor there is no bar.
func TestNoProgress(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out)
	p.Show(State{Done: 1, Total: 4})
	_, err := io.WriteString(p, "a line\n")
	require.NoError(t, err)
	p.Close()
	assert.Equal(t, "a line\n", out.String())

	master, tty, err := pty.Open()
	require.NoError(t, err)
	assert.True(t, IsTerminal(tty))
	assert.False(t, CanDraw(tty), "it has no size")
	t.Setenv("TERM", "dumb")
	assert.False(t, CanDraw(tty))
	require.NoError(t, tty.Close())
	require.NoError(t, master.Close())
}
