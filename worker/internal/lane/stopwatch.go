package lane

import (
	"context"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/pollschedule"
)

// stopwatch measures how long a task takes, as the lane sees it: from the reply to its
// create until a query sent at that moment shows that it has ended.
type stopwatch struct {
	started time.Time
	// before and last are when the last query but one and the last query were sent.
	before, last time.Time
	// roundTrip is the shortest time from a query to its reply, 0 before the first.
	roundTrip time.Duration
}

// startStopwatch starts the stopwatch of a job's task. A task of an earlier term started
// when its create was recorded, but not in the future: that clock was ahead of this one.
func (l *lane) startStopwatch(rec *jobs.Record) *stopwatch {
	started, _ := l.tasks.LoadOrStore(rec.TaskID, rec.SubmittedAt)
	at, _ := started.(time.Time)
	if now := time.Now(); at.After(now) {
		at = now
	}
	return &stopwatch{started: at, before: at, last: at}
}

// querying records that a query is sent now.
func (s *stopwatch) querying() { s.before, s.last = s.last, time.Now() }

// age returns the task's age now. After a query it also measures the round trip.
func (s *stopwatch) age() time.Duration {
	if took := time.Since(s.last); s.last.After(s.started) && (s.roundTrip == 0 || took < s.roundTrip) {
		s.roundTrip = took
	}
	return time.Since(s.started)
}

// duration returns how long a task took that the last query has shown to have ended, at the
// latest when that was sent and no earlier than the query before. The service's own times
// tell when between, less the round trip: the service sees a query that was sent then as
// late as it has sent the create's reply early.
func (s *stopwatch) duration(task *dashscope.Task) time.Duration {
	least, most := s.before.Sub(s.started), s.last.Sub(s.started)
	submitted, err := dashscope.ParseTime(task.Output.SubmitTime)
	ended, endErr := dashscope.ParseTime(task.Output.EndTime)
	if err != nil || endErr != nil {
		return (least + most) / 2
	}
	return min(max(ended.Sub(submitted)-s.roundTrip, least), most)
}

// pollSchedule returns when to query a job's task, by how long the last ones took. Without
// Redis it goes by nothing.
func (l *lane) pollSchedule(ctx context.Context, rec *jobs.Record) *pollschedule.Schedule {
	durations, err := l.recorder.Store.Durations(ctx, l.taskKind(rec))
	if err != nil {
		l.log.Debug("durations unknown", "job_id", rec.ID, "err", err)
	}
	return pollschedule.New(durations)
}

// taskKind returns the kind of a job's task.
func (l *lane) taskKind(rec *jobs.Record) jobs.TaskKind {
	kind := jobs.TaskKind{Model: l.cfg.Model.Name, Size: l.cfg.Model.Sizes.Default, N: len(rec.Missing())}
	if rec.Request != nil && rec.Request.Size != "" {
		kind.Size = rec.Request.Size
	}
	return kind
}
