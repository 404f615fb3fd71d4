package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
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

// account is the runtime state of an Account.
type account struct {
	name   string
	remote *dashscope.Client
	log    *slog.Logger

	// configured is the account's configuration: its budget and prices.
	configured Account

	mu sync.Mutex
	// date was the service's clock at the local time dated.
	date, dated time.Time
	// verified is set once the service has accepted the key.
	verified bool
	// mainAccountID is the main account's number, "" until one of its tasks has been
	// listed.
	mainAccountID string
	// disabledReason is the error for which nothing may be bought on the account, even
	// if the service accepts its key. nil means enabled.
	disabledReason error
}

// laneSpec is a configured lane with its defaults filled in.
type laneSpec struct {
	account     *account
	model       jobs.Model
	concurrency int
	submits     float64 // per second
	// drainOnly means that the lane takes no jobs: it ends when its tasks in flight
	// have ended.
	drainOnly bool
}

// usable reports whether the service has accepted the account's key, and fails
// if nothing may be bought on it.
func (a *account) usable() (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.verified, a.disabledReason
}

func (a *account) disable(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.disabledReason = why
}

// Errors of accounts.
var (
	// ErrGateway means that the base URL is Danqing's own API.
	ErrGateway = errors.New("the DashScope base URL is Danqing's own API, which would submit to itself: set DASHSCOPE_HTTP_BASE_URL to DashScope's own address")
	// ErrSameAccount means that two configured accounts are one main account and share
	// its limits.
	ErrSameAccount = errors.New("two accounts are the same Alibaba main account and would exceed its limits together: remove one of them")
	// ErrMixed means that one account uses the simulator and another does not.
	ErrMixed = errors.New("one account uses the simulator and another does not: simulated and real images must not be mixed")
)

// probe asks the service at an account's base URL what it is and whether it accepts the
// key. It costs nothing.
func (w *Worker) probe(ctx context.Context, a *account) error {
	endpoint, err := a.remote.Probe(ctx)
	switch {
	case err != nil:
		return err
	case endpoint.Gateway:
		err = ErrGateway
	default:
		w.mu.Lock()
		if !w.known {
			w.known, w.simulated = true, endpoint.Simulated
		}
		if w.simulated != endpoint.Simulated {
			err = ErrMixed
		}
		w.mu.Unlock()
	}
	if err != nil {
		a.disable(err)
		return err
	}
	a.mu.Lock()
	a.verified, a.mainAccountID = true, endpoint.Owner
	a.mu.Unlock()
	return nil
}

// isKeyRefused reports whether the service has answered that it does not serve the
// account.
func isKeyRefused(err error) bool {
	var refusal *dashscope.Error
	return errors.As(err, &refusal) && (refusal.Kind == dashscope.KindAccount || refusal.Kind == dashscope.KindTerminal)
}

