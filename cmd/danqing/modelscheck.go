package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

const (
	// retirementNotice is how long before its retirement a model is warned of: main models have
	// three months' notice, snapshots 30 days'.
	retirementNotice = 60 * 24 * time.Hour
	// answersTimeout limits the reading of the service's lists: the user waits.
	answersTimeout = 20 * time.Second
)

// answers is what the service of an account says of its models. What it does not tell is not known.
type answers struct {
	account config.Account
	offers  map[string]dashscope.Offer
	limits  map[string]dashscope.Limit
	// complete is set if the list of models was read to its end and has models that Danqing knows.
	complete bool
	// untold are sentences about what the service did not tell.
	untold []string
}

// askModels asks an account's service for its models and limits. It costs nothing and never fails.
func askModels(ctx context.Context, a config.Account, client *dashscope.Client) *answers {
	ctx, cancel := context.WithTimeout(ctx, answersTimeout)
	defer cancel()
	s := &answers{account: a}
	var err error
	if s.offers, err = client.Offers(ctx); err != nil {
		s.untold = append(s.untold, "the service does not tell which models it offers: "+err.Error())
	}
	knows := slices.ContainsFunc(jobs.Models(), func(m jobs.Model) bool {
		name, sold := m.NameIn(client.Region())
		_, listed := s.offers[name]
		return sold && listed
	})
	s.complete = err == nil && knows
	if err == nil && !knows {
		s.untold = append(s.untold, fmt.Sprintf("the service's list of %s has none of the catalog", count(len(s.offers), "model")))
	}
	if s.limits, err = client.Limits(ctx); err != nil {
		s.untold = append(s.untold, "the service does not tell the account's limits: "+err.Error())
	}
	return s
}

// modelAnswer is what the service says of one model, and what is remarkable about it.
type modelAnswer struct {
	Account string `json:"account"`
	Model   string `json:"model"`
	// Offered is whether the service lists the model; absent if it does not tell.
	Offered     *bool                 `json:"offered,omitempty"`
	Prices      []int64               `json:"prices_micro_yuan,omitempty"` // of an image
	Concurrency int                   `json:"concurrency,omitempty"`
	Queue       int                   `json:"queue,omitempty"`
	Requests    int                   `json:"requests,omitempty"`
	Period      float64               `json:"period_seconds,omitempty"` // of Requests
	RetiresAt   time.Time             `json:"retires_at,omitzero"`
	Findings    []redishealth.Finding `json:"findings,omitempty"`
}

// of compares what the service says of a model with the catalog and the account's configuration.
func (s *answers) of(m jobs.Model, now time.Time) modelAnswer {
	name, _ := m.NameIn(s.account.Region())
	a := modelAnswer{Account: s.account.Name, Model: m.Name}
	offer, listed := s.offers[name]
	if listed || s.complete {
		a.Offered = &listed
	}
	for _, p := range offer.PricesMicroYuan {
		if isImagePrice(p.Unit) && !slices.Contains(a.Prices, p.Micro) {
			a.Prices = append(a.Prices, p.Micro)
		}
	}
	limit := s.limits[name]
	a.Concurrency, a.Queue, a.Requests, a.Period = limit.Concurrency, limit.Queue, limit.Requests, limit.Period.Seconds()
	a.RetiresAt = offer.RetiresAt
	a.checkOffered(now)
	a.checkPrices(s.account, m)
	a.checkLimits(s.account, m, limit)
	return a
}

