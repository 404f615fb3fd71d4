package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// datasetKey holds a random ID that the first worker writes. It is lost together with
	// the data.
	datasetKey = "danqing:dataset"
	// datasetInterval is how often a worker checks whether Redis may have lost data.
	datasetInterval = 5 * time.Second
	// durabilityInterval is how often a worker checks how durably Redis stores writes.
	durabilityInterval = time.Minute
	// verifiedDatasetKey is the key of the dataset ID that the lane was last checked
	// against. orphansKey is the key of the orphaned tasks that jobs lost by Redis may have
	// created.
	verifiedDatasetKey = "verified_dataset"
	orphansKey         = "orphans"
)

// datasetID returns the ID of the Redis dataset. It changes when Redis may have lost some
// data, after a restart or a failover, or all of it.
func (w *Worker) datasetID(ctx context.Context) (string, error) {
	run, err := redishealth.DatasetID(ctx, w.cfg.Redis)
	if err != nil {
		return "", err
	}
	if err := w.cfg.Redis.SetNX(ctx, datasetKey, rand.Text(), 0).Err(); err != nil {
		return "", fmt.Errorf("write %s: %w", datasetKey, err)
	}
	dataset, err := w.cfg.Redis.Get(ctx, datasetKey).Result()
	if err != nil {
		return "", fmt.Errorf("read %s: %w", datasetKey, err)
	}
	return dataset + "/" + cmp.Or(run, "embedded"), nil
}

