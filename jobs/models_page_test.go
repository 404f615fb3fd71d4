package jobs_test

import (
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

<!-- Made from the catalog, jobs/models.go, by go test ./jobs -update. -->

Prices are in yuan per image; "–" means that the model is not sold there. Only created images are charged.

| model | Beijing | Singapore | ` + "`n`" + ` | tasks at once | submits/s | time of a task |
| --- | --- | --- | --- | --- | --- | --- |
`)
	for _, m := range models {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %d | %v | %s |\n", m.Name, yuanIn(m, jobs.RegionBeijing), yuanIn(m, jobs.RegionSingapore),
			upTo(m.MaxImages), m.Concurrency, m.SubmitsPerSecond, taskTime(m))
	}
	b.WriteString(`
*Tasks at once* is what DashScope works on at the same time for one main account. ` + "`DANQING_CONCURRENCY`" + ` can be at most that. *Time of a task* is DashScope's own figure, which ` + "`--dry-run`" + ` plans with until there are measurements.

## Sizes

| model | default | allowed |
| --- | --- | --- |
`)
	for _, m := range models {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", m.Name, escaped(m.Sizes.Default), escaped(allowed(m.Sizes)))
	}
	b.WriteString(`
## Texts and options

The service cuts off what is longer; Danqing warns, and sends the text as it is.

| model | prompt, characters | negative prompt | ` + "`style` | `ref_img` | `prompt_extend` | `watermark`" + ` |
| --- | --- | --- | --- | --- | --- | --- |
`)
	for _, m := range models {
		fmt.Fprintf(&b, "| `%s` | %s | %d | %s | %s | %s | %s |\n", m.Name, promptRunes(m), m.NegativePromptRunes,
			yes(len(m.Styles) > 0), yes(len(m.RefModes) > 0), yes(m.PromptExtend), yes(m.Watermark))
	}
	b.WriteString("\n`prompt_extend` is true unless it is given, `watermark` is false.\n")
	for _, m := range models {
		b.WriteString(modelOptions(m))
	}
	b.WriteString("\n## Sources\n\n| fact | models | page |\n| --- | --- | --- |\n")
	for _, row := range sourceRows(models) {
		fmt.Fprintf(&b, "| %s | `%s` | %s |\n", row.fact, strings.Join(row.models, "`, `"), escaped(row.page))
	}
	return b.String()
}

func taskTime(m jobs.Model) string {
	if m.TaskTime == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f s", m.TaskTime.Seconds())
}

// sourceRow is a field of [jobs.Model] with its page.
type sourceRow struct {
	fact, page string
	models     []string
}

// sourceRows has a row for all models whose fact is from the same page.
func sourceRows(models []jobs.Model) []*sourceRow {
	var rows []*sourceRow
	known := map[[2]string]*sourceRow{}
	for _, m := range models {
		for _, fact := range slices.Sorted(maps.Keys(m.Sources)) {
			key := [2]string{fact, m.Sources[fact]}
			if known[key] == nil {
				known[key] = &sourceRow{fact: fact, page: m.Sources[fact]}
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
	price, sold := m.CostIn(region, 1)
	if !sold {
		return "–"
	}
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
	var rules []string
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
