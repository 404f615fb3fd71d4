package worker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/account"
	"github.com/danqing-queue/danqing/worker/internal/lane"
	"github.com/danqing-queue/danqing/worker/internal/watch"
)

// Account is one Alibaba main account and its lanes. DashScope counts its limits per
// main account and model, over all keys: two Accounts must never be the same main
// account.
type Account struct {
	// Name identifies the account in records, sidecars and Redis keys; "" means
	// "default".
	Name      string
	DashScope *dashscope.Client
	Lanes     []Lane
	// DailyBudgetMicroYuan bounds reservations and spending per day (UTC+8), over all
	// workers, in millionths of a yuan; 0 means no limit.
	DailyBudgetMicroYuan int64
	// PricesMicroYuan are contract prices per image, by the model's name in the
	// catalog, in millionths of a yuan. Other models have the catalog's price.
	PricesMicroYuan map[string]int64
}

// Cost returns the price of a number of images of a model on the account, in
// micro-yuan, by contract or by the catalog. sold is false, and the price 0, if the
// account's region does not have the model.
func (a Account) Cost(model jobs.Model, images int) (microYuan int64, sold bool) {
	return model.ContractCost(a.PricesMicroYuan, a.DashScope.Region(), images)
}

// Lane is an account's capacity for one model.
type Lane struct {
	// Model is a name in the catalog; "" means wanx-v1.
	Model string
	// Concurrency is the maximum number of the lane's tasks at DashScope, 1 to the
	// model's limit; 0 means 1.
	Concurrency int
	// SubmitsPerSecond bounds the creates; 0 means the model's limit, which is also the
	// maximum.
	SubmitsPerSecond float64
}

const defaultAccount = "default"

// Errors of accounts.
var (
	// ErrGateway means that the base URL is Danqing's own API.
	ErrGateway = account.ErrGateway
	// ErrSameAccount means that two configured accounts are one main account and share
	// its limits.
	ErrSameAccount = account.ErrSameAccount
	// ErrMixed means that one account uses the simulator and another does not.
	ErrMixed = account.ErrMixed
)

// addDrainLanes adds lanes for models that are no longer configured but have tasks at
// DashScope or in quarantine. It logs jobs on accounts that are not configured.
func (w *Worker) addDrainLanes(ctx context.Context) error {
	for _, e := range w.cfg.DataDir.Journal.OpenJobs() {
		if e.Record != nil && w.accounts.Named(e.Record.Account) == nil {
			w.log.Error("paid job on an account that is not configured: configure it", "job_id", e.JobID, "task_id", e.Record.TaskID, "account", e.Record.Account)
		}
	}
	w.reportUnknownModels(ctx)
	var missing []lane.Config
	var keys []string // two of each
	for _, a := range w.accounts.All {
		for _, model := range jobs.Models() {
			if !w.hasLane(a, model) {
				missing = append(missing, w.newLane(a, model))
				keys = append(keys, rediskey.Lane(a.Name, model.Name, rediskey.LaneInFlight), rediskey.Lane(a.Name, model.Name, rediskey.LaneQuarantine))
			}
		}
	}
	exist, err := watch.Exist(ctx, w.cfg.Redis, keys)
	if err != nil {
		return fmt.Errorf("read in-flight marks: %w", err)
	}
	for i, l := range missing {
		if exist[2*i] || exist[2*i+1] {
			l.DrainOnly = true
			w.lanes = append(w.lanes, l)
		}
	}
	for i, l := range w.lanes {
		w.lanes[i].AccountLanes = 0
		for _, other := range w.lanes {
			if other.Account == l.Account {
				w.lanes[i].AccountLanes++
			}
		}
	}
	return nil
}

// reportUnknownModels logs tasks whose model the catalog does not have: only a worker with the
// overlay of the one that created them resumes them.
func (w *Worker) reportUnknownModels(ctx context.Context) {
	lanes, err := jobs.NewInspector(w.cfg.Redis).Lanes(ctx)
	if err != nil {
		w.log.Warn("lanes of unknown models not looked up", "err", err)
	}
	unknown := map[string]bool{}
	for _, l := range lanes {
		if _, err := jobs.LookupModel(l.Model); err != nil && len(l.Running) > 0 && !l.Held {
			unknown[l.Model] = true
		}
	}
	for _, e := range w.cfg.DataDir.Journal.OpenJobs() {
		if e.Record == nil {
			continue
		}
		if _, err := jobs.LookupModel(e.Record.Model); err != nil {
			unknown[e.Record.Model] = true
		}
	}
	for _, model := range slices.Sorted(maps.Keys(unknown)) {
		w.log.Error("paid jobs of a model that is not in the catalog: set DANQING_MODEL_CATALOG to the file that they were enqueued with, within 24 hours", "model", model)
	}
}

