package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/input"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/storage"
)

// batchFlags are the flags of commands that run a worker.
type batchFlags struct {
	simulate, json, verbose bool
	fail                    []string
	gallery, csv            bool
	dryRun, yes             bool
	name, results, download string
	budget                  budgetFlag
}

// fileFlags are the flags of the batch command.
type fileFlags struct {
	batchFlags
	requestFlags
	inputFlags
	options *input.Options
}

func (p *program) batchCommand() *cobra.Command {
	var f fileFlags
	cmd := &cobra.Command{
		Use:   "batch FILE...",
		Short: "Create the images of prompt files; resume where a run stopped",
		Long: `Batch creates the images that tables (.xlsx, .csv, .tsv), texts with a prompt a line, or
files of JSON lines describe, with a worker of its own, and writes a results file beside
each. Running it again creates nothing twice: a line is identified by its own "id" (编号),
or else by its content, never by its position.

The format and encoding of a file are found from its content. --prompt makes the prompts
from the columns of the files, --vary makes each line with each of several values, and
flags such as --style are for the lines that do not say otherwise.

All lines are checked before anything is spent. "-" reads standard input and needs
--name. On a terminal it asks before it spends more than DANQING_CONFIRM_ABOVE (10 yuan).

Exit codes: 0 all created, 3 some failed or are held, 2 a mistake in the file or the
configuration, 4 the question was answered with no, 1 another error, 130 interrupted.`,
		Example: `  danqing batch prompts.xlsx
  danqing batch prompts.jsonl --simulate      # free, with made-up pictures
  danqing batch prompts.jsonl --dry-run       # what it would make and cost
  danqing batch prompts.jsonl --budget 20     # at most 20 yuan, over all runs of it
  danqing batch goods.csv --map 卖点=prompt --style 水彩
  danqing batch animals.csv --prompt 'a {{.animal}} by {{.painter}}' --vary size=1024*1024,720*1280
  echo '{"prompt": "有一只黑色的小猫"}' | danqing batch - --name cats`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			var err error
			if f.options, err = f.inputFlags.options(cmd, &f.requestFlags, f.Prompt); err != nil {
				return err
			}
			return p.batch(cmd.Context(), files, f)
		},
	}
	p.runFlags(cmd, &f.batchFlags)
	p.addBatchFlags(cmd, &f.batchFlags)
	f.registerFileFlags(cmd)
	cmd.Flags().BoolVar(&f.csv, "csv", false, "write the results as a table for Excel too (default: if the file is a table)")
	cmd.Flags().StringVar(&f.results, "results", "", "where to write the results (default: beside the file)")
	return cmd
}

// registerFileFlags adds the flags that say how the files are read.
func (f *fileFlags) registerFileFlags(cmd *cobra.Command) {
	f.registerShape(cmd)
	f.inputFlags.register(cmd)
	cmd.Flags().StringVar(&f.Prompt, "prompt", "", "template of the prompts over the columns of the files, as in 'a {{.animal}} in a {{.scene}}'")
}

// addBatchFlags adds the flags of commands that make lines of a batch file.
func (p *program) addBatchFlags(cmd *cobra.Command, f *batchFlags) {
	cmd.Flags().StringVar(&f.name, "name", "", "the batch's name, which job IDs begin with (default: the file's name)")
	cmd.Flags().BoolVar(&f.gallery, "gallery", false, "write a page that shows the images side by side, beside the results and in the bucket")
	cmd.Flags().StringVar(&f.download, "download", "", "copy the images from the bucket into this folder, under readable names")
	cmd.Flags().Var(&f.budget, "budget", budgetUsage)
}

func (p *program) runFlags(cmd *cobra.Command, f *batchFlags) {
	cmd.Flags().BoolVar(&f.simulate, "simulate", false, "use the built-in simulator: no key, no cost, no network, made-up pictures")
	addFail(cmd, &f.fail)
	cmd.Flags().BoolVar(&f.json, "json", false, "print each finished job to standard output as a JSON line")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log each step")
	planFlags(cmd, &f.dryRun, &f.yes)
}

