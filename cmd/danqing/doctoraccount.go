package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// accountTimeout limits one call of the service.
	accountTimeout = 5 * time.Second
	// listPage is the maximum page size (see the simulator). listPages limits the number
	// of pages, because the user waits.
	listPage  = 100
	listPages = 50
	// maxOwnerDelay is the maximum age of a task whose owner may not be recorded yet.
	maxOwnerDelay = time.Minute
)

// probeResult is the answer of an account's service.
type probeResult struct {
	account config.Account
	owner   string // main account ID with its region
	kind    string // "DashScope" or "the simulator"
	mode    jobs.Mode
}

// checkAccounts queries DashScope with each account's key.
func (d *doctor) checkAccounts(ctx context.Context) {
	var all []probeResult
	for _, a := range d.cfg.Accounts {
		if !a.APIKey.IsSet() {
			d.note("", "account %s: not checked, it has no key", a.Name)
			continue
		}
		if m, ok := d.checkAccount(ctx, a); ok {
			all = append(all, m)
		}
	}
	for i, m := range all {
		for _, other := range all[:i] {
			if m.owner != "" && m.owner == other.owner {
				d.bad("leave one of the two out", "accounts %s and %s are the same main account, whose limits they would exceed together", other.account.Name, m.account.Name)
			}
			if m.kind != other.kind {
				d.bad("correct the base URL of one", "account %s is answered by %s and account %s by %s", other.account.Name, other.kind, m.account.Name, m.kind)
			}
		}
	}
	if len(all) > 0 {
		d.checkModes(all[0].mode)
	} else {
		d.checkModes("")
	}
}

// checkAccount checks one account and reports whether its service accepts the key.
func (d *doctor) checkAccount(ctx context.Context, a config.Account) (probeResult, bool) {
	cfg := a.DashScope()
	cfg.QueryTimeout, cfg.UserAgent = accountTimeout, "danqing/"+version()
	client, err := dashscope.New(cfg)
	if err != nil {
		d.bad("correct the setting that it names", "account %s: %v", a.Name, err)
		return probeResult{}, false
	}
	defer client.CloseIdleConnections()
	asked := time.Now()
	endpoint, err := client.Probe(ctx)
	took := time.Since(asked)
	switch {
	case endpoint.Gateway:
		d.bad("set DASHSCOPE_HTTP_BASE_URL, or the account's base_url, to DashScope's own address", "account %s: %v", a.Name, worker.ErrGateway)
		return probeResult{}, false
	case err != nil:
		remedy := ""
		if refused, ok := errors.AsType[*dashscope.Error](err); ok {
			remedy = refused.Hint()
		}
		d.bad(remedy, "account %s: %v", a.Name, err)
		return probeResult{}, false
	}
	m := probeResult{account: a, kind: "DashScope", mode: jobs.ModeOf(endpoint.Simulated)}
	if endpoint.Owner != "" {
		m.owner = client.Region() + " " + endpoint.Owner
	}
	if endpoint.Simulated {
		m.kind = "the simulator"
		d.note("for real images correct DASHSCOPE_HTTP_BASE_URL", "account %s: the simulator answers at %s: nothing is charged, and no image is real", a.Name, client.BaseURL())
	}
	d.ok("account %s: %s accepts the key, %d ms", a.Name, client.BaseURL(), took.Milliseconds())
	d.checkClock(m.kind, endpoint.Date, asked)
	told := askModels(ctx, a, client)
	for _, sentence := range told.untold {
		d.note("compare prices, limits and retirement dates in the console", "account %s: %s", a.Name, sentence)
	}
	for _, l := range a.Lanes {
		d.checkLane(a, l)
		d.checkModel(told, l)
		d.checkListed(ctx, a, l, client)
	}
	d.checkTasks(ctx, a, client)
	return m, true
}

// checkLane compares a lane's configuration with the model's limits.
func (d *doctor) checkLane(a config.Account, l config.Lane) {
	m, err := jobs.LookupModel(l.Model)
	if err == nil {
		err = m.CheckRegion(a.Region())
	}
	if err != nil {
		d.bad("correct DANQING_MODELS, or the account's models", "account %s: %v", a.Name, err)
		return
	}
	cost, _ := a.Cost(m, 1)
	text := fmt.Sprintf("account %s: %s, %d of %d tasks at once, prompts of up to %d characters, %s an image", a.Name, m.Name, l.Concurrency, m.Concurrency, m.PromptRunes, yuan(cost))
	if l.Concurrency < m.Concurrency {
		d.note(fmt.Sprintf("if nobody else uses the account: DANQING_CONCURRENCY=%d, or concurrency in the file of accounts", m.Concurrency), "%s", text)
		return
	}
	d.ok("%s", text)
}

