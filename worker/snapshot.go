package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// listPage is how many tasks are asked for at once. The service's maximum is not
	// documented: what it returns is counted, not what was asked for.
	listPage = 100
	// listTries is how often a list that changes while it is read is read anew.
	listTries = 5
)

// ask waits for the lane's turn to ask the service something: all of an account's
// lanes share half of what it allows.
func (l *lane) ask(ctx context.Context) error {
	return l.sleep(ctx, l.queries.Reserve().Delay())
}

// wholeList reads the account's tasks of the lane's model to the end, without a
// filter by time, whose zone is not documented. A list that changed on the way is
// read anew.
func (l *lane) listAll(ctx context.Context) (tasks []dashscope.TaskInfo, err error) {
	name, _ := l.model.NameIn(l.account.remote.Region())
	for range listTries {
		seen := map[string]bool{}
		tasks = nil
		first, total := -1, 0
		for no, more := 1, true; more; no++ {
			if err := l.ask(ctx); err != nil {
				return nil, err
			}
			page, err := l.account.remote.List(ctx, dashscope.ListFilter{Model: name, PageNo: no, PageSize: listPage})
			if err != nil {
				return nil, err
			}
			l.account.clock(page.Date)
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
	return nil, errors.New("the list of tasks changed whenever it was read")
}

// look reads the list, and who owns what is on it. The order matters: a create that
// ends meanwhile must be seen as an intent or as an owner.
func (l *lane) takeSnapshot(ctx context.Context) (*reconcile.Snapshot, error) {
	view := &reconcile.Snapshot{TakenAt: time.Now(), All: map[string]dashscope.TaskInfo{}}
	tasks, err := l.listAll(ctx)
	if err != nil {
		return nil, err
	}
	var adopted map[string]bool
	if view.Intents, adopted, err = l.intents(ctx); err != nil {
		return nil, err
	}
	for _, task := range tasks {
		view.All[task.TaskID] = task
		if adopted[task.TaskID] {
			view.Unverified = append(view.Unverified, task)
		}
	}
	if view.Unowned, view.Quarantined, err = l.withoutOwner(ctx, tasks); err != nil {
		return nil, err
	}
	l.updateBaseline(ctx, view)
	return view, nil
}

// unownedOf returns those of the tasks that no record and no journal owns, and which of
// them are kept for a held job.
func (l *lane) withoutOwner(ctx context.Context, tasks []dashscope.TaskInfo) (unowned []dashscope.TaskInfo, kept map[string]bool, err error) {
	journaled := l.cfg.DataDir.Journal.OwnedTasks()
	var unknown []string
	byID := map[string]dashscope.TaskInfo{}
	for _, task := range tasks {
		mark := journaled[task.TaskID].KeyFingerprint
		_, made := l.tasks.Load(task.TaskID)
		if made && mark == "" {
			continue
		}
		if mark != "" {
			l.recordKeyID(ctx, mark, task.APIKeyID)
		} else if _, owned := journaled[task.TaskID]; !owned {
			unknown = append(unknown, task.TaskID)
			byID[task.TaskID] = task
		}
	}
	notes, err := l.jobs.TaskOwners(ctx, unknown)
	if err != nil {
		return nil, nil, err
	}
	kept = map[string]bool{}
	for _, id := range unknown {
		if notes[id].Job == "" {
			unowned = append(unowned, byID[id])
			kept[id] = notes[id].QuarantinedFor != ""
		}
	}
	return unowned, kept, nil
}

// keepListing keeps the last listing in which every task of the lane's key had an owner,
// and before there was one the first.
func (l *lane) updateBaseline(ctx context.Context, view *reconcile.Snapshot) {
	clean, err := l.allExplained(ctx, view)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.baseline == nil || clean && err == nil {
		l.baseline = view
	}
}

// clean reports whether each task of the lane's key on a listing is explained: it has an
// owner, or is kept for a held job, or an intent may have made it. No create that is sent
// later has made it then, and no other program.
func (l *lane) allExplained(ctx context.Context, view *reconcile.Snapshot) (bool, error) {
	key, err := l.keyID(ctx, l.account.remote.KeyMark())
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(view.Unowned, func(t dashscope.TaskInfo) bool {
		made := slices.ContainsFunc(view.Intents, func(i reconcile.Intent) bool { return i.CouldHaveCreated(t, l.timing().Limit) })
		return !made && !view.Quarantined[t.TaskID] && (key == "" || t.APIKeyID == key)
	}), nil
}

// listedAt is when the list was read last before an intent, if every task of the
// lane's key is explained; else zero.
func (l *lane) lastClearSnapshot(ctx context.Context) (time.Time, error) {
	l.mu.Lock()
	view := l.baseline
	l.mu.Unlock()
	if view == nil {
		return time.Time{}, nil
	}
	clean, err := l.allExplained(ctx, view)
	if err == nil && !clean { // some may have been explained since
		later := *view
		if later.Unowned, later.Quarantined, err = l.withoutOwner(ctx, view.Unowned); err == nil {
			clean, err = l.allExplained(ctx, &later)
		}
	}
	if err != nil || !clean {
		return time.Time{}, err
	}
	return view.TakenAt.UTC(), nil
}

// doubts is the key of the lane's intents that were bought again or are held, by job and
// attempt.
const intentsKey = rediskey.LaneIntents

func intentField(job string, attempt int) string { return fmt.Sprintf("%s.%d", job, attempt) }

// recordsIn are the records of the lane in some states, of whatever worker.
func (l *lane) recordsIn(ctx context.Context, states ...jobs.State) (all []*jobs.Record, err error) {
	for filter := (jobs.ListFilter{States: states, Account: l.account.name, Model: l.model.Name}); ; {
		records, cursor, err := l.jobs.List(ctx, filter)
		if err != nil {
			return nil, err
		}
		all = append(all, records...)
		if filter.Cursor = cursor; cursor == "" {
			return all, nil
		}
	}
}

// intents are the lane's creates that have no outcome, of whatever worker, and those
// of the last day that were bought again or are held. adopted are the tasks that jobs
// have adopted and that are under way.
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
	decided, err := l.cfg.Redis.HGetAll(ctx, l.key(intentsKey)).Result()
	if err != nil {
		return nil, nil, fmt.Errorf("read intents that are decided: %w", err)
	}
	for name, encoded := range decided {
		i, err := reconcile.DecodeIntent(encoded)
		if err == nil && time.Since(i.From) < journal.TaskRetention {
			if !i.LateTaskFound {
				found = append(found, i)
			}
			continue
		}
		if err := l.cfg.Redis.HDel(ctx, l.key(intentsKey), name).Err(); err != nil {
			return nil, nil, fmt.Errorf("forget an intent: %w", err)
		}
	}
	return found, adopted, nil
}

// clock notes the service's time, which its answers bear in whole seconds.
func (a *account) clock(date time.Time) {
	if date.IsZero() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.date, a.dated = date.Add(500*time.Millisecond), time.Now()
}

// serviceNow is the time by the service's clock, and whether that is known. The own
// clock may be set meanwhile: it is not asked.
func (a *account) serviceNow() (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dated.IsZero() {
		return time.Now().UTC(), false
	}
	return a.date.Add(time.Since(a.dated)).UTC(), true
}

// learnKeyID notes under which ID the service lists the tasks of a key of ours.
func (l *lane) recordKeyID(ctx context.Context, mark, keyID string) {
	journal := l.cfg.DataDir.Journal
	if keyID == "" || journal.KeyID(mark) == keyID {
		return
	}
	if err := errors.Join(journal.SetKeyID(mark, keyID), l.jobs.SetKeyID(ctx, mark, keyID)); err != nil {
		l.log.Warn("api_key_id not recorded", "err", err)
	}
}

// keyID is the ID under which the service lists the tasks of the key with a mark, ""
// if that is not known.
func (l *lane) keyID(ctx context.Context, mark string) (string, error) {
	if known := l.cfg.DataDir.Journal.KeyID(mark); known != "" || mark == "" {
		return known, nil
	}
	return l.jobs.KeyID(ctx, mark)
}

// meetKey learns the own key's ID from a task that was made with it, once.
func (l *lane) discoverKeyID(ctx context.Context, rec *jobs.Record) {
	mark := l.account.remote.KeyMark()
	if rec.KeyFingerprint != mark || rec.Adopted || !rec.ResolvedAt.IsZero() || l.cfg.DataDir.Journal.KeyID(mark) != "" {
		return
	}
	if err := l.ask(ctx); err != nil {
		return
	}
	page, err := l.account.remote.List(ctx, dashscope.ListFilter{TaskID: rec.TaskID})
	if err != nil || len(page.Data) != 1 || page.Data[0].TaskID != rec.TaskID {
		return // the list lags behind; the next look at the task asks again
	}
	l.recordKeyID(ctx, mark, page.Data[0].APIKeyID)
}
