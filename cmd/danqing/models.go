package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
)

func (p *program) modelsCommand() *cobra.Command {
	var f jobsFlags
	var check bool
	cmd := &cobra.Command{
		Use:   "models",
		Short: "Show the models: prices, sizes, limits, and which are worked on",
		Long: `Models shows the models of the catalog with the price of an image by your configuration,
N, the most images of a job, how many tasks DashScope works on at once, and how long one
takes. WORKED are the accounts whose lane a worker of the queue holds; without a queue,
those that are configured. More about each model, with sources, is in jobs/docs/models.md.

With --check it asks DashScope, with each account's key, for its list of models and the
account's limits, and compares them with the catalog and the configuration: retirement
within 60 days, prices, tasks at once, rates. It costs nothing. What the service does not
tell a key is said, and is no error.`,
		Example: `  danqing models
  danqing models --check
  danqing models --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := p.models
			if check {
				show = p.checkModels
			}
			return p.untilSignal(cmd.Context(), nil, func(ctx context.Context) error { return show(ctx, f) })
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "compare with what DashScope says of its models and the account's limits")
	cmd.Flags().BoolVar(&f.simulate, "simulate", false, "use the queue of a simulated instance on this machine; with --check ask the simulator")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON lines")
	return cmd
}

// modelInfo is a model as danqing models shows it.
type modelInfo struct {
	Name        string   `json:"name"`
	Price       int64    `json:"price_micro_yuan"` // of an image, by the configuration
	MaxImages   int      `json:"max_images"`
	Sizes       string   `json:"sizes"`
	Styles      []string `json:"styles,omitempty"`
	Concurrency int      `json:"concurrency"`
	Submits     float64  `json:"submits_per_second"`
	TaskSeconds float64  `json:"task_seconds,omitempty"` // as documented, 0 if it is not
	Worked      []string `json:"worked,omitempty"`       // accounts
	Paused      bool     `json:"paused,omitempty"`
}

func (p *program) models(ctx context.Context, f jobsFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	worked, paused, err := p.workedModels(ctx, cfg, f.simulate)
	if err != nil {
		return err
	}
	t := terminal.Table{
		Heads: []string{"MODEL", "AT MOST", "N", "TASKS", "TIME", "WORKED", "SIZES"}, Right: []int{1, 2, 3, 4},
	}
	for _, m := range jobs.Models() {
		info := modelInfo{
			Name: m.Name, Price: maxPrice(cfg.Accounts, m, 1), MaxImages: m.MaxImages, Sizes: sizesText(m.Sizes), Concurrency: m.Concurrency,
			Submits: m.SubmitsPerSecond, TaskSeconds: m.TaskTime.Seconds(), Worked: worked[m.Name], Paused: paused[m.Name],
		}
		for _, style := range m.Styles {
			info.Styles = append(info.Styles, style.Value)
		}
		if f.json {
			if err := printJSON(p.stdout, info); err != nil {
				return err
			}
			continue
		}
		took := "-"
		if m.TaskTime > 0 {
			took = durationText(m.TaskTime)
		}
		by := cmp.Or(strings.Join(info.Worked, " "), "-")
		if info.Paused {
			by += " (paused)"
		}
		t.Rows = append(t.Rows, []string{m.Name, yuan(info.Price), fmt.Sprint(m.MaxImages), fmt.Sprint(m.Concurrency), took, by, shortSizes(m.Sizes)})
	}
	if f.json {
		return nil
	}
	return t.Write(p.stdout)
}

// workedModels returns the accounts that work on each model, and which models are paused: by the
// queue, if there is one, else by the configuration.
func (p *program) workedModels(ctx context.Context, cfg *config.Config, simulate bool) (worked map[string][]string, paused map[string]bool, err error) {
	worked, paused = map[string][]string{}, map[string]bool{}
	dir := cfg.DataDir
	if simulate {
		dir = simulatedDir(dir)
	}
	if _, err := readInstance(ctx, dir); !cfg.RedisURL.IsSet() && errors.Is(err, errNoInstance) { // there is no queue
		for _, a := range cfg.Accounts {
			for _, l := range a.Lanes {
				worked[l.Model] = append(worked[l.Model], a.Name)
			}
		}
		return worked, paused, nil
	}
	q, err := p.openConfiguredQueue(ctx, cfg, simulate)
	if err != nil {
		return nil, nil, err
	}
	defer q.rdb.Close() //nolint:errcheck // read only
	lanes, err := q.lanes(ctx)
	for _, l := range lanes {
		if l.Held {
			worked[l.Model] = append(worked[l.Model], l.Account)
		}
		paused[l.Model] = paused[l.Model] || l.Pause != nil && l.Pause.Model != ""
	}
	return worked, paused, err
}

// shortSizes describes the sizes that a model allows in a few words, the default first.
func shortSizes(s jobs.Sizes) string {
	megapixels := func(n int) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }
	switch {
	case s.Default == "":
		return "as the reference image"
	case len(s.List) > 1:
		return fmt.Sprintf("%s, %s", s.Default, count(len(s.List)-1, "other"))
	case s.MaxSide > 0:
		return fmt.Sprintf("%s, sides %d–%d", s.Default, s.MinSide, s.MaxSide)
	case s.MaxPixels > 0:
		return fmt.Sprintf("%s, %s–%s MP", s.Default, megapixels(s.MinPixels), megapixels(s.MaxPixels))
	}
	return s.Default
}

// sizesText describes the sizes that a model allows, the default first.
func sizesText(s jobs.Sizes) string {
	if s.Default == "" {
		return ""
	}
	if len(s.List) > 0 {
		sizes := slices.DeleteFunc(slices.Clone(s.List), func(size string) bool { return size == s.Default })
		return strings.Join(append([]string{s.Default}, sizes...), " ")
	}
	var limits []string
	if s.MaxSide > 0 {
		limits = append(limits, fmt.Sprintf("sides %d to %d", s.MinSide, s.MaxSide))
	}
	if s.MaxPixels > 0 {
		limits = append(limits, fmt.Sprintf("%d to %d pixels", s.MinPixels, s.MaxPixels))
	}
	if s.MaxRatio > 0 {
		limits = append(limits, fmt.Sprintf("ratio up to %d", s.MaxRatio))
	}
	return s.Default + "; " + strings.Join(limits, ", ")
}

// modelNames are the names of the catalog.
func modelNames() []string {
	var names []string
	for _, m := range jobs.Models() {
		names = append(names, m.Name)
	}
	return names
}

// styleNames are the styles of all models, with their Chinese names.
func styleNames() []string {
	names := map[string]bool{}
	for _, m := range jobs.Models() {
		for _, style := range m.Styles {
			for _, name := range append([]string{style.Value}, style.Names...) {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// functionNames are the functions of all models.
func functionNames() []string {
	names := map[string]bool{}
	for _, m := range jobs.Models() {
		for _, f := range m.Functions {
			names[f.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
