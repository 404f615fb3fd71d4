package lane

import (
	"context"
	"time"

	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/quarantine"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
)

// lateTaskWindow is how long after its intent a task may still be attributed to a lost
// create. The service's own limit is 300 s.
const lateTaskWindow = time.Hour

// findLateTasks looks for tasks of lost creates whose jobs were resubmitted: each costs
// money unless it is canceled.
func (l *lane) findLateTasks(ctx context.Context) {
	if !l.cfg.Watcher.MayExist(l.key(rediskey.LaneIntents)) {
		return
	}
	if empty, err := l.intentIndex.Empty(ctx); err != nil || empty {
		return
	}
	snapshot, err := l.takeSnapshot(ctx)
	if err != nil {
		return // the next run tries again
	}
	for _, task := range snapshot.Unowned {
		creator := l.creatorOf(ctx, snapshot, task)
		if creator == nil {
			continue
		}
		// A task of another program must not be canceled: such tasks were unexplained
		// before the intent, or appear at any time.
		extra := creator.ListWasClear && creator.CouldHaveCreated(task, l.cfg.SubmitLimit())
		l.log.Error("late or foreign task found: quarantining its images", "job_id", creator.JobID, "task_id", task.TaskID, "cancel", extra)
		both := context.WithoutCancel(ctx) // or the creator would be blamed for another task
		err := l.cfg.Quarantine.Add(both, quarantine.Task{JobID: creator.JobID, Attempt: creator.Attempt, Account: l.cfg.Account.Name, Model: l.cfg.Model.Name, TaskID: task.TaskID, Extra: extra})
		if err == nil {
			// Any further task has another creator.
			creator.LateTaskFound = true
			err = l.intentIndex.Put(both, *creator)
		}
		if err != nil {
			loop.WarnRedis(l.log, err, "task_id", task.TaskID)
			return
		}
		if snapshot.Intents, _, err = l.intents(ctx); err != nil {
			return // the next run tries again
		}
	}
}

// creatorOf returns a resubmitted intent that may have created a task. It returns nil if
// there is none, or if an intent that was not resubmitted may have created the task too.
func (l *lane) creatorOf(ctx context.Context, snapshot *reconcile.Snapshot, task dashscope.TaskInfo) *reconcile.Intent {
	var creator *reconcile.Intent
	for _, i := range snapshot.Intents {
		if !i.CouldHaveCreated(task, lateTaskWindow) {
			continue
		}
		key, err := l.keyID(ctx, i.KeyFingerprint)
		if !i.Resubmitted || err != nil || key == "" || key != task.APIKeyID {
			return nil
		}
		creator = &i
	}
	return creator
}
