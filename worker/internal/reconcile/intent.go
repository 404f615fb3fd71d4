package reconcile

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// SubmitLimit is how long after its intent a create may still make a task: the
	// service's own limit of a request, 300 s (error-code page, RequestTimeOut), and 30 s
	// for the steps before the request is sent: the durable write of the intent, 10 s for
	// the connection and 10 s for TLS.
	SubmitLimit = 330 * time.Second
	// MaxIntentAge is the age at which an intent is held, whatever the list shows. The list
	// goes back 24 hours, and a task's images expire after 24 hours.
	MaxIntentAge = 23 * time.Hour
	// clockSlack is by how much two readings of the service's clock may differ: its Date
	// header has whole seconds. clockMargin replaces it where no Date was known.
	clockSlack  = 3 * time.Second
	clockMargin = 10 * time.Minute
)

// Timing holds the time limits for reconciling a create. All derive from the submit limit,
// so that tests and drills against a simulator are fast. Values below are with
// [SubmitLimit].
type Timing struct {
	// Limit is how long after its intent a create may make a task: 330 s.
	Limit time.Duration
	// Late is how long after its connection has ended a create may still reach the service:
	// 66 s. Proxies and load balancers give up on a request that they could not forward
	// after 60 s, the default of nginx, HAProxy's examples and AWS. The lane sends no other
	// create meanwhile.
	Late time.Duration
	// Prompt is how soon after its intent a create usually makes its task: 11 s. The
	// service replies within a second or two.
	Prompt time.Duration
	// Settled is how long after the create's connection has ended its only possible task is
	// adopted: 33 s. How soon the list shows a new task is not documented.
	Settled time.Duration
}

// TimingOf derives the timing from a submit limit; with the real service that is
// [SubmitLimit].
func TimingOf(limit time.Duration) Timing {
	return Timing{Limit: limit, Late: limit / 5, Prompt: limit / 30, Settled: limit / 10}
}

// Intent is a create whose outcome is or was unknown. Its times are on the service's clock.
type Intent struct {
	JobID   string    `json:"job_id"`
	Attempt int       `json:"attempt"`
	From    time.Time `json:"from"`  // nothing was sent earlier
	Until   time.Time `json:"until"` // when its connection ended
	// ClockUnknown is set if From or Until are on the worker's own clock.
	ClockUnknown bool `json:"clock_unknown,omitempty"`
	// KeyFingerprint is the API key's. ListWasClear is set if every task of that key was
	// explained before the intent.
	KeyFingerprint string `json:"key_fingerprint,omitempty"`
	ListWasClear   bool   `json:"list_was_clear,omitempty"`
	// CutShort is set if the create's reply was not awaited to the end: the service may
	// still be processing it.
	CutShort bool `json:"cut_short,omitempty"`
	// SentLater is set if the create may have been sent at any time between From and Until.
	SentLater bool `json:"sent_later,omitempty"`
	// Resubmitted is set once the job was submitted again, Held once the job is held.
	Resubmitted bool `json:"resubmitted,omitempty"`
	Held        bool `json:"held,omitempty"`
	// LateTaskFound is set once the task of a resubmitted intent was found: it created no
	// other.
	LateTaskFound bool `json:"late_task_found,omitempty"`
	// Fewer is set if the answer may have fewer than Images images: a group has at most so many,
	// and answers of image-generation have no place for an image that failed.
	Fewer bool `json:"fewer,omitempty"`
	// Images, Size and Prompt are from the request and distinguish its task from others.
	// Images is 0 if the request is unknown; Size is also "" with a reference image, when
	// the model may choose another size.
	Images int    `json:"images,omitempty"`
	Size   string `json:"size,omitempty"`
	Prompt string `json:"prompt,omitempty"`
	// RequestID is the service's ID of the create, "" if there was no reply.
	RequestID string `json:"request_id,omitempty"`
	// Rejected are tasks that the job had adopted and whose output did not match.
	Rejected []string `json:"rejected,omitempty"`
}

