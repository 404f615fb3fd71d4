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

// Account is one Alibaba main account and what is worked on it. DashScope counts
// its limits per main account and model, over all keys: two Accounts must never
// be the same main account.
type Account struct {
	// Name stands in records, sidecars and Redis keys; "" is "default".
	Name      string
	DashScope *dashscope.Client
	Lanes     []Lane
	// DailyBudgetMicroYuan bounds what is reserved and spent on a day (UTC+8), in
	// millionths of a yuan, over all workers; 0 is no bound.
	DailyBudgetMicroYuan int64
	// PricesMicroYuan are what an image costs by contract, by the catalogue's name of
	// the model, in millionths of a yuan. Others cost what the catalogue says.
	PricesMicroYuan map[string]int64
}

// Cost is the price of so many images of a model on the account, in micro-yuan, by
// contract or by the catalogue. sold is false, and the price 0, where the account's
// region does not have the model.
func (a Account) Cost(model jobs.Model, images int) (microYuan int64, sold bool) {
	return model.ContractCost(a.PricesMicroYuan, a.DashScope.Region(), images)
}

// Lane is an account's capacity for one model.
type Lane struct {
	// Model is a name of the catalogue; "" is wanx-v1.
	Model string
	// Concurrency is how many tasks the lane has at DashScope at once, 1 to the
	// model's limit; 0 is 1.
	Concurrency int
	// SubmitsPerSecond bounds the creates, up to the model's limit, which 0 means.
	SubmitsPerSecond float64
}

const defaultAccount = "default"

// account is an Account at work.
type account struct {
	name   string
	remote *dashscope.Client
	log    *slog.Logger

	// configured is the account as it was given: its budget and prices.
	configured Account

	mu sync.Mutex
	// date was the service's clock at dated, by the own one.
	date, dated time.Time
	// met is set once the service has accepted the key.
	verified bool
	// owner is the main account's number, "" until a task of it was listed.
	mainAccountID string
	// unfit says why nothing may be bought on the account, whatever the service
	// says.
	disabledReason error
}

// laneSpec is a lane as configured, defaults filled in.
type laneSpec struct {
	account     *account
	model       jobs.Model
	concurrency int
	submits     float64 // per second
	// leftover draws nothing: it ends when what is in flight has.
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
	// ErrGateway means that the base URL leads back to a Danqing.
	ErrGateway = errors.New("the DashScope base URL leads to a Danqing, which would submit to itself: set DASHSCOPE_HTTP_BASE_URL to DashScope's own address")
	// ErrSameAccount means that two configured accounts share their limits.
	ErrSameAccount = errors.New("two accounts are the same Alibaba main account, whose limits they would exceed together: leave one of them out")
	// ErrMixed means that one account is simulated and another is not.
	ErrMixed = errors.New("one account's service is the simulator and another's is not: simulated images must never lie among real ones")
)

// meet asks the service at an account's base URL who it is and whether it knows
// the key. It spends nothing.
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

// refusedKey reports whether the service has answered that it will not serve the
// account.
func refusedKey(err error) bool {
	var refusal *dashscope.Error
	return errors.As(err, &refusal) && (refusal.Kind == dashscope.KindAccount || refusal.Kind == dashscope.KindTerminal)
}

// meetAll meets every account, until one at least is usable. It fails if none
// can be.
func (w *Worker) probeAll(ctx context.Context) error {
	for trouble := (&backoff{first: time.Second, most: time.Minute}); ; {
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
			case refusedKey(err):
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
		wait := trouble.next()
		w.log.Warn("dashscope does not answer, trying again", "err", err, "wait", wait)
		if err := w.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// distinct fails with ErrSameAccount if two accounts are one at DashScope, as far
// as that is known, and lets nothing be bought on the later one.
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

// identify learns the numbers of main accounts that had no task to tell them yet.
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
		w.log.Error("account refused", "err", err)
	}
}

// accountNamed returns the configured account of that name, or nil.
func (w *Worker) accountNamed(name string) *account {
	for _, a := range w.accounts {
		if a.name == name {
			return a
		}
	}
	return nil
}

// findLeftovers adds lanes for what was left at DashScope by runs with other models,
// and says what it cannot go on with.
func (w *Worker) addDrainLanes(ctx context.Context) error {
	for _, e := range w.cfg.DataDir.Journal.OpenJobs() {
		if e.Record != nil && w.accountNamed(e.Record.Account) == nil {
			w.log.Error("job paid for on an account that is not configured here: configure it", "job_id", e.JobID, "task_id", e.Record.TaskID, "account", e.Record.Account)
		}
	}
	for _, a := range w.accounts {
		for _, model := range jobs.Models() {
			if slices.ContainsFunc(w.lanes, func(l laneSpec) bool { return l.account == a && l.model.Name == model.Name }) {
				continue
			}
			left, err := w.cfg.Redis.Exists(ctx, rediskey.Lane(a.name, model.Name, inFlightKey), rediskey.Lane(a.name, model.Name, quarantineKey)).Result()
			if err != nil {
				return fmt.Errorf("read in-flight notes: %w", err)
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
		return fmt.Errorf("a daily budget of %d micro-yuan: must be above 0, or 0 for none", a.DailyBudgetMicroYuan)
	}
	for name, price := range a.PricesMicroYuan {
		if _, err := jobs.LookupModel(name); err != nil || name == "" {
			return fmt.Errorf("a price of model %q, which is not in the catalogue", name)
		}
		if price <= 0 {
			return fmt.Errorf("%s at %d micro-yuan an image: must be above 0", name, price)
		}
	}
	return nil
}

// newAccounts checks the configured accounts and makes their lanes.
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
				return fmt.Errorf("worker: account %s: concurrency %d: %s allows 1 to %d tasks at once", c.Name, lane.Concurrency, lane.Model, model.Concurrency)
			}
			if lane.SubmitsPerSecond == 0 {
				lane.SubmitsPerSecond = model.SubmitsPerSecond
			}
			if lane.SubmitsPerSecond < 0 || lane.SubmitsPerSecond > model.SubmitsPerSecond {
				return fmt.Errorf("worker: account %s: %g submits a second: %s allows up to %g", c.Name, lane.SubmitsPerSecond, lane.Model, model.SubmitsPerSecond)
			}
			if slices.ContainsFunc(w.lanes, func(l laneSpec) bool { return l.account == a && l.model.Name == model.Name }) {
				return fmt.Errorf("worker: account %s: the lane for %s is configured twice: leave one out", c.Name, lane.Model)
			}
			w.lanes = append(w.lanes, laneSpec{account: a, model: model, concurrency: lane.Concurrency, submits: lane.SubmitsPerSecond})
		}
	}
	return nil
}
