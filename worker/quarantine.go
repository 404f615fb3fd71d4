package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
)

// quarantinedTask is a paid task with no known owner: a candidate of a held job, or the
// late task of a lost create whose job was resubmitted. Its images are stored under _held/
// in the bucket.
type quarantinedTask struct {
	JobID   string `json:"job_id"`
	Attempt int    `json:"attempt"`
	Account string `json:"account"`
	Model   string `json:"model"`
	TaskID  string `json:"task_id"`
	// Extra is set if the job has another task: this one is canceled if it is still
	// pending.
	Extra bool `json:"extra,omitempty"`
}

// quarantineKey is the key of a lane's quarantined tasks, by task ID.
const quarantineKey = "quarantine"

// lateTaskWindow is how long after its intent a task may still be attributed to a lost
// create. The service's own limit is 300 s.
const lateTaskWindow = time.Hour

// quarantineInterval is how often a lane checks for new entries.
const quarantineInterval = 5 * time.Second

// addToQuarantine adds a task to its lane's quarantine, which the lane's holder processes.
// A candidate of a held job is not claimed: another job may own it.
func (w *Worker) addToQuarantine(ctx context.Context, entry quarantinedTask) error {
	encoded, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	if err := w.cfg.Redis.HSetNX(ctx, rediskey.Lane(entry.Account, entry.Model, quarantineKey), entry.TaskID, encoded).Err(); err != nil {
		return fmt.Errorf("quarantine task %s: %w", entry.TaskID, err)
	}
	if entry.Extra {
		err = w.jobs.ClaimTask(ctx, entry.TaskID, entry.JobID)
	} else {
		err = w.jobs.QuarantineTask(ctx, entry.TaskID, entry.JobID)
	}
	if owned := (*jobs.TaskOwnedError)(nil); errors.As(err, &owned) {
		return nil // it is quarantined already
	}
	return err
}

// quarantine processes a lane's quarantined tasks during a term.
type quarantine struct {
	*lane
	group sync.WaitGroup
	mu    sync.Mutex
	busy  map[string]bool
}

// runQuarantine processes the lane's quarantined tasks and looks for late tasks of lost
// creates until the returned function is called.
func (l *lane) runQuarantine(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	q := &quarantine{lane: l, busy: map[string]bool{}}
	q.group.Go(func() {
		for next := time.Now(); ; {
			if err := q.startAll(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ErrStopped) {
				l.log.Warn(redisUnavailable, "err", err)
			}
			if !time.Now().Before(next) {
				q.findLateTasks(ctx)
				next = time.Now().Add(max(l.submitLimit()/maxPollShare, minPollInterval))
			}
			if l.sleep(ctx, min(quarantineInterval, max(l.submitLimit()/maxPollShare, minPollInterval))) != nil {
				return
			}
		}
	})
	return func() { cancel(); q.group.Wait() }
}

// startAll starts processing the entries that are not being processed.
func (q *quarantine) startAll(ctx context.Context) error {
	entries, err := q.cfg.Redis.HGetAll(ctx, q.key(quarantineKey)).Result()
	if err != nil {
		return fmt.Errorf("read quarantine: %w", err)
	}
	for id, encoded := range entries {
		var entry quarantinedTask
		if err := json.Unmarshal([]byte(encoded), &entry); err != nil {
			return fmt.Errorf("read quarantined task %s: %w", id, err)
		}
		q.mu.Lock()
		busy := q.busy[id]
		q.busy[id] = true
		q.mu.Unlock()
		if busy {
			continue
		}
		q.group.Go(func() {
			if q.process(ctx, entry) == nil {
				q.remove(ctx, id)
			}
			q.mu.Lock()
			delete(q.busy, id)
			q.mu.Unlock()
		})
	}
	return nil
}

// waitQuarantineEmpty waits until the lane has no quarantined task left.
func (l *lane) waitQuarantineEmpty(ctx context.Context) error {
	for {
		left, err := l.cfg.Redis.HLen(ctx, l.key(quarantineKey)).Result()
		if err == nil && left == 0 {
			return l.sleep(ctx, 0)
		}
		if err := l.sleep(ctx, quarantineInterval); err != nil {
			return err
		}
	}
}