func (a *modelAnswer) warn(remedy, format string, args ...any) {
	a.Findings = append(a.Findings, redishealth.Finding{Severity: redishealth.SeverityWarning, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

// checkOffered warns if the model is retired, will be soon, or is not on the list.
func (a *modelAnswer) checkOffered(now time.Time) {
	const another = "enqueue new jobs with another model: danqing models"
	day := a.RetiresAt.Format(time.DateOnly)
	switch {
	case a.Offered != nil && !*a.Offered:
		a.warn("activate it in the Model Studio (百炼) console, or leave it out of DANQING_MODELS", "%s is not among the models that the service lists for this account: its creates may be refused", a.Model)
	case a.RetiresAt.IsZero():
	case !now.Before(a.RetiresAt):
		a.warn(another+"; cancel those that wait: danqing jobs cancel --model "+a.Model, "%s was retired on %s: its creates are refused, and its jobs wait", a.Model, day)
	case a.RetiresAt.Sub(now) <= retirementNotice:
		a.warn(another, "%s will be retired on %s, in %s: its jobs wait then until they are canceled", a.Model, day, count(int(a.RetiresAt.Sub(now)/(24*time.Hour)), "day"))
	}
}

// isImagePrice reports whether the unit of a price is an image. Units are not documented: any other
// price is not compared, nor is one in dollars.
func isImagePrice(unit string) bool {
	unit = strings.ToLower(unit)
	dollars := strings.Contains(unit, "usd") || strings.Contains(unit, "$") || strings.Contains(unit, "美元")
	return !dollars && (strings.Contains(unit, "image") || strings.Contains(unit, "图") || strings.Contains(unit, "张"))
}

// checkPrices warns if the service's prices are not those of the catalog.
func (a *modelAnswer) checkPrices(account config.Account, m jobs.Model) {
	region := account.Region()
	var known []int64
	for _, prices := range []map[string]int64{m.Prices, m.LargePrices, m.InputPrices} {
		if price, ok := prices[region]; ok {
			known = append(known, price)
		}
	}
	agreed, contract := account.PricesMicroYuan[m.Name]
	isNew := func(price int64) bool { return !slices.Contains(known, price) && price != agreed }
	if len(a.Prices) == 0 || len(known) == 0 || !slices.ContainsFunc(a.Prices, isNew) && (contract || slices.Contains(a.Prices, known[0])) {
		return
	}
	text := fmt.Sprintf("%s: the service says %s an image, the catalog %s", a.Model, prices(a.Prices), prices(known))
	if contract {
		text += ", and your contract (DANQING_PRICES) " + yuan(agreed)
	}
	a.warn("set DANQING_PRICES to what your bill says: budgets and the ledger count with it", "%s", text)
}

// prices lists prices, for people.
func prices(micro []int64) string {
	texts := make([]string, len(micro))
	for i, price := range micro {
		texts[i] = strings.TrimSuffix(yuan(price), " yuan")
	}
	return strings.Join(texts, " or ") + " yuan"
}

// checkLimits compares the service's limits with what Danqing does.
func (a *modelAnswer) checkLimits(account config.Account, m jobs.Model, limit dashscope.Limit) {
	configured, perSecond := m.Concurrency, m.SubmitsPerSecond
	i := slices.IndexFunc(account.Lanes, func(l config.Lane) bool { return l.Model == m.Name })
	if i >= 0 {
		configured, perSecond = account.Lanes[i].Concurrency, cmp.Or(account.Lanes[i].SubmitsPerSecond, perSecond)
	}
	if m.SubmitsPerMinute > 0 {
		perSecond = min(perSecond, float64(m.SubmitsPerMinute)/60)
	}
	whose := map[bool]string{true: "configured", false: "in the catalog"}[i >= 0]
	switch {
	case limit.Concurrency == 0:
	case limit.Concurrency < configured:
		a.warn(fmt.Sprintf("DANQING_CONCURRENCY=%d, or concurrency in the file of accounts", limit.Concurrency),
			"%s: the service runs %s at once, and %d are %s", a.Model, count(limit.Concurrency, "task"), configured, whose)
	case limit.Concurrency > m.Concurrency:
		a.Findings = append(a.Findings, redishealth.Finding{
			Severity: redishealth.SeverityNote, Text: fmt.Sprintf("%s: the service runs %s at once, the catalog says %d", a.Model, count(limit.Concurrency, "task"), m.Concurrency),
		})
	}
	if allowed := limit.PerSecond(); allowed > 0 && allowed < perSecond*0.999 { // 5 in a minute are 0.0833 in a second
		a.warn("set submits_per_second in the file of accounts", "%s: the service accepts %s, and Danqing sends up to %.3g a second", a.Model, rateText(limit.Requests, limit.Period), perSecond)
	}
}

// rateText describes a number of creates in a period.
func rateText(n int, period time.Duration) string {
	if unit, ok := map[time.Duration]string{time.Second: "a second", time.Minute: "a minute"}[period]; ok {
		return fmt.Sprintf("%d %s", n, unit)
	}
	return fmt.Sprintf("%d in %s", n, durationText(period))
}

// text says what the service tells of the model, "" if nothing.
func (a *modelAnswer) text() string {
	var parts []string
	if len(a.Prices) > 0 {
		parts = append(parts, prices(a.Prices)+" an image")
	}
	if a.Concurrency > 0 {
		parts = append(parts, count(a.Concurrency, "task")+" at once")
	}
	if a.Queue > 0 {
		parts = append(parts, fmt.Sprintf("%d may wait", a.Queue))
	}
	if a.Requests > 0 {
		parts = append(parts, rateText(a.Requests, time.Duration(a.Period*float64(time.Second))))
	}
	return strings.Join(parts, ", ")
}

// checkModels prints what the service of each account says of the models of its region.
func (p *program) checkModels(ctx context.Context, f jobsFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	for _, a := range cfg.Accounts {
		if err := p.checkAccountModels(ctx, a, f); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) checkAccountModels(ctx context.Context, a config.Account, f jobsFlags) error {
	remote := a.DashScope()
	if f.simulate {
		sim := new(simulator.Simulator)
		defer sim.Close() //nolint:errcheck // it has no files
		remote = dashscope.Config{BaseURL: simulatedBase, APIKey: simulatedKey(a), DialContext: sim.DialContext}
		a.BaseURL = simulatedBase
	} else if !a.APIKey.IsSet() {
		return usageErrorf("set it to your key, or try it with --simulate", "account %s has no key: DASHSCOPE_API_KEY is not set", a.Name)
	}
	remote.QueryTimeout, remote.UserAgent = accountTimeout, "danqing/"+version()
	client, err := dashscope.New(remote)
	if err != nil {
		return fmt.Errorf("account %s: %w", a.Name, err)
	}
	defer client.CloseIdleConnections()
	told := askModels(ctx, a, client)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return p.printAnswers(told, f.json)
}

// printAnswers prints what a service says.
func (p *program) printAnswers(told *answers, asJSON bool) error {
	t := terminal.Table{Heads: []string{"MODEL", "PRICE", "TASKS", "QUEUE", "CREATES", "RETIRES", "LANE"}, Right: []int{1, 2, 3}}
	var findings []redishealth.Finding
	for _, m := range jobs.Models() {
		if _, sold := m.NameIn(told.account.Region()); !sold {
			continue
		}
		a := told.of(m, time.Now())
		if asJSON {
			if err := printJSON(p.stdout, a); err != nil {
				return err
			}
			continue
		}
		lane := slices.ContainsFunc(told.account.Lanes, func(l config.Lane) bool { return l.Model == m.Name })
		findings = append(findings, a.Findings...)
		t.Rows = append(t.Rows, a.row(lane))
	}
	if asJSON {
		for _, sentence := range told.untold {
			if err := printJSON(p.stdout, map[string]string{"account": told.account.Name, "not_told": sentence}); err != nil {
				return err
			}
		}
		return nil
	}
	if _, err := fmt.Fprintf(p.stdout, "account %s\n", told.account.Name); err != nil {
		return err
	}
	if err := t.Write(p.stdout); err != nil {
		return err
	}
	for _, sentence := range told.untold {
		findings = append(findings, redishealth.Finding{Severity: redishealth.SeverityNote, Text: sentence})
	}
	for _, f := range findings {
		text := fmt.Sprintf("%-7s  %s", f.Severity, f.Text)
		if f.Remedy != "" {
			text += "\n         → " + f.Remedy
		}
		if _, err := fmt.Fprintln(p.stdout, terminal.Wrap(text, terminal.Width(p.stdout), "         ")); err != nil {
			return err
		}
	}
	return nil
}

// row is a model's row of the table.
func (a *modelAnswer) row(lane bool) []string {
	number := func(n int) string {
		if n == 0 {
			return "-"
		}
		return fmt.Sprint(n)
	}
	price, creates, retires := "-", "-", "-"
	if len(a.Prices) > 0 {
		price = yuan(slices.Max(a.Prices))
	}
	if a.Requests > 0 {
		creates = fmt.Sprintf("%d/%gs", a.Requests, a.Period)
	}
	if !a.RetiresAt.IsZero() {
		retires = a.RetiresAt.Format(time.DateOnly)
	} else if a.Offered != nil && !*a.Offered {
		retires = "not listed"
	}
	return []string{a.Model, price, number(a.Concurrency), number(a.Queue), creates, retires, map[bool]string{true: "yes", false: "-"}[lane]}
}
