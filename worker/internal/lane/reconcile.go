package lane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/quarantine"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// Poll intervals of the task list as fractions of the submit limit: the first one and
	// the longest.
	pollsPerWindow = 330 // every second
	maxPollShare   = 10  // every 33 s
	// slotHoldLimit is how long an ambiguous create keeps its slot while the list is
	// unavailable.
	slotHoldLimit = time.Minute
	// maxLostCreates is how many creates of a job may end without a task on the list. At
	// three the list is probably wrong, and each create may have been charged.
	maxLostCreates = 3
	// minPollInterval is the shortest poll interval; it applies where a simulator's submit
	// limit is short.
	minPollInterval = 100 * time.Millisecond
)

// markAmbiguous records that an intent's create has an unknown outcome. requestID is the
// service's ID of the create, "" if there was no reply; cutShort is set if the reply was not
// awaited to the end.
func (l *lane) markAmbiguous(ctx context.Context, rec *jobs.Record, reason, requestID string, cutShort bool) (*jobs.Record, error) {
	next := reconcile.AmbiguousRecord(rec, reason)
	known := false
	if next.AmbiguousAt, known = l.cfg.Account.ServiceNow(); !known {
		next.ServiceAt = time.Time{} // times from two clocks cannot be compared
	}
	next.RequestID, next.CutShort = requestID, cutShort
	l.recorder.Journal(journal.KindAmbiguous, next)
	l.log.Warn("create outcome unknown: reconciling", "job_id", rec.ID, "attempt", rec.Attempt, "err", reason)
	return next, l.recorder.Transition(ctx, rec, next)
}

