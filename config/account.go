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

// DefaultAccount is the name of the account that is configured by the environment.
const DefaultAccount = "default"

// Account is one Alibaba main account and its lanes.
type Account struct {
	// Name is part of Redis keys, records and sidecars, and a job keeps it from its
	// intent on. An account can be renamed only while it has no job in flight. It matches
	// [A-Za-z0-9][A-Za-z0-9._-]{0,63}, and no two accounts differ by case alone.
	Name string
	// APIKey may be unset if the account is configured by the environment: see
	// [Config.CheckReal].
	APIKey Secret
	// BaseURL is the base URL of the service, ending in /api/v1; "" means Alibaba's
	// shared host in Beijing.
	BaseURL string
	// Workspace is the Model Studio workspace (llm-…) that is billed; "" means the key's
	// own.
	Workspace string
	// Lanes has one lane per model, at least one.
	Lanes []Lane
	// DailyBudgetMicroYuan is the maximum cost per day (UTC+8), in millionths of a yuan;
	// 0 means no limit.
	DailyBudgetMicroYuan int64
	// PricesMicroYuan are the prices per image by contract, by model, in millionths of a
	// yuan, above 0. Other models have the catalog's price.
	PricesMicroYuan map[string]int64
}

// Lane is an account's capacity for one model.
type Lane struct {
	// Model is in the catalog, and sold in the account's region.
	Model string
	// Concurrency is the number of concurrent tasks, from 1, the default, to the
	// catalog's limit.
	Concurrency int
	// SubmitsPerSecond is the number of tasks that may start per second, up to the
	// catalog's limit; 0 means that limit.
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

// fieldNames are the names of an account's fields in its source, for problems.
type fieldNames struct{ apiKey, baseURL, workspace string }

// checkService checks the key, base URL and workspace, and returns the region, "" if the
// base URL is invalid.
func (l *loader) checkService(a Account, names fieldNames) string {
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

// lookupModel looks a model up and checks that it is sold in a region, unless that is "".
// name is the model's name in its source, for problems.
func (l *loader) lookupModel(region, model, name string) (jobs.Model, bool) {
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

// parseConcurrency parses the number of concurrent tasks for the lanes of models.
func (l *loader) parseConcurrency(value, name string, models ...jobs.Model) int {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		l.bad(name, "%q: must be a whole number from 1", value)
		return 1
	}
	if len(models) == 0 {
		return n // their problems are already reported
	}
	least := slices.MinFunc(models, func(a, b jobs.Model) int { return a.Concurrency - b.Concurrency })
	if n > least.Concurrency {
		l.bad(name, "%d: of %s an account may have %d at once, set at most that", n, least.Name, least.Concurrency)
	}
	return n
}

// EnableModels ensures that each of models has a lane. If the models are not configured,
// it replaces the lanes of the account by lanes for exactly these models; no models means
// all that are sold in its region. It fails with an [*Error] if a model is not configured
// for any account, or not sold in the account's region.
func (c *Config) EnableModels(models []string) error {
	if c.defaultModels {
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
			m, ok := l.lookupModel(region, model, "DASHSCOPE_HTTP_BASE_URL")
			if !ok {
				return &Error{l.problems}
			}
			c.Accounts[0].Lanes = append(c.Accounts[0].Lanes, Lane{Model: m.Name, Concurrency: min(each.Concurrency, m.Concurrency)})
		}
	}
	for _, model := range models {
		hasLane := func(a Account) bool {
			return slices.ContainsFunc(a.Lanes, func(l Lane) bool { return l.Model == model })
		}
		if !slices.ContainsFunc(c.Accounts, hasLane) {
			return &Error{[]Problem{{"DANQING_MODELS", fmt.Sprintf("lacks %s, which is requested: add it there or in the file of accounts, or unset DANQING_MODELS", model)}}}
		}
	}
	return nil
}

// accountVariables are the variables that describe an account. They are refused together
// with an accounts file.
func accountVariables() []string {
	return []string{"DASHSCOPE_API_KEY", "DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_WORKSPACE", "DANQING_MODELS", "DANQING_CONCURRENCY", "DANQING_DAILY_BUDGET", "DANQING_PRICES"}
}

// envAccount reads the account that is configured by the environment.
func (l *loader) envAccount() {
	key, _ := l.lookup("DASHSCOPE_API_KEY")
	a := Account{Name: DefaultAccount, APIKey: NewSecret(key)}
	a.BaseURL, _ = l.lookup("DASHSCOPE_HTTP_BASE_URL")
	a.Workspace, _ = l.lookup("DASHSCOPE_WORKSPACE")
	region := l.checkService(a, fieldNames{"DASHSCOPE_API_KEY", "DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_WORKSPACE"})

	list, from := l.lookup("DANQING_MODELS")
	if l.cfg.defaultModels = list == ""; l.cfg.defaultModels {
		list = jobs.DefaultModel
	}
	var models []jobs.Model
	for model := range strings.SplitSeq(list, ",") {
		model = strings.TrimSpace(model)
		if model == "" {
			l.bad(from, "%q has an empty name: write MODEL,MODEL", list)
			continue
		}
		m, ok := l.lookupModel(region, model, from)
		if ok && !slices.ContainsFunc(models, func(other jobs.Model) bool { return other.Name == m.Name }) {
			models = append(models, m)
		}
	}
	each := 1
	if v, name := l.lookup("DANQING_CONCURRENCY"); v != "" {
		each = l.parseConcurrency(v, name, models...)
	}
	for _, m := range models {
		a.Lanes = append(a.Lanes, Lane{Model: m.Name, Concurrency: each})
	}
	l.envMoney(&a, region)
	l.cfg.Accounts = []Account{a}
}

// accountName keeps names safe in Redis keys, file names and URLs.
var accountName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// addAccount adds an account, and reports a name or a key that an earlier one has already.
// Keys are unique within a region.
func (l *loader) addAccount(a Account, region, nameAt, keyAt string) {
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

// warn adds a warning.
func (l *loader) warn(format string, args ...any) {
	l.cfg.Warnings = append(l.cfg.Warnings, fmt.Sprintf(format, args...))
}
