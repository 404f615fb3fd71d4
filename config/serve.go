package config

import (
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/danqing-queue/danqing/jobs"
)

// Serve configures the HTTP API.
type Serve struct {
	// Tokens are those of DANQING_SERVE_TOKENS and of the file in
	// DANQING_SERVE_TOKENS_FILE. Without any, only programs on this machine have access.
	Tokens []Token
	// Listen is DANQING_LISTEN, host:port; "" means the commands' default.
	Listen string
	// URL is DANQING_SERVE_URL: the URL at which clients and the readers of links reach the
	// gateway; "" means the host of each request.
	URL string
	// RedirectImages is set by DANQING_IMAGE_LINKS=redirect: links to images lead to presigned
	// links of the bucket. By default the gateway sends the images.
	RedirectImages bool
	// DefaultN is DANQING_GATEWAY_DEFAULT_N, the number of images of a request without n;
	// 0 means DashScope's default, 4.
	DefaultN int
	// MaxQueued is DANQING_SERVE_MAX_QUEUED, the maximum number of waiting jobs; 0 means
	// the commands' default.
	MaxQueued int
	// KeepAlive is DANQING_KEEPALIVE_WHITESPACE: how often a request of OpenAI's API that waits
	// for its images gets white space; 0 means never.
	KeepAlive time.Duration
	// CORSOrigins are DANQING_CORS_ORIGINS: the origins whose pages may use the API.
	CORSOrigins []string
	// Aliases are DANQING_MODEL_ALIASES: names of models for OpenAI's API, and the catalog's names
	// that they stand for.
	Aliases map[string]string
	// Operators are DANQING_OPERATOR_TOKENS: who may see everything, in the web UI. Without
	// any it asks for nothing, and is for this machine only.
	Operators []Operator
	// UIWrite is DANQING_UI_WRITE: whether operators who log in may change something.
	UIWrite bool
}

// Operator is the credential of one operator.
type Operator struct {
	Name   string // stands beside the operator's decisions
	Secret Secret
}

// Token is the credential of one producer.
type Token struct {
	Name   string // the producer's name in its jobs
	Secret Secret
	// MaxQueued is the maximum number of its waiting jobs; 0 means an equal part of
	// Serve.MaxQueued. DailyBudgetMicroYuan is the maximum cost of its jobs per day, in
	// millionths of a yuan; 0 means no limit. The defaults are DANQING_TOKEN_MAX_QUEUED and DANQING_TOKEN_DAILY_BUDGET.
	MaxQueued            int
	DailyBudgetMicroYuan int64
	// MaxRequests is the maximum number of its open requests; 0 means the gateway's
	// default. The default is DANQING_TOKEN_MAX_REQUESTS.
	MaxRequests int
	// MaxUploads is the maximum number of its reference images per day; 0 means the
	// gateway's default. The default is DANQING_TOKEN_MAX_UPLOADS.
	MaxUploads int
}

// minTokenBytes is the minimum length of a token against guessing over a network. The
// value is our choice.
const minTokenBytes = 16

// serve reads the settings of the HTTP API.
func (l *loader) serve() {
	s := &l.cfg.Serve
	s.Listen, _ = l.lookup("DANQING_LISTEN")
	defaults := Token{
		MaxQueued:   l.parseCount("jobs")(l.lookup("DANQING_TOKEN_MAX_QUEUED")),
		MaxRequests: l.parseCount("requests")(l.lookup("DANQING_TOKEN_MAX_REQUESTS")),
		MaxUploads:  l.parseCount("uploads")(l.lookup("DANQING_TOKEN_MAX_UPLOADS")),
	}
	if v, name := l.lookup("DANQING_TOKEN_DAILY_BUDGET"); v != "" {
		defaults.DailyBudgetMicroYuan = l.parseYuan(v, name)
	}
	l.readTokens(defaults)
	s.MaxQueued = l.parseCount("jobs")(l.lookup("DANQING_SERVE_MAX_QUEUED"))
	l.ui(s)
	l.browsers(s)
	l.aliases(s)
	if v, name := l.lookup("DANQING_GATEWAY_DEFAULT_N"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 4 {
			l.bad(name, "%q: must be 1 to 4: the number of images of a request without n", v)
		}
		s.DefaultN = n
	}
	switch v, name := l.lookup("DANQING_IMAGE_LINKS"); v {
	case "", "serve":
	case "redirect":
		s.RedirectImages = true
	default:
		l.bad(name, `%q: must be "serve" or "redirect"`, v)
	}
	if v, name := l.lookup("DANQING_SERVE_URL"); v != "" {
		u, err := url.Parse(v)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			l.bad(name, "must be the URL at which clients reach the API, as in https://danqing.example.com, without query, user name or password")
		}
		s.URL = strings.TrimSuffix(strings.TrimRight(v, "/"), "/api/v1")
	}
}

