package main

import (
	"errors"
	"maps"
	"slices"
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
	// refImages are those of --ref-img, and named those of --option.
	refImages, named []string
}

func (f *requestFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.request.ID, "id", "", "job ID (default: a random one)")
	f.registerShape(cmd)
}

// registerShape adds the flags of what shapes the image, without its prompt.
func (f *requestFlags) registerShape(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name {
		case "ref":
			name = "ref-img"
		case "mask":
			name = "mask-image-url"
		}
		return pflag.NormalizedName(name)
	})
	flags.StringVar(&f.request.Model, "model", "", "model (default: the first of DANQING_MODELS, or wanx-v1)")
	flags.StringVar(&f.request.NegativePrompt, "negative-prompt", "", "what to avoid")
	flags.StringVar(&f.request.Style, "style", "", "style, such as watercolor or 水彩 (default: the model decides)")
	flags.StringVar(&f.request.Size, "size", "", "width*height (default: the model's, such as 1024*1024)")
	flags.IntVarP(&f.request.N, "n", "n", 1, "number of images, 1 to 4 with most models; each is charged")
	flags.Int64Var(&f.seed, "seed", 0, "seed of the first image (default: made from the job's ID)")
	flags.StringArrayVar(&f.refImages, "ref-img", nil, "reference image: a URL or a file; models that edit take several, each with its own --ref-img")
	flags.StringVar(&f.request.MaskImageURL, "mask-image-url", "", "mask of an edit, a URL or a file: white where the image changes")
	flags.StringVar(&f.request.Function, "function", "", "what a model with functions does with the image, such as colorization")
	flags.StringArrayVar(&f.named, "option", nil, "NAME=VALUE: a parameter that only some models have, such as strength=0.7; may be given several times")
	flags.Float64Var(&f.refStrength, "ref-strength", 0, "how close to the reference, 0 to 1")
	flags.StringVar(&f.request.RefMode, "ref-mode", "", "repaint (keep the content, the default) or refonly (keep the style)")
	flags.BoolVar(&f.promptExtend, "prompt-extend", true, "let the service rewrite the prompt, if the model supports it")
	flags.BoolVar(&f.watermark, "watermark", false, "add the service's watermark at the bottom right, if the model supports it")
}

// shapeFlagNames are the flags of registerShape that are a field each.
func shapeFlagNames() []string {
	return strings.Fields("model negative-prompt style size n seed mask-image-url function ref-strength ref-mode prompt-extend watermark")
}

// shape returns the fields that the flags of registerShape set, as texts by name.
func (f *requestFlags) shape(cmd *cobra.Command) (map[string]string, error) {
	fields := map[string]string{}
	for _, name := range shapeFlagNames() {
		if flag := cmd.Flags().Lookup(name); flag.Changed {
			fields[strings.ReplaceAll(name, "-", "_")] = flag.Value.String()
		}
	}
	switch len(f.refImages) {
	case 0:
	case 1:
		fields["ref_img"] = f.refImages[0]
	default:
		fields["ref_images"] = strings.Join(f.refImages, "\n")
	}
	options, err := f.namedOptions()
	maps.Copy(fields, options)
	return fields, err
}

// namedOptions returns the values of --option by name.
func (f *requestFlags) namedOptions() (map[string]string, error) {
	named := map[string]string{}
	for _, text := range f.named {
		name, value, found := strings.Cut(text, "=")
		name = strings.ReplaceAll(strings.TrimSpace(name), "-", "_")
		hint := "the names are: " + strings.Join(jobs.OptionNames(), ", ")
		_, twice := named[name]
		switch {
		case !found || strings.TrimSpace(value) == "":
			return nil, usageErrorf("as in: --option strength=0.7", "--option %s: it is not NAME=VALUE", text)
		case !slices.Contains(jobs.OptionNames(), name):
			return nil, usageErrorf(hint, "--option %s: there is no parameter %q", text, name)
		case twice:
			return nil, usageErrorf("name it once", "--option names %s twice", name)
		}
		named[name] = strings.TrimSpace(value)
	}
	return named, nil
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

// read returns the request, normalized, and its warnings. A local reference image is replaced
// by its staged name.
func (f *requestFlags) read(cmd *cobra.Command, defaultModel string, refs references) (jobs.Request, []string, error) {
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
	options, err := f.namedOptions()
	if err != nil {
		return req, nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if err := req.SetOption(name, options[name]); err != nil {
			return req, nil, usageErrorf("", "--option: %w", err)
		}
	}
	if len(f.refImages) == 1 {
		req.RefImg = f.refImages[0]
	} else {
		req.RefImages = f.refImages
	}
	staged, problems := req.WithReferences(func(_, name string) (string, error) {
		if strings.Contains(name, "://") || strings.HasPrefix(name, jobs.StagedPrefix) {
			return name, nil
		}
		return refs.resolver(".")(req.Model, name)
	})
	for _, problem := range problems {
		return req, nil, usageErrorf("name a URL or a file that DashScope takes", "%w", problem.Err)
	}
	normalized, warnings, err := staged.Normalize()
	if invalid := (*jobs.InvalidError)(nil); errors.As(err, &invalid) {
		jobs.NameGiven(invalid.Fields, req, staged)
	}
	return normalized, warnings, err
}