// checkModel reports what the service says of a lane's model.
func (d *doctor) checkModel(told *answers, l config.Lane) {
	m, err := jobs.LookupModel(l.Model)
	if err != nil {
		return // checkLane says so
	}
	a := told.of(m, time.Now())
	if text := a.text(); text != "" {
		d.ok("account %s: the service offers %s: %s", told.account.Name, m.Name, text)
	}
	for _, f := range a.Findings {
		f.Text = "account " + told.account.Name + ": " + f.Text
		d.report(f)
	}
}

// checkTasks checks whether other programs use the account or the key.
func (d *doctor) checkTasks(ctx context.Context, a config.Account, client *dashscope.Client) {
	listed, at, err := listTasks(ctx, client, "")
	if err != nil {
		d.warn("ask again later", "account %s: its tasks cannot be listed: %v", a.Name, err)
		return
	}
	if d.jobs == nil {
		d.note("run doctor while danqing up runs, or with REDIS_URL set", "account %s: %s in 24 hours; without a queue their owners are unknown", a.Name, count(len(listed), "task"))
		return
	}
	ids := make([]string, len(listed))
	for i, task := range listed {
		ids[i] = task.TaskID
	}
	notes, err := d.jobs.TaskOwners(ctx, ids)
	if err != nil {
		d.bad("let Redis's user run scripts on danqing:*", "account %s: %v", a.Name, err)
		return
	}
	own, err := d.jobs.KeyID(ctx, client.KeyFingerprint())
	if err != nil {
		d.bad("let Redis's user read danqing:*", "account %s: %v", a.Name, err)
		return
	}
	ourKeys := map[string]bool{}
	var foreign []dashscope.TaskInfo
	for _, task := range listed {
		switch {
		case notes[task.TaskID].Job != "":
			ourKeys[task.APIKeyID] = true
		case notes[task.TaskID].QuarantinedFor != "": // possibly a held job's
		case at.Sub(time.UnixMilli(task.GmtCreate)) > maxOwnerDelay:
			foreign = append(foreign, task)
		}
	}
	if own != "" { // ignore keys that were replaced
		ourKeys = map[string]bool{own: true}
	}
	if len(foreign) == 0 {
		d.ok("account %s: %s in 24 hours, none of others", a.Name, count(len(listed), "task"))
		return
	}
	d.reportForeign(a, foreign, ourKeys)
}

// reportForeign reports tasks that have no job in this queue.
func (d *doctor) reportForeign(a config.Account, tasks []dashscope.TaskInfo, ourKeys map[string]bool) {
	same, other := map[string]int{}, map[string]int{}
	for _, task := range tasks {
		if len(ourKeys) == 0 || ourKeys[task.APIKeyID] {
			same[task.ModelName]++
		} else {
			other[task.ModelName]++
		}
	}
	const since = "in the last 24 hours"
	if len(same) > 0 {
		whose := "with Danqing's own key"
		if len(ourKeys) == 0 {
			whose = "perhaps with Danqing's own key"
		}
		d.warn("give Danqing a key of its own, and each key one Redis; tasks from before this Redis leave the list after a day",
			"account %s: other programs created %s %s, %s: after a lost reply their tasks cannot be told from this queue's, and the job is held",
			a.Name, countByModel(same), since, whose)
	}
	if len(other) > 0 {
		d.note("if that is too much, give Danqing a main account of its own",
			"account %s: other keys of the main account created %s %s, and share its limits", a.Name, countByModel(other), since)
	}
}

// countByModel formats the number of tasks of each model.
func countByModel(n map[string]int) string {
	parts := make([]string, 0, len(n))
	for _, model := range slices.Sorted(maps.Keys(n)) {
		parts = append(parts, count(n[model], "task")+" of "+model)
	}
	return strings.Join(parts, ", ")
}

// listTasks returns the account's tasks of the last 24 hours, up to a limit, and the
// service's time. model selects those of a model, by its name in the region; "" selects all.
func listTasks(ctx context.Context, client *dashscope.Client, model string) (tasks []dashscope.TaskInfo, at time.Time, err error) {
	seen := map[string]bool{}
	for n := 1; n <= listPages; n++ {
		page, err := client.List(ctx, dashscope.ListFilter{Model: model, PageNo: n, PageSize: listPage})
		if err != nil {
			return nil, time.Time{}, err
		}
		if at = page.Date; at.IsZero() {
			at = time.Now()
		}
		for _, task := range page.Data {
			if !seen[task.TaskID] { // the list changes while it is read
				seen[task.TaskID] = true
				tasks = append(tasks, task)
			}
		}
		if len(page.Data) == 0 || len(tasks) >= page.Total {
			break
		}
	}
	return tasks, at, nil
}
