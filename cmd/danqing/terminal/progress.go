package terminal

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// Progress draws a bar and some rows of text at the bottom of a terminal, below the lines that
// are written to it. It uses no color. It is safe for concurrent use.
type Progress struct {
	out io.Writer

	mu  sync.Mutex
	bar *mpb.Bar
	all *mpb.Progress
	// refresh draws the bar anew.
	refresh chan any

	stateMu sync.Mutex
	state   State
}

// State is what a [Progress] shows.
type State struct {
	Done, Total int64
	// Rows follow the bar, each cut to the width. At most mostRows are shown.
	Rows []string
}

const (
	mostRows = 8
	// barWidth is the width of the bar itself, in cells.
	barWidth = 40
)

// NewProgress returns a progress that draws nothing before the first [Progress.Show]. It must
// be closed.
func NewProgress(out io.Writer) *Progress { return &Progress{out: out} }

// CanDraw reports whether out is a terminal on which the cursor can be moved, and that has a size.
func CanDraw(out io.Writer) bool { return Width(out) > 0 && os.Getenv("TERM") != "dumb" }

// Show draws a state. It does nothing unless out can draw.
func (p *Progress) Show(state State) {
	p.stateMu.Lock()
	p.state = state
	p.stateMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil && CanDraw(p.out) {
		p.start()
	}
	p.draw()
}

func (p *Progress) start() {
	p.refresh = make(chan any, 1)
	p.all = mpb.New(mpb.WithConsoleWriter(&screen{out: p.out.(*os.File)}), mpb.WithManualRefresh(p.refresh)) //nolint:forcetypeassert // CanDraw
	style := mpb.BarStyle().Build()
	fillers := make([]mpb.BarFiller, mostRows)
	for i := range fillers {
		fillers[i] = mpb.BarFillerFunc(func(w io.Writer, at decor.Statistics) error { return p.row(w, i, at.AvailableWidth) })
	}
	p.bar, _ = p.all.Add(0, mpb.BarFillerFunc(func(w io.Writer, at decor.Statistics) error {
		state := p.shown()
		at.Total, at.Current = max(state.Total, 1), state.Done
		return style.Fill(w, at)
	}), mpb.BarWidth(barWidth), mpb.BarFillerTrim(), mpb.BarBtmExtender(fillers...),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			state := p.shown()
			return fmt.Sprintf(" %d/%d", state.Done, state.Total)
		})))
}

func (p *Progress) shown() State {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	return p.state
}

// row writes a row of the state, nothing if there is none. Its last column stays empty: some
// terminals would begin another line.
func (p *Progress) row(w io.Writer, i, width int) error {
	rows := p.shown().Rows
	if i >= len(rows) {
		return nil
	}
	_, err := io.WriteString(w, Shorten(rows[i], width-1)+"\n")
	return err
}

func (p *Progress) draw() {
	if p.all == nil {
		return
	}
	select {
	case p.refresh <- nil:
	default: // it is about to be drawn
	}
}

// Write writes whole lines above the bar.
func (p *Progress) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all != nil {
		if n, err := p.all.Write(text); err == nil {
			p.draw()
			return n, nil
		}
	}
	return p.out.Write(text)
}

// Close removes the bar. What is written after it goes to the terminal at once.
func (p *Progress) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		return
	}
	p.bar.Abort(true)
	p.all.Wait()
	p.all = nil
}

// screen is a terminal whose last rows are drawn again and again.
type screen struct {
	bytes.Buffer
	out *os.File
	// drawn are the widths of the rows that were drawn last.
	drawn []int
}

// IsTerminal implements [mpb.ConsoleWriter].
func (*screen) IsTerminal() bool { return true }

// leastWidth and leastHeight are the smallest window that is drawn for: in none at all mpb would
// never end.
const leastWidth, leastHeight = 10, 4

// GetTermSize implements [mpb.ConsoleWriter].
func (s *screen) GetTermSize() (width, height int, err error) {
	width, height, err = term.GetSize(int(s.out.Fd()))
	return max(width, leastWidth), max(height, leastHeight), err
}

// Flush writes what is in the buffer, of which the last lines are the rows of the bar, in place
// of the rows before. A narrower window has broken those into more lines.
func (s *screen) Flush(lines int) error {
	width := Width(s.out)
	up := 0
	for _, cells := range s.drawn {
		up++
		if width > 0 {
			up += max(cells-1, 0) / width
		}
	}
	text := s.String()
	rows := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	s.drawn = nil
	lines = max(lines, 0) // mpb counts less than none in a window without a height
	for _, row := range rows[max(len(rows)-lines, 0):] {
		s.drawn = append(s.drawn, Cells(row))
	}
	if lines == 0 {
		s.drawn = nil
	}
	s.Reset()
	if up > 0 { // the terminal may have shown a key meanwhile, such as ^C
		text = fmt.Sprintf("\r\x1b[%dA\x1b[J%s", up, text)
	}
	_, err := s.out.WriteString(text)
	return err
}
