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
	exitInterrupted = 130
)

func main() {
	// go-redis logs errors that we already return.
	logging.Disable()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	p := &program{
		args: os.Args[1:], environ: os.Environ(), signals: signals,
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
	}
	os.Exit(p.run(context.Background()))
}

// program is one call of the command line with all it may touch.
type program struct {
	args           []string
	environ        []string
	signals        <-chan os.Signal
	stdin          io.Reader
	stdout, stderr io.Writer
	// configFile is a YAML file with the accounts, "" for the one of the environment.
	configFile string
	// temp is a folder that goes when the program ends, "" if none was needed.
	temp string
}

// errPartFailed and errInterrupted end a command that has already said why.
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

func usage(hint, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), hint: hint}
}

func (p *program) run(ctx context.Context) int {
	root := &cobra.Command{
		Use:   "danqing",
		Short: "Durable job queue for image generation with DashScope (通义万相, Qwen-Image)",
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
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("see: "+cmd.CommandPath()+" --help", "%w", err)
	})
	root.AddCommand(
		p.batchCommand(), p.generateCommand(), p.enqueueCommand(), p.workerCommand(), p.serveCommand(), p.upCommand(), p.jobsCommand(),
		p.spendCommand(), p.doctorCommand(), p.drillCommand(), p.simulatorCommand(), p.versionCommand(),
	)
	ran := false
	root.PersistentPreRun = func(*cobra.Command, []string) { ran = true }
	cmd, err := root.ExecuteContextC(ctx)
	if p.temp != "" {
		err = errors.Join(err, os.RemoveAll(p.temp))
	}
	var wrong *usageError
	if err != nil && !ran && !errors.As(err, &wrong) {
		// Cobra's own: an unknown command, or a wrong number of arguments.
		err = usage("see: "+cmd.CommandPath()+" --help", "%w", err)
	}
	return p.exit(err)
}

// exit says what went wrong and maps it to an exit code. It is the one place
// that does.
func (p *program) exit(err error) int {
	var wrongUsage *usageError
	var wrongConfig *config.Error
	var wrongBatch *jobs.BatchError
	var wrongRequest *jobs.InvalidError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errPartFailed):
		return exitPartFailed
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	}
	p.say("error: %v", err)
	if hint := hintOf(err); hint != "" {
		p.say("hint: %s", hint)
	}
	if errors.As(err, &wrongUsage) || errors.As(err, &wrongConfig) || errors.As(err, &wrongBatch) || errors.As(err, &wrongRequest) ||
		errors.Is(err, jobs.ErrDigestConflict) || errors.Is(err, worker.ErrSimulated) || errors.Is(err, worker.ErrGateway) || errors.Is(err, journal.ErrDataDirInUse) {
		return exitUsage
	}
	return exitFailed
}

// hintOf says what a person can do.
func hintOf(err error) string {
	var wrongUsage *usageError
	var refused *dashscope.Error
	var wrongBatch *jobs.BatchError
	var away *unreached
	switch {
	case errors.As(err, &wrongUsage):
		return wrongUsage.hint
	case errors.As(err, &away):
		return away.hint
	case errors.Is(err, jobs.ErrDigestConflict):
		return "nothing was spent; an id stands for one request: give the changed line a new id, or restore its old text"
	case errors.As(err, &wrongBatch):
		return "nothing was queued or spent; correct the lines and run the same command again"
	case errors.Is(err, jobs.ErrNotFound):
		return "jobs leave the queue a week after their end; set DANQING_S3_BUCKET to read their sidecars"
	case errors.Is(err, journal.ErrDataDirInUse):
		return "if it is danqing up, use danqing enqueue; otherwise wait for it to end. Each worker needs its own DANQING_DATA_DIR"
	case errors.As(err, &refused):
		return refused.Hint()
	}
	return ""
}

// say prints a line for people.
func (p *program) say(format string, args ...any) {
	_, _ = fmt.Fprintf(p.stderr, "danqing: "+format+"\n", args...)
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

// getenv returns a variable of the environment, "" if it is not set.
func (p *program) getenv(name string) string {
	for _, pair := range p.environ {
		if key, value, ok := strings.Cut(pair, "="); ok && key == name {
			return value
		}
	}
	return ""
}

// config reads the environment, saying what is odd in it.
func (p *program) config() (*config.Config, error) {
	cfg, err := config.LoadWithFile(p.configFile, p.getenv, p.environ)
	if err != nil {
		return nil, err
	}
	for _, w := range cfg.Warnings {
		p.say("warning: %s", w)
	}
	return cfg, nil
}
