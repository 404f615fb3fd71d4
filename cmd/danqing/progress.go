package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/jobs"
)

// counts is the progress of a run. images and microYuan are of this run only.
type counts struct {
	total, finishedBefore, done, failed, held, left int
	// awaitingBudget are held because they exceed the batch's budget.
	awaitingBudget int
	images         int
	microYuan      int64
}

// progress prints the progress of a run: one changing line on a terminal, a line per job
// otherwise.
type progress struct {
	out      io.Writer
	terminal bool
	startAt  time.Time

	mu     sync.Mutex
	status string
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, startAt: time.Now()}
	if file, ok := out.(*os.File); ok {
		p.terminal = term.IsTerminal(int(file.Fd()))
	}
	return p
}

// printLine prints a whole line above the status.
func (p *progress) printLine(text string) {
	_, _ = fmt.Fprintln(p, terminal.Wrap("danqing: "+text, terminal.Width(p.out), "  "))
}

// Write prints whole lines, such as a log's, above the status.
func (p *progress) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	n, err := p.out.Write(text)
	p.draw()
	return n, err
}

func (p *progress) clear() {
	if p.status != "" {
		_, _ = fmt.Fprint(p.out, "\r\x1b[K")
	}
}

func (p *progress) draw() {
	if p.status != "" {
		_, _ = fmt.Fprint(p.out, p.status)
	}
}

// update changes the status line.
func (p *progress) update(c counts) {
	if !p.terminal {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.status = p.fit(c.status(time.Since(p.startAt)))
	p.draw()
}

// fit truncates a line to the window's width, because a longer one could not be cleared.
func (p *progress) fit(line string) string {
	file, ok := p.out.(*os.File)
	if !ok {
		return line
	}
	width, _, err := term.GetSize(int(file.Fd()))
	runes := []rune(line)
	if err != nil || len(runes) < width {
		return line
	}
	return string(runes[:max(width-1, 0)])
}

// close clears the status line.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.status = ""
}

// printJob prints a job that is settled. On a terminal it prints only those that have not
// succeeded; the status counts the others.
func (p *progress) printJob(position string, rec *jobs.Job) {
	cost := ""
	switch {
	case rec.Simulated:
		cost = ", simulated"
	case rec.CostMicroYuan > 0:
		cost = ", " + yuan(rec.CostMicroYuan)
	}
	switch {
	case rec.State != jobs.StateSucceeded:
		p.printLine(fmt.Sprintf("%s %s, %s: %s: %s", rec.State, position, rec.ID, rec.Code, rec.Message))
	case !p.terminal:
		p.printLine(fmt.Sprintf("done %s, %s: %s%s", position, rec.ID, count(len(rec.Images), "image"), cost))
	}
}

// logger logs above the status line.
func (p *progress) logger(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(p, &slog.HandlerOptions{Level: level}))
}

// status returns the changing line: done, failed, images per minute, time left, yuan.
func (c counts) status(elapsed time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d/%d done", c.done, c.total)
	if c.failed > 0 {
		fmt.Fprintf(&b, ", %d failed", c.failed)
	}
	if c.held > 0 {
		fmt.Fprintf(&b, ", %d held", c.held)
	}
	if c.awaitingBudget > 0 {
		fmt.Fprintf(&b, ", %d over budget", c.awaitingBudget)
	}
	if finished := c.done + c.failed + c.held + c.awaitingBudget - c.finishedBefore; finished > 0 && elapsed > 0 {
		left := elapsed / time.Duration(finished) * time.Duration(c.left)
		fmt.Fprintf(&b, " · %.1f images/min · %s left", float64(c.images)/elapsed.Minutes(), left.Round(time.Second))
	}
	fmt.Fprintf(&b, " · %s", yuan(c.microYuan))
	return b.String()
}

// yuan formats millionths of a yuan, with at least two decimals.
func yuan(micro int64) string {
	text := strings.TrimRight(fmt.Sprintf("%d.%06d", micro/1_000_000, micro%1_000_000), "0")
	if point := strings.IndexByte(text, '.'); len(text)-point < 3 {
		text += "00"[:3-(len(text)-point)]
	}
	return text + " yuan"
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