// planFlags are the flags of commands that tell what they would spend.
func planFlags(cmd *cobra.Command, dryRun, yes *bool) {
	cmd.Flags().BoolVar(dryRun, "dry-run", false, "print what would be made, its cost and time; write and spend nothing")
	cmd.Flags().BoolVarP(yes, "yes", "y", false, yesUsage)
}

func (p *program) batch(ctx context.Context, files []string, f fileFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if len(files) > 1 && (f.name != "" || f.results != "") {
		return usageErrorf("run them one by one, or leave the flag out", "--name and --results are for one file, %d were given", len(files))
	}
	refs := references{}
	var batchFiles []*batchFile
	var wrong []error
	for _, file := range files {
		s, err := p.readBatchFile(ctx, file, f, cfg, refs)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", file, err))
			continue
		}
		batchFiles = append(batchFiles, s)
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	if err := checkNames(batchFiles, f.makesFiles(cfg)); err != nil {
		return err
	}
	return p.runBatch(ctx, files, batchFiles, f.batchFlags, cfg, refs)
}

// runBatch completes valid batch files with a worker of its own, and writes their results.
func (p *program) runBatch(ctx context.Context, files []string, batchFiles []*batchFile, f batchFlags, cfg *config.Config, refs references) error {
	if err := checkFail(f.fail, f.simulate); err != nil {
		return err
	}
	r := &batchRun{program: p, refs: refs, json: f.json, yes: f.yes, gallery: f.gallery, files: batchFiles, budget: f.budget}
	if err := cfg.EnableModels(modelsOf(batchFiles)); err != nil {
		return err
	}
	if f.dryRun {
		return inFile(files, r.dryRun(ctx, cfg, f.simulate))
	}
	progress := newProgress(p.stderr)
	defer progress.Close()
	rt, err := openRuntime(cfg, f.simulate, f.fail, progress.logger(f.verbose))
	if err != nil {
		return err
	}
	r.runtime, r.progress = rt, progress
	if f.download != "" {
		if r.downloads, err = newDownloads(f.download, cfg.Prefix, rt.bucket, progress.printLine); err != nil {
			return errors.Join(err, rt.Close())
		}
	}
	err = inFile(files, r.do(ctx))
	if r.prepared {
		for _, s := range batchFiles {
			err = errors.Join(err, r.writeResults(context.WithoutCancel(ctx), s))
			if r.gallery {
				err = errors.Join(err, r.writeGallery(context.WithoutCancel(ctx), s))
			}
		}
	}
	progress.Close()
	if r.prepared {
		r.printSummary()
	}
	return errors.Join(err, rt.Close())
}

// inFile adds the name of the file to an error about its lines.
func inFile(files []string, err error) error {
	if wrong := (*jobs.BatchError)(nil); len(files) == 1 && errors.As(err, &wrong) {
		return fmt.Errorf("%s: %w", files[0], err)
	}
	return err
}

// modelsOf returns the models of all lines, sorted.
func modelsOf(files []*batchFile) []string {
	models := map[string]bool{}
	for _, s := range files {
		for _, l := range s.lines {
			models[l.model] = true
		}
	}
	return slices.Sorted(maps.Keys(models))
}

// makesFiles reports whether a run's images become files: in the embedded bucket, or by
// --download.
func (f *batchFlags) makesFiles(cfg *config.Config) bool {
	return f.simulate || cfg.Bucket == "" || f.download != ""
}

// checkNames refuses two files with the same batch name, which would share job IDs, or, where
// images are files, with names that differ only in case.
func checkNames(batchFiles []*batchFile, files bool) error {
	seen := map[string]string{}
	for _, s := range batchFiles {
		key := s.name
		if files {
			key = foldName(key)
		}
		switch before, twice := seen[key]; {
		case twice && before == s.name:
			return usageErrorf("run them one by one with --name", "two files have the batch name %q", s.name)
		case twice:
			return usageErrorf("name one of them with --name", "the batch names %q and %q differ only in case, and their images would be the same files on some disks", before, s.name)
		}
		seen[key] = s.name
	}
	return nil
}