func (q *quarantine) remove(ctx context.Context, id string) {
	if err := q.cfg.Redis.HDel(context.WithoutCancel(ctx), q.key(quarantineKey), id).Err(); err != nil {
		q.log.Warn("quarantine: entry not removed", "task_id", id, "err", err)
	}
}

// process polls a task to its end and stores its images in the bucket. After an error it
// must be called again.
func (q *quarantine) process(ctx context.Context, entry quarantinedTask) error {
	if err := q.addToQuarantine(ctx, entry); err != nil {
		return err
	}
	pace := backoff{first: time.Second, most: pollLongest}
	for {
		if err := q.ask(ctx); err != nil {
			return err
		}
		task, err := q.account.remote.Query(ctx, entry.TaskID)
		status := ""
		if err == nil {
			status = task.Output.TaskStatus
		}
		switch status {
		case dashscope.StatusSucceeded:
			return q.storeImages(ctx, entry, task)
		case dashscope.StatusFailed, dashscope.StatusCanceled, dashscope.StatusUnknown:
			q.log.Info("quarantine: task has no image", "job_id", entry.JobID, "task_id", entry.TaskID, "status", status)
			return nil
		case dashscope.StatusPending:
			if entry.Extra {
				if err := q.account.remote.Cancel(ctx, entry.TaskID); err != nil && !errors.Is(err, dashscope.ErrNotPending) {
					q.log.Warn("task not canceled", "job_id", entry.JobID, "task_id", entry.TaskID, "err", err)
				}
			}
		}
		if err := q.sleep(ctx, pace.next()); err != nil {
			return err
		}
	}
}

// storeImages stores a task's images under _held/ and books its cost in the ledger.
func (q *quarantine) storeImages(ctx context.Context, entry quarantinedTask, task *dashscope.Task) error {
	rec := &jobs.Record{Job: jobs.Job{ID: entry.JobID, Attempt: entry.Attempt, Account: entry.Account, Model: entry.Model, SubmittedAt: time.Now().UTC()}}
	current, err := q.jobs.Get(ctx, entry.JobID)
	switch {
	case err == nil:
		rec.Batch, rec.Labels, rec.Request = current.Batch, current.Labels, current.Request
		if current.Attempt == entry.Attempt && !current.SubmittedAt.IsZero() {
			rec.SubmittedAt = current.SubmittedAt // the ledger day of its reservation
		}
	case !errors.Is(err, jobs.ErrNotFound):
		return err
	}
	if err := q.settleTask(ctx, rec, entry.TaskID, chargedImages(task), q.cost(entry.Account, entry.Model, chargedImages(task))); err != nil {
		q.log.Warn(redisUnavailable, "task_id", entry.TaskID, "err", err)
		return err
	}
	for i, result := range task.Output.Results {
		if result.URL == "" {
			continue
		}
		if err := q.storeImage(ctx, entry, i+1, forceHTTPS(result.URL)); err != nil {
			q.log.Warn("quarantine: image not stored, retrying", "job_id", entry.JobID, "task_id", entry.TaskID, "err", err)
			if err := q.sleep(ctx, storeRetry); err != nil {
				return err
			}
			return err
		}
	}
	q.log.Error("orphaned task quarantined", "job_id", entry.JobID, "task_id", entry.TaskID, "images", len(task.Output.Results))
	return nil
}

func (q *quarantine) storeImage(ctx context.Context, entry quarantinedTask, n int, link string) error {
	name := entry.TaskID + "-" + strconv.Itoa(n) + ".png"
	file, err := q.cfg.Spool.Fetch(ctx, name, link)
	path := ""
	var failed *storage.FetchError
	switch {
	case err == nil:
		path = file.Path
	case errors.As(err, &failed) && failed.Path != "":
		path = failed.Path // stored unverified
	case errors.As(err, &failed) && failed.Kind == storage.FetchForbidden:
		q.log.Error("quarantine: image URL refused", "task_id", entry.TaskID, "err", err)
		return nil
	case errors.As(err, &failed) && failed.Kind == storage.FetchGone:
		return nil // the URL has expired
	default:
		return err
	}
	if err := q.cfg.Bucket.Hold(ctx, entry.TaskID, name, path); err != nil {
		return err
	}
	return q.cfg.Spool.Remove(name)
}

