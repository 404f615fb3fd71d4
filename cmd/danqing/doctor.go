package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
)

// severityOK is the severity of a passed check.
const severityOK redishealth.Severity = "ok"

// The sections of doctor's findings; scripts read them.
const (
	sectionConfig    = "configuration"
	sectionRedis     = "redis"
	sectionBucket    = "bucket"
	sectionDashScope = "dashscope"
)

var sections = []string{sectionConfig, sectionRedis, sectionBucket, sectionDashScope}

func (p *program) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [SECTION...]",
		Short: "Check configuration, Redis, bucket and DashScope",
		Long: `Doctor checks everything that a worker depends on: the configuration, the data
directory, Redis, the bucket, and DashScope with each account's key. It spends
nothing; in the bucket it writes one object under PREFIX/_doctor/ and deletes it.
With sections (configuration, redis, bucket, dashscope) it checks only these.

It exits with 1 if it finds an error: something that breaks a promise or stops jobs.
With --json each finding is a line of JSON.`,
		Example: `  danqing doctor
  danqing doctor --config accounts.yaml
  danqing doctor configuration redis
  danqing doctor --json | jq 'select(.severity == "error")'`,
		Args:      cobra.OnlyValidArgs,
		ValidArgs: sections,
		RunE:      func(cmd *cobra.Command, args []string) error { return p.doctor(cmd.Context(), args, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return cmd
}

// finding is one line of doctor's output.
type finding struct {
	Section string `json:"section"`
	redishealth.Finding
}

// doctor runs the checks and prints its findings.
type doctor struct {
	*program
	cfg  *config.Config
	only []string // sections to check; empty: all
	json bool

	section  string // the current one
	errors   int
	writeErr error // the first error of printing
	// jobs is the queue, nil if Redis cannot be reached.
	jobs *jobs.Inspector
	// redis is the queue's, nil with jobs.
	redis *redis.Client
	// modes are the modes of the places that have one.
	modes map[string]jobs.Mode
}

func (p *program) doctor(ctx context.Context, only []string, asJSON bool) error {
	cfg, err := config.LoadWithFile(p.configFile, p.getenv, p.environ)
	if err != nil {
		return err
	}
	d := &doctor{program: p, cfg: cfg, only: only, json: asJSON, modes: map[string]jobs.Mode{}}
	err = p.untilSignal(ctx, nil, d.run)
	switch {
	case errors.Is(err, errInterrupted):
		return errInterrupted
	case err != nil || d.writeErr != nil:
		return errors.Join(err, d.writeErr)
	case d.errors > 0:
		return fmt.Errorf("doctor found %s; each has its remedy", count(d.errors, "error"))
	}
	return nil
}

// run runs the checks. Problems are findings; the error is one of doctor itself.
func (d *doctor) run(ctx context.Context) error {
	if d.begin(sectionConfig) {
		d.checkConfig()
		d.checkDataDir(ctx)
	}
	var rdb *redis.Client
	if d.begin(sectionRedis) {
		rdb = d.checkRedis(ctx)
	}
	if d.begin(sectionBucket) {
		d.checkBucket(ctx)
	}
	if d.begin(sectionDashScope) {
		d.checkAccounts(ctx)
	}
	if rdb == nil {
		return nil
	}
	return rdb.Close()
}

// begin begins a section, and reports whether it is to be checked.
func (d *doctor) begin(section string) bool {
	d.section = section
	return len(d.only) == 0 || slices.Contains(d.only, section)
}

// report prints a finding of the current section.
func (d *doctor) report(f redishealth.Finding) {
	f.Text = strings.ReplaceAll(f.Text, "\n", "; ")
	if f.Severity == redishealth.SeverityError {
		d.errors++
	}
	var err error
	if d.json {
		err = printJSON(d.stdout, finding{d.section, f})
	} else {
		text := fmt.Sprintf("%-13s  %-7s  %s", d.section, f.Severity, f.Text)
		if f.Remedy != "" {
			text += fmt.Sprintf("\n%24s→ %s", "", f.Remedy)
		}
		_, err = fmt.Fprintln(d.stdout, terminal.Wrap(text, terminal.Width(d.stdout), strings.Repeat(" ", 24)))
	}
	if d.writeErr == nil {
		d.writeErr = err
	}
}

func (d *doctor) ok(format string, args ...any) {
	d.report(redishealth.Finding{Severity: severityOK, Text: fmt.Sprintf(format, args...)})
}

func (d *doctor) note(remedy, format string, args ...any) {
	d.report(redishealth.Finding{Severity: redishealth.SeverityNote, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (d *doctor) warn(remedy, format string, args ...any) {
	d.report(redishealth.Finding{Severity: redishealth.SeverityWarning, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (d *doctor) bad(remedy, format string, args ...any) {
	d.report(redishealth.Finding{Severity: redishealth.SeverityError, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

// checkBucket runs the bucket's self-test.
func (d *doctor) checkBucket(ctx context.Context) {
	switch {
	case d.cfg.Bucket == "" && d.cfg.RedisURL.IsSet():
		d.bad("set DANQING_S3_BUCKET to a bucket that all workers reach", "REDIS_URL is set and DANQING_S3_BUCKET is not, so that no worker starts")
		return
	case d.cfg.Bucket == "":
		d.ok("no bucket is configured: images are files in the data directory")
		return
	}
	b, err := storage.New(d.cfg.Storage())
	if err != nil {
		d.bad("correct the setting that it names", "%v", err)
		return
	}
	for _, t := range b.SelfTest(ctx) {
		text := fmt.Sprintf("%s: %v", t.Name, t.Err)
		switch {
		case t.Err == nil:
			d.ok("%s: done in %d ms", t.Name, t.Took.Milliseconds())
		case t.Name == storage.CheckLink, t.Name == storage.CheckDelete: // not needed by workers
			d.warn(t.Remedy, "%s", text)
		default:
			d.bad(t.Remedy, "%s", text)
		}
	}
	mode, err := b.Mode(ctx)
	d.reportMode(worker.PlaceBucket, jobs.Mode(mode), err)
}

// reportMode reports whether a place is real or simulated.
func (d *doctor) reportMode(place string, mode jobs.Mode, err error) {
	switch {
	case err != nil:
		d.bad("", "%v", err)
	case mode == jobs.ModeSimulated:
		d.note("for real images use another, or empty it: danqing purge", "%s is simulated since its first use: nothing there is charged, and no image is real", place)
	case mode != "":
		d.ok("%s is %s since its first use", place, mode)
	}
	d.modes[place] = mode
}

// checkModes checks that all places are real or all are simulated, and so is the service,
// if it has answered.
func (d *doctor) checkModes(service jobs.Mode) {
	with, mode := worker.ConfiguredService, service
	for _, place := range []string{worker.PlaceRedis, worker.PlaceBucket, worker.PlaceDataDir} {
		if mode == "" {
			with, mode = place, d.modes[place]
		}
		if wrong := worker.CompareModes(place, d.modes[place], with, mode); wrong != nil {
			d.bad(wrong.Hint(), "%v", wrong)
		}
	}
}