// ui reads the settings of the web UI.
func (l *loader) ui(s *Serve) {
	list, name := l.lookup("DANQING_OPERATOR_TOKENS")
	l.namedTokens(list, name, func(holder, secret, at string) {
		if l.checkToken(holder, secret, at) {
			s.Operators = append(s.Operators, Operator{holder, NewSecret(secret)})
		}
	})
	if v, name := l.lookup("DANQING_UI_WRITE"); v != "" {
		var err error
		if s.UIWrite, err = strconv.ParseBool(v); err != nil {
			l.bad(name, "%q: must be true or false", v)
		}
	}
}

// parseCount returns a parser for a number of things, 0 if the value is "".
func (l *loader) parseCount(things string) func(value, at string) int {
	return func(value, at string) int {
		if value == "" {
			return 0
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			l.bad(at, "%q: must be a number of %s, 1 or more", value, things)
		}
		return n
	}
}

// browsers reads the settings for proxies and browsers between clients and the API.
func (l *loader) browsers(s *Serve) {
	if v, name := l.lookup("DANQING_KEEPALIVE_WHITESPACE"); v != "" {
		every, err := time.ParseDuration(v)
		if err != nil || every < time.Second || every > time.Hour {
			l.bad(name, "%q: must be a time from 1s to 1h, as in 15s", v)
		}
		s.KeepAlive = every
	}
	list, name := l.lookup("DANQING_CORS_ORIGINS")
	for origin := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || origin != strings.ToLower(u.Scheme+"://"+u.Host) {
			l.bad(name, "%q: must be origins as browsers send them, as in https://studio.example.com,http://localhost:5173", origin)
			continue
		}
		s.CORSOrigins = append(s.CORSOrigins, origin)
	}
}

// aliases reads the other names of models.
func (l *loader) aliases(s *Serve) {
	list, name := l.lookup("DANQING_MODEL_ALIASES")
	for entry := range strings.SplitSeq(list, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		alias, model, found := strings.Cut(entry, "=")
		alias, model = strings.TrimSpace(alias), strings.TrimSpace(model)
		if !found || !aliasPattern.MatchString(alias) {
			l.bad(name, "%q: must be NAME=MODEL,NAME=MODEL, as in gpt-image-1=wan2.7-image, with names of 1 to 64 letters, digits and . _ - : /", entry)
			continue
		}
		_, err := jobs.LookupModel(model)
		_, own := jobs.ModelNamed(alias)
		_, twice := s.Aliases[alias]
		switch {
		case err != nil || model == "":
			l.bad(name, "%q: %q is not a model of the catalog: danqing models lists them", entry, model)
		case own:
			l.bad(name, "%q: %s is the name of a model: choose another", entry, alias)
		case twice:
			l.bad(name, "%q: %s has two models: remove one", entry, alias)
		default:
			if s.Aliases == nil {
				s.Aliases = map[string]string{}
			}
			s.Aliases[alias] = model
		}
	}
}

// aliasPattern matches the names that an alias may have: those of other services' models.
var aliasPattern = regexp.MustCompile(`^[A-Za-z0-9._:/-]{1,64}$`)

// readTokens reads the tokens from the environment and the file. No problem contains one.
func (l *loader) readTokens(defaults Token) {
	list, name := l.lookup("DANQING_SERVE_TOKENS")
	l.namedTokens(list, name, func(producer, secret, at string) {
		t := defaults
		t.Name = producer
		l.addToken(t, secret, at)
	})
	if path, at := l.lookup("DANQING_SERVE_TOKENS_FILE"); path != "" {
		l.readTokensFile(path, at, defaults)
	}
}

