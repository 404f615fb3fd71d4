package worker

import (
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// submitLimit is how long after an intent a task may still come of it: the service's
	// own limit of a request, 300 s (error-code page, RequestTimeOut), and 30 s for what
	// lies before the request is sent: the durable write of the intent, 10 s for the
	// connection and 10 s for TLS.
	submitLimit = 330 * time.Second
	// maxIntentAge is the age of an intent that nothing is decided about any more: the
	// list holds 24 hours, and a task's images live as long.
	maxIntentAge = 23 * time.Hour
	// clockSlack is what two readings of the service's clock may differ by: its Date
	// has whole seconds. clockMargin stands in for it where no Date was known.
	clockSlack  = 3 * time.Second
	clockMargin = 10 * time.Minute
)

// timing says how long what may happen to a create may take. All are shares of the
// submit limit, so that tests and drills against a simulator can be quick.
type timing struct {
	// limit is how long after its intent a create may make a task.
	limit time.Duration
	// late is how long after its connection has ended a create is still expected to
	// reach the service: 66 s. Proxies and load balancers give up what they could not
	// forward after 60 s, the default of nginx, HAProxy's examples and AWS alike. The
	// lane sends no other create meanwhile.
	late time.Duration
	// prompt is how soon after its intent a create usually makes its task: 11 s. The
	// service answers within a second or two.
	prompt time.Duration
	// settled is how long after its connection has ended the only task that can be a
	// create's is adopted: 33 s. How soon the list shows a new task is not documented.
	settled time.Duration
}

func timingOf(limit time.Duration) timing {
	return timing{limit: limit, late: limit / 5, prompt: limit / 30, settled: limit / 10}
}

// intent is a create whose outcome is unknown, or was. Its times are the service's.
type intent struct {
	JobID        string    `json:"job_id"`
	Attempt      int       `json:"attempt"`
	From         time.Time `json:"from"`  // nothing was sent before
	Until        time.Time `json:"until"` // when no answer was waited for any more
	ClockUnknown bool      `json:"clock_unknown,omitempty"`
	// Mark is the key's, and Listed says that no task of that key was unowned before.
	KeyFingerprint string `json:"key_fingerprint,omitempty"`
	ListWasClear   bool   `json:"list_was_clear,omitempty"`
	// NotMade says that it was bought again, and Held that its job is held.
	Resubmitted bool `json:"resubmitted,omitempty"`
	Held        bool `json:"held,omitempty"`
	// Late says that it was bought again, and its task showed up since: it has made no
	// other.
	LateTaskFound bool `json:"late_task_found,omitempty"`
	// Images, Size and Prompt are what was asked for: they tell its task from others.
	Images int    `json:"images,omitempty"`
	Size   string `json:"size,omitempty"`
	Prompt string `json:"prompt,omitempty"`
	// RequestID is the service's name of the create, if its answer had one.
	RequestID string `json:"request_id,omitempty"`
	// Rejected are tasks that the job had adopted and that have made something else.
	Rejected []string `json:"rejected,omitempty"`
}

// intentFrom is what a record alone tells of its intent.
func intentFrom(rec *jobs.Record) intent {
	i := intent{
		JobID: rec.ID, Attempt: rec.Attempt, From: rec.ServiceAt, Until: rec.DoubtAt,
		KeyFingerprint: rec.KeyMark, ListWasClear: !rec.ListedAt.IsZero(), RequestID: rec.RequestID, Rejected: rec.Rejected,
	}
	if i.From.IsZero() {
		i.From, i.ClockUnknown = rec.SubmittedAt, true
	}
	if rec.Request != nil {
		i.Images, i.Size, i.Prompt = len(rec.Missing()), rec.Request.Size, rec.Request.Prompt
	}
	return i
}

// intentOf is the intent of a record. A worker that died in the middle of its create did
// not say until when it waited: nobody waits for longer than the service's own limit.
func (l *lane) intentOf(rec *jobs.Record) intent {
	i := intentFrom(rec)
	now, known := l.account.serviceNow()
	if i.Until.IsZero() {
		i.Until = now
	}
	if last := i.From.Add(l.submitLimit()); i.Until.After(last) {
		i.Until = last
	}
	i.ClockUnknown = i.ClockUnknown || !known
	return i
}

func decodeIntent(encoded string) (i intent, err error) {
	err = json.Unmarshal([]byte(encoded), &i)
	if err == nil && (i.JobID == "" || i.From.IsZero()) {
		err = errors.New("no intent")
	}
	return i, err
}

func (i intent) slack() time.Duration {
	if i.ClockUnknown {
		return clockMargin
	}
	return clockSlack
}

// open reports whether nothing was decided about it yet.
func (i intent) open() bool { return !i.Resubmitted && !i.Held }

// mayHaveMade reports whether the task can be the create's at all, however late its
// request arrived and whatever its service thinks of limits.
func (i intent) couldHaveCreated(task dashscope.TaskInfo, limit time.Duration) bool {
	return i.createdWithin(task, limit+clockMargin)
}

