package config

import (
	"net/url"
	"os"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/danqing-queue/danqing/jobs"
)

// Serve is how jobs are served over HTTP.
type Serve struct {
	// Tokens are those of DANQING_SERVE_TOKENS and of the file that
	// DANQING_SERVE_TOKENS_FILE names. None: programs on this machine alone may ask.
	Tokens []Token
	// Listen is DANQING_LISTEN, host:port; "" is the commands' default.
	Listen string
	// URL is DANQING_SERVE_URL: where clients and the readers of links reach the
	// gateway; "" is the host that each request names.
	URL string
	// DefaultN is DANQING_GATEWAY_DEFAULT_N, how many images a request without n is for;
	// 0 is DashScope's own 4.
	DefaultN int
	// MaxQueued is DANQING_SERVE_MAX_QUEUED, how many jobs may wait in all; 0 is the
	// commands' default.
	MaxQueued int
}

// Token lets a producer in.
type Token struct {
	Name   string // kept on its jobs
	Secret Secret
	// MaxQueued is how many of its jobs may wait, and DailyBudgetMicroYuan what those of a
	// day may cost, in millionths of a yuan; 0 is no bound. What the file does not say of
	// a token, DANQING_TOKEN_MAX_QUEUED and DANQING_TOKEN_DAILY_BUDGET do.
	MaxQueued            int
	DailyBudgetMicroYuan int64
}

// minTokenBytes is the shortest secret that nobody guesses over a network; ours.
const minTokenBytes = 16

// serve reads how jobs are served.
func (l *loader) serve() {
	s := &l.cfg.Serve
	s.Listen, _ = l.first("DANQING_LISTEN")
	most := Token{MaxQueued: l.jobCount(l.first("DANQING_TOKEN_MAX_QUEUED"))}
	if v, name := l.first("DANQING_TOKEN_DAILY_BUDGET"); v != "" {
		most.DailyBudgetMicroYuan = l.yuan(v, name)
	}
	l.tokens(most)
	s.MaxQueued = l.jobCount(l.first("DANQING_SERVE_MAX_QUEUED"))
	if v, name := l.first("DANQING_GATEWAY_DEFAULT_N"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 4 {
			l.bad(name, "%q: must be 1 to 4: the number of images of a request without n", v)
		}
		s.DefaultN = n
	}
	if v, name := l.first("DANQING_SERVE_URL"); v != "" {
		u, err := url.Parse(v)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			l.bad(name, "must be the URL at which clients reach the API, as in https://danqing.example.com, without query, user name or password")
		}
		s.URL = strings.TrimSuffix(strings.TrimRight(v, "/"), "/api/v1")
	}
}

// jobCount reads a number of jobs, 0 if value is "".
func (l *loader) jobCount(value, at string) int {
	if value == "" {
		return 0
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		l.bad(at, "%q: must be a number of jobs, 1 or more", value)
	}
	return n
}

// tokens reads them from the environment and the file. No error shows one.
func (l *loader) tokens(most Token) {
	list, name := l.first("DANQING_SERVE_TOKENS")
	for i, entry := range strings.Split(list, ",") {
		if strings.TrimSpace(entry) == "" {
			continue
		}
		at := name
		if i > 0 || strings.Contains(list, ",") {
			at = name + " (entry " + strconv.Itoa(i+1) + ")"
		}
		t := most
		secret, found := "", false
		t.Name, secret, found = strings.Cut(strings.TrimSpace(entry), ":")
		if !found {
			l.bad(at, "must be NAME:TOKEN,NAME:TOKEN")
			continue
		}
		l.token(t, secret, at)
	}
	if path, at := l.first("DANQING_SERVE_TOKENS_FILE"); path != "" {
		l.tokensFile(path, at, most)
	}
}

// token takes one in, unless it is wrong.
func (l *loader) token(t Token, secret, at string) {
	secret = strings.TrimSpace(secret)
	t.Secret = NewSecret(secret)
	bad := len(l.problems)
	if jobs.ValidAccount(t.Name) != nil {
		l.bad(at, "has an invalid name: must be 1 to 64 letters, digits, dots, hyphens and underscores") // it may be the token itself
	}
	if len(secret) < minTokenBytes || strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		l.bad(at, "must have a token of %d characters or more, ASCII without blanks, such as openssl rand -hex 24 prints", minTokenBytes)
	}
	for _, other := range l.cfg.Serve.Tokens {
		if other.Name == t.Name || other.Secret.Reveal() == secret {
			l.bad(at, "repeats a name or a token: each must be unique in DANQING_SERVE_TOKENS and the file together")
		}
	}
	if bad == len(l.problems) {
		l.cfg.Serve.Tokens = append(l.cfg.Serve.Tokens, t)
	}
}

// tokensFile reads tokens, with bounds of their own, from a YAML file.
func (l *loader) tokensFile(path, at string, most Token) {
	file := l.file
	l.file = path // for what is wrong in it
	defer func() { l.file = file }()
	top, err := readYAML(path)
	if err != nil {
		l.bad(at, "%s: %v", path, err)
		return
	}
	if info, err := os.Stat(path); err == nil && exposed(path, info.Mode()) {
		l.warn("%s names a file that every user of this machine can read: chmod o-r it", at)
	}
	list := l.mapping(top, "the file", "tokens")["tokens"]
	if list.node == nil || list.node.Kind != yaml.SequenceNode {
		l.bad(list.at, "must be a list of tokens, each with a name, and token or token_env")
		return
	}
	for _, node := range list.node.Content {
		l.fileToken(resolve(node), most)
	}
}

func (l *loader) fileToken(node *yaml.Node, t Token) {
	f := l.mapping(node, "a token", "name", "token", "token_env", "max_queued", "daily_budget")
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
		l.named = append(l.named, variable)
		if secret, _ = l.first(variable); secret == "" {
			if !variableName.MatchString(variable) { // it may be the token itself
				variable = "something"
			}
			l.bad(f["token_env"].at, "names %s, which is not set: set it to the token", variable)
			return
		}
	}
	if v := l.scalar(f["max_queued"]); v != "" {
		t.MaxQueued = l.jobCount(v, f["max_queued"].at)
	}
	if v := l.scalar(f["daily_budget"]); v != "" {
		t.DailyBudgetMicroYuan = l.yuan(v, f["daily_budget"].at)
	}
	l.token(t, secret, f["name"].at)
}
