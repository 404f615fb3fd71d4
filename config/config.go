// Package config reads the environment and the accounts file, and returns the
// configurations of the other packages. It reports all problems at once, with the name of
// the variable or the line of the file.
package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
)

// DefaultDataDir is the folder for the journal, the spool, and the embedded queue and
// bucket, unless DANQING_DATA_DIR is set.
const DefaultDataDir = "./danqing-data"

// Config is the content of the environment and the accounts file. Load and LoadWithFile
// return it; they set defaults only for Accounts, DataDir and ConfirmAboveMicroYuan.
type Config struct {
	// Accounts are the accounts of the file, in its order, or the one that is described
	// by DASHSCOPE_API_KEY, DASHSCOPE_HTTP_BASE_URL, DASHSCOPE_WORKSPACE, DANQING_MODELS,
	// DANQING_CONCURRENCY, DANQING_DAILY_BUDGET and DANQING_PRICES. There is at least one.
	Accounts []Account

	RedisURL Secret // REDIS_URL, which may contain passwords; not set means the embedded queue
	// redisCertificates are the files of DANQING_REDIS_CA, DANQING_REDIS_CERT and
	// DANQING_REDIS_KEY.
	redisCertificates struct{ authorities, certificate, key string }

	AccessKeyID     string // AWS_ACCESS_KEY_ID
	SecretAccessKey Secret // AWS_SECRET_ACCESS_KEY
	SessionToken    Secret // AWS_SESSION_TOKEN
	Region          string // AWS_REGION, else AWS_DEFAULT_REGION
	Endpoint        string // AWS_ENDPOINT_URL_S3, else AWS_ENDPOINT_URL

	Bucket         string // DANQING_S3_BUCKET; "" means the embedded bucket
	Prefix         string // DANQING_S3_PREFIX
	KeyTemplate    string // DANQING_S3_KEY_TEMPLATE
	Addressing     string // DANQING_S3_ADDRESSING
	PublicURL      string // DANQING_S3_PUBLIC_URL
	PublicEndpoint string // DANQING_S3_PUBLIC_ENDPOINT

	DataDir string // DANQING_DATA_DIR

	Operator string // DANQING_OPERATOR; "" means the user of the machine

	// ConfirmAboveMicroYuan is DANQING_CONFIRM_ABOVE: what a command may spend without a
	// question, in millionths of a yuan; 10 yuan unless it is set.
	ConfirmAboveMicroYuan int64

	Serve     Serve
	Metrics   Metrics
	Callbacks Callbacks

	// Alerts are the receivers of DANQING_ALERT_URL.
	Alerts []*worker.AlertReceiver

	// SubmitLimit is DANQING_SUBMIT_LIMIT: how long after a create was sent the service
	// may still create its task; 0 is 330 s: the service's own 300 s and a margin.
	SubmitLimit time.Duration

	Models []string // the models of the first account's lanes

	// defaultModels is set if the models are not configured.
	defaultModels bool

	// Warnings are sentences for the operator about settings that are unusual but valid.
	Warnings []string
}

// Problem is one mistake in the configuration.
type Problem struct {
	// Variable is the variable's name, or a field's position in a file, such as
	// accounts.yaml:3: accounts[0].base_url.
	Variable string
	// Text contains the value, unless it may be secret, and what to do.
	Text string
}

// Error contains all problems, in a stable order.
type Error struct{ Problems []Problem }

// Error returns one line per problem, each beginning with the variable's name.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.Variable + " " + p.Text
	}
	return strings.Join(lines, "\n")
}

// Storage returns the bucket's configuration. If Bucket is "", only Prefix and KeyTemplate
// are set, for the embedded bucket; the AWS variables, which may be set for another
// program, are ignored.
func (c *Config) Storage() storage.Config {
	s := storage.Config{Prefix: c.Prefix, KeyTemplate: c.KeyTemplate}
	if c.Bucket == "" {
		return s
	}
	s.Bucket, s.Region, s.Endpoint, s.Addressing = c.Bucket, c.Region, c.Endpoint, c.Addressing
	s.AccessKeyID, s.SecretAccessKey, s.SessionToken = c.AccessKeyID, c.SecretAccessKey.Reveal(), c.SessionToken.Reveal()
	s.PublicURL, s.PublicEndpoint = c.PublicURL, c.PublicEndpoint
	return s
}

// CheckReal fails if the settings for a real run, which spends money, are incomplete.
func (c *Config) CheckReal() error {
	if !c.Accounts[0].APIKey.IsSet() { // accounts of a file always have one
		return &Error{[]Problem{{"DASHSCOPE_API_KEY", "is not set: set it to your key from the Model Studio (百炼) console, or use --simulate, which needs none"}}}
	}
	return nil
}

// CheckSimulate fails for a simulated run if a real queue or bucket is configured:
// simulated images must not be mixed with real ones.
func (c *Config) CheckSimulate() error {
	var e Error
	if c.RedisURL.IsSet() {
		e.Problems = append(e.Problems, Problem{"REDIS_URL", "is set: --simulate uses a queue of its own, so unset REDIS_URL or leave out --simulate"})
	}
	if c.Bucket != "" {
		e.Problems = append(e.Problems, Problem{"DANQING_S3_BUCKET", fmt.Sprintf("%q is set: --simulate uses a bucket of its own, so unset DANQING_S3_BUCKET or leave out --simulate", c.Bucket)})
	}
	if len(e.Problems) > 0 {
		return &e
	}
	return nil
}
