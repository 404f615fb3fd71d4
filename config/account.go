package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// DefaultAccount is the name of the account that the environment describes.
const DefaultAccount = "default"

// Account is one Alibaba main account and the lanes that work for it.
type Account struct {
	// Name stands in Redis keys, records and sidecars, and jobs keep it from
	// their intent on: whoever renames an account must wait until it has nothing
	// in flight. It matches [A-Za-z0-9][A-Za-z0-9._-]{0,63} and no two accounts
	// differ by case alone.
	Name string
	// APIKey may be missing if the environment describes the account: see
	// [Config.CheckReal].
	APIKey Secret
	// BaseURL is the service to call, ending in /api/v1; "" is Alibaba's shared
	// host in Beijing.
	BaseURL string
	// Workspace is the Model Studio workspace (llm-…) that is billed; "" is the
	// key's own.
	Workspace string
	// Lanes has one per model, at least one.
	Lanes []Lane
	// DailyBudgetMicroYuan bounds what is bought on a day (UTC+8), in millionths of
	// a yuan; 0 is no bound.
	DailyBudgetMicroYuan int64
	// PricesMicroYuan are what an image costs by contract, by model, in millionths of
	// a yuan, above 0. A model that is not there costs what the catalog says.
	PricesMicroYuan map[string]int64
}

// Lane is an account's capacity for one model.
type Lane struct {
	// Model is in the catalog, and sold in the account's region.
	Model string
	// Concurrency is how many tasks run at once: 1, unless configured, to the
	// catalog's figure.
	Concurrency int
	// SubmitsPerSecond is how many tasks may start in a second, above 0 to the
	// catalog's figure; 0 is that figure.
	SubmitsPerSecond float64
}

// DashScope returns the configuration of the account's client.
func (a Account) DashScope() dashscope.Config {
	return dashscope.Config{BaseURL: a.BaseURL, APIKey: a.APIKey.Reveal(), Workspace: a.Workspace}
}

// Region returns the region of the account's base URL, which decides the models that
// are sold and their prices.
func (a Account) Region() string { return dashscope.RegionOf(a.BaseURL) }

// Cost returns the price of images of a model on the account, in micro-yuan, by contract
// or by the catalog. sold is false, and the price 0, where the account's region does not
// have the model.
func (a Account) Cost(model jobs.Model, images int) (microYuan int64, sold bool) {
	return model.ContractCost(a.PricesMicroYuan, a.Region(), images)
}

// fields says how the fields of an account are called where it was read.
type fields struct{ apiKey, baseURL, workspace string }

// connection checks the key, base URL and workspace, and returns the region, "" if the
// base URL is invalid.
func (l *loader) connection(a Account, names fields) string {
	variables := map[string]string{"APIKey": names.apiKey, "BaseURL": names.baseURL, "Workspace": names.workspace}
	for _, e := range a.DashScope().Validate() {
		if e.Field == "APIKey" && !a.APIKey.IsSet() {
			continue // see Config.CheckReal
		}
		l.bad(variables[e.Field], "%s", e.Problem)
	}
	if u, err := url.Parse(a.BaseURL); err == nil && u.Scheme == "http" && a.APIKey.IsSet() {
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			l.warn("%s is http://: the API key travels unencrypted", names.baseURL)
		}
	}
	return a.Region()
}

// lane looks a model up and checks that a region, if known, sells it; name is
// what the model is called where it was read.
func (l *loader) lane(region, model, name string) (jobs.Model, bool) {
	m, err := jobs.LookupModel(model)
	if err != nil {
		l.bad(name, "names an unknown %v", err)
		return m, false
	}
	if region == "" {
		return m, true
	}
	if e, absent := errors.AsType[jobs.FieldError](m.CheckRegion(region)); absent {
		l.bad(name, "%s is not offered in the account's region: allowed %s", e.Value, e.Allowed)
		return m, false
	}
	return m, true
}

// concurrency reads how many tasks the lanes of some models may each have at once.
func (l *loader) concurrency(value, name string, models ...jobs.Model) int {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		l.bad(name, "%q: must be a whole number from 1", value)
		return 1
	}
	if len(models) == 0 {
		return n // what is wrong with them is said already
	}
	least := slices.MinFunc(models, func(a, b jobs.Model) int { return a.Concurrency - b.Concurrency })
	if n > least.Concurrency {
		l.bad(name, "%d: of %s an account may have %d at once, set at most that", n, least.Name, least.Concurrency)
	}
	return n
}

