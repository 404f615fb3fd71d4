package lane

import (
	"context"
	"fmt"
	"slices"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
)

// inspectContested queries the output of succeeded tasks that creates of more than one job
// may have made. outputs caches the results between calls: an ended task does not change.
func (l *lane) inspectContested(ctx context.Context, snapshot *reconcile.Snapshot, outputs map[string]*reconcile.Output) error {
	snapshot.Outputs = outputs
	for _, task := range snapshot.Unowned {
		creators := snapshot.Creators(task, l.timing())
		contested := slices.ContainsFunc(creators, func(i reconcile.Intent) bool { return i.JobID != creators[0].JobID })
		if !contested || task.Status != dashscope.StatusSucceeded {
			continue
		}
		if outputs[task.TaskID] == nil {
			answer, err := l.cfg.Account.Client.Query(ctx, task.TaskID)
			if err != nil {
				return err
			}
			if answer.Output.TaskStatus != dashscope.StatusSucceeded || answer.IsInconclusive() {
				continue
			}
			outputs[task.TaskID] = &reconcile.Output{Task: answer}
			creators = snapshot.Creators(task, l.timing())
		}
		if reconcile.SizesDiffer(creators) {
			l.inspectSize(ctx, outputs[task.TaskID])
		}
	}
	return nil
}

// inspectSize reads the size of a task's first image. If that fails, the next call tries
// again.
func (l *lane) inspectSize(ctx context.Context, c *reconcile.Output) {
	if c.Size != "" {
		return
	}
	first := slices.IndexFunc(c.Task.Output.Results, func(r dashscope.Result) bool { return r.URL != "" })
	if first < 0 {
		return
	}
	file, err := l.recorder.Spool.FetchToMemory(ctx, dashscope.SecureURL(c.Task.Output.Results[first].URL))
	if err != nil {
		l.log.Warn("image size of a contested task not read", "task_id", c.Task.Output.TaskID, "err", err)
		return
	}
	c.Size = fmt.Sprintf("%d*%d", file.Width, file.Height)
}
