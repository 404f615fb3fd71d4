package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// batchFlags are those that every command with a worker of its own has.
type batchFlags struct {
	simulate, json, verbose bool
	name, results           string
	budget                  budgetFlag
}

func (p *program) batchCommand() *cobra.Command {
	var f batchFlags
	cmd := &cobra.Command{
		Use:   "batch FILE...",
		Short: "Create the images of prompt files; resume where an earlier run stopped",
		Long: `Batch creates the images that the lines of JSON Lines files describe, with a worker of
its own, and writes a results file beside each. Running it again creates nothing twice:
a line is identified by its own "id", or else by its content, never by its position.

All lines are checked before anything is spent. "-" reads standard input and needs
--name. Exit codes: 0 all created, 3 some failed or are held, 2 a mistake in the file
or the configuration, 1 another error, 130 interrupted.`,
		Example: `  danqing batch prompts.jsonl
  danqing batch prompts.jsonl --simulate      # free, with made-up pictures
  danqing batch prompts.jsonl --budget 20     # at most 20 yuan, over all runs of it
  echo '{"prompt": "有一只黑色的小猫"}' | danqing batch - --name cats`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			return p.batch(cmd.Context(), files, f)
		},
	}
	p.runFlags(cmd, &f)
	cmd.Flags().StringVar(&f.name, "name", "", "the batch's name, which job IDs begin with (default: the file's name)")
	cmd.Flags().StringVar(&f.results, "results", "", "where to write the results (default: beside the file)")
	cmd.Flags().Var(&f.budget, "budget", budgetUsage)
	return cmd
}

func (p *program) runFlags(cmd *cobra.Command, f *batchFlags) {
	cmd.Flags().BoolVar(&f.simulate, "simulate", false, "use the built-in simulator: no key, no cost, no network, made-up pictures")
	cmd.Flags().BoolVar(&f.json, "json", false, "print each finished job to standard output as a JSON line")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log each step")
}

// sheet is a batch file with what became of its lines.
type sheet struct {
	*jobs.Batch
	results string // path of the results file
}

func (p *program) batch(ctx context.Context, files []string, f batchFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if len(files) > 1 && (f.name != "" || f.results != "") {
		return usage("run them one by one, or leave the flag out", "--name and --results are for one file, %d were given", len(files))
	}
	refs := references{}
	var sheets []sheet
	for _, file := range files {
		s, err := p.readSheet(ctx, file, f, cfg, refs)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		sheets = append(sheets, s)
	}
	if err := sameName(sheets); err != nil {
		return err
	}
	r := &run{program: p, refs: refs, json: f.json, sheets: sheets, budget: f.budget}
	var models []string
	for _, s := range sheets {
		for _, line := range s.Lines {
			r.lines = append(r.lines, line)
			models = append(models, line.Request.Model)
		}
	}
	slices.Sort(models)
	if err := cfg.Work(slices.Compact(models)); err != nil {
		return err
	}
	progress := newProgress(p.stderr)
	defer progress.close()
	engine, err := openEngine(cfg, f.simulate, progress.logger(f.verbose))
	if err != nil {
		return err
	}
	r.engine, r.progress = engine, progress
	err = r.do(ctx)
	var wrong *jobs.BatchError
	if len(files) == 1 && errors.As(err, &wrong) {
		err = fmt.Errorf("%s: %w", files[0], err)
	}
	if r.prepared {
		for _, s := range sheets {
			err = errors.Join(err, r.writeResults(s))
		}
	}
	progress.close()
	if r.prepared {
		r.summary()
	}
	return errors.Join(err, engine.Close())
}

// sameName refuses two files that would share job IDs by accident.
func sameName(sheets []sheet) error {
	seen := map[string]bool{}
	for _, s := range sheets {
		if seen[s.Name] {
			return usage("run them one by one with --name", "two files have the batch name %q", s.Name)
		}
		seen[s.Name] = true
	}
	return nil
}

func (p *program) readSheet(ctx context.Context, file string, f batchFlags, cfg *config.Config, refs references) (sheet, error) {
	name, in, dir := f.name, p.stdin, "."
	if file == "-" {
		if name == "" {
			return sheet{}, usage("as in: danqing batch - --name cats", "standard input has no name: --name is missing")
		}
	} else {
		opened, err := os.Open(file) //nolint:gosec // the user's own file
		if err != nil {
			return sheet{}, usage("name a file of JSON lines", "%w", err)
		}
		defer opened.Close() //nolint:errcheck // read only
		in, dir = opened, filepath.Dir(file)
		if name == "" {
			name = jobs.BatchName(file)
		}
	}
	batch, err := jobs.ReadBatch(in, jobs.BatchOptions{Name: name, Model: cfg.Models[0], Resolve: refs.resolver(dir), Stage: p.stager(ctx, refs)})
	var wrong *jobs.BatchError
	if err != nil && !errors.As(err, &wrong) {
		return sheet{}, usage("give one JSON object a line, as in {\"prompt\": \"a cat\"}", "%w", err)
	}
	if err != nil {
		return sheet{}, err
	}
	for _, line := range batch.Lines {
		for _, w := range line.Warnings {
			p.say("warning: line %d: %s", line.Number, w)
		}
	}
	s := sheet{Batch: batch, results: f.results}
	if s.results == "" {
		s.results = resultsPath(file, name, f.simulate)
	}
	return s, checkResults(s.results, file)
}

// resultsPath is beside the file; a results file is replaced by its successor.
// Simulated results say so in their name.
func resultsPath(file, name string, simulate bool) string {
	base := strings.TrimSuffix(file, filepath.Ext(file))
	if file == "-" {
		base = name
	} else if results, ok := strings.CutSuffix(base, ".results"); ok {
		base = strings.TrimSuffix(results, ".simulated")
	}
	if simulate {
		base += ".simulated"
	}
	return base + ".results.jsonl"
}

// references are the local files that lines refer to, by staged name. They are
// looked at while a file is read, and staged once all of it is right.
type references map[string]*storage.Reference

// stager copies references by URL into a folder of the program's, which goes when it
// ends.
func (p *program) stager(ctx context.Context, refs references) func(string) (string, error) {
	return func(url string) (string, error) {
		if p.temp == "" {
			dir, err := os.MkdirTemp("", "danqing-*")
			if err != nil {
				return "", err
			}
			p.temp = dir
		}
		ref, err := storage.FetchReference(ctx, url, storage.StageOptions{Dir: p.temp})
		if err != nil {
			return "", err
		}
		name := jobs.StagedPrefix + ref.SHA256
		refs[name] = ref
		return name, nil
	}
}

// resolver reads paths relative to the batch file.
func (r references) resolver(dir string) func(string) (string, error) {
	return func(path string) (string, error) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		ref, err := storage.InspectReference(path)
		if err != nil {
			return "", err
		}
		name := jobs.StagedPrefix + ref.SHA256
		r[name] = ref
		return name, nil
	}
}

func (r references) stage(ctx context.Context, bucket *storage.Bucket, line jobs.Line) error {
	ref := r[line.Request.RefImg]
	if ref == nil {
		return nil
	}
	return bucket.StageReference(ctx, ref)
}
