package jobs_test

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/danqing-queue/danqing/jobs"
)

func TestModelsPage(t *testing.T) {
	t.Parallel()
	golden(t, filepath.Join("docs", "models.md"), modelsPage(jobs.Models()))
}

func modelsPage(models []jobs.Model) string {
	var b strings.Builder
	b.WriteString(`# Models

<!-- Made from the catalog, jobs/models.go and jobs/otherpathmodels.go, by go test ./jobs -update. -->

Prices are in yuan per image; "–" means that the model is not sold there, or that its price there is not known. Only created
images are charged. Nothing here was tried with the service itself: see [sources](#sources) and
[what is not known](#what-is-not-known).

| model | path | Beijing | Singapore | ` + "`n`" + ` | tasks at once | submits/s | time of a task |
| --- | --- | --- | --- | --- | --- | --- | --- |
`)
	for _, m := range models {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %d | %v | %s |\n", m.Name, m.Protocol, yuanIn(m, jobs.RegionBeijing), yuanIn(m, jobs.RegionSingapore),
			images(m), m.Concurrency, m.SubmitsPerSecond, taskTime(m))
	}
	b.WriteString(`
*Tasks at once* is what DashScope works on at the same time for one main account. ` + "`DANQING_CONCURRENCY`" + ` can be at most that. *Time of a task* is DashScope's own figure, which ` + "`--dry-run`" + ` plans with until there are measurements. *Path* is DashScope's: text2image/image-synthesis, image2image/image-synthesis or image-generation/generation. A lost create of a path other than text2image is [held](../../cmd/danqing/docs/held.md#submitambiguous) until the account's task list has shown a task of the model.
`)
	for _, m := range models {
		for _, region := range slices.Sorted(maps.Keys(m.Prices)) {
			if region != jobs.RegionBeijing && region != jobs.RegionSingapore {
				fmt.Fprintf(&b, "\n`%s` is also sold in %s, for %s.\n", m.Name, region, yuanIn(m, region))
			}
		}
	}
	for _, m := range models {
		if m.SubmitsPerMinute > 0 {
			fmt.Fprintf(&b, "\n`%s` accepts %d creates a minute", m.Name, m.SubmitsPerMinute)
			if m.LargePixels > 0 {
				fmt.Fprintf(&b, "; an image of more than %d pixels costs %s", m.LargePixels, yuan(m.LargePrices[jobs.RegionBeijing]))
			}
			fmt.Fprintf(&b, "; a reference image costs %s more. What a task was charged for is booked as its answer says; until then the dearest possible is reserved.\n", yuan(m.InputPrices[jobs.RegionBeijing]))
		}
	}
	b.WriteString(`
Models without asynchronous tasks are refused: ` + "`qwen-image-2.0`, `qwen-image-max`, `qwen-image-edit`, `z-image-turbo`" + ` and their kin answer with the image itself. If that reply is lost, the image is lost too, and is paid for. The error names a model to use instead.

## Sizes

| model | default | allowed |
| --- | --- | --- |
`)
	for _, m := range models {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", m.Name, escaped(cmp.Or(m.Sizes.Default, "–")), escaped(allowed(m.Sizes)))
		if m.EditSizes.Default != "" {
			fmt.Fprintf(&b, "| – with reference images, or in a group | %s | %s |\n", escaped(m.EditSizes.Default), escaped(allowed(m.EditSizes)))
		}
	}
	b.WriteString(`
## Texts and options

The service cuts off what is longer; Danqing warns, and sends the text as it is.

| model | prompt, characters | negative prompt | ` + "`style` | reference images | `prompt_extend` | `watermark`" + ` |
| --- | --- | --- | --- | --- | --- | --- |
`)
	for _, m := range models {
		negative := strconv.Itoa(m.NegativePromptRunes)
		switch {
		case m.NoNegativePrompt:
			negative = "–"
		case m.NegativePromptRunes == 0:
			negative = "not known"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s |\n", m.Name, promptRunes(m), negative,
			yes(len(m.Styles) > 0), inputs(m), yes(m.PromptExtend), yes(m.Watermark))
	}
	b.WriteString("\n`prompt_extend` is true unless it is given, `watermark` is false.\n")
	for _, m := range models {
		b.WriteString(modelOptions(m))
	}
	b.WriteString(optionsTable(models))
	b.WriteString("\n## What is not known\n\nOf all models: how soon the task list shows a task, how many tasks may wait, and when a model is retired.\n\n| model | question |\n| --- | --- |\n")
	for _, m := range models {
		for _, question := range m.Unknown {
			fmt.Fprintf(&b, "| `%s` | %s |\n", m.Name, question)
		}
	}
	b.WriteString("\n## Sources\n\nConfidence: A an official page or SDK, B two reports that agree, C one report, – Danqing's choice, in whole or in part.\n\n| fact | models | page | confidence |\n| --- | --- | --- | --- |\n")
	for _, row := range sourceRows(models) {
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s |\n", row.fact, strings.Join(row.models, "`, `"), escaped(row.page), row.confidence)
	}
	return b.String()
}

