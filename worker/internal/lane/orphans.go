package lane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/lease"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/quarantine"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/journal"
)

// checkDataLoss compares the dataset with the one last verified for the lane. If it
// changed, queued jobs may already have been paid for: it waits for other workers to replay
// and for delayed creates to arrive, one lease TTL or 66 s, whichever is longer; then it
// records the orphaned tasks, for each of which one job will be held.
func (l *lane) checkDataLoss(ctx context.Context) error {
	now := l.dataset
	last, err := l.recorder.Redis.Get(ctx, l.key(rediskey.LaneVerifiedDataset)).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("read %s: %w", l.key(rediskey.LaneVerifiedDataset), err)
	}
	if last == now || last == "" && !l.hasHistory() {
		return l.markVerified(ctx, now)
	}
	// A create of a crashed worker may still be in transit.
	wait := max(lease.TTL, l.timing().Late)
	const waiting = "data may have been lost: waiting for other workers to replay and for delayed creates"
	l.log.Warn(waiting, "wait", wait)
	until := time.Now().Add(wait)
	l.publishStatus(ctx, jobs.LaneStatus{State: jobs.LanePaused, Reason: jobs.PauseDataLoss, Message: waiting, RetryAt: until, Until: until})
	if err := loop.Sleep(ctx, wait); err != nil {
		return err
	}
	if l.baseline, err = l.takeSnapshot(ctx); err != nil {
		return err
	}
	if !l.baseline.Listed {
		if err := l.pauseUnproven(ctx); err != nil {
			return err
		}
	}
	orphans, err := l.findOrphans(ctx)
	if err != nil {
		return err
	}
	for _, task := range orphans {
		l.log.Error("orphaned task after data loss: next job will be held", "task_id", task.TaskID)
		if err := l.cfg.Quarantine.Add(ctx, quarantine.Task{JobID: quarantine.UnknownJob, Account: l.cfg.Account.Name, Model: l.cfg.Model.Name, TaskID: task.TaskID, HoldsNext: true}); err != nil {
			return err
		}
	}
	return l.markVerified(ctx, now)
}

// isVerified reports whether checkDataLoss has run for the lane and the current dataset.
func (l *lane) isVerified(ctx context.Context) bool {
	last, err := l.recorder.Redis.Get(ctx, l.key(rediskey.LaneVerifiedDataset)).Result()
	return err == nil && last == l.dataset
}

// hasHistory reports whether Redis and the journal together may have had data to lose: this
// worker has used another dataset, the api_key_id of the account's key is in its journal, or
// the journal was lost since the oldest task on the account's list. An exclusive queue begins
// empty; only the journal's loss counts there.
func (l *lane) hasHistory() bool {
	if time.Since(l.recorder.Data.JournalLostAt()) < journal.TaskRetention {
		return true
	}
	return !l.cfg.Exclusive && (l.cfg.Dataset.LossSeen() || l.recorder.Data.Journal.KeyID(l.cfg.Account.Client.KeyFingerprint()) != "")
}

// assertSameDataset fails if Redis may have lost data since the term began: nothing may be
// submitted then.
func (l *lane) assertSameDataset(ctx context.Context) error {
	if l.cfg.Exclusive {
		return nil
	}
	now, err := l.cfg.Dataset.ID(ctx)
	switch {
	case err != nil:
		return l.redisPause(err)
	case now != l.dataset:
		l.log.Warn("redis dataset changed: restarting the lane", "term", l.term)
		l.lease.Invalidate()
		return lease.ErrLost
	}
	return nil
}

// markVerified records the verified dataset and loads the orphaned tasks for which jobs
// will be held.
func (l *lane) markVerified(ctx context.Context, now string) error {
	if err := l.recorder.Redis.Set(ctx, l.key(rediskey.LaneVerifiedDataset), now, 0).Err(); err != nil {
		return fmt.Errorf("write %s: %w", l.key(rediskey.LaneVerifiedDataset), err)
	}
	orphans, err := l.cfg.Quarantine.HoldingNext(ctx, l.cfg.Account.Name, l.cfg.Model.Name)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.orphans = orphans
	return nil
}

// refreshBaseline takes another snapshot if sidecars show the owners of tasks in the first.
// An exclusive queue lacks the tasks of earlier runs with another data directory.
func (l *lane) refreshBaseline(ctx context.Context) error {
	left, err := l.findOrphans(ctx)
	if err != nil {
		l.log.Warn("sidecars not read: tasks of earlier runs count as foreign", "err", err)
		return nil
	}
	if len(left) < len(l.baseline.Unowned) {
		l.baseline, err = l.takeSnapshot(ctx)
	}
	return err
}

