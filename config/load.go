package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// loader reads the configuration and collects the problems.
type loader struct {
	get                 func(string) string
	file                string   // the accounts file, or the tokens file while it is read
	referencedVariables []string // variables that files refer to, for keys and tokens
	regions             []string // of the accounts
	cfg                 Config
	problems            []Problem
}

func (l *loader) bad(variable, format string, args ...any) {
	l.problems = append(l.problems, Problem{variable, fmt.Sprintf(format, args...)})
}

// lookup returns the value of the first variable that is set, without white space around
// it, and that variable's name. If none is set, the name is the first one.
func (l *loader) lookup(names ...string) (value, name string) {
	for _, n := range names {
		if v := strings.TrimSpace(l.get(n)); v != "" {
			return v, n
		}
	}
	return "", names[0]
}

// Load reads the environment through getenv. White space around values is ignored.
// environ, like os.Environ, is checked for unknown DANQING_ variables: misspelled names
// are errors, others warnings; nil skips the check.
//
// It fails with an [*Error] that contains every problem. It opens no connection, and reads
// no file but the certificates for Redis and the overlay of the catalog of models, which it
// makes the process use. The AWS variables are used only if DANQING_S3_BUCKET is set; no profile or
// metadata service is used.
func Load(getenv func(string) string, environ []string) (*Config, error) {
	return LoadWithFile("", getenv, environ)
}

// LoadWithFile is [Load] with the accounts of a YAML file, and the key files that it
// refers to; a path of "" means no file. With a file, the variables that describe an
// account must be unset, because it would be unclear which account they apply to. The
// exception is a DASHSCOPE_API_KEY that the file refers to.
func LoadWithFile(path string, getenv func(string) string, environ []string) (*Config, error) {
	l := &loader{get: getenv, file: path}
	l.catalog()
	if path == "" {
		l.envAccount()
	} else {
		l.fileAccounts()
	}
	l.redis()
	l.storage()
	l.serve()
	l.metrics()
	l.callbacks()
	l.alerts()
	if l.cfg.DataDir, _ = l.lookup("DANQING_DATA_DIR"); l.cfg.DataDir == "" {
		l.cfg.DataDir = DefaultDataDir
	}
	l.cfg.DataDir = filepath.Clean(l.cfg.DataDir)
	if v, name := l.lookup("DANQING_SUBMIT_LIMIT"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			l.bad(name, "%q: must be a duration above 0, as in 330s; less than that is used with the simulator only", v)
		}
		l.cfg.SubmitLimit = d
	}
	l.cfg.Operator, _ = l.lookup("DANQING_OPERATOR")
	l.confirmAbove()
	l.checkNames(environ)
	if len(l.problems) > 0 {
		return nil, &Error{l.problems}
	}
	for _, lane := range l.cfg.Accounts[0].Lanes {
		l.cfg.Models = append(l.cfg.Models, lane.Model)
	}
	return &l.cfg, nil
}

// catalog makes the process use an overlay of the catalog of models.
func (l *loader) catalog() {
	if file, name := l.lookup("DANQING_MODEL_CATALOG"); file != "" {
		if err := jobs.LoadCatalog(file); err != nil {
			l.bad(name, "%v", err)
		}
	}
}

// LoadCatalog makes the process use the overlay of the catalog of models that
// DANQING_MODEL_CATALOG names, as [Load] does, for programs that need no other setting. It fails
// with an [*Error].
func LoadCatalog(getenv func(string) string) error {
	l := &loader{get: getenv}
	if l.catalog(); len(l.problems) > 0 {
		return &Error{l.problems}
	}
	return nil
}

func (l *loader) redis() {
	v, _ := l.lookup("REDIS_URL")
	files := &l.cfg.redisCertificates
	for variable, file := range map[string]*string{"DANQING_REDIS_CA": &files.authorities, "DANQING_REDIS_CERT": &files.certificate, "DANQING_REDIS_KEY": &files.key} {
		*file, _ = l.lookup(variable)
	}
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
		*f.value, names[f.field] = l.lookup(f.names...)
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
		if v, name := l.lookup(names[field]); v != "" {
			l.bad(name, "is set but DANQING_S3_BUCKET is not: set both or neither")
		}
	}
}
