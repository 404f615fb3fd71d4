package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/jobs"
)

type generateFlags struct {
	batchFlags
	requestFlags
	output string
}

func (p *program) generateCommand() *cobra.Command {
	var f generateFlags
	cmd := &cobra.Command{
		Use:   "generate PROMPT",
		Short: "Create one image, or n, now",
		Long: `Generate creates one image, or n, now, and saves it as a file. Every call is a new job,
and a new purchase, unless --id names the job: the same ID with the same request is
created once.`,
		Example: `  danqing generate "有一只黑色的小猫" -o cat.png
  danqing generate "a house by the sea" --style 水彩 --size 1280*720 --simulate`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.request.Prompt = args[0]
			return p.generate(cmd, f)
		},
	}
	p.runFlags(cmd, &f.batchFlags)
	f.register(cmd)
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "file to save the image as; with several, -1, -2 … goes before its extension (default: the job's ID, with the extension of the image's format)")
	return cmd
}

func (p *program) generate(cmd *cobra.Command, f generateFlags) error {
	ctx := cmd.Context()
	cfg, err := p.config()
	if err != nil {
		return err
	}
	refs := references{}
	req, warnings, err := f.read(cmd, cfg.Models[0], refs)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		p.stderrf("warning: %s", w)
	}
	if err := cfg.EnableModels([]string{req.Model}); err != nil {
		return err
	}
	if req.ID == "" {
		req.ID = jobs.NewID()
	}
	files := outputFiles(f.output, req)
	for _, file := range files {
		// Which format a model makes is not known before.
		for _, name := range []string{file, imageFile(f.output, file, ".jpg"), imageFile(f.output, file, ".webp")} {
			if _, err := os.Lstat(name); err == nil {
				return usageErrorf("choose another name with -o, or move it away", "%s is there already", name)
			}
		}
	}
	if err := checkWritableFolder(files[0]); err != nil {
		return usageErrorf("name a file in a folder that is there and can be written to", "-o %s: %w", files[0], err)
	}
	if err := checkFail(f.fail, f.simulate); err != nil {
		return err
	}
	file := singleJob(1, req)
	if f.dryRun {
		r := &batchRun{program: p, json: f.json, files: []*batchFile{file}}
		return r.dryRun(ctx, cfg, f.simulate)
	}
	progress := newProgress(p.stderr)
	rt, err := openRuntime(cfg, f.simulate, f.fail, progress.logger(f.verbose))
	if err != nil {
		return err
	}
	r := &batchRun{
		program: p, runtime: rt, progress: progress, refs: refs, json: f.json, yes: f.yes,
		files: []*batchFile{file},
	}
	err = r.do(ctx)
	progress.Close()
	if errors.Is(err, errInterrupted) {
		p.stderrf("the job is not finished; to fetch its image later: the same command with --id %s", req.ID)
	}
	if got := r.files[0].lines[0].result; got != nil {
		err = errors.Join(err, p.save(ctx, rt, got, f.output, files))
	}
	return errors.Join(err, rt.Close())
}

// defaultExt is the extension of PNG, the format of all documented examples but one.
const defaultExt = ".png"

// outputFiles returns the file name of each image.
func outputFiles(output string, req jobs.Request) []string {
	if output == "" {
		output = req.ID + defaultExt
	}
	if req.N == 1 {
		return []string{output}
	}
	ext := filepath.Ext(output)
	var files []string
	for n := 1; n <= req.N; n++ {
		files = append(files, strings.TrimSuffix(output, ext)+"-"+strconv.Itoa(n)+ext)
	}
	return files
}

// imageFile returns the file of an image whose format has an extension: a name that was given
// stays as it is.
func imageFile(output, file, ext string) string {
	if output != "" {
		return file
	}
	return strings.TrimSuffix(file, defaultExt) + ext
}

// save copies the images from the bucket to files.
func (p *program) save(ctx context.Context, rt *runtime, got *result, output string, files []string) error {
	for _, image := range got.Images {
		if image.Key == "" {
			p.stderrf("image %d: %s: %s", image.N, image.Code, image.Message)
			continue
		}
		stored := jobs.Image{ContentType: image.ContentType}
		file := imageFile(output, files[image.N-1], stored.Extension())
		given := strings.ReplaceAll(strings.ToLower(filepath.Ext(file)), ".jpeg", ".jpg")
		if slices.Contains([]string{".png", ".jpg", ".webp"}, given) && given != stored.Extension() {
			p.stderrf("warning: %s is a %s file in spite of its name", file, strings.ToUpper(stored.Format()))
		}
		if err := saveObject(ctx, rt, image.Key, file); err != nil {
			return fmt.Errorf("save image %d: %w; it is in the bucket under %s", image.N, err, image.Key)
		}
		if _, err := fmt.Fprintln(p.stdout, file); err != nil {
			return err
		}
	}
	return nil
}

func saveObject(ctx context.Context, rt *runtime, key, file string) error {
	body, _, err := rt.bucket.Get(ctx, key)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // read only

	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // images may be world-readable
	if err != nil {
		return err
	}
	_, err = io.Copy(out, body)
	return errors.Join(err, out.Close())
}
