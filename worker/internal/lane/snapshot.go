package lane

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
)

const (
	// listPage is the page size of the task list. The service's maximum is not documented,
	// so the returned tasks are counted, not the requested ones.
	listPage = 100
	// listTries is how often a list that changes while being read is read again.
	listTries = 5
)

// listAll reads the whole list of the account's tasks of the lane's model. It does not
// filter by time, whose zone is not documented. A list that changed while being read is
// read again.
func (l *lane) listAll(ctx context.Context) (tasks []dashscope.TaskInfo, err error) {
	name, _ := l.cfg.Model.NameIn(l.cfg.Account.Client.Region())
	for range listTries {
		seen := map[string]bool{}
		tasks = nil
		first, total := -1, 0
		for no, more := 1, true; more; no++ {
			page, err := l.cfg.Account.Client.List(ctx, dashscope.ListFilter{Model: name, PageNo: no, PageSize: listPage})
			if err != nil {
				return nil, err
			}
			l.cfg.Account.SetServiceTime(page.Date)
			if total = page.Total; first < 0 {
				first = total
			}
			more = false
			for _, task := range page.Data {
				if !seen[task.TaskID] {
					seen[task.TaskID], more = true, true
					tasks = append(tasks, task)
				}
			}
			more = more && len(tasks) < total
		}
		if first == total && len(tasks) == total {
			return tasks, nil
		}
	}
	return nil, errors.New("the task list changed during every read")
}

// takeSnapshot reads the task list, then the intents and owners. The order matters: a
// create that ends in between must appear as an intent or as an owner.
func (l *lane) takeSnapshot(ctx context.Context) (*reconcile.Snapshot, error) {
	snapshot := &reconcile.Snapshot{TakenAt: time.Now(), All: map[string]dashscope.TaskInfo{}}
	tasks, err := l.listAll(ctx)
	if err != nil {
		return nil, err
	}
	var adopted map[string]bool
	if snapshot.Intents, adopted, err = l.intents(ctx); err != nil {
		return nil, err
	}
	for _, task := range tasks {
		snapshot.All[task.TaskID] = task
		if adopted[task.TaskID] {
			snapshot.Unverified = append(snapshot.Unverified, task)
		}
	}
	if snapshot.Unowned, snapshot.Quarantined, err = l.withoutOwner(ctx, tasks); err != nil {
		return nil, err
	}
	if err := l.proveList(ctx, snapshot); err != nil {
		return nil, err
	}
	l.updateBaseline(ctx, snapshot)
	return snapshot, nil
}

// withoutOwner returns the tasks that no record and no journal owns, and which of them are
// quarantined for a held job.
func (l *lane) withoutOwner(ctx context.Context, tasks []dashscope.TaskInfo) (unowned []dashscope.TaskInfo, quarantined map[string]bool, err error) {
	journaled := l.recorder.Data.Journal.OwnedTasks()
	var unknown []string
	byID := map[string]dashscope.TaskInfo{}
	for _, task := range tasks {
		fingerprint := journaled[task.TaskID].KeyFingerprint
		_, made := l.tasks.Load(task.TaskID)
		if made && fingerprint == "" {
			continue
		}
		if fingerprint != "" {
			l.recordKeyID(ctx, fingerprint, task.APIKeyID)
		} else if _, owned := journaled[task.TaskID]; !owned {
			unknown = append(unknown, task.TaskID)
			byID[task.TaskID] = task
		}
	}
	owners, err := l.recorder.Store.TaskOwners(ctx, unknown)
	if err != nil {
		return nil, nil, err
	}
	quarantined = map[string]bool{}
	for _, id := range unknown {
		if owners[id].Job == "" {
			unowned = append(unowned, byID[id])
			quarantined[id] = owners[id].QuarantinedFor != ""
		}
	}
	return unowned, quarantined, nil
}

// updateBaseline keeps the last snapshot in which every task of the lane's key was
// explained; before there is one, the first snapshot.
func (l *lane) updateBaseline(ctx context.Context, snapshot *reconcile.Snapshot) {
	explained, err := l.allExplained(ctx, snapshot)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.baseline == nil || explained && err == nil {
		l.baseline = snapshot
	}
}

// allExplained reports whether each task of the lane's key in a snapshot has an owner, is
// quarantined for a held job, or may have been created by an intent. If so, none of them
// comes from a later create, and none from another program.
func (l *lane) allExplained(ctx context.Context, snapshot *reconcile.Snapshot) (bool, error) {
	key, err := l.keyID(ctx, l.cfg.Account.Client.KeyFingerprint())
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(snapshot.Unowned, func(t dashscope.TaskInfo) bool {
		made := slices.ContainsFunc(snapshot.Intents, func(i reconcile.Intent) bool { return i.CouldHaveCreated(t, l.timing().Limit) })
		return !made && !snapshot.Quarantined[t.TaskID] && (key == "" || t.APIKeyID == key)
	}), nil
}

// lastClearTime returns the time of the baseline if every task of the lane's key in it is
// explained, else zero.
func (l *lane) lastClearTime(ctx context.Context) (time.Time, error) {
	l.mu.Lock()
	snapshot := l.baseline
	l.mu.Unlock()
	if snapshot == nil {
		return time.Time{}, nil
	}
	explained, err := l.allExplained(ctx, snapshot)
	if err == nil && !explained { // some may have been explained since then
		later := *snapshot
		if later.Unowned, later.Quarantined, err = l.withoutOwner(ctx, snapshot.Unowned); err == nil {
			explained, err = l.allExplained(ctx, &later)
		}
	}
	if err != nil || !explained {
		return time.Time{}, err
	}
	return snapshot.TakenAt.UTC(), nil
}

// recordsIn returns the lane's records in the given states, of all workers.
func (l *lane) recordsIn(ctx context.Context, states ...jobs.State) (all []*jobs.Record, err error) {
	for filter := (jobs.ListFilter{States: states, Account: l.cfg.Account.Name, Model: l.cfg.Model.Name}); ; {
		records, cursor, err := l.recorder.Store.List(ctx, filter)
		if err != nil {
			return nil, err
		}
		all = append(all, records...)
		if filter.Cursor = cursor; cursor == "" {
			return all, nil
		}
	}
}

// intents returns the lane's ambiguous creates, of all workers, and the intents of the last
// day that were resubmitted or are held. adopted are the adopted tasks that have not ended.
func (l *lane) intents(ctx context.Context) (found []reconcile.Intent, adopted map[string]bool, err error) {
	records, err := l.recordsIn(ctx, jobs.StateSubmitting, jobs.StateGenerating)
	if err != nil {
		return nil, nil, err
	}
	adopted = map[string]bool{}
	for _, rec := range records {
		if rec.State == jobs.StateSubmitting {
			found = append(found, l.intentOf(rec))
		} else if rec.Adopted {
			adopted[rec.TaskID] = true
		}
	}
	settled, err := l.intentIndex.Recent(ctx)
	if err != nil {
		return nil, nil, err
	}
	return append(found, settled...), adopted, nil
}

// refreshClock queries the service's time if it is unknown. If that fails, the create uses
// the worker's own clock.
func (l *lane) refreshClock(ctx context.Context) {
	if _, known := l.cfg.Account.ServiceNow(); known {
		return
	}
	if page, err := l.cfg.Account.Client.List(ctx, dashscope.ListFilter{PageNo: 1, PageSize: 1}); err == nil {
		l.cfg.Account.SetServiceTime(page.Date)
	}
}
