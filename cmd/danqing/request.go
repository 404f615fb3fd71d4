package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/danqing-queue/danqing/jobs"
)

// requestFlags are the flags that describe one job.
type requestFlags struct {
	request      jobs.Request
	seed         int64
	refStrength  float64
	promptExtend bool
	watermark    bool
}

func (f *requestFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.request.ID, "id", "", "job ID (default: a random one)")
	f.registerShape(cmd)
}

// registerShape adds the flags of what shapes the image, without its prompt.
func (f *requestFlags) registerShape(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "ref" {
			name = "ref-img"
		}
		return pflag.NormalizedName(name)
	})
	flags.StringVar(&f.request.Model, "model", "", "model (default: the first of DANQING_MODELS, or wanx-v1)")
	flags.StringVar(&f.request.NegativePrompt, "negative-prompt", "", "what to avoid")
	flags.StringVar(&f.request.Style, "style", "", "style, such as watercolor or 水彩 (default: the model decides)")
	flags.StringVar(&f.request.Size, "size", "", "width*height (default: the model's, such as 1024*1024)")
	flags.IntVarP(&f.request.N, "n", "n", 1, "number of images, 1 to 4; each is charged")
	flags.Int64Var(&f.seed, "seed", 0, "seed of the first image (default: made from the job's ID)")
	flags.StringVar(&f.request.RefImg, "ref-img", "", "reference image: a URL or a file")
	flags.Float64Var(&f.refStrength, "ref-strength", 0, "how close to the reference, 0 to 1")
	flags.StringVar(&f.request.RefMode, "ref-mode", "", "repaint (keep the content, the default) or refonly (keep the style)")
	flags.BoolVar(&f.promptExtend, "prompt-extend", true, "let the service rewrite the prompt, if the model supports it")
	flags.BoolVar(&f.watermark, "watermark", false, "add the service's watermark at the bottom right, if the model supports it")
}

// shapeFlagNames are the flags of registerShape.
func shapeFlagNames() []string {
	return strings.Fields("model negative-prompt style size n seed ref-img ref-strength ref-mode prompt-extend watermark")
}

// givenFlags returns those flags that are on the command line.
func givenFlags(cmd *cobra.Command, all []string) []string {
	var names []string
	for _, name := range all {
		if cmd.Flags().Changed(name) {
			names = append(names, "--"+name)
		}
	}
	return names
}

// read returns the request, not normalized. A local reference image is replaced by its
// staged name.
func (f *requestFlags) read(cmd *cobra.Command, defaultModel string, refs references) (jobs.Request, error) {
	req := f.request
	if cmd.Flags().Changed("seed") {
		req.Seed = &f.seed
	}
	if cmd.Flags().Changed("ref-strength") {
		req.RefStrength = &f.refStrength
	}
	if cmd.Flags().Changed("prompt-extend") {
		req.PromptExtend = &f.promptExtend
	}
	if cmd.Flags().Changed("watermark") {
		req.Watermark = &f.watermark
	}
	if req.Model == "" {
		req.Model = defaultModel
	}
	if req.RefImg == "" || strings.Contains(req.RefImg, "://") || strings.HasPrefix(req.RefImg, jobs.StagedPrefix) {
		return req, nil
	}
	name, err := refs.resolver(".")(req.RefImg)
	if err != nil {
		return req, usageErrorf("name a URL or a file that DashScope takes", "%w", err)
	}
	req.RefImg = name
	return req, nil
}
