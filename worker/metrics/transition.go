package metrics

import (
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Transition counts a change of a job's record. Each is written once, by compare-and-set, so that
// it is counted once, by all processes together.
func (m *Metrics) Transition(old, next *jobs.Record) {
	m.settled(old, next)
	if old.State == jobs.StateGenerating {
		m.taskEnded(next)
	}
	switch {
	case next.State == old.State:
	case next.State == jobs.StateGenerating && old.State == jobs.StateSubmitting && len(next.PastAttempts) == 0:
		m.stage(next, "queued", max(0, next.SubmittedAt.Sub(laterOf(next.EnqueuedAt, next.NotBefore))))
	case next.State == jobs.StateStoring:
		m.stage(next, "generating", next.GeneratedAt.Sub(next.SubmittedAt))
		for _, result := range next.Results {
			m.moderated(next.Model, result.Code, "output")
		}
	case next.State == jobs.StateHeld || next.State.Final():
		m.over(old, next)
	}
}

func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (m *Metrics) stage(rec *jobs.Record, stage string, took time.Duration) {
	m.stages.WithLabelValues(rec.Model, stage).Observe(took.Seconds())
}

// settled counts creates whose outcome became unknown, and known again.
func (m *Metrics) settled(old, next *jobs.Record) {
	outcome := ""
	switch {
	case next.State == jobs.StateSubmitting && !next.AmbiguousAt.IsZero() && (old.AmbiguousAt.IsZero() || old.State != next.State):
		outcome = "open"
	case old.State != jobs.StateSubmitting || old.AmbiguousAt.IsZero():
		return
	case next.State == jobs.StateGenerating:
		outcome = "adopted"
	case next.State == jobs.StateHeld:
		outcome = "held"
	case len(next.PastAttempts) > len(old.PastAttempts):
		outcome = "not_created"
	}
	if outcome != "" {
		m.ambiguous.WithLabelValues(next.Account, next.Model, outcome).Inc()
	}
}

// taskEnded counts the task of a job that was generating, if the record has no task any more, or
// its outcome.
func (m *Metrics) taskEnded(next *jobs.Record) {
	outcome := map[jobs.State]string{
		jobs.StateStoring: "succeeded", jobs.StateRetrying: "failed", jobs.StateFailed: "failed", jobs.StateCanceled: "canceled", jobs.StateHeld: "unknown",
	}[next.State]
	if outcome != "" {
		m.tasks.WithLabelValues(next.Account, next.Model, outcome).Inc()
	}
}

// over counts a job that has ended or is held, and its images that were stored since the last
// record.
func (m *Metrics) over(old, next *jobs.Record) {
	m.ended.WithLabelValues(next.Model, string(next.State)).Inc()
	had := map[string]bool{}
	for _, image := range old.Images {
		had[image.Key] = true
	}
	for _, image := range next.Images {
		if image.Key != "" && !had[image.Key] {
			m.storedImages.WithLabelValues(next.Account, next.Model).Inc()
			m.storedBytes.WithLabelValues(next.Account, next.Model).Add(float64(image.Bytes))
		}
	}
	switch next.State {
	case jobs.StateSucceeded:
		if old.State == jobs.StateStoring {
			m.stage(next, "storing", next.FinishedAt.Sub(next.GeneratedAt))
		}
		m.stage(next, "total", next.FinishedAt.Sub(laterOf(laterOf(next.EnqueuedAt, next.NotBefore), next.RetriedAt)))
	case jobs.StateFailed, jobs.StateHeld:
		m.failures.WithLabelValues(next.Model, codeLabel(next.Code)).Inc()
		stage := "input" // at the create
		if old.State == jobs.StateGenerating && !strings.Contains(next.Message, "Input") {
			stage = "output"
		}
		m.moderated(next.Model, next.Code, stage)
	default:
	}
}

func (m *Metrics) moderated(model, code, stage string) {
	if dashscope.IsModeration(code) {
		m.refusals.WithLabelValues(model, stage).Inc()
	}
}