// watchDataset replays to Redis whenever it may have lost data, until the returned function
// is called.
func (w *Worker) watchDataset(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for checked := time.Now(); w.sleep(ctx, datasetInterval) == nil; {
			_, err := w.syncDataset(ctx)
			if err == nil {
				err = w.recordKeyIDs(ctx)
			}
			if err == nil && time.Since(checked) > durabilityInterval { // a replica may have been added or removed
				err, checked = w.checkDurability(ctx), time.Now()
			}
			if err != nil && ctx.Err() == nil && !errors.Is(err, ErrStopped) {
				w.log.Warn(redisUnavailable, "err", err)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// syncDataset returns the current dataset ID. If it has changed, it first replays to Redis.
func (w *Worker) syncDataset(ctx context.Context) (string, error) {
	if err := w.replaying.Acquire(ctx, 1); err != nil {
		return "", err
	}
	defer w.replaying.Release(1)
	now, err := w.datasetID(ctx)
	if err != nil || now == w.currentDataset() {
		return now, err
	}
	return now, w.replayToRedis(ctx, now)
}

// recordKeyIDs copies the api_key_ids of the configured accounts' keys from Redis to the
// journal: if Redis loses them, their tasks are still recognized.
func (w *Worker) recordKeyIDs(ctx context.Context) error {
	journal := w.cfg.DataDir.Journal
	for _, a := range w.accounts {
		mark := a.remote.KeyFingerprint()
		if journal.KeyID(mark) != "" {
			continue
		}
		id, err := w.jobs.KeyID(ctx, mark)
		if err == nil && id != "" {
			err = journal.SetKeyID(mark, id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// currentDataset returns the ID of the dataset that this worker last replayed into.
func (w *Worker) currentDataset() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.knownDataset
}

// replayToRedis writes to a Redis that may have lost data what this worker has on disk: its
// journal, what was spent and the owners of tasks. It also registers the queues.
func (w *Worker) replayToRedis(ctx context.Context, now string) error {
	before := cmp.Or(w.currentDataset(), w.cfg.DataDir.Dataset)
	if before != "" && before != now && !w.cfg.ExclusiveQueue {
		w.log.Warn("redis dataset changed: replaying the journal")
		w.mu.Lock()
		w.dataLossSeen = true
		w.mu.Unlock()
	}
	if err := w.recoverJournal(ctx); err != nil {
		return err
	}
	if err := w.republishIntents(ctx); err != nil {
		return err
	}
	if err := w.importSpend(ctx); err != nil {
		return err
	}
	for task, e := range w.cfg.DataDir.Journal.OwnedTasks() {
		if err := w.jobs.ClaimTask(ctx, task, e.JobID); err != nil && !errors.As(err, new(*jobs.TaskOwnedError)) {
			return err
		}
	}
	if err := w.jobs.RegisterQueues(ctx, w.models()); err != nil {
		return err
	}
	err := errors.Join(w.recordKeyIDs(ctx), w.checkDurability(ctx))
	if err == nil && !w.cfg.ExclusiveQueue {
		err = w.cfg.DataDir.SetDataset(now)
	}
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.knownDataset = now
	return nil
}

// checkDurability records how durably Redis stores writes.
func (w *Worker) checkDurability(ctx context.Context) error {
	durability, err := redishealth.Probe(ctx, w.cfg.Redis)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.durability = durability
	return nil
}

// waitDurable waits for the strongest acknowledgement that Redis offers for what was
// written. On a timeout it logs and continues; the journal is durable.
func (w *Worker) waitDurable(ctx context.Context, jobID string) {
	w.mu.Lock()
	durability := w.durability
	w.mu.Unlock()
	if err := redishealth.WaitDurable(ctx, w.cfg.Redis, durability); err != nil {
		w.log.Warn("intent not acknowledged as durable", "job_id", jobID, "err", err)
	}
}

func (w *Worker) models() []string {
	models := make([]string, len(w.lanes))
	for i, lane := range w.lanes {
		models[i] = lane.model.Name
	}
	return models
}

// checkDataLoss compares the dataset with the one last verified for the lane. If it
// changed, queued jobs may already have been paid for: it waits for other workers to replay
// and for delayed creates to arrive, one lease TTL or 66 s, whichever is longer; then it
// records the orphaned tasks, for each of which one job will be held.
func (l *lane) checkDataLoss(ctx context.Context) error {
	if l.cfg.ExclusiveQueue {
		return nil // only the journal holds data
	}
	now := l.dataset
	last, err := l.cfg.Redis.Get(ctx, l.key(verifiedDatasetKey)).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("read %s: %w", l.key(verifiedDatasetKey), err)
	}
	if last == now || last == "" && !l.hasHistory() {
		return l.markVerified(ctx, now)
	}
	// A create of a worker that is gone for good may still be in transit.
	wait := max(leaseTTL, l.timing().Late)
	l.log.Warn("redis dataset changed: waiting for other workers to replay", "wait", wait)
	if err := l.sleep(ctx, wait); err != nil {
		return err
	}
	if l.baseline, err = l.takeSnapshot(ctx); err != nil {
		return err
	}
	orphans, err := l.findOrphans(ctx)
	if err != nil {
		return err
	}
	for _, task := range orphans {
		l.log.Error("orphaned task after data loss: next job will be held", "task_id", task.TaskID)
		if err := l.cfg.Redis.HSet(ctx, l.key(orphansKey), task.TaskID, task.GmtCreate).Err(); err != nil {
			return fmt.Errorf("record orphaned task: %w", err)
		}
		if err := l.addToQuarantine(ctx, quarantinedTask{JobID: "unknown", Account: l.account.name, Model: l.model.Name, TaskID: task.TaskID}); err != nil {
			return err
		}
	}
	return l.markVerified(ctx, now)
}

// isVerified reports whether checkDataLoss has run for the lane and the current dataset.
func (l *lane) isVerified(ctx context.Context) bool {
	last, err := l.cfg.Redis.Get(ctx, l.key(verifiedDatasetKey)).Result()
	return err == nil && last == l.dataset || l.cfg.ExclusiveQueue
}

// hasHistory reports whether Redis had data to lose, as far as this worker can tell: it has
// seen another dataset, or has created a task with the account's key.
func (l *lane) hasHistory() bool {
	l.Worker.mu.Lock()
	lost := l.dataLossSeen
	l.Worker.mu.Unlock()
	return lost || l.cfg.DataDir.Journal.KeyID(l.account.remote.KeyFingerprint()) != ""
}

// assertSameDataset fails if Redis may have lost data since the term began: nothing may be
// submitted then.
func (l *lane) assertSameDataset(ctx context.Context) error {
	if l.cfg.ExclusiveQueue {
		return nil
	}
	now, err := l.datasetID(ctx)
	switch {
	case err != nil:
		return &pauseError{backoff: &l.waits.unreachable, message: redisUnavailable, cause: err}
	case now != l.dataset:
		l.log.Warn("redis dataset changed: restarting the lane", "term", l.term)
		l.lease.invalidate()
		return ErrStopped
	}
	return nil
}

// markVerified records the verified dataset and loads the orphaned tasks for which jobs
// will be held.
func (l *lane) markVerified(ctx context.Context, now string) error {
	if err := l.cfg.Redis.Set(ctx, l.key(verifiedDatasetKey), now, 0).Err(); err != nil {
		return fmt.Errorf("write %s: %w", l.key(verifiedDatasetKey), err)
	}
	orphans, err := l.cfg.Redis.HKeys(ctx, l.key(orphansKey)).Result()
	if err != nil {
		return fmt.Errorf("read orphaned tasks: %w", err)
	}
	slices.Sort(orphans)
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
	key, err := l.keyID(ctx, l.account.remote.KeyFingerprint())
	if err != nil {
		return nil, err
	}
	orphans := map[string]dashscope.TaskInfo{}
	for _, task := range l.baseline.Unowned {
		explained := slices.ContainsFunc(l.baseline.Intents, func(i reconcile.Intent) bool { return i.CouldHaveCreated(task, l.submitLimit()) })
		if (key == "" || task.APIKeyID == key) && !explained && !l.baseline.Quarantined[task.TaskID] {
			orphans[task.TaskID] = task
		}
	}
	if len(orphans) == 0 {
		return nil, nil
	}
	err = l.cfg.Bucket.RecentSidecars(ctx, time.Now().Add(-journal.TaskRetention), func(s *storage.Sidecar) error {
		for _, attempt := range s.Attempts {
			if _, orphaned := orphans[attempt.TaskID]; orphaned {
				delete(orphans, attempt.TaskID)
				if err := l.jobs.ClaimTask(ctx, attempt.TaskID, s.JobID); err != nil && !errors.As(err, new(*jobs.TaskOwnedError)) {
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

// holdForOrphan holds a job that may have been lost by Redis after an orphaned task was
// created for it: one job for each such task.
func (l *lane) holdForOrphan(ctx context.Context, rec *jobs.Record, req *jobs.Request) error {
	l.mu.Lock()
	tasks := slices.Clone(l.orphans)
	l.mu.Unlock()
	if len(tasks) == 0 {
		return nil
	}
	next := heldRecord(rec, jobs.CodeOrphanedTask, fmt.Sprintf("Redis has lost data, and %d of the account's tasks have no known owner: one of them may have been created for this job; their images are quarantined under _held/ in the bucket", len(tasks)))
	next.Candidates, next.Account, next.Request = tasks, l.account.name, req
	l.log.Error("job held for operator", "job_id", rec.ID, "err", next.Message)
	if err := l.transition(ctx, rec, next); err != nil {
		return err
	}
	if err := l.cfg.Redis.HDel(ctx, l.key(orphansKey), tasks[0]).Err(); err != nil {
		l.log.Warn(redisUnavailable, "err", err)
	}
	l.mu.Lock()
	l.orphans = tasks[1:]
	l.mu.Unlock()
	return jobs.ErrConflict // read the record again
}