// madeWithin reports whether the task was made after the intent, and within d of it.
func (i intent) createdWithin(task dashscope.TaskInfo, d time.Duration) bool {
	made := time.UnixMilli(task.GmtCreate)
	return !made.Before(i.From.Add(-i.slack())) && !made.After(i.From.Add(d+i.slack())) && !slices.Contains(i.Rejected, task.TaskID)
}

// nearly reports whether the task was made so shortly before the create that the clocks
// may be to blame.
func (i intent) justBefore(task dashscope.TaskInfo) bool {
	made := time.UnixMilli(task.GmtCreate)
	return made.Before(i.From) && made.After(i.From.Add(-clockMargin))
}

// quietAt is when the lane may send another create although this one is not settled.
func (i intent) quietAt(t timing) time.Time { return i.Until.Add(t.late + 2*i.slack()) }

// likelierThan reports whether a task that two creates may have made is for all that
// is plausible the one's: made right after it was sent, and so long after the other's
// connection had ended that nothing of that is expected any more.
func (i intent) likelierCreatorThan(other intent, task dashscope.TaskInfo, t timing) bool {
	return i.createdWithin(task, t.prompt) && time.UnixMilli(task.GmtCreate).After(other.Until.Add(t.late+other.slack()))
}

// makers returns the intents that may have made a task, as far as times, answers and
// what the task has made tell. What was bought again, or is held, is settled: no task of
// it is expected after the limit.
func (view *snapshot) creators(task dashscope.TaskInfo, t timing) []intent {
	var possible []intent
	for _, i := range view.intents {
		within := t.limit
		if i.open() || i.Held && view.kept[task.TaskID] {
			within += clockMargin
		}
		if i.RequestID != "" && i.RequestID == task.RequestID {
			return []intent{i}
		}
		if i.createdWithin(task, within) {
			possible = append(possible, i)
		}
	}
	possible = view.contents[task.TaskID].narrow(possible)
	return slices.DeleteFunc(slices.Clone(possible), func(i intent) bool {
		return slices.ContainsFunc(possible, func(o intent) bool { return o.JobID != i.JobID && o.likelierCreatorThan(i, task, t) })
	})
}

// verdict is what becomes of an intent.
type decision int

const (
	undecided  decision = iota
	adopt               // the first candidate is its task
	notCreated          // none was made
	hold                // a person must look at the candidates
)

// decide tells what became of an intent, from the account's tasks that nobody owns
// and the other intents that may have made them. keyID is that of the intent's key,
// "" if it is not known.
//
// A task is the intent's only if nothing else is possible: it bears the key, it was
// not there before, no other job's intent can have made it, and no other program has
// been seen with the key (whose tasks are unowned too). A task that another open intent
// may have made is contested until that one is settled.
func decide(me intent, view *snapshot, keyID string, t timing, now time.Time) (decision, []dashscope.TaskInfo) {
	var mine, contested, near []dashscope.TaskInfo
	foreign, waiting := false, now.Sub(me.From) < t.limit || now.Sub(me.Until) < t.settled
	for _, task := range view.unowned {
		if me.RequestID != "" && task.RequestID == me.RequestID {
			return adopt, []dashscope.TaskInfo{task}
		}
		if keyID != "" && task.APIKeyID != keyID {
			continue
		}
		makers := view.creators(task, t)
		own := func(i intent) bool { return i.JobID == me.JobID && (i.Attempt == me.Attempt || i.Resubmitted) }
		rivals := slices.DeleteFunc(slices.Clone(makers), func(i intent) bool { return i.JobID == me.JobID })
		switch {
		case slices.Contains(me.Rejected, task.TaskID) && len(rivals) == 0:
			// It bears the key, and nobody else asked for it: what it has made may be ours
			// after all.
			contested = append(contested, task)
		case !slices.ContainsFunc(makers, own):
		case len(rivals) == 0:
			mine = append(mine, task)
			continue
		case task.Status == dashscope.StatusFailed, task.Status == dashscope.StatusCanceled:
			continue // it has cost nothing, and made nothing
		default:
			contested = append(contested, task)
			waiting = waiting || slices.ContainsFunc(rivals, func(i intent) bool { return i.open() && now.Sub(i.From) < t.limit })
			continue
		}
		known := slices.ContainsFunc(view.intents, func(i intent) bool { return i.couldHaveCreated(task, t.limit) })
		if !known && !view.kept[task.TaskID] {
			foreign = true
			if me.justBefore(task) {
				near = append(near, task)
			}
		}
	}
	candidates := slices.Concat(mine, contested)
	switch certain := keyID != "" && me.ListWasClear && !foreign && len(mine) == 1; {
	case now.Sub(me.From) > maxIntentAge:
		return hold, candidates
	case certain && now.Sub(me.Until) >= t.settled:
		return adopt, mine
	case waiting, certain:
		return undecided, candidates
	case len(candidates) > 0:
		return hold, candidates
	case len(near) > 0:
		return hold, near
	case slices.ContainsFunc(view.unverified, func(task dashscope.TaskInfo) bool { return me.couldHaveCreated(task, t.limit) }):
		return undecided, nil // another job has adopted it, which may turn out wrong
	}
	return notCreated, nil
}