// optionsTable lists the parameters that only some models or functions have.
func optionsTable(models []jobs.Model) string {
	var b strings.Builder
	b.WriteString("\n## Options\n\nReference images are `ref_images`, a list, or `ref_img` for a single one. A mask is `mask_image_url`, for the functions that need one.\n\n| model | `function` | parameters |\n| --- | --- | --- |\n")
	list := func(options []jobs.Option) string {
		texts := make([]string, len(options))
		for i, o := range options {
			texts[i] = "`" + o.Name + "`: " + o.Allowed()
			if o.Default != "" {
				texts[i] += " (" + o.Default + ")"
			}
		}
		return cmp.Or(strings.Join(texts, "; "), "–")
	}
	for _, m := range models {
		if len(m.Options) > 0 {
			fmt.Fprintf(&b, "| `%s` | – | %s |\n", m.Name, list(m.Options))
		}
		for _, f := range m.Functions {
			mask := ""
			if f.Mask {
				mask = ", with a mask"
			}
			fmt.Fprintf(&b, "| `%s` | `%s`%s | %s |\n", m.Name, f.Name, mask, list(f.Options))
		}
	}
	b.WriteString("\nDefaults are in parentheses; a parameter without one is sent only if it is given.\n")
	return b.String()
}

func inputs(m jobs.Model) string {
	i := m.Inputs
	switch {
	case len(m.RefModes) > 0:
		return "one, `ref_img`"
	case i.Max == 0:
		return "–"
	case i.MaxSide == 0:
		return fmt.Sprintf("%d–%d", i.Min, i.Max)
	case i.Min == i.Max:
		return strconv.Itoa(i.Max) + fmt.Sprintf(", sides of %d to %d pixels, at most %d MB", i.MinSide, i.MaxSide, i.MaxBytes>>20)
	}
	return fmt.Sprintf("%d–%d, sides of %d to %d pixels, at most %d MB", i.Min, i.Max, i.MinSide, i.MaxSide, i.MaxBytes>>20)
}

func images(m jobs.Model) string {
	if m.MaxGroup > 0 {
		return upTo(m.MaxImages) + fmt.Sprintf(", in a group 1–%d", m.MaxGroup)
	}
	return upTo(m.MaxImages)
}

func taskTime(m jobs.Model) string {
	if m.TaskTime == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f s", m.TaskTime.Seconds())
}

// sourceRow is a field of [jobs.Model] with its page.
type sourceRow struct {
	fact, page, confidence string
	models                 []string
}

// sourceRows has a row for all models whose fact is from the same page.
func sourceRows(models []jobs.Model) []*sourceRow {
	var rows []*sourceRow
	known := map[[3]string]*sourceRow{}
	for _, m := range models {
		for _, fact := range slices.Sorted(maps.Keys(m.Sources)) {
			key := [3]string{fact, m.Sources[fact], cmp.Or(m.Confidence[fact], "A")}
			if known[key] == nil {
				known[key] = &sourceRow{fact: fact, page: m.Sources[fact], confidence: key[2]}
				rows = append(rows, known[key])
			}
			known[key].models = append(known[key].models, m.Name)
		}
	}
	slices.SortStableFunc(rows, func(a, b *sourceRow) int { return strings.Compare(a.fact, b.fact) })
	return rows
}

// modelOptions lists the parameters that only some models have.
func modelOptions(m jobs.Model) string {
	var b strings.Builder
	if len(m.Styles) > 0 {
		fmt.Fprintf(&b, "\n## Styles of %s\n\nThe first is the default. Case, spaces and angle brackets do not count.\n\n| `style` | other names |\n| --- | --- |\n", m.Name)
		for _, s := range m.Styles {
			fmt.Fprintf(&b, "| `%s` | %s |\n", s.Value, strings.Join(s.Names, ", "))
		}
	}
	if len(m.RefModes) > 0 {
		fmt.Fprintf(&b, "\nIts `ref_mode` is `%s`; the first is the default.\n", strings.Join(m.RefModes, "` or `"))
	}
	for _, region := range slices.Sorted(maps.Keys(m.RegionalNames)) {
		fmt.Fprintf(&b, "\n`%s` is spelled `%s` in %s; Danqing translates.\n", m.Name, m.RegionalNames[region], region)
	}
	return b.String()
}

func yuanIn(m jobs.Model, region string) string {
	price, sold := m.Prices[region]
	if !sold {
		return "–"
	}
	return yuan(price)
}

func yuan(price int64) string {
	whole, fraction := price/1_000_000, strconv.Itoa(int(1_000_000 + price%1_000_000))[1:]
	for len(fraction) > 2 && strings.HasSuffix(fraction, "0") {
		fraction = strings.TrimSuffix(fraction, "0")
	}
	return fmt.Sprintf("%d.%s", whole, fraction)
}

func allowed(s jobs.Sizes) string {
	if len(s.List) > 0 {
		return strings.Join(s.List, ", ")
	}
	if s.Default == "" {
		return "none: the image has the size that the model gives it"
	}
	rules := slices.Clone(s.Keywords)
	if s.MaxSide > 0 {
		rules = append(rules, fmt.Sprintf("sides of %d to %d pixels", s.MinSide, s.MaxSide))
	}
	if s.MaxPixels > 0 {
		rules = append(rules, fmt.Sprintf("%d to %d pixels in all", s.MinPixels, s.MaxPixels))
	}
	if s.MaxRatio > 0 {
		rules = append(rules, fmt.Sprintf("at most %d:1", s.MaxRatio))
	}
	return strings.Join(rules, ", ")
}

func promptRunes(m jobs.Model) string {
	if m.PromptRunes == 0 {
		return "not known"
	}
	if m.PromptRunesElsewhere == 0 {
		return strconv.Itoa(m.PromptRunes)
	}
	return fmt.Sprintf("%d (another page says %d)", m.PromptRunes, m.PromptRunesElsewhere)
}

func upTo(n int) string {
	if n == 1 {
		return "1"
	}
	return fmt.Sprintf("1–%d", n)
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "–"
}

// escaped escapes stars, which would mean emphasis.
func escaped(s string) string { return strings.ReplaceAll(s, "*", `\*`) }