// reconcile finds the outcome of an ambiguous create in the account's task list: it adopts
// the task, resubmits the job or holds it. The execution keeps its slot while a task that
// may be the job's is pending or running, or may still be created by a delayed request;
// afterwards other jobs may use the slot. It returns when the record has left the state.
func (l *lane) reconcile(ctx context.Context, e *execution, rec *jobs.Record) (err error) {
	l.setWorking(e)
	if rec.AmbiguousAt.IsZero() {
		if rec, err = l.markAmbiguous(ctx, rec, reconcile.WorkerCrashed, "", true); err != nil {
			return err
		}
	}
	t := l.timing()
	pace := loop.Backoff{First: max(t.Limit/pollsPerWindow, minPollInterval), Most: l.longestPoll()}
	wait, answered, outputs := pace.First, time.Now(), map[string]*reconcile.Output{}
	for {
		if err := loop.Sleep(ctx, wait); err != nil {
			return err
		}
		now, err := l.recorder.Store.Get(ctx, rec.ID)
		if err == nil && (now.State != jobs.StateSubmitting || now.Attempt != rec.Attempt || now.Term != rec.Term) || errors.Is(err, jobs.ErrNotFound) {
			return nil
		}
		snapshot := (*reconcile.Snapshot)(nil)
		if err == nil {
			snapshot, err = l.takeSnapshot(ctx)
		}
		if err == nil {
			err = l.inspectContested(ctx, snapshot, outputs)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if isRefused(err) {
			return err
		}
		if err != nil {
			l.log.Warn("task list unavailable, retrying", "job_id", rec.ID, "err", err)
			if now, _ := l.cfg.Account.ServiceNow(); now.Sub(l.intentOf(rec).From) > reconcile.MaxIntentAge {
				return l.holdAmbiguous(ctx, rec, nil)
			}
			if wait = pace.Next(); time.Since(answered) > slotHoldLimit && l.quietIn(l.intentOf(rec)) <= 0 {
				l.park(e)
			}
			continue
		}
		answered = time.Now()
		done, open, err := l.applyDecision(ctx, rec, snapshot)
		if done || err != nil {
			return err
		}
		intent := l.intentOf(rec)
		if wait = pace.First; !open && l.quietIn(intent) <= 0 {
			l.park(e)
			wait = pace.Next()
		}
		// At the limit many intents can be decided: poll then.
		if left := l.untilService(intent.LimitOver(t)); left > 0 {
			wait = min(wait, left)
		}
	}
}

// intentOf returns the intent of a record. If the worker crashed during its create, the end
// of the window is not recorded: it is now, but at most the submit limit after the intent,
// since no create is awaited longer.
func (l *lane) intentOf(rec *jobs.Record) reconcile.Intent {
	i := reconcile.IntentOf(rec)
	now, known := l.cfg.Account.ServiceNow()
	if i.Until.IsZero() {
		i.Until = now
	}
	if last := i.From.Add(l.cfg.SubmitLimit()); i.Until.After(last) && !i.SentLater {
		i.Until = last
	}
	i.ClockUnknown = i.ClockUnknown || !known
	return i
}

// timing returns the timing of the lane's creates.
func (l *lane) timing() reconcile.Timing { return reconcile.TimingOf(l.cfg.SubmitLimit()) }

// untilService returns the time left until a moment on the service's clock.
func (l *lane) untilService(at time.Time) time.Duration {
	now, _ := l.cfg.Account.ServiceNow()
	return at.Sub(now)
}

// quietIn returns how long the lane must not send another create because of an open intent.
func (l *lane) quietIn(i reconcile.Intent) time.Duration {
	if l.recorder.Data.Journal.KeyID(i.KeyFingerprint) == "" {
		i.CutShort = false // nothing is adopted before the key's api_key_id is known
	}
	return l.untilService(i.QuietAt(l.timing()))
}

// applyDecision applies the decision about an intent, given a snapshot. done reports
// whether the intent is settled; open reports whether a task that may be its own is pending
// or running.
func (l *lane) applyDecision(ctx context.Context, rec *jobs.Record, snapshot *reconcile.Snapshot) (done, open bool, err error) {
	key, err := l.keyID(ctx, rec.KeyFingerprint)
	if isRefused(err) {
		return false, false, err
	}
	if err != nil {
		loop.WarnRedis(l.log, err, "job_id", rec.ID)
		return false, true, nil
	}
	now, _ := l.cfg.Account.ServiceNow()
	now = now.Add(-time.Since(snapshot.TakenAt)) // the list does not show what came later
	intent := l.intentOf(rec)
	if !slices.ContainsFunc(snapshot.Intents, func(i reconcile.Intent) bool { return i.JobID == intent.JobID && i.Attempt == intent.Attempt }) {
		snapshot.Intents = append(snapshot.Intents, intent)
	}
	decision, tasks := reconcile.Decide(intent, snapshot, key, l.timing(), now)
	switch decision {
	case reconcile.Adopt:
		return true, false, l.adopt(ctx, rec, tasks[0])
	case reconcile.Hold:
		return true, false, l.holdAmbiguous(ctx, rec, tasks)
	case reconcile.NotCreated:
		switch {
		case !l.listIsCurrent(ctx, rec, snapshot):
		case lostCreates(rec) >= maxLostCreates-1:
			return true, false, l.holdAmbiguous(ctx, rec, nil)
		default:
			return true, false, l.resubmit(ctx, rec)
		}
	case reconcile.Undecided:
	}
	for _, task := range tasks {
		if task.Status == dashscope.StatusPending || task.Status == dashscope.StatusRunning {
			open = true
		}
	}
	return false, open, nil
}

// awaitQuiet waits until a new task can only be the next create's: until each ambiguous
// create of the lane is settled, or so old that no task of it is expected any more. If it
// has waited, it fails with errReread.
func (l *lane) awaitQuiet(ctx context.Context) error {
	for waited := false; ; waited = true {
		open, err := l.recordsIn(ctx, jobs.StateSubmitting)
		if err != nil {
			return l.redisPause(err)
		}
		quiet := time.Duration(0)
		for _, rec := range open {
			quiet = max(quiet, l.quietIn(l.intentOf(rec)))
		}
		switch {
		case quiet > 0 && !waited:
			l.usage.change(func() { l.usage.quiet++ })
			defer l.usage.change(func() { l.usage.quiet-- })
		case quiet > 0:
		case waited:
			return errReread
		default:
			return nil
		}
		if err := loop.Sleep(ctx, min(quiet, max(l.timing().Limit/pollsPerWindow, minPollInterval))); err != nil {
			return err
		}
	}
}

// lostCreates returns the number of a job's creates that were lost without a task since the
// job was submitted or last retried by an operator.
func lostCreates(rec *jobs.Record) int {
	n := 0
	for _, past := range rec.PastAttempts {
		if past.Code == jobs.CodeNotCreated && past.SubmittedAt.After(rec.RetriedAt) {
			n++
		}
	}
	return n
}

// listIsCurrent reports whether the list contains the lane's last created task, if that was
// created after the intent; then the list also contains all earlier tasks. The last task is
// taken from this worker's journal and, for other holders, from Redis.
func (l *lane) listIsCurrent(ctx context.Context, rec *jobs.Record, snapshot *reconcile.Snapshot) bool {
	last, err := l.lastCreated(ctx)
	if err != nil {
		loop.WarnRedis(l.log, err, "job_id", rec.ID)
		return false
	}
	for _, made := range []journal.CreatedTask{last, l.recorder.Data.Journal.LastCreated(l.cfg.Account.Name, l.cfg.Model.Name)} {
		_, shown := snapshot.All[made.ID]
		if made.ID != "" && !shown && made.At.After(rec.SubmittedAt) && snapshot.TakenAt.Sub(made.At) < dashscope.TaskLifetime {
			return false
		}
	}
	return true
}

func (l *lane) lastCreated(ctx context.Context) (made journal.CreatedTask, err error) {
	encoded, err := l.recorder.Redis.Get(ctx, l.key(rediskey.LaneLastTask)).Bytes()
	if errors.Is(err, redis.Nil) {
		return made, nil
	}
	if err == nil {
		err = json.Unmarshal(encoded, &made)
	}
	return made, err
}

func (l *lane) setLastCreated(ctx context.Context, task string) {
	encoded, err := compactjson.Marshal(journal.CreatedTask{ID: task, At: time.Now().UTC()})
	if err == nil {
		err = l.recorder.Redis.Set(context.WithoutCancel(ctx), l.key(rediskey.LaneLastTask), encoded, dashscope.TaskLifetime).Err()
	}
	if err != nil {
		l.log.Warn("last created task not recorded", "task_id", task, "err", err)
	}
}

// adopt assigns a task to the job that created it. The record claims the task before the
// journal has it: with the other order, after a crash in between, the journal's task could
// be another job's.
func (l *lane) adopt(ctx context.Context, rec *jobs.Record, task dashscope.TaskInfo) error {
	next := *rec
	next.State, next.TaskID, next.Adopted = jobs.StateGenerating, task.TaskID, true
	next.Code, next.Message = "", ""
	if err := l.recorder.Transition(ctx, rec, &next); err != nil {
		if errors.As(err, new(*jobs.TaskOwnedError)) {
			return nil // another job claimed it: read the list again
		}
		return err
	}
	l.recorder.Journal(journal.KindTask, &next)
	l.tasks.Store(next.TaskID, next.SubmittedAt)
	l.log.Info("task adopted", "job_id", rec.ID, "task_id", task.TaskID, "attempt", rec.Attempt)
	return nil
}

// resubmit rolls back an intent that created no task, so that the job is submitted again.
// The intent is recorded to identify a task that appears late.
func (l *lane) resubmit(ctx context.Context, rec *jobs.Record) error {
	intent := l.intentOf(rec)
	intent.Resubmitted = true
	settled, err := intent.Encode()
	if err == nil {
		err = l.recorder.Data.Journal.Append(journal.KindNotCreated, rec)
	}
	if err == nil {
		err = l.recorder.Release(ctx, rec)
	}
	if err != nil {
		return &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseRedis, message: "intent not rolled back", cause: err}
	}
	l.log.Warn("reconciled: no task created, resubmitting", "job_id", rec.ID, "attempt", rec.Attempt)
	next := *rec
	next.PastAttempts = append(rec.PastAttempts[:len(rec.PastAttempts):len(rec.PastAttempts)], jobs.Attempt{
		Attempt: rec.Attempt, Term: rec.Term, SubmittedAt: rec.SubmittedAt, EndedAt: time.Now().UTC(),
		Code: jobs.CodeNotCreated, Message: "create lost: no task on the account's list",
	})
	next.ClearIntent()
	next.Code, next.Message, next.SettledIntent = "", "", settled
	if l.cancelRequested(ctx, &next) {
		return l.finishJob(ctx, rec, recorder.Ended(&next, jobs.StateCanceled, jobs.CodeCanceled, canceledBeforeCreate))
	}
	next.State = jobs.StateQueued
	return l.recorder.Transition(ctx, rec, &next)
}

