package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/config"
)

// errDeclined ends a command whose question was answered with no: nothing was spent.
var errDeclined = errors.New("declined")

const yesUsage = "do not ask, whatever it costs"

// confirmCost asks on a terminal whether an amount may be spent, if it is above what needs no
// question. It fails with errDeclined. Without a terminal it asks nothing: whoever starts a
// command from a program sets a --budget.
func (p *program) confirmCost(ctx context.Context, cfg *config.Config, atMost int64, yes bool) error {
	if yes || atMost <= cfg.ConfirmAboveMicroYuan || !terminal.IsTerminal(p.stderr) {
		return nil
	}
	err := p.ask(ctx, fmt.Sprintf("spend up to %s?", yuan(atMost)), "nothing was spent")
	if errors.Is(err, errNobody) {
		return nil
	}
	return err
}

// errNobody means that there is no terminal to read an answer from.
var errNobody = errors.New("there is no terminal to ask on")

// ask asks a question on a terminal. It fails with errDeclined unless the answer is yes, and says
// what did not happen then. If standard input is no terminal, such as a file of prompts, the
// answer is read from the controlling terminal; without one it asks nothing and fails with
// errNobody.
func (p *program) ask(ctx context.Context, question, declined string) error {
	in := p.stdin
	if !terminal.IsTerminal(in) {
		tty, err := os.Open("/dev/tty")
		if err != nil {
			return errNobody
		}
		defer tty.Close() //nolint:errcheck // read only
		in = tty
	}
	_, _ = io.WriteString(p.stderr, terminal.Wrap("danqing: "+question+" [y/N] ", terminal.Width(p.stderr), "  "))
	line, err := readAnswer(ctx, in)
	if err != nil {
		_, _ = io.WriteString(p.stderr, "\n")
		return err
	}
	if !strings.HasSuffix(line, "\n") {
		_, _ = io.WriteString(p.stderr, "\n")
	}
	if !isYes(line) {
		p.stderrf("%s", declined)
		return errDeclined
	}
	return nil
}

// readAnswer reads a line, without its end if there is no more input. It fails with the cause
// of ctx.
func readAnswer(ctx context.Context, in io.Reader) (string, error) {
	answered := make(chan string, 1)
	go func() { // it ends with the program if nobody answers
		line, _ := bufio.NewReader(in).ReadString('\n') // what there is counts
		answered <- line
	}()
	select {
	case line := <-answered:
		return line, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// isYes reports whether an answer is yes, in English or Chinese.
func isYes(answer string) bool {
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes", "是", "好":
		return true
	}
	return false
}

// confirmDeletion asks a question, and fails unless the answer is yes.
func (p *program) confirmDeletion(ctx context.Context, question string) error {
	p.stderrf("%s yes or no:", question)
	line, err := readAnswer(ctx, p.stdin)
	if err == nil && strings.TrimSpace(line) != "yes" {
		err = usageErrorf(`answer "yes", or give --yes`, "nothing was deleted")
	}
	return err
}
