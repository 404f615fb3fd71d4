package dashboard

import (
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// event is what happened to a job at a time. What is a message of the page.
type event struct {
	At      time.Time
	What    string
	Attempt int
	Task    string
	Detail  string // a code and a sentence, or a reason
	By      string // who decided it
	Tone    string
}

// timeline returns what happened to a job, in order.
func timeline(job *jobs.Job) []event {
	var list []event
	add := func(e event) {
		if !e.At.IsZero() {
			list = append(list, e)
		}
	}
	add(event{At: job.EnqueuedAt, What: "enqueued"})
	current := !job.State.Waiting()
	for _, a := range job.PastAttempts {
		add(event{At: a.SubmittedAt, What: "submitted", Attempt: a.Attempt, Task: a.TaskID})
		ended := event{At: a.EndedAt, What: "attempt_ended", Attempt: a.Attempt, Detail: reason(a.Code, a.Message), Tone: "bad"}
		if a.Images > 0 {
			ended.Tone = "good"
		}
		add(ended)
		current = current && a.Attempt != job.Attempt
	}
	if current {
		add(event{At: job.SubmittedAt, What: "submitted", Attempt: job.Attempt, Task: job.TaskID, Tone: "busy"})
		add(event{At: job.RunningAt, What: "running", Attempt: job.Attempt, Tone: "busy"})
		add(event{At: job.GeneratedAt, What: "generated", Attempt: job.Attempt, Tone: "busy"})
	}
	add(event{At: job.CancelRequestedAt, What: "cancel_requested"})
	for _, decision := range job.Decisions {
		add(event{At: decision.At, What: "decided_" + decision.Action, By: decision.By, Detail: decision.Why, Tone: "warn"})
	}
	switch why := reason(job.Code, job.Message); {
	case job.State.Final():
		add(event{At: job.FinishedAt, What: "state_" + string(job.State), Detail: why, Tone: tone(job.State)})
	case why != "" || job.State == jobs.StateStoring || job.State == jobs.StateHeld:
		add(event{At: job.UpdatedAt, What: "state_" + string(job.State), Detail: why, Tone: tone(job.State)})
	}
	slices.SortStableFunc(list, func(a, b event) int { return a.At.Compare(b.At) })
	return list
}

func reason(code, message string) string { return strings.Trim(code+": "+message, ": ") }
