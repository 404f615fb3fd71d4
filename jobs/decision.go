package jobs

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The actions of a [Decision].
const (
	ActionRetry    = "retry"
	ActionCancel   = "cancel"
	ActionAdopt    = "adopt"
	ActionBuyAgain = "buy-again"
	ActionGiveUp   = "give-up"
	ActionPause    = "pause"
	ActionResume   = "resume"
)

// Decision is what a person has decided about a job, an account or a model. Redis and the
// sidecar keep it.
type Decision struct {
	Action string    `json:"action"`        // one of the Action constants
	By     string    `json:"by,omitempty"`  // a user or the name of a token; "" if the caller did not say
	Why    string    `json:"why,omitempty"` // "" if no reason was given
	At     time.Time `json:"at"`
}

// Decider is who makes a decision, and why. Both may be "".
type Decider struct {
	By  string // the name of a user or a token, at most 100 characters
	Why string // one line for people, at most 500 characters
	// Seen is the [Job.UpdatedAt] that the decision is about, zero for any. A job that has
	// changed since is neither resolved nor retried: [ErrInvalidState]. So a decision that is
	// sent twice is not made about a later hold.
	Seen time.Time
}

// checkSeen fails if the job has changed since it was seen.
func (d Decider) checkSeen(job *Job) error {
	if d.Seen.IsZero() || d.Seen.Equal(job.UpdatedAt) {
		return nil
	}
	return fmt.Errorf("%w: it has changed at %s, since it was seen: look at it again", ErrInvalidState, job.UpdatedAt.Format(time.RFC3339))
}

const (
	maxByRunes  = 100
	maxWhyRunes = 500
	// maxDecisions limits the decisions of a job, the newest ones. Nobody decides about one
	// job more often, unless a program does.
	maxDecisions = 20
)

// Validate fails with a [FieldError] if By or Why is too long or has more than one line.
func (d Decider) Validate() error {
	for _, field := range []struct {
		name, value string
		most        int
	}{{"by", d.By, maxByRunes}, {"why", d.Why, maxWhyRunes}} {
		if !utf8.ValidString(field.value) || utf8.RuneCountInString(field.value) > field.most || strings.ContainsFunc(field.value, unicode.IsControl) {
			return FieldError{Field: field.name, Value: show(field.value), Allowed: fmt.Sprintf("one line of at most %d characters", field.most)}
		}
	}
	return nil
}

// decision returns the decision that is made now. It fails with a [FieldError].
func (d Decider) decision(action string) (Decision, error) {
	if err := d.Validate(); err != nil {
		return Decision{}, err
	}
	return Decision{Action: action, By: d.By, Why: d.Why, At: time.Now().UTC()}, nil
}

// Decide adds a decision to the job, unless it has it.
func (j *Job) Decide(made Decision) {
	for _, d := range j.Decisions {
		if d.Action == made.Action && d.At.Equal(made.At) {
			return
		}
	}
	list := append(slices.Clip(j.Decisions), made)
	j.Decisions = list[max(0, len(list)-maxDecisions):]
}
