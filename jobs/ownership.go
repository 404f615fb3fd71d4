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

// Error names the task and its owner.
func (e *TaskOwnedError) Error() string {
	return fmt.Sprintf("task %s belongs to job %s", e.TaskID, e.JobID)
}

// claimScript sets a field's owner unless it has one, and returns the owner.
var claimScript = redis.NewScript(`
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return redis.call('HGET', KEYS[1], ARGV[1])
`)

// ClaimTask makes a job the owner of a DashScope task. It fails with a [*TaskOwnedError]
// if another job is, or with Redis's own error; it may be repeated. [Store.Update] claims
// the task of the record that it writes. Owners are kept for [rediskey.TaskLifetime].
func (s *Store) ClaimTask(ctx context.Context, task, job string) error {
	return s.claim(ctx, "job", task, job)
}

// QuarantineTask records that a task's images are quarantined for a job that may own it.
// Another job may own it all the same. It fails with a [*TaskOwnedError] if it is
// quarantined for another job, or with Redis's own error.
func (s *Store) QuarantineTask(ctx context.Context, task, job string) error {
	return s.claim(ctx, "quarantined", task, job)
}

func (s *Store) claim(ctx context.Context, field, task, job string) error {
	owner, err := claimScript.Run(ctx, s.redis, []string{rediskey.Task(task)}, field, job, int(rediskey.TaskLifetime.Seconds())).Text()
	if err != nil {
		return fmt.Errorf("claim task %s for %s: %w", task, job, err)
	}
	if owner != job {
		return &TaskOwnedError{TaskID: task, JobID: owner}
	}
	return nil
}

// TaskOwner is the job that owns a task, and the job for which its images are
// quarantined, which may be another; "" for none.
type TaskOwner struct{ Job, QuarantinedFor string }

// ownersScript returns, for each task, the owner and the job that it is quarantined for.
var ownersScript = redis.NewScript(`
local owners = {}
for i = 1, #KEYS do
  local got = redis.call('HMGET', KEYS[i], 'job', 'quarantined')
  owners[2 * i - 1] = got[1] or ''
  owners[2 * i] = got[2] or ''
end
return owners
`)

// ownersPerCall limits one run of the script, which blocks Redis, to some milliseconds.
const ownersPerCall = 500

// TaskOwners returns the owners of tasks. Tasks without an owner are not in the result. It
// fails with Redis's own error.
func (s *Store) TaskOwners(ctx context.Context, tasks []string) (map[string]TaskOwner, error) {
	owners := map[string]TaskOwner{}
	for len(tasks) > 0 {
		some := tasks[:min(len(tasks), ownersPerCall)]
		tasks = tasks[len(some):]
		keys := make([]string, len(some))
		for i, task := range some {
			keys[i] = rediskey.Task(task)
		}
		found, err := ownersScript.Run(ctx, s.redis, keys).StringSlice()
		if err != nil {
			return nil, fmt.Errorf("read owners of tasks: %w", err)
		}
		for i, task := range some {
			if owner := (TaskOwner{found[2*i], found[2*i+1]}); owner != (TaskOwner{}) {
				owners[task] = owner
			}
		}
	}
	return owners, nil
}

// SetKeyID records the api_key_id of the API key with a fingerprint.
func (s *Store) SetKeyID(ctx context.Context, fingerprint, keyID string) error {
	if err := s.redis.HSet(ctx, rediskey.KeyIDs, fingerprint, keyID).Err(); err != nil {
		return fmt.Errorf("write api_key_id: %w", err)
	}
	return nil
}

// KeyID returns the api_key_id of the API key with a fingerprint, "" if no task of that
// key was seen in the list yet.
func (s *Store) KeyID(ctx context.Context, fingerprint string) (string, error) {
	keyID, err := s.redis.HGet(ctx, rediskey.KeyIDs, fingerprint).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return "", fmt.Errorf("read api_key_id: %w", err)
	}
	return keyID, nil
}

// TasksListed reports whether the account's task list is known to show tasks of a model: see
// [Store.SetTasksListed]. It fails with Redis's own error.
func (s *Store) TasksListed(ctx context.Context, account, model string) (bool, error) {
	n, err := s.redis.Exists(ctx, rediskey.Lane(account, model, rediskey.LaneListed)).Result()
	if err != nil {
		return false, fmt.Errorf("read whether tasks of %s are listed: %w", model, err)
	}
	return n > 0, nil
}

// SetTasksListed records that the account's task list has shown a task of a model whose ID came
// with the reply to a create. Lost creates of the model are reconciled from then on, so that the
// caller must have read the list by the model's name and seen such a task.
func (s *Store) SetTasksListed(ctx context.Context, account, model string) error {
	err := s.redis.Set(ctx, rediskey.Lane(account, model, rediskey.LaneListed), time.Now().UTC().Format(time.RFC3339), 0).Err()
	if err != nil {
		return fmt.Errorf("record that tasks of %s are listed: %w", model, err)
	}
	return nil
}
