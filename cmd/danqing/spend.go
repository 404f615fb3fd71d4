package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker/journal"
)

type spendFlags struct {
	simulate, json       bool
	by                   []string
	since, until, format string
}

func (p *program) spendCommand() *cobra.Command {
	var f spendFlags
	cmd := &cobra.Command{
		Use:   "spend",
		Short: "Show what was spent, by account, model, label, batch, day or month",
		Long: `Spend prints what was spent and what is reserved for running jobs, in yuan, and for how
many images. Days are those of the bill, UTC+8; a job counts on the day on which it was
submitted. Amounts are exact.

The ledger is in the Redis at REDIS_URL, or that of the "danqing up" that runs on the
data directory. With neither, the log in the data directory is used; it has no
reservations. No API key is needed.

--by takes any of account, model, batch, day, month, label (all labels of a job) and
label:NAME (the values of one), separated by commas, in the order of the columns.
--format json, or --json, prints a JSON line for each row, without a total.`,
		Example: `  danqing spend
  danqing spend --by month,model --since 2026-01-01
  danqing spend --by label:sku --since 2026-01-01 --until 2026-01-31 --format csv >january.csv`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := f.report(time.Now(), cmd.Flags().Changed("format"))
			if err != nil {
				return err
			}
			return p.spend(cmd.Context(), f.simulate, r)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.by, "by", []string{"account", "day"}, "the columns to group by")
	flags.StringVar(&f.since, "since", "", "first day, as in 2026-01-31 (default: the first of this month)")
	flags.StringVar(&f.until, "until", "", "last day (default: today)")
	flags.StringVar(&f.format, "format", formatTable, "table, csv or json")
	flags.BoolVar(&f.json, "json", false, "print JSON lines")
	flags.BoolVar(&f.simulate, "simulate", false, "report simulated runs on this machine, which cost nothing")
	return cmd
}

const (
	formatTable = "table"
	formatCSV   = "csv"
	formatJSON  = "json"
)

// spendReport describes the requested report.
type spendReport struct {
	by          []string
	from, until time.Time // a zero until means no limit
	format      string
}

// labelPrefix is the prefix of a column with the values of one label.
const labelPrefix = "label:"

// report returns the report that the flags describe.
func (f spendFlags) report(now time.Time, formatGiven bool) (spendReport, error) {
	r := spendReport{by: f.by, format: f.format}
	const columns = "account, model, batch, day, month, label, label:NAME"
	if len(f.by) == 0 {
		return r, usageErrorf("as in: --by account,day", "--by is empty")
	}
	for i, name := range f.by {
		label, isLabel := strings.CutPrefix(name, labelPrefix)
		switch {
		case slices.Contains(f.by[:i], name):
			return r, usageErrorf("leave one out", "--by names %q twice", name)
		case isLabel && label != "", !isLabel && slices.Contains(strings.Split(columns, ", "), name):
		default:
			return r, usageErrorf("any of: "+columns, "--by %q: no such column", name)
		}
	}
	switch {
	case f.json && formatGiven && f.format != formatJSON:
		return r, usageErrorf("leave one out", "--json and --format %s do not go together", f.format)
	case f.json:
		r.format = formatJSON
	case !slices.Contains([]string{formatTable, formatCSV, formatJSON}, f.format):
		return r, usageErrorf("one of: table, csv, json", "--format %q: no such format", f.format)
	}
	today := now.In(ledger.Zone())
	r.from = time.Date(today.Year(), today.Month(), 1, 0, 0, 0, 0, ledger.Zone())
	for _, bound := range []struct {
		flag, text string
		at         *time.Time
	}{{"--since", f.since, &r.from}, {"--until", f.until, &r.until}} {
		if bound.text == "" {
			continue
		}
		at, err := time.ParseInLocation(time.DateOnly, bound.text, ledger.Zone())
		if err != nil {
			return r, usageErrorf("as in: "+bound.flag+" 2026-01-31", "%s %q: must be a day, written YYYY-MM-DD", bound.flag, bound.text)
		}
		*bound.at = at
	}
	if !r.until.IsZero() && r.until.Before(r.from) {
		return r, usageErrorf("give --since a day that is not after --until", "--until %s is before --since %s", r.until.Format(time.DateOnly), r.from.Format(time.DateOnly))
	}
	return r, nil
}

