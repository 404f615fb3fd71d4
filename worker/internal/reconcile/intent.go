package reconcile

import (
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// SubmitLimit is how long after an intent a task may still come of it: the service's
	// own limit of a request, 300 s (error-code page, RequestTimeOut), and 30 s for what
	// lies before the request is sent: the durable write of the intent, 10 s for the
	// connection and 10 s for TLS.
	SubmitLimit = 330 * time.Second
	// MaxIntentAge is the age at which an intent is held, whatever the list shows: the
	// list goes back 24 hours, and a task's images live as long.
	MaxIntentAge = 23 * time.Hour
	// clockSlack is what two readings of the service's clock may differ by: its Date
	// has whole seconds. clockMargin stands in for it where no Date was known.
	clockSlack  = 3 * time.Second
	clockMargin = 10 * time.Minute
)

// Timing bounds what may happen to a create. All of it derives from the submit limit, so
// that tests and drills against a simulator are fast.
type Timing struct {
	// Limit is how long after its intent a create may make a task.
	Limit time.Duration
	// Late is how long after its connection has ended a create is still expected to
	// reach the service: 66 s. Proxies and load balancers give up what they could not
	// forward after 60 s, the default of nginx, HAProxy's examples and AWS alike. The
	// lane sends no other create meanwhile.
	Late time.Duration
	// Prompt is how soon after its intent a create usually makes its task: 11 s. The
	// service answers within a second or two.
	Prompt time.Duration
	// Settled is how long after its connection has ended the only task that can be a
	// create's is adopted: 33 s. How soon the list shows a new task is not documented.
	Settled time.Duration
}

// TimingOf derives the timing from a submit limit, which is [SubmitLimit] with the real
// service.
func TimingOf(limit time.Duration) Timing {
	return Timing{Limit: limit, Late: limit / 5, Prompt: limit / 30, Settled: limit / 10}
}

// Intent is a create whose outcome is unknown, or was. Its times are by the service's
// clock.
type Intent struct {
	JobID        string    `json:"job_id"`
	Attempt      int       `json:"attempt"`
	From         time.Time `json:"from"`  // nothing was sent earlier
	Until        time.Time `json:"until"` // when its connection ended
	ClockUnknown bool      `json:"clock_unknown,omitempty"`
	// ClockUnknown is set where From or Until are by the worker's own clock.
	// KeyFingerprint is that of the API key; ListWasClear is set if every task of that key
	// was explained before the intent.
	KeyFingerprint string `json:"key_fingerprint,omitempty"`
	ListWasClear   bool   `json:"list_was_clear,omitempty"`
	// Resubmitted is set once its job was bought again, Held once its job is held.
	Resubmitted bool `json:"resubmitted,omitempty"`
	Held        bool `json:"held,omitempty"`
	// LateTaskFound is set once the task of a resubmitted intent was found: it has created
	// no other.
	LateTaskFound bool `json:"late_task_found,omitempty"`
	// Images, Size and Prompt are the request: they tell its task from others.
	Images int    `json:"images,omitempty"`
	Size   string `json:"size,omitempty"`
	Prompt string `json:"prompt,omitempty"`
	// RequestID is the service's ID of the create, if its answer had one.
	RequestID string `json:"request_id,omitempty"`
	// Rejected are tasks that the job had adopted and whose output did not match.
	Rejected []string `json:"rejected,omitempty"`
}

// IntentOf returns the intent of a record, as far as the record tells: Until is zero for a
// worker that died in the middle of its create.
func IntentOf(rec *jobs.Record) Intent {
	i := Intent{
		JobID: rec.ID, Attempt: rec.Attempt, From: rec.ServiceAt, Until: rec.AmbiguousAt,
		KeyFingerprint: rec.KeyFingerprint, ListWasClear: !rec.ListedAt.IsZero(), RequestID: rec.RequestID, Rejected: rec.Rejected,
	}
	if i.From.IsZero() {
		i.From, i.ClockUnknown = rec.SubmittedAt, true
	}
	if rec.Request != nil {
		i.Images, i.Size, i.Prompt = len(rec.Missing()), rec.Request.Size, rec.Request.Prompt
	}
	return i
}

// DecodeIntent reads an intent from JSON.
func DecodeIntent(encoded string) (i Intent, err error) {
	err = json.Unmarshal([]byte(encoded), &i)
	if err == nil && (i.JobID == "" || i.From.IsZero()) {
		err = errors.New("no intent")
	}
	return i, err
}

func (i Intent) slack() time.Duration {
	if i.ClockUnknown {
		return clockMargin
	}
	return clockSlack
}

// Open reports whether the intent is not settled.
func (i Intent) Open() bool { return !i.Resubmitted && !i.Held }

// CouldHaveCreated reports whether the intent may have created the task, however late its
// request arrived: within limit and ten minutes more.
func (i Intent) CouldHaveCreated(task dashscope.TaskInfo, limit time.Duration) bool {
	return i.createdWithin(task, limit+clockMargin)
}

// createdWithin reports whether the task was created after the intent, and within d of it.
func (i Intent) createdWithin(task dashscope.TaskInfo, d time.Duration) bool {
	made := time.UnixMilli(task.GmtCreate)
	return !made.Before(i.From.Add(-i.slack())) && !made.After(i.From.Add(d+i.slack())) && !slices.Contains(i.Rejected, task.TaskID)
}

// justBefore reports whether the task was created so shortly before the intent that clock
// error may explain it.
func (i Intent) justBefore(task dashscope.TaskInfo) bool {
	made := time.UnixMilli(task.GmtCreate)
	return made.Before(i.From) && made.After(i.From.Add(-clockMargin))
}

// QuietAt is when the lane may send another create although this one is not settled.
func (i Intent) QuietAt(t Timing) time.Time { return i.Until.Add(t.Late + 2*i.slack()) }

// likelierCreatorThan reports whether a task that two intents may have created belongs to
// i for all that is plausible: it was created right after i, and so long after the other's
// connection ended that a late arrival of that is implausible.
func (i Intent) likelierCreatorThan(other Intent, task dashscope.TaskInfo, t Timing) bool {
	return i.createdWithin(task, t.Prompt) && time.UnixMilli(task.GmtCreate).After(other.Until.Add(t.Late+other.slack()))
}
