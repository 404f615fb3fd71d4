package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// loader gathers what is wrong.
type loader struct {
	get      func(string) string
	file     string   // the file of accounts
	named    []string // the variables that the file names
	regions  []string // of the accounts
	cfg      Config
	problems []Problem
}

func (l *loader) bad(variable, format string, args ...any) {
	l.problems = append(l.problems, Problem{variable, fmt.Sprintf(format, args...)})
}

// first returns the value of the first variable that has one, without white
// space around it, and that variable's name, which is the first's if none has.
func (l *loader) first(names ...string) (value, name string) {
	for _, n := range names {
		if v := strings.TrimSpace(l.get(n)); v != "" {
			return v, n
		}
	}
	return "", names[0]
}

// Load reads the environment through getenv. White space around values counts
// for nothing. environ, as of os.Environ, is searched for DANQING_ names that
// nobody reads: near misses of a known name are errors, others warnings; nil
// leaves that out.
//
// It fails with an [*Error] that holds every problem. It connects to nothing and
// reads no file. The AWS variables count only if DANQING_S3_BUCKET is set; no
// profile or metadata service is asked.
func Load(getenv func(string) string, environ []string) (*Config, error) {
	return LoadWithFile("", getenv, environ)
}

// LoadWithFile is [Load] with the accounts of a YAML file, and the files of keys
// that it names; a path of "" is no file. The variables that describe an account
// must then be unset, since the one who reads the bill could not tell which
// account they meant: each is refused, except a DASHSCOPE_API_KEY that the file
// itself names.
func LoadWithFile(path string, getenv func(string) string, environ []string) (*Config, error) {
	l := &loader{get: getenv, file: path}
	if path == "" {
		l.account()
	} else {
		l.accounts()
	}
	l.redis()
	l.storage()
	l.serve()
	l.callbacks()
	if l.cfg.DataDir, _ = l.first("DANQING_DATA_DIR"); l.cfg.DataDir == "" {
		l.cfg.DataDir = DefaultDataDir
	}
	l.cfg.DataDir = filepath.Clean(l.cfg.DataDir)
	if v, name := l.first("DANQING_SUBMIT_LIMIT"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			l.bad(name, "%q: must be a duration above 0, as in 330s; less than that is used with the simulator only", v)
		}
		l.cfg.SubmitLimit = d
	}
	l.spelling(environ)
	if len(l.problems) > 0 {
		return nil, &Error{l.problems}
	}
	for _, lane := range l.cfg.Accounts[0].Lanes {
		l.cfg.Models = append(l.cfg.Models, lane.Model)
	}
	return &l.cfg, nil
}

func (l *loader) redis() {
	v, _ := l.first("REDIS_URL")
	if l.cfg.RedisURL = NewSecret(v); v == "" {
		return
	}
	_, err := l.cfg.Redis()
	if e, ok := errors.AsType[*Error](err); ok {
		l.problems = append(l.problems, e.Problems...)
	}
}

func (l *loader) storage() {
	c := &l.cfg
	var secret, token string
	names := map[string]string{}
	for _, f := range []struct {
		field string
		value *string
		names []string
	}{
		{"Bucket", &c.Bucket, []string{"DANQING_S3_BUCKET"}},
		{"Prefix", &c.Prefix, []string{"DANQING_S3_PREFIX"}},
		{"KeyTemplate", &c.KeyTemplate, []string{"DANQING_S3_KEY_TEMPLATE"}},
		{"Addressing", &c.Addressing, []string{"DANQING_S3_ADDRESSING"}},
		{"PublicURL", &c.PublicURL, []string{"DANQING_S3_PUBLIC_URL"}},
		{"PublicEndpoint", &c.PublicEndpoint, []string{"DANQING_S3_PUBLIC_ENDPOINT"}},
		{"AccessKeyID", &c.AccessKeyID, []string{"AWS_ACCESS_KEY_ID"}},
		{"SecretAccessKey", &secret, []string{"AWS_SECRET_ACCESS_KEY"}},
		{"SessionToken", &token, []string{"AWS_SESSION_TOKEN"}},
		{"Region", &c.Region, []string{"AWS_REGION", "AWS_DEFAULT_REGION"}},
		{"Endpoint", &c.Endpoint, []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}},
	} {
		*f.value, names[f.field] = l.first(f.names...)
	}
	c.SecretAccessKey, c.SessionToken = NewSecret(secret), NewSecret(token)

	for _, e := range c.Storage().Validate() {
		if c.Bucket != "" || e.Field == "Prefix" || e.Field == "KeyTemplate" { // the embedded bucket has these two
			l.bad(names[e.Field], "%s", e.Problem)
		}
	}
	if c.Bucket != "" {
		return
	}
	for _, field := range []string{"Addressing", "PublicURL", "PublicEndpoint"} {
		if v, name := l.first(names[field]); v != "" {
			l.bad(name, "is set but DANQING_S3_BUCKET is not: set both or neither")
		}
	}
}

// injected matches the variables that Kubernetes makes for a service whose name
// begins with danqing.
var injected = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP)(_[A-Z]+)?)$`)

// spelling looks for names that are meant for Danqing and read by nobody.
func (l *loader) spelling(environ []string) {
	for _, kv := range slices.Sorted(slices.Values(environ)) {
		name, _, _ := strings.Cut(kv, "=")
		upper := strings.ToUpper(name)
		if !strings.HasPrefix(upper, "DANQING_") || slices.Contains(variables(), name) || slices.Contains(l.named, name) || injected.MatchString(upper) {
			continue
		}
		switch near := nearest(upper); {
		case near == "":
			l.warn("%s is set, but Danqing does not use it", name)
		case near == upper && l.get(upper) != "": // Windows, where case does not count
		default:
			l.bad(name, "is not a variable of Danqing: write %s", near)
		}
	}
}

// closest returns the variable that a misspelled DANQING_ name means, or "".
func nearest(name string) string {
	rest := strings.TrimPrefix(name, "DANQING_")
	if slices.Contains(variables(), rest) {
		return rest // DANQING_REDIS_URL
	}
	var ours []string
	for _, v := range variables() {
		if known, ok := strings.CutPrefix(v, "DANQING_"); ok {
			ours = append(ours, known)
		}
	}
	near := closest(rest, ours)
	if near == "" && len(rest) > 2 {
		near = shortestWith(rest, ours)
	}
	if near == "" {
		return ""
	}
	return "DANQING_" + near
}

// shortestWith returns the shortest of the known names whose last words are these, the
// plural included, or "": DANQING_URL lacks a word of DANQING_SERVE_URL.
func shortestWith(words string, known []string) string {
	best := ""
	for _, k := range known {
		short := strings.HasSuffix(k, "_"+words) || strings.HasSuffix(k, "_"+words+"S")
		if short && (best == "" || len(k) < len(best)) {
			best = k
		}
	}
	return best
}

// closest returns the one of the known words that a misspelled one means, or "".
func closest(word string, known []string) string {
	best, at := "", 0
	for _, k := range known {
		if d := distance(word, k); d <= max(1, len(k)/3) && (best == "" || d < at) {
			best, at = k, d
		}
	}
	return best
}

// distance is how many letters must be put in, left out or changed (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
