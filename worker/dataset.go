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
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// epochKey holds a name that the first worker gives to what Redis knows: it is gone
	// when that is.
	datasetKey = rediskey.Dataset
	// memoryInterval is how often a worker looks whether Redis may have forgotten.
	datasetInterval = 5 * time.Second
	// durabilityInterval is how often it asks how Redis keeps what it is told.
	durabilityInterval = time.Minute
	// trusted is the key of what a lane's last holder knew Redis by, and suspects of
	// the tasks that jobs of the lane may have made which Redis has forgotten.
	verifiedDatasetKey = rediskey.LaneVerifiedDataset
	orphansKey         = rediskey.LaneOrphans
)

// memory names what Redis knows: it changes when Redis may have forgotten some of it,
// after a restart or a failover, or all.
func (w *Worker) datasetID(ctx context.Context) (string, error) {
	run, err := redishealth.DatasetID(ctx, w.cfg.Redis)
	if err != nil {
		return "", err
	}
	if err := w.cfg.Redis.SetNX(ctx, datasetKey, rand.Text(), 0).Err(); err != nil {
		return "", fmt.Errorf("write %s: %w", datasetKey, err)
	}
	epoch, err := w.cfg.Redis.Get(ctx, datasetKey).Result()
	if err != nil {
		return "", fmt.Errorf("read %s: %w", datasetKey, err)
	}
	return epoch + "/" + cmp.Or(run, "embedded"), nil
}

