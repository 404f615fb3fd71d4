package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// plan is what a command is about to make, what that costs at most, and how long it takes.
type plan struct {
	counts counts
	// queued and started are the jobs that wait or are being made since an earlier command.
	queued, started int
	models          []*modelPlan // by name
	// atMost is in millionths of a yuan, within the budgets, and whole is the same with the jobs
	// that are queued or started.
	atMost, whole int64
	// took is how long the slowest model takes, 0 if one of them is not known.
	took time.Duration
	// simulated is set if nothing is charged: atMost and took are a real run's.
	simulated bool
}

// modelPlan is the part of a plan for one model.
type modelPlan struct {
	model        string
	jobs, images int
	each, atMost int64 // millionths of a yuan
	pace         pace
}

// pace is how fast the jobs of a model are made.
type pace struct {
	// taskTime is how long a task takes, 0 if that is not known, and measured is set if the
	// last tasks did, not those of the documentation.
	taskTime time.Duration
	measured bool
	// slots are the tasks at once, 0 if no worker works on the model.
	slots int
	// ahead is the number of jobs that are queued before.
	ahead int
}

// duration returns how long a number of jobs takes, 0 if that is not known.
func (p pace) duration(n int) time.Duration {
	if p.slots == 0 {
		return 0
	}
	return time.Duration((p.ahead+n+p.slots-1)/p.slots) * p.taskTime
}

func (p pace) text(n int) string {
	switch {
	case p.slots == 0:
		return "no worker at present"
	case p.taskTime == 0:
		return fmt.Sprintf("not known before the first task; %d at a time", p.slots)
	}
	source := "documented"
	if p.measured {
		source = "measured"
	}
	text := fmt.Sprintf("about %s: %s a task (%s), %d at a time", durationText(p.duration(n)), durationText(p.taskTime), source, p.slots)
	if p.ahead > 0 {
		text += fmt.Sprintf(", after %s", count(p.ahead, "other job"))
	}
	return text
}

// toMake returns how many jobs the command is to begin with.
func (pl *plan) toMake() int { return pl.counts.left - pl.queued - pl.started }

// planOf plans the lines of files that no command has begun with. price returns what
// images cost at most.
func planOf(files []*batchFile, c counts, budget budgetFlag, price func(model string, images int) int64, paceOf func(model string) (pace, error)) (*plan, error) {
	pl := &plan{counts: c}
	models := map[string]*modelPlan{}
	for _, s := range files {
		var cost, begun int64
		for _, l := range s.lines {
			if l.settled {
				continue
			}
			of := price(l.model, l.images)
			if l.queued || l.started {
				pl.add(l)
				begun = ledger.Sum(begun, of)
				continue
			}
			m := models[l.model]
			if m == nil {
				m = &modelPlan{model: l.model, each: price(l.model, 1)}
				models[l.model] = m
			}
			m.jobs, m.images = m.jobs+1, m.images+l.images
			m.atMost, cost = ledger.Sum(m.atMost, of), ledger.Sum(cost, of)
		}
		if budget > 0 {
			cost, begun = min(cost, int64(budget)), min(begun, max(int64(budget)-cost, 0))
		}
		pl.atMost, pl.whole = ledger.Sum(pl.atMost, cost), ledger.Sum(pl.whole, ledger.Sum(cost, begun))
	}
	known := true
	for _, name := range slices.Sorted(maps.Keys(models)) {
		m := models[name]
		var err error
		if m.pace, err = paceOf(name); err != nil {
			return nil, err
		}
		took := m.pace.duration(m.jobs)
		known = known && took > 0
		pl.took = max(pl.took, took)
		pl.models = append(pl.models, m)
	}
	if !known {
		pl.took = 0
	}
	return pl, nil
}

// add counts a line that an earlier command has begun with.
func (pl *plan) add(l *line) {
	if l.queued {
		pl.queued++
	} else {
		pl.started++
	}
}