// Work sees to it that these models, and no others where nothing says which, have
// a lane: the account that the environment describes works any model unless
// DANQING_MODELS lists them. No models means all that are sold where it is. It fails with an [*Error] if a model is not worked, or
// not offered in the account's region.
func (c *Config) Work(models []string) error {
	if c.anyModel {
		each, region := c.Accounts[0].Lanes[0], c.Accounts[0].Region()
		c.Accounts[0].Lanes = nil
		if len(models) == 0 {
			for _, m := range jobs.Models() {
				if m.CheckRegion(region) == nil {
					models = append(models, m.Name)
				}
			}
		}
		for _, model := range models {
			l := &loader{}
			m, ok := l.lane(region, model, "DASHSCOPE_HTTP_BASE_URL")
			if !ok {
				return &Error{l.problems}
			}
			c.Accounts[0].Lanes = append(c.Accounts[0].Lanes, Lane{Model: m.Name, Concurrency: min(each.Concurrency, m.Concurrency)})
		}
	}
	for _, model := range models {
		worked := func(a Account) bool {
			return slices.ContainsFunc(a.Lanes, func(l Lane) bool { return l.Model == model })
		}
		if !slices.ContainsFunc(c.Accounts, worked) {
			return &Error{[]Problem{{"DANQING_MODELS", fmt.Sprintf("lacks %s, which is requested: add it there or in the file of accounts, or unset DANQING_MODELS", model)}}}
		}
	}
	return nil
}

// accountVariables are the variables that describe an account. Beside a file
// that has accounts, none of them says which account it means.
func accountVariables() []string {
	return []string{"DASHSCOPE_API_KEY", "DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_WORKSPACE", "DANQING_MODELS", "DANQING_CONCURRENCY", "DANQING_DAILY_BUDGET", "DANQING_PRICES"}
}

// account reads the one account that the environment describes.
func (l *loader) account() {
	key, _ := l.first("DASHSCOPE_API_KEY")
	a := Account{Name: DefaultAccount, APIKey: NewSecret(key)}
	a.BaseURL, _ = l.first("DASHSCOPE_HTTP_BASE_URL")
	a.Workspace, _ = l.first("DASHSCOPE_WORKSPACE")
	region := l.connection(a, fields{"DASHSCOPE_API_KEY", "DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_WORKSPACE"})

	list, from := l.first("DANQING_MODELS")
	if l.cfg.anyModel = list == ""; l.cfg.anyModel {
		list = jobs.DefaultModel
	}
	var models []jobs.Model
	for model := range strings.SplitSeq(list, ",") {
		model = strings.TrimSpace(model)
		if model == "" {
			l.bad(from, "%q has an empty name: write MODEL,MODEL", list)
			continue
		}
		m, ok := l.lane(region, model, from)
		if ok && !slices.ContainsFunc(models, func(other jobs.Model) bool { return other.Name == m.Name }) {
			models = append(models, m)
		}
	}
	each := 1
	if v, name := l.first("DANQING_CONCURRENCY"); v != "" {
		each = l.concurrency(v, name, models...)
	}
	for _, m := range models {
		a.Lanes = append(a.Lanes, Lane{Model: m.Name, Concurrency: each})
	}
	l.money(&a, region)
	l.cfg.Accounts = []Account{a}
}

// accountName keeps names safe in Redis keys, file names and URLs.
var accountName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// distinct refuses an account that is one of those before it. Keys belong to a
// region.
func (l *loader) distinct(a Account, region, nameAt, keyAt string) {
	for i, other := range l.cfg.Accounts {
		if strings.EqualFold(a.Name, other.Name) {
			l.bad(nameAt, "%q: an account %q exists already: account names must be unique", a.Name, other.Name)
		}
		if a.APIKey.IsSet() && a.APIKey.Reveal() == other.APIKey.Reveal() && region == l.regions[i] {
			l.bad(keyAt, "is also the key of account %q: DashScope counts its limits per main account, so remove one of the two", other.Name)
		}
	}
	l.cfg.Accounts, l.regions = append(l.cfg.Accounts, a), append(l.regions, region)
}

// warn notes what is odd but usable.
func (l *loader) warn(format string, args ...any) {
	l.cfg.Warnings = append(l.cfg.Warnings, fmt.Sprintf(format, args...))
}
