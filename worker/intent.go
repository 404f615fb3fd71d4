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
	// submitLimit is how long the service may take over a create: its own limit of a
	// request (error-code page, RequestTimeOut). After that no task comes of it.
	submitLimit = 300 * time.Second
	// doubtMost is the age of an intent that nothing is decided about any more: the
	// list holds 24 hours, and a task's images live as long.
	doubtMost = 23 * time.Hour
	// clockSlack is what two readings of the service's clock may differ by: its Date
	// has whole seconds. clockMargin stands in for it where no Date was known.
	clockSlack  = 3 * time.Second
	clockMargin = 10 * time.Minute
)

// intent is a create whose outcome is unknown, or was. Its times are the service's.
type intent struct {
	JobID   string    `json:"job_id"`
	Attempt int       `json:"attempt"`
	From    time.Time `json:"from"`  // nothing was sent before
	Until   time.Time `json:"until"` // when no answer was waited for any more
	Slack   bool      `json:"slack,omitempty"`
	// Mark is the key's, and Listed says that no task of that key was unowned before.
	Mark   string `json:"mark,omitempty"`
	Listed bool   `json:"listed,omitempty"`
	// NotMade says that it was bought again, and Held that its job is held.
	NotMade bool `json:"not_made,omitempty"`
	Held    bool `json:"held,omitempty"`
	// Late says that it was bought again, and its task showed up since: it has made no
	// other.
	Late bool `json:"late,omitempty"`
}

// intentOf is the intent of a record. A worker that died in the middle of its create did
// not say until when it waited: nobody waits for longer than the service's own limit.
func (l *lane) intentOf(rec *jobs.Record) intent {
	i := intent{
		JobID: rec.ID, Attempt: rec.Attempt, From: rec.ServiceAt, Until: rec.DoubtAt,
		Mark: rec.KeyMark, Listed: !rec.ListedAt.IsZero(),
	}
	now, known := l.account.serviceNow()
	if i.From.IsZero() {
		i.From, i.Slack = rec.SubmittedAt, true
	}
	if i.Until.IsZero() {
		i.Until = now
	}
	if last := i.From.Add(l.submitLimit()); i.Until.After(last) {
		i.Until = last
	}
	i.Slack = i.Slack || !known
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
	if i.Slack {
		return clockMargin
	}
	return clockSlack
}

func (i intent) same(other intent) bool { return i.JobID == other.JobID && i.Attempt == other.Attempt }

// underWay reports whether the create was on its way when the task was made.
func (i intent) underWay(task dashscope.TaskInfo) bool {
	made := time.UnixMilli(task.GmtCreate)
	return !made.Before(i.From.Add(-i.slack())) && !made.After(i.Until.Add(i.slack()))
}

// mayHaveMade reports whether the task can be the create's at all: it may have been
// held up somewhere on its way.
func (i intent) mayHaveMade(task dashscope.TaskInfo, limit time.Duration) bool {
	made := time.UnixMilli(task.GmtCreate)
	return !made.Before(i.From.Add(-i.slack())) && made.Before(i.From.Add(limit+clockMargin))
}

// nearly reports whether the task was made so shortly before the create that the clocks
// may be to blame.
func (i intent) nearly(task dashscope.TaskInfo) bool {
	made := time.UnixMilli(task.GmtCreate)
	return made.Before(i.From) && made.After(i.From.Add(-clockMargin))
}

// verdict is what becomes of an intent.
type verdict int

const (
	undecided verdict = iota
	adoptTask         // the first candidate is its task
	noTask            // none was made
	holdJob           // a person must look at the candidates
)

// decide tells what became of an intent, from the account's tasks that nobody owns
// and the other intents that may have made them. keyID is that of the intent's key,
// "" if it is not known; requestID is the one in the service's answer, if it had one.
//
// A task is the intent's only if nothing else is possible: it bears the key, it was
// not there before, no other intent can have made it, and no other program has been
// seen with the key (whose tasks are unowned too). A task that was made while exactly
// one create was on its way is that one's.
func decide(me intent, view *listing, keyID, requestID string, limit, settled time.Duration, now time.Time) (verdict, []dashscope.TaskInfo) {
	var mine, late, contested, near []dashscope.TaskInfo
	foreign := false
	for _, task := range view.unowned {
		if requestID != "" && task.RequestID == requestID {
			return adoptTask, []dashscope.TaskInfo{task}
		}
		if keyID != "" && task.APIKeyID != keyID {
			continue
		}
		others := func(made func(intent) bool) bool {
			return slices.ContainsFunc(view.intents, func(i intent) bool { return !i.same(me) && made(i) })
		}
		underWay := others(func(i intent) bool { return i.underWay(task) })
		possible := others(func(i intent) bool { return i.mayHaveMade(task, limit) })
		switch {
		case me.underWay(task) && underWay:
			contested = append(contested, task)
		case me.underWay(task):
			mine = append(mine, task)
		case underWay:
		case me.mayHaveMade(task, limit) && possible:
			contested = append(contested, task)
		case me.mayHaveMade(task, limit):
			late = append(late, task)
		case !possible && !view.kept[task.TaskID]:
			foreign = true
			if me.nearly(task) {
				near = append(near, task)
			}
		}
	}
	candidates := slices.Concat(mine, late, contested)
	age := now.Sub(me.From)
	switch certain := keyID != "" && me.Listed && !foreign && len(candidates) == 1 && len(contested) == 0; {
	case age > doubtMost:
		return holdJob, candidates
	case certain && now.Sub(me.Until) >= settled:
		return adoptTask, candidates
	case age < limit, certain:
		return undecided, candidates
	case len(candidates) > 0:
		return holdJob, candidates
	case len(near) > 0:
		return holdJob, near
	}
	return noTask, nil
}
