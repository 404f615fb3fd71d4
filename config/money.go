package config

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// parseYuan parses an amount of money above 0, in millionths of a yuan.
func (l *loader) parseYuan(value, name string) int64 {
	amount, err := ledger.ParseYuan(value)
	switch {
	case err != nil:
		l.bad(name, "%v", err)
	case amount == 0:
		l.bad(name, "%q: must be more than 0", value)
	}
	return amount
}

// defaultConfirmAbove is ConfirmAboveMicroYuan where nothing else is configured: some sixty
// images.
const defaultConfirmAbove = 10_000_000

// confirmAbove reads the amount above which commands ask.
func (l *loader) confirmAbove() {
	l.cfg.ConfirmAboveMicroYuan = defaultConfirmAbove
	v, name := l.lookup("DANQING_CONFIRM_ABOVE")
	if v == "" {
		return
	}
	amount, err := ledger.ParseYuan(v)
	if err != nil {
		l.bad(name, "%v; 0 asks whenever something is spent", err)
	}
	l.cfg.ConfirmAboveMicroYuan = amount
}

// envMoney reads the budget and the prices of the account that is configured by the
// environment.
func (l *loader) envMoney(a *Account, region string) {
	if v, name := l.lookup("DANQING_DAILY_BUDGET"); v != "" {
		a.DailyBudgetMicroYuan = l.parseYuan(v, name)
	}
	list, from := l.lookup("DANQING_PRICES")
	if list == "" {
		return
	}
	a.PricesMicroYuan = map[string]int64{}
	for entry := range strings.SplitSeq(list, ",") {
		model, price, ok := strings.Cut(entry, "=")
		if !ok {
			l.bad(from, "%q: write MODEL=YUAN,MODEL=YUAN, as in %s=0.12", strings.TrimSpace(entry), jobs.DefaultModel)
			continue
		}
		l.addPrice(a, region, strings.TrimSpace(model), from, strings.TrimSpace(price), from)
	}
}

// addPrice parses the account's price per image of a model.
func (l *loader) addPrice(a *Account, region, model, modelAt, price, priceAt string) {
	if model == "" {
		l.bad(modelAt, "%q has no model: write MODEL=YUAN, as in %s=0.12", "="+price, jobs.DefaultModel)
		return
	}
	m, ok := l.lookupModel(region, model, modelAt)
	amount := l.parseYuan(price, priceAt)
	if _, twice := a.PricesMicroYuan[m.Name]; ok && twice {
		l.bad(modelAt, "has two prices of %s: leave one out", m.Name)
	}
	if ok {
		a.PricesMicroYuan[m.Name] = amount
	}
}

// fileMoney reads the budget and the prices of an account of the file.
func (l *loader) fileMoney(a *Account, region string, budget, prices field) {
	if v := l.scalar(budget); v != "" {
		a.DailyBudgetMicroYuan = l.parseYuan(v, budget.at)
	}
	if prices.node == nil || prices.node.Tag == "!!null" {
		return
	}
	if prices.node.Kind != yaml.MappingNode || len(prices.node.Content) == 0 {
		l.bad(prices.at, "must map models to prices in yuan, as in %s: 0.12", jobs.DefaultModel)
		return
	}
	a.PricesMicroYuan = map[string]int64{}
	for _, entry := range l.mappingFields(prices.node) {
		l.addPrice(a, region, entry.name, entry.at, l.scalar(entry), entry.at)
	}
}