// namedTokens calls add with each NAME:TOKEN of a list, and where it stands.
func (l *loader) namedTokens(list, name string, add func(holder, secret, at string)) {
	for i, entry := range strings.Split(list, ",") {
		if strings.TrimSpace(entry) == "" {
			continue
		}
		at := name
		if i > 0 || strings.Contains(list, ",") {
			at = name + " (entry " + strconv.Itoa(i+1) + ")"
		}
		holder, secret, found := strings.Cut(strings.TrimSpace(entry), ":")
		if !found {
			l.bad(at, "must be NAME:TOKEN,NAME:TOKEN")
			continue
		}
		add(holder, strings.TrimSpace(secret), at)
	}
}

// checkToken reports the problems of a token, and whether there are none.
func (l *loader) checkToken(holder, secret, at string) bool {
	bad := len(l.problems)
	if jobs.ValidAccount(holder) != nil {
		l.bad(at, "has an invalid name: must be 1 to 64 letters, digits, dots, hyphens and underscores") // not shown: it may be the token itself
	}
	if len(secret) < minTokenBytes || strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		l.bad(at, "must have a token of %d characters or more, ASCII without blanks, such as openssl rand -hex 24 prints", minTokenBytes)
	}
	others := slices.Clone(l.cfg.Serve.Operators)
	for _, t := range l.cfg.Serve.Tokens {
		others = append(others, Operator{t.Name, t.Secret})
	}
	for _, other := range others {
		if other.Name == holder || other.Secret.Reveal() == secret {
			l.bad(at, "repeats a name or a token: each must be unique in DANQING_SERVE_TOKENS, its file and DANQING_OPERATOR_TOKENS together")
		}
	}
	return bad == len(l.problems)
}

// addToken adds a producer's token, or reports its problems.
func (l *loader) addToken(t Token, secret, at string) {
	secret = strings.TrimSpace(secret)
	if l.checkToken(t.Name, secret, at) {
		t.Secret = NewSecret(secret)
		l.cfg.Serve.Tokens = append(l.cfg.Serve.Tokens, t)
	}
}

// readTokensFile reads tokens with their limits from a YAML file.
func (l *loader) readTokensFile(path, at string, defaults Token) {
	file := l.file
	l.file = path // for positions in problems
	defer func() { l.file = file }()
	top, err := readYAML(path)
	if err != nil {
		l.bad(at, "%s: %v", path, err)
		return
	}
	if info, err := os.Stat(path); err == nil && isWorldReadable(path, info.Mode()) {
		l.warn("%s names a file that every user of this machine can read: chmod o-r it", at)
	}
	list := l.parseMapping(top, "the file", "tokens")["tokens"]
	if list.node == nil || list.node.Kind != yaml.SequenceNode {
		l.bad(list.at, "must be a list of tokens, each with a name, and token or token_env")
		return
	}
	for _, node := range list.node.Content {
		l.fileToken(resolveAlias(node), defaults)
	}
}

func (l *loader) fileToken(node *yaml.Node, t Token) {
	f := l.parseMapping(node, "a token", "name", "token", "token_env", "max_queued", "daily_budget", "max_requests", "max_uploads")
	if node.Kind != yaml.MappingNode {
		return
	}
	t.Name = l.scalar(f["name"])
	secret, variable := l.scalar(f["token"]), l.scalar(f["token_env"])
	switch {
	case (secret == "") == (variable == ""):
		l.bad(f["token"].at, "or token_env is required, and not both")
		return
	case variable != "":
		l.referencedVariables = append(l.referencedVariables, variable)
		if secret, _ = l.lookup(variable); secret == "" {
			if !variableName.MatchString(variable) { // not shown: it may be the token itself
				variable = "something"
			}
			l.bad(f["token_env"].at, "names %s, which is not set: set it to the token", variable)
			return
		}
	}
	if v := l.scalar(f["max_queued"]); v != "" {
		t.MaxQueued = l.parseCount("jobs")(v, f["max_queued"].at)
	}
	if v := l.scalar(f["max_requests"]); v != "" {
		t.MaxRequests = l.parseCount("requests")(v, f["max_requests"].at)
	}
	if v := l.scalar(f["max_uploads"]); v != "" {
		t.MaxUploads = l.parseCount("uploads")(v, f["max_uploads"].at)
	}
	if v := l.scalar(f["daily_budget"]); v != "" {
		t.DailyBudgetMicroYuan = l.parseYuan(v, f["daily_budget"].at)
	}
	l.addToken(t, secret, f["name"].at)
}
