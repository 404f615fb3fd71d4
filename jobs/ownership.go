package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// TaskOwnedError says that a task belongs to another job.
type TaskOwnedError struct{ TaskID, JobID string }

// Error names both.
func (e *TaskOwnedError) Error() string {
	return fmt.Sprintf("task %s belongs to job %s", e.TaskID, e.JobID)
}

// claimScript names a field's owner unless it has one, and returns the owner.
var claimScript = redis.NewScript(`
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return redis.call('HGET', KEYS[1], ARGV[1])
`)

// ClaimTask makes a job the owner of a task of DashScope. It fails with
// [*TaskOwnedError] if another job is, or with Redis's own error; it may be repeated.
// [Client.Update] claims the task of the record that it writes. An owner is remembered
// for eight days: a task can be asked for, and stands in the list, for one.
func (c *Client) ClaimTask(ctx context.Context, task, job string) error {
	return c.claim(ctx, "job", task, job)
}

// QuarantineTask says that a task which may be of a job, but has not been shown to be, is
// looked after on that job's behalf. Another may own it all the same. It fails as
// [Client.ClaimTask] does, if it is kept for another job.
func (c *Client) QuarantineTask(ctx context.Context, task, job string) error {
	return c.claim(ctx, "kept", task, job)
}

func (c *Client) claim(ctx context.Context, field, task, job string) error {
	owner, err := claimScript.Run(ctx, c.redis, []string{rediskey.Task(task)}, field, job, int(rediskey.TaskLifetime.Seconds())).Text()
	if err != nil {
		return fmt.Errorf("claim task %s for %s: %w", task, job, err)
	}
	if owner != job {
		return &TaskOwnedError{TaskID: task, JobID: owner}
	}
	return nil
}

// TaskOwner is what Redis knows of one task: the job that owns it, and the job for which
// its images are kept, which may be another's; "" for none.
type TaskOwner struct{ Job, QuarantinedFor string }

// ownersScript returns the owner of each task and the job that it is kept for.
var ownersScript = redis.NewScript(`
local notes = {}
for i = 1, #KEYS do
  local got = redis.call('HMGET', KEYS[i], 'job', 'kept')
  notes[2 * i - 1] = got[1] or ''
  notes[2 * i] = got[2] or ''
end
return notes
`)

// notesAtOnce bounds one call of the script, which holds up Redis: some milliseconds.
const ownersPerCall = 500

// TaskOwners tells of those of the tasks that Redis knows something of.
func (c *Client) TaskOwners(ctx context.Context, tasks []string) (map[string]TaskOwner, error) {
	notes := map[string]TaskOwner{}
	for len(tasks) > 0 {
		some := tasks[:min(len(tasks), ownersPerCall)]
		tasks = tasks[len(some):]
		keys := make([]string, len(some))
		for i, task := range some {
			keys[i] = rediskey.Task(task)
		}
		found, err := ownersScript.Run(ctx, c.redis, keys).StringSlice()
		if err != nil {
			return nil, fmt.Errorf("read owners of tasks: %w", err)
		}
		for i, task := range some {
			if note := (TaskOwner{found[2*i], found[2*i+1]}); note != (TaskOwner{}) {
				notes[task] = note
			}
		}
	}
	return notes, nil
}

// SetKeyID notes the api_key_id of the key that bears a mark.
func (c *Client) SetKeyID(ctx context.Context, mark, keyID string) error {
	if err := c.redis.HSet(ctx, rediskey.KeyIDs, mark, keyID).Err(); err != nil {
		return fmt.Errorf("note api_key_id: %w", err)
	}
	return nil
}

// KeyID returns the api_key_id of the key that bears a mark, "" if no task of it was
// ever seen in the list.
func (c *Client) KeyID(ctx context.Context, mark string) (string, error) {
	keyID, err := c.redis.HGet(ctx, rediskey.KeyIDs, mark).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return "", fmt.Errorf("read api_key_id: %w", err)
	}
	return keyID, nil
}

// ClearIntent forgets what was noted of an intent.
func (r *Record) ClearIntent() {
	r.ServiceAt, r.AmbiguousAt, r.ListedAt = time.Time{}, time.Time{}, time.Time{}
	r.Candidates, r.Rejected, r.Adopted, r.RequestID = nil, nil, false, ""
}
