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

// A keepsake is a task that is paid for and is, as far as is known, no job's: a
// candidate of a held job, or one that a lost create made after its job was bought
// again. Its images are kept under _held/ in the bucket.
type quarantinedTask struct {
	JobID   string `json:"job_id"`
	Attempt int    `json:"attempt"`
	Account string `json:"account"`
	Model   string `json:"model"`
	TaskID  string `json:"task_id"`
	// Extra says that the job has another task: this one is cancelled if it has not
	// begun.
	Extra bool `json:"extra,omitempty"`
}

// keepsakes is the key of those of a lane, by task.
const quarantineKey = rediskey.LaneQuarantine

// lateMost is how long after its intent a task is still believed to be of a create that
// was taken for lost. The service itself gives one up after 300 s.
const lateTaskWindow = time.Hour

// keepInterval is how often a lane looks for more of them.
const quarantineInterval = 5 * time.Second

// keepLater has a lane's holder look after a task. One that may be a held job's stays
// nobody's: it may be another's.
func (w *Worker) addToQuarantine(ctx context.Context, k quarantinedTask) error {
	encoded, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := w.cfg.Redis.HSetNX(ctx, rediskey.Lane(k.Account, k.Model, quarantineKey), k.TaskID, encoded).Err(); err != nil {
		return fmt.Errorf("note task %s: %w", k.TaskID, err)
	}
	if k.Extra {
		err = w.jobs.ClaimTask(ctx, k.TaskID, k.JobID)
	} else {
		err = w.jobs.QuarantineTask(ctx, k.TaskID, k.JobID)
	}
	if owned := (*jobs.TaskOwnedError)(nil); errors.As(err, &owned) {
		return nil // it is kept already
	}
	return err
}

// keeper looks after a lane's keepsakes while the lane is held.
type quarantine struct {
	*lane
	group sync.WaitGroup
	mu    sync.Mutex
	busy  map[string]bool
}

// keep begins to look after the lane's keepsakes, and for tasks that lost creates have
// made late. The returned function ends it.
func (l *lane) runQuarantine(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	k := &quarantine{lane: l, busy: map[string]bool{}}
	k.group.Go(func() {
		for next := time.Now(); ; {
			if err := k.startAll(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ErrStopped) {
				l.log.Warn(redisAway, "err", err)
			}
			if !time.Now().Before(next) {
				k.findLateTasks(ctx)
				next = time.Now().Add(max(l.submitLimit()/maxPollShare, minPollInterval))
			}
			if l.sleep(ctx, min(quarantineInterval, max(l.submitLimit()/maxPollShare, minPollInterval))) != nil {
				return
			}
		}
	})
	return func() { cancel(); k.group.Wait() }
}

// beginAll starts on the keepsakes that nobody is at.
func (k *quarantine) startAll(ctx context.Context) error {
	noted, err := k.cfg.Redis.HGetAll(ctx, k.key(quarantineKey)).Result()
	if err != nil {
		return fmt.Errorf("read tasks to keep: %w", err)
	}
	for id, encoded := range noted {
		var kept quarantinedTask
		if err := json.Unmarshal([]byte(encoded), &kept); err != nil {
			return fmt.Errorf("read task %s to keep: %w", id, err)
		}
		k.mu.Lock()
		busy := k.busy[id]
		k.busy[id] = true
		k.mu.Unlock()
		if busy {
			continue
		}
		k.group.Go(func() {
			if k.process(ctx, kept) == nil {
				k.remove(ctx, id)
			}
			k.mu.Lock()
			delete(k.busy, id)
			k.mu.Unlock()
		})
	}
	return nil
}

// allKept waits until the lane has no keepsake left.
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

func (k *quarantine) remove(ctx context.Context, id string) {
	if err := k.cfg.Redis.HDel(context.WithoutCancel(ctx), k.key(quarantineKey), id).Err(); err != nil {
		k.log.Warn("quarantine: entry not removed", "task_id", id, "err", err)
	}
}

// one takes a task to its end and its images into the bucket. An error means that it
// is to be done once more.
func (k *quarantine) process(ctx context.Context, kept quarantinedTask) error {
	if err := k.addToQuarantine(ctx, kept); err != nil {
		return err
	}
	pace := backoff{first: time.Second, most: pollLongest}
	for {
		if err := k.ask(ctx); err != nil {
			return err
		}
		task, err := k.account.remote.Query(ctx, kept.TaskID)
		status := ""
		if err == nil {
			status = task.Output.TaskStatus
		}
		switch status {
		case dashscope.StatusSucceeded:
			return k.storeImages(ctx, kept, task)
		case dashscope.StatusFailed, dashscope.StatusCanceled, dashscope.StatusUnknown:
			k.log.Info("quarantine: task has no image", "job_id", kept.JobID, "task_id", kept.TaskID, "status", status)
			return nil
		case dashscope.StatusPending:
			if kept.Extra {
				if err := k.account.remote.Cancel(ctx, kept.TaskID); err != nil && !errors.Is(err, dashscope.ErrNotPending) {
					k.log.Warn("task not cancelled", "job_id", kept.JobID, "task_id", kept.TaskID, "err", err)
				}
			}
		}
		if err := k.sleep(ctx, pace.next()); err != nil {
			return err
		}
	}
}