func (w *Worker) hasLane(a *account.Account, model jobs.Model) bool {
	return slices.ContainsFunc(w.lanes, func(l lane.Config) bool { return l.Account == a && l.Model.Name == model.Name })
}

// newLane returns the configuration of an account's lane with one slot.
func (w *Worker) newLane(a *account.Account, model jobs.Model) lane.Config {
	return lane.Config{
		Recorder: w.recorder, Dataset: w.dataset, Quarantine: w.recovery.quarantine, Recovery: w.recovery, Account: a, Model: model,
		Concurrency: 1, SubmitsPerSecond: model.SubmitsPerSecond, Exclusive: w.cfg.ExclusiveQueue, Watcher: w.watcher, Leases: w.leases,
		StoreBacklogLimit: storeBacklog * w.cfg.StoreConcurrency, SubmitLimit: w.submitLimit,
		Probe:              func(ctx context.Context) error { return w.accounts.Probe(ctx, a) },
		ReferenceRefusedAt: &w.referenceRefusedAt,
		Report:             func(status jobs.LaneStatus) { w.laneStates.Store([2]string{a.Name, model.Name}, status) },
	}
}

// Bounds within which no sum of a day overflows: 1,000 yuan an image, and a billion yuan a
// day. The values are our choice.
const (
	maxPriceMicroYuan  = 1_000_000_000
	maxBudgetMicroYuan = 1_000_000_000_000_000
)

// checkMoney checks an account's budget and prices.
func (a Account) checkMoney() error {
	if a.DailyBudgetMicroYuan < 0 || a.DailyBudgetMicroYuan > maxBudgetMicroYuan {
		return fmt.Errorf("daily budget of %d micro-yuan: allowed: 1 to %d, or 0 for no limit", a.DailyBudgetMicroYuan, int64(maxBudgetMicroYuan))
	}
	for name, price := range a.PricesMicroYuan {
		if _, err := jobs.LookupModel(name); err != nil || name == "" {
			return fmt.Errorf("price of model %q: not in the catalog", name)
		}
		if price <= 0 || price > maxPriceMicroYuan {
			return fmt.Errorf("price of %s: %d micro-yuan an image: allowed: 1 to %d", name, price, maxPriceMicroYuan)
		}
	}
	return nil
}

// newAccounts validates the configured accounts and adds their lanes.
func (w *Worker) newAccounts(configured []Account) error {
	for _, c := range configured {
		c.Name = cmp.Or(c.Name, defaultAccount)
		if c.DashScope == nil || len(c.Lanes) == 0 {
			return fmt.Errorf("worker: account %s: DashScope and at least one lane are required", c.Name)
		}
		if err := c.checkMoney(); err != nil {
			return fmt.Errorf("worker: account %s: %w", c.Name, err)
		}
		if w.accounts.Named(c.Name) != nil {
			return fmt.Errorf("worker: account %s is configured twice", c.Name)
		}
		a := &account.Account{
			Name: c.Name, Client: c.DashScope, Log: w.log.With("account", c.Name),
			DailyBudgetMicroYuan: c.DailyBudgetMicroYuan, PricesMicroYuan: c.PricesMicroYuan,
		}
		w.accounts.All = append(w.accounts.All, a)
		for _, l := range c.Lanes {
			if err := w.addLane(a, l); err != nil {
				return fmt.Errorf("worker: account %s: %w", c.Name, err)
			}
		}
	}
	return nil
}

// addLane validates a configured lane and adds it.
func (w *Worker) addLane(a *account.Account, l Lane) error {
	model, err := jobs.LookupModel(cmp.Or(l.Model, jobs.DefaultModel))
	if err != nil {
		return err
	}
	if err := model.CheckRegion(a.Client.Region()); err != nil {
		return err
	}
	added := w.newLane(a, model)
	added.Concurrency, added.SubmitsPerSecond = cmp.Or(l.Concurrency, added.Concurrency), cmp.Or(l.SubmitsPerSecond, added.SubmitsPerSecond)
	switch {
	case added.Concurrency < 0 || added.Concurrency > model.Concurrency:
		return fmt.Errorf("concurrency %d: allowed for %s: 1 to %d", l.Concurrency, model.Name, model.Concurrency)
	case added.SubmitsPerSecond < 0 || added.SubmitsPerSecond > model.SubmitsPerSecond:
		return fmt.Errorf("%g submits a second: allowed for %s: up to %g", l.SubmitsPerSecond, model.Name, model.SubmitsPerSecond)
	case w.hasLane(a, model):
		return fmt.Errorf("the lane for %s is configured twice: remove one", model.Name)
	}
	w.lanes = append(w.lanes, added)
	return nil
}