// probeAll probes every account, until at least one is usable. It fails if none can
// become usable.
func (w *Worker) probeAll(ctx context.Context) error {
	for retry := (&backoff{first: time.Second, most: time.Minute}); ; {
		errs := make([]error, len(w.accounts))
		var group sync.WaitGroup
		for i, a := range w.accounts {
			group.Go(func() { errs[i] = w.probe(ctx, a) })
		}
		group.Wait()
		met, hopeless := 0, 0
		for i, err := range errs {
			switch {
			case errors.Is(err, ErrGateway), errors.Is(err, ErrMixed):
				return fmt.Errorf("account %s: %w", w.accounts[i].name, err)
			case err == nil:
				met++
			case isKeyRefused(err):
				hopeless++
			}
		}
		if met > 0 {
			return w.checkDistinct()
		}
		err := errors.Join(errs...)
		if hopeless == len(w.accounts) {
			return err
		}
		wait := retry.next()
		w.log.Warn("dashscope unavailable, retrying", "err", err, "wait", wait)
		if err := w.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// checkDistinct fails with ErrSameAccount if two accounts are known to be the same main
// account, and disables the later one.
func (w *Worker) checkDistinct() error {
	first := map[string]string{}
	for _, a := range w.accounts {
		a.mu.Lock()
		owner := a.mainAccountID
		a.mu.Unlock()
		if owner == "" {
			continue
		}
		at := a.remote.Region() + " " + owner
		if other, taken := first[at]; taken {
			err := fmt.Errorf("%s and %s: %w", other, a.name, ErrSameAccount)
			a.disable(err)
			return err
		}
		first[at] = a.name
	}
	return nil
}

// discoverOwners finds the main account's number of accounts that had no task in the
// list at start.
func (w *Worker) discoverOwners(ctx context.Context) {
	for _, a := range w.accounts {
		a.mu.Lock()
		unknown := a.verified && a.mainAccountID == "" && len(w.accounts) > 1
		a.mu.Unlock()
		if !unknown {
			continue
		}
		if endpoint, err := a.remote.Probe(ctx); err == nil {
			a.mu.Lock()
			a.mainAccountID = endpoint.Owner
			a.mu.Unlock()
		}
	}
	if err := w.checkDistinct(); err != nil {
		w.log.Error("account disabled", "err", err)
	}
}

// accountNamed returns the configured account with a name, or nil.
func (w *Worker) accountNamed(name string) *account {
	for _, a := range w.accounts {
		if a.name == name {
			return a
		}
	}
	return nil
}

// addDrainLanes adds lanes for models that are no longer configured but have tasks at
// DashScope or in quarantine. It logs jobs on accounts that are not configured.
func (w *Worker) addDrainLanes(ctx context.Context) error {
	for _, e := range w.cfg.DataDir.Journal.OpenJobs() {
		if e.Record != nil && w.accountNamed(e.Record.Account) == nil {
			w.log.Error("paid job on an account that is not configured: configure it", "job_id", e.JobID, "task_id", e.Record.TaskID, "account", e.Record.Account)
		}
	}
	for _, a := range w.accounts {
		for _, model := range jobs.Models() {
			if slices.ContainsFunc(w.lanes, func(l laneSpec) bool { return l.account == a && l.model.Name == model.Name }) {
				continue
			}
			left, err := w.cfg.Redis.Exists(ctx, rediskey.Lane(a.name, model.Name, inFlightKey), rediskey.Lane(a.name, model.Name, quarantineKey)).Result()
			if err != nil {
				return fmt.Errorf("read in-flight marks: %w", err)
			}
			if left > 0 {
				w.lanes = append(w.lanes, laneSpec{account: a, model: model, concurrency: 1, submits: model.SubmitsPerSecond, drainOnly: true})
			}
		}
	}
	return nil
}

// checkMoney checks an account's budget and prices.
func (a Account) checkMoney() error {
	if a.DailyBudgetMicroYuan < 0 {
		return fmt.Errorf("daily budget of %d micro-yuan: must be above 0, or 0 for no limit", a.DailyBudgetMicroYuan)
	}
	for name, price := range a.PricesMicroYuan {
		if _, err := jobs.LookupModel(name); err != nil || name == "" {
			return fmt.Errorf("price of model %q: not in the catalog", name)
		}
		if price <= 0 {
			return fmt.Errorf("price of %s: %d micro-yuan an image: must be above 0", name, price)
		}
	}
	return nil
}

// newAccounts validates the configured accounts and adds their lanes.
func (w *Worker) newAccounts(configured []Account) error {
	for _, c := range configured {
		if c.Name == "" {
			c.Name = defaultAccount
		}
		if c.DashScope == nil || len(c.Lanes) == 0 {
			return fmt.Errorf("worker: account %s: DashScope and at least one lane are required", c.Name)
		}
		if err := c.checkMoney(); err != nil {
			return fmt.Errorf("worker: account %s: %w", c.Name, err)
		}
		if w.accountNamed(c.Name) != nil {
			return fmt.Errorf("worker: account %s is configured twice", c.Name)
		}
		a := &account{name: c.Name, remote: c.DashScope, log: w.log.With("account", c.Name), configured: c}
		w.accounts = append(w.accounts, a)
		for _, lane := range c.Lanes {
			if lane.Model == "" {
				lane.Model = jobs.DefaultModel
			}
			model, err := jobs.LookupModel(lane.Model)
			if err != nil {
				return fmt.Errorf("worker: account %s: %w", c.Name, err)
			}
			if err := model.CheckRegion(c.DashScope.Region()); err != nil {
				return fmt.Errorf("worker: account %s: %w", c.Name, err)
			}
			if lane.Concurrency == 0 {
				lane.Concurrency = 1
			}
			if lane.Concurrency < 0 || lane.Concurrency > model.Concurrency {
				return fmt.Errorf("worker: account %s: concurrency %d: allowed for %s: 1 to %d", c.Name, lane.Concurrency, lane.Model, model.Concurrency)
			}
			if lane.SubmitsPerSecond == 0 {
				lane.SubmitsPerSecond = model.SubmitsPerSecond
			}
			if lane.SubmitsPerSecond < 0 || lane.SubmitsPerSecond > model.SubmitsPerSecond {
				return fmt.Errorf("worker: account %s: %g submits a second: allowed for %s: up to %g", c.Name, lane.SubmitsPerSecond, lane.Model, model.SubmitsPerSecond)
			}
			if slices.ContainsFunc(w.lanes, func(l laneSpec) bool { return l.account == a && l.model.Name == model.Name }) {
				return fmt.Errorf("worker: account %s: the lane for %s is configured twice: remove one", c.Name, lane.Model)
			}
			w.lanes = append(w.lanes, laneSpec{account: a, model: model, concurrency: lane.Concurrency, submits: lane.SubmitsPerSecond})
		}
	}
	return nil
}
