package worker

import (
	"context"
	"fmt"
	"slices"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
)

// inspect asks what those tasks of a listing have made that more than one job's create
// may have made. known keeps what was asked already: a task that has ended does not
// change.
func (l *lane) inspectContested(ctx context.Context, view *reconcile.Snapshot, known map[string]*reconcile.Output) error {
	view.Outputs = known
	for _, task := range view.Unowned {
		makers := view.Creators(task, l.timing())
		several := slices.ContainsFunc(makers, func(i reconcile.Intent) bool { return i.JobID != makers[0].JobID })
		if !several || task.Status != dashscope.StatusSucceeded {
			continue
		}
		if known[task.TaskID] == nil {
			if err := l.ask(ctx); err != nil {
				return err
			}
			answer, err := l.account.remote.Query(ctx, task.TaskID)
			if err != nil {
				return err
			}
			if answer.Output.TaskStatus != dashscope.StatusSucceeded || isInconclusive(answer) {
				continue
			}
			known[task.TaskID] = &reconcile.Output{Task: answer}
			makers = view.Creators(task, l.timing())
		}
		if reconcile.SizesDiffer(makers) {
			l.inspectSize(ctx, known[task.TaskID])
		}
	}
	return nil
}

// inspectSize looks how large a task's first image is. Without an answer the next look
// asks again.
func (l *lane) inspectSize(ctx context.Context, c *reconcile.Output) {
	if c.Size != "" {
		return
	}
	first := slices.IndexFunc(c.Task.Output.Results, func(r dashscope.Result) bool { return r.URL != "" })
	if first < 0 {
		return
	}
	file, err := l.cfg.Spool.FetchToMemory(ctx, forceHTTPS(c.Task.Output.Results[first].URL))
	if err != nil {
		l.log.Warn("image size of a contested task not read", "task_id", c.Task.Output.TaskID, "err", err)
		return
	}
	c.Size = fmt.Sprintf("%d*%d", file.Width, file.Height)
}