// head is the plan in one sentence.
func (pl *plan) head() string {
	c := pl.counts
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %d finished already", count(c.total, "job"), c.finishedBefore)
	var parts []string
	for _, part := range []struct {
		n    int
		what string
	}{{c.failed, "failed"}, {c.held, "held"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	if len(parts) > 0 {
		text.WriteString(" (" + strings.Join(parts, ", ") + ")")
	}
	for _, part := range []struct {
		n    int
		what string
	}{{pl.started, "being made"}, {pl.queued, "queued already"}} {
		if part.n > 0 {
			fmt.Fprintf(&text, ", %d %s", part.n, part.what)
		}
	}
	fmt.Fprintf(&text, ", %d to make", pl.toMake())
	cost := yuan(pl.atMost) + " at most"
	if pl.took > 0 {
		cost += ", about " + durationText(pl.took)
	}
	switch {
	case pl.toMake() == 0:
	case pl.simulated:
		text.WriteString("; simulated: nothing is charged (a real run: " + cost + ")")
	default:
		text.WriteString(", " + cost)
	}
	return text.String()
}

// writeModels writes a table of the models.
func (pl *plan) writeModels(out io.Writer) error {
	if len(pl.models) == 0 {
		return nil
	}
	t := terminal.Table{Heads: []string{"MODEL", "JOBS", "IMAGES", "EACH", "AT MOST", "TIME"}, Right: []int{1, 2, 3, 4}}
	for _, m := range pl.models {
		t.Rows = append(t.Rows, []string{m.model, strconv.Itoa(m.jobs), strconv.Itoa(m.images), yuan(m.each), yuan(m.atMost), m.pace.text(m.jobs)})
	}
	return t.Write(out)
}

// json returns the plan for programs.
func (pl *plan) json() any {
	type model struct {
		Model        string  `json:"model"`
		Jobs         int     `json:"jobs"`
		Images       int     `json:"images"`
		EachYuan     string  `json:"each_yuan"`
		AtMostYuan   string  `json:"at_most_yuan"`
		TaskSeconds  float64 `json:"task_seconds,omitempty"`
		Measured     bool    `json:"measured"`
		TasksAtOnce  int     `json:"tasks_at_once"`
		Ahead        int     `json:"ahead,omitempty"`
		TotalSeconds float64 `json:"seconds,omitempty"`
	}
	out := struct {
		Jobs       int     `json:"jobs"`
		Finished   int     `json:"finished"`
		Failed     int     `json:"failed"`
		Held       int     `json:"held"`
		Started    int     `json:"started"`
		Queued     int     `json:"queued"`
		ToMake     int     `json:"to_make"`
		AtMostYuan string  `json:"at_most_yuan"`
		Seconds    float64 `json:"seconds,omitempty"`
		Simulated  bool    `json:"simulated,omitempty"`
		Models     []model `json:"models"`
	}{
		Jobs: pl.counts.total, Finished: pl.counts.finishedBefore, Failed: pl.counts.failed, Held: pl.counts.held, Started: pl.started, Queued: pl.queued,
		ToMake: pl.toMake(), AtMostYuan: ledger.FormatYuan(pl.atMost), Seconds: pl.took.Seconds(), Simulated: pl.simulated, Models: []model{},
	}
	for _, m := range pl.models {
		out.Models = append(out.Models, model{
			m.model, m.jobs, m.images, ledger.FormatYuan(m.each), ledger.FormatYuan(m.atMost),
			m.pace.taskTime.Seconds(), m.pace.measured, m.pace.slots, m.pace.ahead, m.pace.duration(m.jobs).Seconds(),
		})
	}
	return out
}

// durationText is a duration for people, rounded up.
func durationText(d time.Duration) string {
	up := func(unit time.Duration) int { return int((d + unit - 1) / unit) }
	switch {
	case d < 10*time.Second && d%time.Second != 0:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d <= 100*time.Second:
		return fmt.Sprintf("%d s", up(time.Second))
	case d <= 100*time.Minute:
		return fmt.Sprintf("%d min", up(time.Minute))
	case d <= 48*time.Hour:
		return fmt.Sprintf("%d h %d min", up(time.Minute)/60, up(time.Minute)%60)
	}
	return fmt.Sprintf("%d days %d h", up(time.Hour)/24, up(time.Hour)%24)
}

// paces tells how fast models are made.
type paces struct {
	cfg *config.Config
	// simulated is set if the tasks that were measured are no real ones.
	simulated bool
	// queue is the Redis of the lanes, nil if the queue is this process's own.
	queue *jobs.Client
	// lanes are those of the queue, and own is set if the accounts that are configured get
	// lanes of this process.
	lanes []jobs.LaneStatus
	own   bool
	// measured are the mean times of the last tasks of a model, where there is no queue.
	measured map[string]time.Duration
}

// price returns the most that images of a model cost, in millionths of a yuan.
func (p *paces) price(name string, images int) int64 {
	model, err := jobs.LookupModel(name)
	if err != nil {
		return 0
	}
	return maxPrice(p.cfg.Accounts, model, images)
}

// of returns the pace of a model.
func (p *paces) of(ctx context.Context, name string) (pace, error) {
	model, err := jobs.LookupModel(name)
	if err != nil {
		return pace{}, err
	}
	at := pace{taskTime: model.TaskTime}
	configured := map[string]bool{}
	for _, a := range p.cfg.Accounts {
		for _, l := range a.Lanes {
			if p.own && l.Model == name {
				configured[a.Name] = true
				at.slots += max(l.Concurrency, 1)
			}
		}
	}
	for _, l := range p.lanes {
		if l.Model == name && l.Held && !configured[l.Account] {
			at.slots += l.Concurrency
		}
	}
	took := p.measured[name]
	if p.queue != nil {
		backlog, err := p.queue.Backlog(ctx, name)
		if err != nil {
			return pace{}, err
		}
		took = backlog.TaskTime
		for _, n := range backlog.Pending {
			at.ahead += int(n)
		}
	}
	if took > 0 && !p.simulated {
		at.taskTime, at.measured = took, true
	}
	return at, nil
}

// measuredTasks is how many of the last tasks tell how long one takes.
const measuredTasks = 40

// measuredTimes returns how long the last tasks of each model took, by their sidecars.
func measuredTimes(ctx context.Context, bucket *localBucket) (map[string]time.Duration, error) {
	if bucket == nil {
		return nil, nil //nolint:nilnil // nothing is known
	}
	ids, err := newestSidecars(ctx, bucket, "")
	if err != nil {
		return nil, err
	}
	sums, tasks := map[string]time.Duration{}, map[string]time.Duration{}
	for _, id := range ids[:min(len(ids), measuredTasks)] {
		sidecar, err := bucket.Sidecar(ctx, id)
		if err != nil || len(sidecar.Attempts) == 0 {
			continue // it is only an estimate
		}
		last := sidecar.Attempts[len(sidecar.Attempts)-1]
		if took := last.EndedAt.Sub(last.SubmittedAt); last.TaskID != "" && !last.SubmittedAt.IsZero() && took > 0 {
			sums[sidecar.Model] += took
			tasks[sidecar.Model]++
		}
	}
	for model, n := range tasks {
		sums[model] /= n
	}
	return sums, nil
}

// newestSidecars returns the IDs of the jobs with a sidecar, the last written first.
func newestSidecars(ctx context.Context, bucket sidecarBucket, prefix string) ([]string, error) {
	type entry struct {
		id string
		at time.Time
	}
	var entries []entry
	if err := bucket.SidecarIDs(ctx, prefix, func(id string, modified time.Time) { entries = append(entries, entry{id, modified}) }); err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b entry) int {
		if order := b.at.Compare(a.at); order != 0 {
			return order
		}
		return strings.Compare(a.id, b.id)
	})
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.id
	}
	return ids, nil
}
