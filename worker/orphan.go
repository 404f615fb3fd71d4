package worker

import (
	"context"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// orphanEarly and orphanLate bound when the service may have made the task of an
	// ambiguous create, around its intent: clocks differ, and a create is given up
	// after a minute.
	orphanEarly = 10 * time.Second
	orphanLate  = 90 * time.Second
	// orphanLooks is how often in a row no such task must be seen. How soon the list
	// shows a new one is not documented.
	orphanLooks   = 3
	orphanFirst   = time.Second
	orphanLongest = 10 * time.Second
	// orphanPatience is how long a list that fails keeps the slot.
	orphanPatience = time.Minute
)

// letOrphanEnd keeps the slot of an ambiguous create until no task that it may
// have made is open: a next one beside it would be one too many.
func (l *lane) letOrphanEnd(ctx context.Context, rec *jobs.Record) error {
	pace := backoff{first: orphanFirst, most: orphanLongest}
	wait, answered := orphanFirst, time.Now()
	for unseen := 0; unseen < orphanLooks && time.Since(answered) < orphanPatience; {
		if err := l.sleep(ctx, wait); err != nil {
			return err
		}
		open, err := l.orphanOpen(ctx, rec)
		switch {
		case err != nil:
			l.log.Warn("tasks not listed, asking again", "job_id", rec.ID, "err", err)
			continue
		case open:
			unseen, wait = 0, pace.next()
		default:
			unseen++
		}
		answered = time.Now()
	}
	return nil
}

// orphanOpen reports whether a task waits or runs at DashScope that was made about
// when the job was submitted, and is none of this lane's.
func (l *lane) orphanOpen(ctx context.Context, rec *jobs.Record) (bool, error) {
	name, _ := l.model.NameIn(l.account.remote.Region())
	for _, status := range []string{dashscope.StatusPending, dashscope.StatusRunning} {
		page, err := l.account.remote.List(ctx, dashscope.ListFilter{Model: name, Status: status, PageSize: archivePage})
		if err != nil {
			return false, err
		}
		ahead := time.Duration(0) // of the service's clock
		if !page.Date.IsZero() {
			ahead = time.Until(page.Date)
		}
		for _, task := range page.Data {
			after := time.UnixMilli(task.GmtCreate).Sub(rec.SubmittedAt) - ahead
			if _, ours := l.tasks.Load(task.TaskID); !ours && after > -orphanEarly && after < orphanLate {
				return true, nil
			}
		}
	}
	return false, nil
}