// IntentOf returns the intent of a record. Until is zero if the worker crashed during its
// create.
func IntentOf(rec *jobs.Record) Intent {
	i := Intent{
		JobID: rec.ID, Attempt: rec.Attempt, From: rec.ServiceAt, Until: rec.AmbiguousAt,
		KeyFingerprint: rec.KeyFingerprint, ListWasClear: !rec.ListedAt.IsZero(), RequestID: rec.RequestID, Rejected: rec.Rejected,
		CutShort: rec.CutShort, SentLater: rec.SentLater,
	}
	if i.From.IsZero() {
		i.From, i.ClockUnknown = rec.SubmittedAt, true
	}
	if rec.Request != nil {
		i.Images, i.Size, i.Prompt = len(rec.Missing()), rec.Request.Size, rec.Request.Prompt
		model, err := jobs.LookupModel(rec.Model)
		i.Fewer = err == nil && model.Protocol == jobs.ProtocolImageGeneration
		if len(rec.Request.References()) > 0 || !strings.Contains(i.Size, "*") {
			i.Size = "" // the image may have another size, or its size is a name
		}
	}
	return i
}

// DecodeIntent decodes an intent from JSON.
func DecodeIntent(encoded string) (i Intent, err error) {
	err = json.Unmarshal([]byte(encoded), &i)
	if err == nil && (i.JobID == "" || i.From.IsZero()) {
		err = errors.New("intent without job_id or from")
	}
	return i, err
}

func (i Intent) slack() time.Duration {
	if i.ClockUnknown {
		return clockMargin
	}
	return clockSlack
}

// Open reports whether the intent is unsettled.
func (i Intent) Open() bool { return !i.Resubmitted && !i.Held }

// CouldHaveCreated reports whether the intent may have created the task, however late its
// request arrived: within limit and ten minutes more.
func (i Intent) CouldHaveCreated(task dashscope.TaskInfo, limit time.Duration) bool {
	return i.createdWithin(task, limit+clockMargin)
}

// sentBy is the latest time at which the create can have been sent.
func (i Intent) sentBy() time.Time {
	if i.SentLater {
		return i.Until
	}
	return i.From
}

// LimitOver returns when no task of the intent can be created any more.
func (i Intent) LimitOver(t Timing) time.Time { return i.sentBy().Add(t.Limit) }

// createdWithin reports whether the task was created after the intent and within d of it.
func (i Intent) createdWithin(task dashscope.TaskInfo, d time.Duration) bool {
	made := time.UnixMilli(task.GmtCreate)
	return !made.Before(i.From.Add(-i.slack())) && !made.After(i.sentBy().Add(d+i.slack())) && !slices.Contains(i.Rejected, task.TaskID)
}

// justBefore reports whether the task was created so shortly before the intent that clock
// error may explain it.
func (i Intent) justBefore(task dashscope.TaskInfo) bool {
	made := time.UnixMilli(task.GmtCreate)
	return made.Before(i.From) && made.After(i.From.Add(-clockMargin))
}

// QuietAt returns when the lane may send another create although this intent is unsettled.
func (i Intent) QuietAt(t Timing) time.Time { return i.expectedUntil(t).Add(2 * i.slack()) }

// expectedUntil returns when no task of the intent is expected any more. A request whose
// reply was not awaited has the whole limit.
func (i Intent) expectedUntil(t Timing) time.Time {
	last := i.Until.Add(t.Late)
	if limit := i.LimitOver(t); i.CutShort && limit.After(last) {
		return limit
	}
	return last
}

// likelierCreatorThan reports whether a task that both intents may have created is most
// likely i's: it was created soon after i, and so long after other's connection ended that
// a late arrival of other is implausible.
func (i Intent) likelierCreatorThan(other Intent, task dashscope.TaskInfo, t Timing) bool {
	return !i.SentLater && i.createdWithin(task, t.Prompt) && time.UnixMilli(task.GmtCreate).After(other.expectedUntil(t).Add(other.slack()))
}