// findOrphans returns the tasks of the lane's key, or of any key if it is unknown, that
// neither a record, a journal nor a sidecar owns and that no known intent may have created.
func (l *lane) findOrphans(ctx context.Context) ([]dashscope.TaskInfo, error) {
	key, err := l.keyID(ctx, l.cfg.Account.Client.KeyFingerprint())
	if err != nil {
		return nil, err
	}
	orphans := map[string]dashscope.TaskInfo{}
	for _, task := range l.baseline.Unowned {
		explained := slices.ContainsFunc(l.baseline.Intents, func(i reconcile.Intent) bool { return i.CouldHaveCreated(task, l.cfg.SubmitLimit()) })
		if (key == "" || task.APIKeyID == key) && !explained && !l.baseline.Quarantined[task.TaskID] {
			orphans[task.TaskID] = task
		}
	}
	if len(orphans) == 0 {
		return nil, nil
	}
	err = l.recorder.Bucket.RecentSidecars(ctx, time.Now().Add(-journal.TaskRetention), func(s *storage.Sidecar) error {
		for _, attempt := range s.Attempts {
			if _, orphaned := orphans[attempt.TaskID]; orphaned {
				delete(orphans, attempt.TaskID)
				if err := l.recorder.Store.ClaimTask(ctx, attempt.TaskID, s.JobID); err != nil && !errors.As(err, new(*jobs.TaskOwnedError)) {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return slices.Collect(maps.Values(orphans)), nil
}

// holdForSpooled holds a job that seems not to have been submitted, but has an image in the
// spool: the worker has lost its journal, and Redis the record.
func (l *lane) holdForSpooled(ctx context.Context, rec *jobs.Record, req *jobs.Request) error {
	if l.recorder.Data.JournalLostAt().IsZero() {
		return nil
	}
	files, err := l.recorder.Spool.Names()
	if err != nil {
		return &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseDisk, message: "submissions paused: data directory full or missing", cause: err}
	}
	for _, file := range files {
		id, attempt := recorder.SpooledAttempt(file)
		if id != rec.ID || attempt <= rec.Attempt {
			continue
		}
		next := recorder.Held(rec, jobs.CodeOrphanedTask, fmt.Sprintf("the journal was lost, and the spool in %s has an image that was made for this job", l.recorder.Data.Path))
		next.Attempt, next.Account, next.Request = attempt, l.cfg.Account.Name, req
		l.mu.Lock()
		next.Candidates = slices.Clone(l.orphans)
		l.mu.Unlock()
		if err := l.hold(ctx, rec, next); err != nil {
			return err
		}
		return errReread
	}
	return nil
}

// hold holds a job that was not submitted. An exclusive queue may begin empty at the next
// start, so that the journal has it, too. A shared one has it, and the operator's decision,
// whose clock may be behind.
func (l *lane) hold(ctx context.Context, rec, next *jobs.Record) error {
	if l.cfg.Exclusive {
		return l.recorder.Hold(ctx, rec, next)
	}
	l.log.Error("job held for operator", "job_id", rec.ID, "err", next.Message)
	return l.recorder.Transition(ctx, rec, next)
}

// holdForOrphan holds a job that may have been lost by Redis or the journal after an orphaned
// task was created for it: one job for each such task, its first candidate.
func (l *lane) holdForOrphan(ctx context.Context, rec *jobs.Record, req *jobs.Request) error {
	l.mu.Lock()
	tasks := slices.Clone(l.orphans)
	l.mu.Unlock()
	if len(tasks) == 0 {
		return nil
	}
	next := recorder.Held(rec, jobs.CodeOrphanedTask, fmt.Sprintf("data was lost, and %d of the account's tasks have no known owner: one of them may have been created for this job; their images are quarantined under _held/ in the bucket", len(tasks)))
	next.Candidates, next.Account, next.Request = tasks, l.cfg.Account.Name, req
	if err := l.hold(ctx, rec, next); err != nil {
		return err
	}
	if err := l.cfg.Quarantine.JobHeld(ctx, l.cfg.Account.Name, l.cfg.Model.Name, tasks[0]); err != nil {
		loop.WarnRedis(l.log, err)
	}
	l.mu.Lock()
	l.orphans = tasks[1:]
	l.mu.Unlock()
	return errReread
}