// watchMemory tells Redis again what this worker knows whenever it may have forgotten,
// until the returned function is called.
func (w *Worker) watchDataset(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for asked := time.Now(); w.sleep(ctx, datasetInterval) == nil; {
			_, err := w.syncDataset(ctx)
			if err == nil {
				err = w.recordKeyIDs(ctx)
			}
			if err == nil && time.Since(asked) > durabilityInterval { // a replica may have come or gone
				err, asked = w.checkDurability(ctx), time.Now()
			}
			if err != nil && ctx.Err() == nil && !errors.Is(err, ErrStopped) {
				w.log.Warn(redisAway, "err", err)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// recollect returns what Redis is known by, after telling it what this worker knows if
// that is something else than before.
func (w *Worker) syncDataset(ctx context.Context) (string, error) {
	w.replayMu.Lock()
	defer w.replayMu.Unlock()
	now, err := w.datasetID(ctx)
	if err != nil || now == w.currentDataset() {
		return now, err
	}
	return now, w.replayToRedis(ctx, now)
}

// learnKeys notes in the journal what Redis knows of the keys of the configured
// accounts: should it forget, their tasks are still known by them.
func (w *Worker) recordKeyIDs(ctx context.Context) error {
	journal := w.cfg.DataDir.Journal
	for _, a := range w.accounts {
		mark := a.remote.KeyMark()
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

// lastMemory is what Redis was when this worker last told it what it knows.
func (w *Worker) currentDataset() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.knownDataset
}

// remind tells a Redis that may have forgotten what this worker knows: its journal,
// what was spent, whose tasks are whose, and the queues.
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

// askDurability asks Redis how it keeps what it is told.
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

// acknowledged asks for the strongest acknowledgement that Redis gives of what was
// written. Without one the journal alone has it for certain, so that it is said and
// the work goes on.
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

// recall finds out at the beginning of a term whether Redis has forgotten what an
// earlier holder was at. Then a job on the queue may have been paid for: everybody
// gets the time of a lease to tell what he knows, and for each of the account's tasks
// that is still nobody's the next job is held.
func (l *lane) checkDataLoss(ctx context.Context) error {
	if l.cfg.ExclusiveQueue {
		return nil // the journal is all there is to know
	}
	now := l.dataset
	last, err := l.cfg.Redis.Get(ctx, l.key(verifiedDatasetKey)).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("read %s: %w", l.key(verifiedDatasetKey), err)
	}
	if last == now || last == "" && !l.hasHistory() {
		return l.markVerified(ctx, now)
	}
	// A create of a worker that is gone for good may still be on its way.
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
			return fmt.Errorf("note a task that is nobody's: %w", err)
		}
		if err := l.addToQuarantine(ctx, quarantinedTask{JobID: "unknown", Account: l.account.name, Model: l.model.Name, TaskID: task.TaskID}); err != nil {
			return err
		}
	}
	return l.markVerified(ctx, now)
}

// trusts reports whether the lane has been through recall since Redis may have
// forgotten.
func (l *lane) isVerified(ctx context.Context) bool {
	last, err := l.cfg.Redis.Get(ctx, l.key(verifiedDatasetKey)).Result()
	return err == nil && last == l.dataset || l.cfg.ExclusiveQueue
}

// before reports whether there was something to forget, as far as this worker knows: it
// has known Redis by something else, or has worked on the lane's account.
func (l *lane) hasHistory() bool {
	l.Worker.mu.Lock()
	forgot := l.dataLossSeen
	l.Worker.mu.Unlock()
	return forgot || l.cfg.DataDir.Journal.KeyID(l.account.remote.KeyMark()) != ""
}

// mindful fails if Redis may have forgotten since the lane's term began: nothing may be
// bought on its word then.
func (l *lane) assertSameDataset(ctx context.Context) error {
	if l.cfg.ExclusiveQueue {
		return nil
	}
	now, err := l.Worker.datasetID(ctx)
	switch {
	case err != nil:
		return &pauseError{backoff: &l.waits.unreachable, message: redisAway, cause: err}
	case now != l.dataset:
		l.log.Warn("redis dataset changed: restarting the lane", "term", l.term)
		l.lease.invalidate()
		return ErrStopped
	}
	return nil
}

// trust notes what Redis is known by, and reads which tasks jobs are held for.
func (l *lane) markVerified(ctx context.Context, now string) error {
	if err := l.cfg.Redis.Set(ctx, l.key(verifiedDatasetKey), now, 0).Err(); err != nil {
		return fmt.Errorf("write %s: %w", l.key(verifiedDatasetKey), err)
	}
	noted, err := l.cfg.Redis.HKeys(ctx, l.key(orphansKey)).Result()
	if err != nil {
		return fmt.Errorf("read tasks that are nobody's: %w", err)
	}
	slices.Sort(noted)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.orphans = noted
	return nil
}

// lookAgain reads the list again if sidecars tell whose its tasks are, which a queue of
// one's own does not know: of an earlier run with another data directory.
func (l *lane) refreshBaseline(ctx context.Context) error {
	left, err := l.findOrphans(ctx)
	if err != nil {
		l.log.Warn("sidecars not read: tasks of earlier runs count as another program's", "err", err)
		return nil
	}
	if len(left) < len(l.baseline.Unowned) {
		l.baseline, err = l.takeSnapshot(ctx)
	}
	return err
}

// unexplained are the tasks of the lane's key, or of any if it is not known, that nobody
// owns, not even a sidecar, and that no intent which is known can have made.
func (l *lane) findOrphans(ctx context.Context) ([]dashscope.TaskInfo, error) {
	key, err := l.keyID(ctx, l.account.remote.KeyMark())
	if err != nil {
		return nil, err
	}
	orphans := map[string]dashscope.TaskInfo{}
	for _, task := range l.baseline.Unowned {
		known := slices.ContainsFunc(l.baseline.Intents, func(i reconcile.Intent) bool { return i.CouldHaveCreated(task, l.submitLimit()) })
		if (key == "" || task.APIKeyID == key) && !known && !l.baseline.Quarantined[task.TaskID] {
			orphans[task.TaskID] = task
		}
	}
	if len(orphans) == 0 {
		return nil, nil
	}
	err = l.cfg.Bucket.RecentSidecars(ctx, time.Now().Add(-journal.TaskRetention), func(s *storage.Sidecar) error {
		for _, attempt := range s.Attempts {
			if _, ours := orphans[attempt.TaskID]; ours {
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

// holdSuspect holds a job that may have been made by a task which Redis has forgotten,
// one for each such task.
func (l *lane) holdForOrphan(ctx context.Context, rec *jobs.Record, req *jobs.Request) error {
	l.mu.Lock()
	tasks := slices.Clone(l.orphans)
	l.mu.Unlock()
	if len(tasks) == 0 {
		return nil
	}
	next := heldRecord(rec, jobs.CodeOrphanedTask, fmt.Sprintf("Redis has lost its data, and %d of the account's tasks are no known job's: this job may have been made by one of them, whose images are kept under _held/ in the bucket", len(tasks)))
	next.Candidates, next.Account, next.Request = tasks, l.account.name, req
	l.log.Error("job held for operator", "job_id", rec.ID, "err", next.Message)
	if err := l.transition(ctx, rec, next); err != nil {
		return err
	}
	if err := l.cfg.Redis.HDel(ctx, l.key(orphansKey), tasks[0]).Err(); err != nil {
		l.log.Warn(redisAway, "err", err)
	}
	l.mu.Lock()
	l.orphans = tasks[1:]
	l.mu.Unlock()
	return jobs.ErrConflict // look again
}
