package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

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

// progress prints the progress of a run: a bar on a terminal, lines otherwise.
type progress struct {
	*terminal.Progress
	out io.Writer
	// live is set if there is a bar.
	live    bool
	startAt time.Time
	// many is set if the run has so many jobs that they are not printed one by one, and
	// printedAt is when a line stood for them last.
	many      bool
	printedAt time.Time
}

const (
	// manyJobs is the number of jobs above which a log gets a line each plainInterval, and
	// not one for each job that has succeeded.
	manyJobs      = 100
	plainInterval = 30 * time.Second
)

func newProgress(out io.Writer) *progress {
	now := time.Now()
	return &progress{Progress: terminal.NewProgress(out), out: out, live: terminal.CanDraw(out), startAt: now, printedAt: now}
}

// printLine prints a whole line above the bar.
func (p *progress) printLine(text string) {
	_, _ = fmt.Fprintln(p, terminal.Wrap("danqing: "+text, terminal.Width(p.out), "  "))
}

// begin is called when the jobs begin.
func (p *progress) begin(jobs int) {
	p.startAt = time.Now()
	p.printedAt, p.many = p.startAt, jobs > manyJobs
}

// update shows how far the run is.
func (p *progress) update(s status) {
	switch {
	case p.live:
		p.Show(terminal.State{Done: int64(s.counts.settled()), Total: int64(s.counts.total), Rows: append([]string{s.outcome(), s.speed()}, s.activeRows()...)})
	case p.many && time.Since(p.printedAt) >= plainInterval:
		p.printedAt = time.Now()
		p.printLine(fmt.Sprintf("%d/%d, %s, %s", s.counts.settled(), s.counts.total, s.outcome(), s.speed()))
	}
}

// results returns where JSON lines are printed: above the bar, if standard output is the same
// terminal.
func (p *progress) results(stdout io.Writer) io.Writer {
	if p.live && terminal.IsTerminal(stdout) {
		return p
	}
	return stdout
}

// printJob prints a job that is settled. With a bar, or with many jobs, it prints only those
// that have not succeeded.
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
	case !p.live && !p.many:
		p.printLine(fmt.Sprintf("done %s, %s: %s%s", position, rec.ID, count(len(rec.Images), "image"), cost))
	}
}

// logger logs above the bar.
func (p *progress) logger(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(p, &slog.HandlerOptions{Level: level, ReplaceAttr: roundedText}))
}

// settled returns how many jobs are finished or held.
func (c counts) settled() int { return c.done + c.failed + c.held + c.awaitingBudget }

// status is how far a run is.
type status struct {
	counts  counts
	elapsed time.Duration
	// left is how long the rest takes, 0 if that is not known.
	left time.Duration
	// atMost is the most that the run costs, in millionths of a yuan.
	atMost    int64
	simulated bool
	active    []activeJob
}

// activeJob is a job whose task is being created or runs.
type activeJob struct {
	id, model, prompt string
	took              time.Duration
}

// outcome says what became of the jobs that are settled.
func (s status) outcome() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%d done", s.counts.done)
	for _, part := range []struct {
		n    int
		what string
	}{{s.counts.failed, "failed"}, {s.counts.held, "held"}, {s.counts.awaitingBudget, "over budget"}} {
		if part.n > 0 {
			fmt.Fprintf(&text, ", %d %s", part.n, part.what)
		}
	}
	if s.simulated {
		return text.String() + "; simulated: nothing is charged"
	}
	return text.String() + fmt.Sprintf("; %s spent, %s at most", yuan(s.counts.microYuan), yuan(max(s.atMost, s.counts.microYuan)))
}

// speed says how fast it goes, and how long the rest takes.
func (s status) speed() string {
	text := "0 images/min"
	if s.elapsed > 0 {
		text = fmt.Sprintf("%.1f images/min", float64(s.counts.images)/s.elapsed.Minutes())
	}
	if s.left > 0 {
		text += ", about " + durationText(s.left.Round(time.Second)) + " left"
	}
	return text
}

// activeRows are what is being painted, one row a job.
func (s status) activeRows() []string {
	var rows []string
	width := 0
	for _, a := range s.active {
		width = max(width, terminal.Cells(a.model))
	}
	for _, a := range s.active {
		rows = append(rows, fmt.Sprintf("  %s  %4s  %s: %s", terminal.Pad(a.model, width), durationText(a.took.Truncate(time.Second)), a.id, a.prompt))
	}
	return rows
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