// spend prints the report from the ledger, or else from the spend log.
func (p *program) spend(ctx context.Context, simulate bool, r spendReport) error {
	if simulate {
		p.stderrf("simulated: nothing of this was charged")
	}
	cfg, err := config.LoadWithFile(p.configFile, p.getenv, p.environ)
	if err != nil {
		return err
	}
	dir := cfg.DataDir
	if simulate {
		dir = simulatedDir(dir)
		if err := cfg.CheckSimulate(); err != nil {
			return err
		}
	}
	_, err = readInstance(ctx, dir)
	if cfg.RedisURL.IsSet() || !errors.Is(err, errNoInstance) {
		return p.onQueue(ctx, simulate, func(ctx context.Context, q *jobQueue) error {
			spent, err := ledger.New(q.rdb).Spending(ctx, r.from, r.until)
			if err != nil {
				return err
			}
			return p.printSpend(r, spent)
		})
	}
	switch mode, err := journal.ReadMode(dir); {
	case err != nil:
		return err
	case mode == jobs.ModeSimulated && !simulate:
		p.stderrf(simulatedNotice)
	}
	spent, damaged, err := journal.ReadSpendLog(filepath.Join(dir, journal.SpendLogName))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return usageErrorf("set REDIS_URL to the queue's Redis, or DANQING_DATA_DIR to the folder of the runs that are meant",
			"REDIS_URL is not set, no danqing runs on %s, and none ever spent anything there", dir)
	case err != nil:
		return err
	case damaged > 0:
		p.stderrf("warning: %s of %s cannot be read and %s left out", count(damaged, "line"), filepath.Join(dir, journal.SpendLogName), isOrAre(damaged))
	}
	first, last := ledger.Day(r.from), "9999-12-31"
	if !r.until.IsZero() {
		last = ledger.Day(r.until)
	}
	spent = slices.DeleteFunc(spent, func(s ledger.Spend) bool { return s.Day < first || s.Day > last })
	return p.printSpend(r, spent)
}

func isOrAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// spendRow is one row of a report.
type spendRow struct {
	key []string // the values of the requested columns
	sum ledger.Spend
}

// rows sums the spending by the requested columns, sorted by them.
func (r spendReport) rows(spent []ledger.Spend) (rows []*spendRow, total ledger.Spend) {
	byKey := map[string]*spendRow{}
	for _, s := range spent {
		key := make([]string, len(r.by))
		for i, name := range r.by {
			key[i] = columnValue(s, name)
		}
		row := byKey[strings.Join(key, "\x00")]
		if row == nil {
			row = &spendRow{key: key}
			byKey[strings.Join(key, "\x00")] = row
			rows = append(rows, row)
		}
		for _, sum := range []*ledger.Spend{&row.sum, &total} {
			sum.SpentMicroYuan = ledger.Sum(sum.SpentMicroYuan, s.SpentMicroYuan)
			sum.ReservedMicroYuan = ledger.Sum(sum.ReservedMicroYuan, s.ReservedMicroYuan)
			sum.Images += s.Images
		}
	}
	// Drop the rows of days on which all reservations were released.
	rows = slices.DeleteFunc(rows, func(row *spendRow) bool {
		return row.sum.SpentMicroYuan == 0 && row.sum.ReservedMicroYuan == 0 && row.sum.Images == 0
	})
	slices.SortFunc(rows, func(a, b *spendRow) int { return slices.Compare(a.key, b.key) })
	return rows, total
}

// columnValue returns the value of one column.
func columnValue(s ledger.Spend, name string) string {
	switch name {
	case "account":
		return s.Account
	case "model":
		return s.Model
	case "batch":
		return s.Batch
	case "day":
		return s.Day
	case "month":
		return s.Day[:len("2006-01")]
	case "label":
		var labels []string
		for _, label := range slices.Sorted(maps.Keys(s.Labels)) {
			labels = append(labels, label+"="+s.Labels[label])
		}
		return strings.Join(labels, ",")
	}
	return s.Labels[strings.TrimPrefix(name, labelPrefix)]
}

// amountCells returns the cells that follow the keys. format is that of millionths of a yuan.
func amountCells(sum ledger.Spend, format func(int64) string) []string {
	return []string{format(sum.SpentMicroYuan), format(sum.ReservedMicroYuan), fmt.Sprint(sum.Images)}
}

func (p *program) printSpend(r spendReport, spent []ledger.Spend) error {
	rows, total := r.rows(spent)
	heads := append(slices.Clone(r.by), "spent", "reserved", "images")
	switch r.format {
	case formatCSV:
		out := csv.NewWriter(p.stdout)
		_ = out.Write(heads) // Flush reports the error
		for _, row := range rows {
			_ = out.Write(append(row.key, amountCells(row.sum, ledger.FormatYuan)...))
		}
		out.Flush()
		return out.Error()
	case formatJSON:
		for _, row := range rows {
			if err := printJSON(p.stdout, row.json(r.by)); err != nil {
				return err
			}
		}
		return nil
	}
	n := len(r.by)
	t := terminal.Table{Heads: strings.Split(strings.ToUpper(strings.Join(heads, "\t")), "\t"), Right: []int{n, n + 1, n + 2}}
	for _, row := range rows {
		var cells []string
		for _, cell := range row.key {
			cells = append(cells, orDash(cell))
		}
		t.Rows = append(t.Rows, append(cells, amountCells(row.sum, yuan)...))
	}
	t.Rows = append(t.Rows, slices.Concat([]string{"total"}, make([]string, n-1), amountCells(total, yuan)))
	return t.Write(p.stdout)
}

// json returns a row by column names.
func (row *spendRow) json(by []string) map[string]any {
	out := map[string]any{
		"spent_yuan": ledger.FormatYuan(row.sum.SpentMicroYuan), "spent_micro_yuan": row.sum.SpentMicroYuan,
		"reserved_yuan": ledger.FormatYuan(row.sum.ReservedMicroYuan), "reserved_micro_yuan": row.sum.ReservedMicroYuan,
		"images": row.sum.Images,
	}
	for i, name := range by {
		out[name] = row.key[i]
	}
	return out
}
