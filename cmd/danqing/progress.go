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

	"github.com/danqing-queue/danqing/jobs"
)

// counts is how far a run has come. Images and microYuan are of this run alone.
type counts struct {
	total, before, done, failed, held, left int
	// unfunded are held because the batch's budget has no room for them.
	unfunded  int
	images    int
	microYuan int64
}

// progress tells a person how a run fares: one line that changes on a terminal,
// a line per job otherwise.
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

// line prints a whole line above the status.
func (p *progress) line(text string) {
	_, _ = fmt.Fprintln(p, "danqing: "+text)
}

// Write prints whole lines, a log's for instance, above the status.
func (p *progress) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wipe()
	n, err := p.out.Write(text)
	p.draw()
	return n, err
}

func (p *progress) wipe() {
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
	p.wipe()
	p.status = p.fit(c.status(time.Since(p.startAt)))
	p.draw()
}

// fit cuts a line to the window: a longer one could not be taken back.
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

// close takes the status line away.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wipe()
	p.status = ""
}

// job says what became of a job. A terminal shows that in the status, unless
// somebody must know.
func (p *progress) job(number int, rec *jobs.Job) {
	cost := ""
	if rec.CostMicroYuan > 0 {
		cost = ", " + yuan(rec.CostMicroYuan)
	}
	switch {
	case rec.State != jobs.StateSucceeded:
		p.line(fmt.Sprintf("%s line %d, %s: %s: %s", rec.State, number, rec.ID, rec.Code, rec.Message))
	case !p.terminal:
		p.line(fmt.Sprintf("done line %d, %s: %s%s", number, rec.ID, count(len(rec.Images), "image"), cost))
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

// status is the changing line: done, failed, images a minute, time left, yuan.
func (c counts) status(elapsed time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d/%d done", c.done, c.total)
	if c.failed > 0 {
		fmt.Fprintf(&b, ", %d failed", c.failed)
	}
	if c.held > 0 {
		fmt.Fprintf(&b, ", %d held", c.held)
	}
	if c.unfunded > 0 {
		fmt.Fprintf(&b, ", %d over budget", c.unfunded)
	}
	if finished := c.done + c.failed + c.held + c.unfunded - c.before; finished > 0 && elapsed > 0 {
		left := elapsed / time.Duration(finished) * time.Duration(c.left)
		fmt.Fprintf(&b, " · %.1f images/min · %s left", float64(c.images)/elapsed.Minutes(), left.Round(time.Second))
	}
	fmt.Fprintf(&b, " · %s", yuan(c.microYuan))
	return b.String()
}

// yuan prints millionths of a yuan as people write them.
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