// openBatch opens a batch file, or standard input for "-". It returns the folder of the file
// and the name of the batch. command is the command that reads it.
func (p *program) openBatch(command, file, name string) (in *os.File, dir, batch string, err error) {
	if file == "-" {
		if name == "" {
			return nil, "", "", usageErrorf("as in: danqing "+command+" - --name cats", "standard input has no name: --name is missing")
		}
		in, err := p.spool(p.stdin)
		return in, ".", normalizeName(name), err
	}
	const hint = "name a table (.xlsx, .csv), a text or a file of JSON lines, as in prompts.xlsx"
	opened, err := os.Open(file) //nolint:gosec // the path is from the user
	if err != nil {
		return nil, "", "", usageErrorf(hint, "%w", err)
	}
	info, err := opened.Stat()
	switch {
	case err == nil && info.IsDir():
		err = usageErrorf(hint, "%s is a directory", file)
	case err == nil && !info.Mode().IsRegular():
		in, err := p.spool(opened)
		return in, filepath.Dir(file), normalizeName(cmp.Or(name, jobs.BatchName(file))), errors.Join(err, opened.Close())
	}
	if err != nil {
		return nil, "", "", errors.Join(err, opened.Close())
	}
	return opened, filepath.Dir(file), normalizeName(cmp.Or(name, jobs.BatchName(file))), nil
}

// spool copies what can be read once, such as standard input, into a file in the program's
// temporary folder.
func (p *program) spool(in io.Reader) (*os.File, error) {
	dir, err := p.makeTempDir()
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(dir, "input-*")
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(file, in); err != nil {
		return nil, errors.Join(fmt.Errorf("read the input: %w", err), file.Close())
	}
	return file, nil
}

// makeTempDir returns the program's temporary folder, and makes it the first time.
func (p *program) makeTempDir() (string, error) {
	if p.tempDir == "" {
		dir, err := os.MkdirTemp("", "danqing-*")
		if err != nil {
			return "", err
		}
		p.tempDir = dir
	}
	return p.tempDir, nil
}

func (p *program) readBatchFile(ctx context.Context, file string, f fileFlags, cfg *config.Config, refs references) (*batchFile, error) {
	reader := batchReader{command: "batch", options: f.options, cfg: cfg, localImages: f.makesFiles(cfg), refs: refs}
	s, err := p.readBatch(ctx, reader, file, f.name)
	if err != nil {
		return nil, err
	}
	s.results = f.results
	if s.results == "" {
		s.results = resultsPath(file, s.name, f.simulate)
	}
	results, err := newResultsFile(s.results, file)
	if err != nil {
		return nil, err
	}
	if err == nil && !results.isInput && filepath.Clean(s.results) == redoPath(file, f.simulate) {
		results.head = otherRedos(s)
	}
	s.outputs = append(s.outputs, results)
	if f.csv || len(s.columns) > 0 {
		table, err := newResultsTable(csvPath(s.results), file, s)
		if err != nil {
			return nil, err
		}
		s.outputs = append(s.outputs, table)
	}
	return s, nil
}

// resultsPath returns the path of the results file, in the folder of the batch file. If the
// batch file is a results file itself, it is replaced. The name of simulated results
// contains "simulated".
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

// references are the local files that lines refer to, by staged name. They are inspected
// while a batch file is read, and staged after the whole file is valid.
type references map[string]*storage.Reference

// stager returns a function that downloads a reference image into the program's temporary
// folder.
func (p *program) stager(ctx context.Context, refs references) func(model, url string) (string, error) {
	return func(model, url string) (string, error) {
		dir, err := p.makeTempDir()
		if err != nil {
			return "", err
		}
		ref, err := storage.FetchReference(ctx, url, storage.StageOptions{Dir: dir, Limits: gateway.ReferenceLimits(model)})
		if err != nil {
			return "", err
		}
		name := jobs.StagedPrefix + ref.SHA256
		refs[name] = ref
		return name, nil
	}
}

// resolver returns a function that inspects a reference image for a model, with paths relative to
// dir.
func (r references) resolver(dir string) func(model, path string) (string, error) {
	return func(model, path string) (string, error) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		ref, err := gateway.ReferenceLimits(model).Inspect(path)
		if errors.Is(err, os.ErrNotExist) && strings.ContainsAny(path, "|;\n") {
			return "", fmt.Errorf("%w; several images go into ref_images", err)
		}
		if err != nil {
			return "", err
		}
		name := jobs.StagedPrefix + ref.SHA256
		r[name] = ref
		return name, nil
	}
}
