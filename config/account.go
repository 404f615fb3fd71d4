package config

import (
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
}

// Lane is an account's capacity for one model.
type Lane struct {
	// Model is in the catalogue, and sold in the account's region where that is
	// known.
	Model string
	// Concurrency is how many tasks run at once: 1, unless configured, to the
	// catalogue's figure.
	Concurrency int
	// SubmitsPerSecond is how many tasks may start in a second, above 0 to the
	// catalogue's figure; 0 is that figure.
	SubmitsPerSecond float64
}

// DashScope returns the configuration of the account's client.
func (a Account) DashScope() dashscope.Config {
	return dashscope.Config{BaseURL: a.BaseURL, APIKey: a.APIKey.Reveal(), Workspace: a.Workspace}
}

// Region returns where the account's models run, spelt as in
// [jobs.RegionBeijing], or "" if the host does not tell, as that of a proxy. The
// shared hosts and the form of a workspace's own, WORKSPACE.REGION.maas.aliyuncs.com,
// are those of Model Studio's page on base URLs.
func (a Account) Region() string {
	if a.BaseURL == "" {
		return jobs.RegionBeijing
	}
	u, err := url.Parse(a.BaseURL)
	if err != nil {
		return ""
	}
	host := strings.ToLower(u.Hostname())
	switch host {
	case "dashscope.aliyuncs.com":
		return jobs.RegionBeijing
	case "dashscope-intl.aliyuncs.com":
		return "ap-southeast-1"
	case "dashscope-us.aliyuncs.com":
		return "us-east-1"
	case "cn-hongkong.dashscope.aliyuncs.com":
		return "cn-hongkong"
	}
	own, ok := strings.CutSuffix(host, ".maas.aliyuncs.com")
	if _, region, dotted := strings.Cut(own, "."); ok && dotted {
		return region
	}
	return ""
}

// fields says how the fields of an account are called where it was read.
type fields struct{ apiKey, baseURL, workspace string }

// connection checks what leads to the service.
func (l *loader) connection(a Account, names fields) {
	cfg := a.DashScope()
	if cfg.APIKey == "" {
		cfg.APIKey = "none"
	}
	_, err := dashscope.New(cfg)
	l.refused(err, map[string]string{"APIKey": names.apiKey, "BaseURL": names.baseURL, "Workspace": names.workspace})
	if u, err := url.Parse(a.BaseURL); err == nil && u.Scheme == "http" && a.APIKey.IsSet() {
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			l.warn("%s is http://: the API key travels unencrypted", names.baseURL)
		}
	}
}

// lane checks a model against the catalogue and the account's region; name is
// what the model is called where it was read.
func (l *loader) lane(a Account, model, name string) (jobs.Model, bool) {
	m, err := jobs.LookupModel(model)
	if err != nil {
		l.bad(name, "names no %v", err)
		return m, false
	}
	if region := a.Region(); region != "" && !slices.Contains(regions(m), region) {
		l.bad(name, "%q is not sold in %s, where the account is, only in %s", model, region, strings.Join(regions(m), ", "))
		return m, false
	}
	return m, true
}

// regions returns where a model is sold.
func regions(m jobs.Model) []string {
	var in []string
	for region := range m.Prices {
		in = append(in, region)
	}
	slices.Sort(in)
	return in
}

// concurrency reads how many tasks a lane may have at once.
func (l *loader) concurrency(value, name string, models ...jobs.Model) int {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		l.bad(name, "%q: must be a whole number from 1", value)
		return 1
	}
	for _, m := range models {
		if n > m.Concurrency {
			l.bad(name, "%d: of %s an account may have %d at once, set at most that", n, m.Name, m.Concurrency)
		}
	}
	return n
}

// accountVariables are the variables that describe an account. Beside a file
// that has accounts, none of them says which account it means.
func accountVariables() []string {
	return []string{"DASHSCOPE_API_KEY", "DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_WORKSPACE", "DANQING_MODELS", "DANQING_CONCURRENCY"}
}

// account reads the one account that the environment describes.
func (l *loader) account() {
	key, _ := l.first("DASHSCOPE_API_KEY")
	a := Account{Name: DefaultAccount, APIKey: NewSecret(key)}
	a.BaseURL, _ = l.first("DASHSCOPE_HTTP_BASE_URL")
	a.Workspace, _ = l.first("DASHSCOPE_WORKSPACE")
	l.connection(a, fields{"DASHSCOPE_API_KEY", "DASHSCOPE_HTTP_BASE_URL", "DASHSCOPE_WORKSPACE"})

	list, from := l.first("DANQING_MODELS")
	if list == "" {
		list = jobs.DefaultModel
	}
	var models []jobs.Model
	for model := range strings.SplitSeq(list, ",") {
		model = strings.TrimSpace(model)
		if model == "" {
			l.bad(from, "%q has an empty name: write MODEL,MODEL", list)
			continue
		}
		m, ok := l.lane(a, model, from)
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
	l.cfg.Accounts = []Account{a}
}

// accountName keeps names safe in Redis keys, file names and URLs.
var accountName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// same reports whether a key pays for two accounts. Keys belong to a region; a
// host that does not tell its own may be any.
func same(a, b Account) bool {
	ours, theirs := a.Region(), b.Region()
	return a.APIKey.IsSet() && a.APIKey.Reveal() == b.APIKey.Reveal() && (ours == theirs || ours == "" || theirs == "")
}

// distinct refuses accounts that are one.
func (l *loader) distinct(a Account, nameAt, keyAt string) {
	for _, other := range l.cfg.Accounts {
		if strings.EqualFold(a.Name, other.Name) {
			l.bad(nameAt, "%q: there is an account %q already, give each a name of its own", a.Name, other.Name)
		}
		if same(a, other) {
			l.bad(keyAt, "is the key of account %q too: DashScope counts its limits per main account, so leave one of the two out", other.Name)
		}
	}
}

// warn notes what is odd but usable.
func (l *loader) warn(format string, args ...any) {
	l.cfg.Warnings = append(l.cfg.Warnings, fmt.Sprintf(format, args...))
}