// store puts a task's images under _held/, and its cost into the ledger.
func (k *quarantine) storeImages(ctx context.Context, kept quarantinedTask, task *dashscope.Task) error {
	rec := &jobs.Record{Job: jobs.Job{ID: kept.JobID, Attempt: kept.Attempt, Account: kept.Account, Model: kept.Model, SubmittedAt: time.Now().UTC()}}
	known, err := k.jobs.Get(ctx, kept.JobID)
	switch {
	case err == nil:
		rec.Batch, rec.Labels, rec.Request = known.Batch, known.Labels, known.Request
		if known.Attempt == kept.Attempt && !known.SubmittedAt.IsZero() {
			rec.SubmittedAt = known.SubmittedAt // the day on which it is reserved
		}
	case !errors.Is(err, jobs.ErrNotFound):
		return err
	}
	if err := k.settleTask(ctx, rec, kept.TaskID, chargedImages(task), k.cost(kept.Account, kept.Model, chargedImages(task))); err != nil {
		k.log.Warn(redisAway, "task_id", kept.TaskID, "err", err)
		return err
	}
	for i, result := range task.Output.Results {
		if result.URL == "" {
			continue
		}
		if err := k.storeImage(ctx, kept, i+1, forceHTTPS(result.URL)); err != nil {
			k.log.Warn("quarantine: image not stored, retrying", "job_id", kept.JobID, "task_id", kept.TaskID, "err", err)
			if err := k.sleep(ctx, storeRetry); err != nil {
				return err
			}
			return err
		}
	}
	k.log.Error("orphaned task quarantined", "job_id", kept.JobID, "task_id", kept.TaskID, "images", len(task.Output.Results))
	return nil
}

func (k *quarantine) storeImage(ctx context.Context, kept quarantinedTask, n int, link string) error {
	name := kept.TaskID + "-" + strconv.Itoa(n) + ".png"
	file, err := k.cfg.Spool.Fetch(ctx, name, link)
	path := ""
	var failed *storage.FetchError
	switch {
	case err == nil:
		path = file.Path
	case errors.As(err, &failed) && failed.Path != "":
		path = failed.Path // whatever it is
	case errors.As(err, &failed) && failed.Kind == storage.FetchForbidden:
		k.log.Error("quarantine: image URL refused", "task_id", kept.TaskID, "err", err)
		return nil
	case errors.As(err, &failed) && failed.Kind == storage.FetchGone:
		return nil // dead: there is nothing left to keep
	default:
		return err
	}
	if err := k.cfg.Bucket.Hold(ctx, kept.TaskID, name, path); err != nil {
		return err
	}
	return k.cfg.Spool.Remove(name)
}

// lateTasks looks for tasks of creates that were taken for lost, and bought again:
// each is paid for unless it can be cancelled.
func (k *quarantine) findLateTasks(ctx context.Context) {
	waiting, err := k.cfg.Redis.HLen(ctx, k.key(intentsKey)).Result()
	if err != nil || waiting == 0 {
		return
	}
	view, err := k.takeSnapshot(ctx)
	if err != nil {
		return // the next look tells
	}
	for _, task := range view.Unowned {
		maker := k.creatorOf(ctx, view, task)
		if maker == nil {
			continue
		}
		// What another program made must not be cancelled: its tasks were there before, or
		// are made at any time.
		extra := maker.ListWasClear && maker.CouldHaveCreated(task, k.submitLimit())
		k.log.Error("late or foreign task found: quarantining its images", "job_id", maker.JobID, "task_id", task.TaskID, "cancel", extra)
		err := k.addToQuarantine(ctx, quarantinedTask{JobID: maker.JobID, Attempt: maker.Attempt, Account: k.account.name, Model: k.model.Name, TaskID: task.TaskID, Extra: extra})
		if err == nil {
			// Whatever else shows up is of others.
			maker.LateTaskFound = true
			err = k.noteIntent(ctx, *maker)
		}
		if err != nil {
			k.log.Warn(redisAway, "task_id", task.TaskID, "err", err)
			return
		}
		if view.Intents, _, err = k.intents(ctx); err != nil {
			return // the next look tells
		}
	}
}

// lateMaker is the intent, bought again meanwhile, that alone can have made a task.
func (k *quarantine) creatorOf(ctx context.Context, view *reconcile.Snapshot, task dashscope.TaskInfo) *reconcile.Intent {
	var maker *reconcile.Intent
	for _, i := range view.Intents {
		if !i.CouldHaveCreated(task, lateTaskWindow) {
			continue
		}
		key, err := k.keyID(ctx, i.KeyFingerprint)
		if !i.Resubmitted || err != nil || key == "" || key != task.APIKeyID {
			return nil
		}
		maker = &i
	}
	return maker
}

// charged is how many images of a task are paid for.
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

// stray looks after a task that was made for a job which has another one by now, or
// does without.
func (w *Worker) quarantineExtra(ctx context.Context, rec *jobs.Record) error {
	notes, err := w.jobs.TaskOwners(ctx, []string{rec.TaskID})
	if err != nil {
		return err
	}
	if notes[rec.TaskID].Job != "" {
		return nil
	}
	w.log.Error("duplicate task: cancelling if still pending", "job_id", rec.ID, "task_id", rec.TaskID)
	return w.addToQuarantine(ctx, quarantinedTask{JobID: rec.ID, Attempt: rec.Attempt, Account: rec.Account, Model: rec.Model, TaskID: rec.TaskID, Extra: true})
}

// toKeep counts the tasks that the worker's lanes have yet to keep.
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
