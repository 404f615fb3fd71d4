package lane

import (
	"context"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
)

// listCheckInterval is how often the task list is read to see whether it shows the lane's tasks,
// until it does.
const listCheckInterval = 5 * time.Minute

// listProven reports whether the account's task list is known to show the tasks of the lane's
// model: the list's page documents it for text2image only. Until a list has shown a task that
// was created in this lane, nothing can be concluded from a task that is not on it. It fails with
// Redis's own error.
func (l *lane) listProven(ctx context.Context) (bool, error) {
	if l.cfg.Model.Protocol == jobs.ProtocolText2Image || l.listed.Load() {
		return true, nil
	}
	listed, err := l.recorder.Store.TasksListed(ctx, l.cfg.Account.Name, l.cfg.Model.Name)
	if listed {
		l.listed.Store(true)
	}
	return listed, err
}

// proveList records that the list shows the lane's tasks, if the snapshot has one with a known
// owner: its task ID came with the reply to a create of this model. It is read as a
// reconciliation reads it, by the model's name.
func (l *lane) proveList(ctx context.Context, snapshot *reconcile.Snapshot) error {
	proven, err := l.listProven(ctx)
	snapshot.Listed = proven
	if proven || err != nil {
		return err
	}
	unowned := map[string]bool{}
	for _, task := range snapshot.Unowned {
		unowned[task.TaskID] = true
	}
	name, _ := l.cfg.Model.NameIn(l.cfg.Account.Client.Region())
	for id, task := range snapshot.All {
		if unowned[id] || task.ModelName != name {
			continue
		}
		if err := l.recorder.Store.SetTasksListed(ctx, l.cfg.Account.Name, l.cfg.Model.Name); err != nil {
			return err
		}
		l.log.Info("task list shows the model's tasks: lost creates are reconciled", "task_id", id)
		l.listed.Store(true)
		snapshot.Listed = true
		return nil
	}
	return nil
}

// checkList reads the list once in a while until it shows the lane's tasks. A task of the lane
// has just ended, so that there is one to show.
func (l *lane) checkList(ctx context.Context) {
	if proven, err := l.listProven(ctx); proven || err != nil {
		return
	}
	now := time.Now()
	if last := l.listCheckedAt.Load(); last != nil && now.Sub(*last) < listCheckInterval || !l.checkingList.CompareAndSwap(false, true) {
		return
	}
	l.listCheckedAt.Store(&now)
	l.group.Go(func() {
		defer l.checkingList.Store(false)
		if _, err := l.takeSnapshot(ctx); err != nil {
			l.log.Debug("task list not checked", "err", err)
		}
	})
}

// pauseUnproven pauses the model after data was lost, while the list is not known to show its
// tasks: any of the waiting jobs may have been paid for, and nothing tells which.
func (l *lane) pauseUnproven(ctx context.Context) error {
	const why = "data was lost, and the account's task list is not known to show this model's tasks: waiting jobs may have been paid for; compare them with the console's list, then resume the model"
	l.log.Error("model paused after data loss: the task list does not show its tasks")
	if err := l.recorder.Store.PauseModel(ctx, l.cfg.Model.Name, jobs.Decider{By: "danqing", Why: why}); err != nil {
		loop.WarnRedis(l.log, err)
		return err
	}
	return nil
}