// findLateTasks looks for tasks of lost creates whose jobs were resubmitted: each costs
// money unless it is canceled.
func (q *quarantine) findLateTasks(ctx context.Context) {
	waiting, err := q.cfg.Redis.HLen(ctx, q.key(intentsKey)).Result()
	if err != nil || waiting == 0 {
		return
	}
	snapshot, err := q.takeSnapshot(ctx)
	if err != nil {
		return // the next run tries again
	}
	for _, task := range snapshot.Unowned {
		creator := q.creatorOf(ctx, snapshot, task)
		if creator == nil {
			continue
		}
		// A task of another program must not be canceled: such tasks were unexplained
		// before the intent, or appear at any time.
		extra := creator.ListWasClear && creator.CouldHaveCreated(task, q.submitLimit())
		q.log.Error("late or foreign task found: quarantining its images", "job_id", creator.JobID, "task_id", task.TaskID, "cancel", extra)
		err := q.addToQuarantine(ctx, quarantinedTask{JobID: creator.JobID, Attempt: creator.Attempt, Account: q.account.name, Model: q.model.Name, TaskID: task.TaskID, Extra: extra})
		if err == nil {
			// Any further task has another creator.
			creator.LateTaskFound = true
			err = q.noteIntent(ctx, *creator)
		}
		if err != nil {
			q.log.Warn(redisUnavailable, "task_id", task.TaskID, "err", err)
			return
		}
		if snapshot.Intents, _, err = q.intents(ctx); err != nil {
			return // the next run tries again
		}
	}
}

// creatorOf returns a resubmitted intent that may have created a task. It returns nil if
// there is none, or if an intent that was not resubmitted may have created the task too.
func (q *quarantine) creatorOf(ctx context.Context, snapshot *reconcile.Snapshot, task dashscope.TaskInfo) *reconcile.Intent {
	var creator *reconcile.Intent
	for _, i := range snapshot.Intents {
		if !i.CouldHaveCreated(task, lateTaskWindow) {
			continue
		}
		key, err := q.keyID(ctx, i.KeyFingerprint)
		if !i.Resubmitted || err != nil || key == "" || key != task.APIKeyID {
			return nil
		}
		creator = &i
	}
	return creator
}

// chargedImages returns the number of images that a task was charged for.
func chargedImages(task *dashscope.Task) int {
	if task.Usage != nil && task.Usage.ImageCount > 0 {
		return task.Usage.ImageCount
	}
	n := 0
	for _, r := range task.Output.Results {
		if r.URL != "" {
			n++
		}
	}
	return n
}

// quarantineExtra quarantines a task of a job that has another task by now, or has ended
// without it.
func (w *Worker) quarantineExtra(ctx context.Context, rec *jobs.Record) error {
	notes, err := w.jobs.TaskOwners(ctx, []string{rec.TaskID})
	if err != nil {
		return err
	}
	if notes[rec.TaskID].Job != "" {
		return nil
	}
	w.log.Error("duplicate task: canceling if still pending", "job_id", rec.ID, "task_id", rec.TaskID)
	return w.addToQuarantine(ctx, quarantinedTask{JobID: rec.ID, Attempt: rec.Attempt, Account: rec.Account, Model: rec.Model, TaskID: rec.TaskID, Extra: true})
}

// quarantinePending returns the number of quarantined tasks of the worker's lanes.
func (w *Worker) quarantinePending(ctx context.Context) int64 {
	n := int64(0)
	for _, spec := range w.lanes {
		some, err := w.cfg.Redis.HLen(ctx, rediskey.Lane(spec.account.name, spec.model.Name, quarantineKey)).Result()
		if err == nil {
			n += some
		}
	}
	return n
}
