// Danqing makes images with DashScope's 通义万相 from a durable queue: none is paid
// for twice, none that was paid for is lost.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9/logging"
	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/journal"
)

// Exit codes; scripts rely on them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartFailed  = 3
	exitDeclined    = 4
	exitInterrupted = 130
)

func main() {
	// go-redis logs errors that this program reports itself.
	logging.Disable()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	p := &program{
		args: os.Args[1:], environ: os.Environ(), signals: signals,
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
	}
	os.Exit(p.run(context.Background()))
}

// program is one run of the command line with its inputs and outputs.
type program struct {
	args           []string
	environ        []string
	signals        <-chan os.Signal
	stdin          io.Reader
	stdout, stderr io.Writer
	// configFile is the YAML file with the accounts; "" means the account of the
	// environment.
	configFile string
	// tempDir is a folder that is removed at the end, "" if it was not needed.
	tempDir string
}

// errPartFailed and errInterrupted end a command that has already printed the reason.
var (
	errPartFailed  = errors.New("part of the batch failed")
	errInterrupted = errors.New("interrupted")
)

// usageError is a mistake in the command line or the configuration.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usageErrorf(hint, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), hint: hint}
}

// command returns the command line.
func (p *program) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "danqing",
		Short: "Durable job queue for image generation with DashScope",
		Long: `Danqing (丹青) is a durable job queue for image generation with Alibaba DashScope
(通义万相, Qwen-Image). No image is paid for twice, and none that was paid for is lost.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetArgs(p.args)
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.PersistentFlags().StringVar(&p.configFile, "config", "", "YAML file with several accounts (default: the account of DASHSCOPE_API_KEY)")
	p.fitHelp(root)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageErrorf(flagHint(cmd, err), "%w", err)
	})
	root.Version = versionText()
	root.SetVersionTemplate("{{.Version}}\n")
	p.addCommands(root)
	p.addCompletions(root)
	return root
}

func (p *program) run(ctx context.Context) int {
	if err := config.LoadCatalog(p.getenv); err != nil { // before a flag offers models
		return p.exit(err)
	}
	root, ran := p.command(), false
	root.PersistentPreRun = func(*cobra.Command, []string) { ran = true }
	cmd, err := root.ExecuteContextC(ctx)
	if p.tempDir != "" {
		err = errors.Join(err, os.RemoveAll(p.tempDir))
	}
	var wrong *usageError
	if err != nil && !ran && !errors.As(err, &wrong) {
		// An error of Cobra: an unknown command, or a wrong number of arguments.
		err = usageErrorf(argsHint(cmd), "%w", err)
	}
	return p.exit(err)
}

// exit prints an error and its hint, and maps it to an exit code. No other place does.
func (p *program) exit(err error) int {
	var wrongUsage *usageError
	var wrongConfig *config.Error
	var wrongBatch *jobs.BatchError
	var wrongRequest *jobs.InvalidError
	var wrongMode *worker.ModeError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errPartFailed):
		return exitPartFailed
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, errDeclined):
		return exitDeclined
	}
	p.stderrf("error: %v", err)
	if hint := hint(err); hint != "" {
		p.stderrf("hint: %s", hint)
	}
	if errors.As(err, &wrongUsage) || errors.As(err, &wrongConfig) || errors.As(err, &wrongBatch) || errors.As(err, &wrongRequest) || errors.As(err, &wrongMode) ||
		errors.Is(err, jobs.ErrDigestConflict) || errors.Is(err, worker.ErrSimulated) || errors.Is(err, worker.ErrGateway) || errors.Is(err, journal.ErrDataDirInUse) {
		return exitUsage
	}
	return exitFailed
}

// hint returns what the user can do about an error, or "".
func hint(err error) string {
	var wrongUsage *usageError
	var refused *dashscope.Error
	var wrongBatch *jobs.BatchError
	var unreachable *unreachableError
	var wrongMode *worker.ModeError
	switch {
	case errors.As(err, &wrongUsage):
		return wrongUsage.hint
	case errors.As(err, &unreachable):
		return unreachable.hint
	case errors.As(err, &wrongMode):
		return wrongMode.Hint()
	case errors.Is(err, jobs.ErrDigestConflict):
		return "nothing was spent; an id stands for one request: give the changed line a new id, or restore its old text"
	case errors.As(err, &wrongBatch):
		return "nothing was queued or spent; correct the file, and run the same command again"
	case errors.Is(err, jobs.ErrNotFound):
		return "danqing jobs list shows the jobs of this queue; they leave it a week after their end, and are then found in their bucket alone: DANQING_S3_BUCKET"
	case errors.Is(err, journal.ErrDataDirInUse):
		return "stop it, or wait for its end; while danqing up runs, use danqing enqueue. Each worker needs its own DANQING_DATA_DIR"
	case errors.Is(err, journal.ErrDataDir):
		return "make the folder writable for the user that runs danqing, or set DANQING_DATA_DIR to one that is"
	case errors.As(err, &refused):
		return refused.Hint()
	}
	return ""
}

// stderrf prints a line to standard error.
func (p *program) stderrf(format string, args ...any) {
	text := fmt.Sprintf("danqing: "+format, args...)
	_, _ = fmt.Fprintln(p.stderr, terminal.Wrap(text, terminal.Width(p.stderr), "  "))
}

// untilSignal runs work with a context that the first signal cancels, after it has
// called stopping, which may be nil. The error is then errInterrupted, whatever work
// returned.
func (p *program) untilSignal(ctx context.Context, stopping func(), work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-p.signals:
			if stopping != nil {
				stopping()
			}
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	err := work(ctx)
	interrupted := errors.Is(context.Cause(ctx), errInterrupted)
	cancel(nil)
	<-watched
	if interrupted {
		return errInterrupted
	}
	return err
}

// getenv returns an environment variable, or "" if it is not set.
func (p *program) getenv(name string) string {
	for _, pair := range p.environ {
		if key, value, ok := strings.Cut(pair, "="); ok && key == name {
			return value
		}
	}
	return ""
}

// config reads the configuration, and prints its warnings.
func (p *program) config() (*config.Config, error) {
	cfg, err := config.LoadWithFile(p.configFile, p.getenv, p.environ)
	if err != nil {
		return nil, err
	}
	for _, w := range cfg.Warnings {
		p.stderrf("warning: %s", w)
	}
	return cfg, nil
}
