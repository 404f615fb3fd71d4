// Package quarantine keeps the images of paid tasks with no known owner: they are stored
// under _held/ in the bucket until an operator decides.
package quarantine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// Task is a paid task with no known owner: a candidate of a held job, or the late task of a
// lost create whose job was resubmitted.
type Task struct {
	JobID   string `json:"job_id"`
	Attempt int    `json:"attempt"`
	Account string `json:"account"`
	Model   string `json:"model"`
	TaskID  string `json:"task_id"`
	// KnownAt is when the task was known to exist, or its create was sent: the service finds it for 24
	// hours. Zero means now, for [List.Add].
	KnownAt time.Time `json:"known_at,omitzero"`
	// Extra is set if the job has another task: this one is canceled if it is still
	// pending.
	Extra bool `json:"extra,omitempty"`
	// HoldsNext is set while a job of the lane is to be held for the task: Redis has lost
	// data, and the task may have been created for a job in the queue.
	HoldsNext bool `json:"holds_next,omitempty"`
}

// List is the quarantined tasks of all lanes, in Redis.
type List struct {
	Redis redis.UniversalClient
	Store *jobs.Store
	Log   *slog.Logger
}

func key(account, model string) string { return rediskey.Lane(account, model, rediskey.LaneQuarantine) }

// Add adds a task to its lane's quarantine, which the lane's holder processes. A candidate of
// a held job is not claimed: another job may own it.
func (l *List) Add(ctx context.Context, task Task) error {
	if task.KnownAt.IsZero() {
		task.KnownAt = time.Now().UTC()
	}
	encoded, err := compactjson.Marshal(task)
	if err != nil {
		return err
	}
	if err := l.Redis.HSetNX(ctx, key(task.Account, task.Model), task.TaskID, encoded).Err(); err != nil {
		return fmt.Errorf("quarantine task %s: %w", task.TaskID, err)
	}
	if task.Extra {
		err = l.Store.ClaimTask(ctx, task.TaskID, task.JobID)
	} else {
		err = l.Store.QuarantineTask(ctx, task.TaskID, task.JobID)
	}
	if owned := (*jobs.TaskOwnedError)(nil); errors.As(err, &owned) {
		return nil // it is quarantined already
	}
	return err
}

// AddExtra adds the task of a job that has another task by now, or has ended without it.
func (l *List) AddExtra(ctx context.Context, rec *jobs.Record) error {
	owners, err := l.Store.TaskOwners(ctx, []string{rec.TaskID})
	if err != nil {
		return err
	}
	if owners[rec.TaskID].Job != "" {
		return nil
	}
	l.Log.Error("duplicate task: canceling if still pending", "job_id", rec.ID, "task_id", rec.TaskID)
	return l.Add(ctx, Task{JobID: rec.ID, Attempt: rec.Attempt, Account: rec.Account, Model: rec.Model, TaskID: rec.TaskID, KnownAt: rec.SubmittedAt, Extra: true})
}

// HoldingNext returns the IDs of a lane's tasks with HoldsNext, sorted.
func (l *List) HoldingNext(ctx context.Context, account, model string) ([]string, error) {
	tasks, err := l.tasks(ctx, account, model)
	maps.DeleteFunc(tasks, func(_ string, t Task) bool { return !t.HoldsNext })
	return slices.Sorted(maps.Keys(tasks)), err
}

// JobHeld clears HoldsNext of a lane's task: a job has been held for it.
func (l *List) JobHeld(ctx context.Context, account, model, taskID string) error {
	tasks, err := l.tasks(ctx, account, model)
	if err != nil {
		return err
	}
	task, ok := tasks[taskID]
	if !ok {
		return nil // Redis has lost it
	}
	task.HoldsNext = false
	encoded, err := compactjson.Marshal(task)
	if err != nil {
		return err
	}
	return l.Redis.HSet(ctx, key(account, model), taskID, encoded).Err()
}

// UnknownJob is the job of a task that may be of any job.
const UnknownJob = "unknown"

// tasks returns a lane's quarantined tasks, by ID. Of a damaged entry only the ID is known.
func (l *List) tasks(ctx context.Context, account, model string) (map[string]Task, error) {
	entries, err := l.Redis.HGetAll(ctx, key(account, model)).Result()
	if err != nil {
		return nil, fmt.Errorf("read quarantine: %w", err)
	}
	tasks := map[string]Task{}
	for id, encoded := range entries {
		var task Task
		if err := json.Unmarshal([]byte(encoded), &task); err != nil || task.TaskID != id {
			l.Log.Error("quarantine: entry damaged, its task is kept", "task_id", id, "err", err)
			task = Task{JobID: UnknownJob}
		}
		if task.KnownAt.IsZero() {
			task.KnownAt = time.Now().UTC()
		}
		task.Account, task.Model, task.TaskID = account, model, id
		tasks[id] = task
	}
	return tasks, nil
}

// storedField is set in a task's hash when its images are stored, and the task stays in the
// list with HoldsNext.
const storedField = "stored"

func (l *List) markStored(ctx context.Context, taskID string) error {
	if err := l.Redis.HSet(ctx, rediskey.Task(taskID), storedField, 1).Err(); err != nil {
		return fmt.Errorf("mark quarantined task %s stored: %w", taskID, err)
	}
	return nil
}

// Unstored returns the number of a lane's tasks whose images are not stored yet.
func (l *List) Unstored(ctx context.Context, account, model string) (int, error) {
	tasks, err := l.tasks(ctx, account, model)
	if err != nil {
		return 0, err
	}
	n := 0
	for id, task := range tasks {
		stored := false
		if task.HoldsNext {
			if stored, err = l.Redis.HExists(ctx, rediskey.Task(id), storedField).Result(); err != nil {
				return 0, fmt.Errorf("read quarantined task %s: %w", id, err)
			}
		}
		if !stored {
			n++
		}
	}
	return n, nil
}