// holdAmbiguous holds a job until an operator decides which of the candidate tasks, if any,
// is the job's. The images of the candidates are quarantined meanwhile, since task images
// expire after a day.
func (l *lane) holdAmbiguous(ctx context.Context, rec *jobs.Record, candidates []dashscope.TaskInfo) error {
	next := *rec
	next.Candidates = nil
	for _, task := range candidates {
		next.Candidates = append(next.Candidates, task.TaskID)
	}
	reason := fmt.Sprintf("create outcome unknown: the task may be one of %d unowned tasks on the account's list, whose images are quarantined under _held/ in the bucket", len(candidates))
	switch {
	case len(candidates) > 0:
	case !l.listed.Load() && l.cfg.Model.Protocol != jobs.ProtocolText2Image:
		reason = "create outcome unknown: the account's task list has not shown a task of " + l.cfg.Model.Name + " yet, so that it does not tell whether one was created; look in DashScope's console before buying again"
	case lostCreates(rec) >= maxLostCreates-1:
		reason = fmt.Sprintf("%d creates were lost without a task on the account's list: check in the console that it is the right account before buying again", maxLostCreates)
	default:
		reason = "create outcome unknown: the intent is too old for the account's task list"
	}
	held := l.intentOf(rec)
	held.Held = true
	settled, err := held.Encode()
	if err != nil {
		return err
	}
	next.SettledIntent = settled
	for _, id := range next.Candidates {
		if err := l.cfg.Quarantine.Add(ctx, quarantine.Task{JobID: rec.ID, Attempt: rec.Attempt, Account: l.cfg.Account.Name, Model: l.cfg.Model.Name, TaskID: id}); err != nil {
			if isRefused(err) {
				return err
			}
			return l.redisPause(err)
		}
	}
	return l.recorder.Hold(ctx, rec, recorder.Held(&next, jobs.CodeSubmitAmbiguous, reason))
}
