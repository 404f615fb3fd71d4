package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// shares of the submit limit: how often the list is looked at, at first and later.
	pollsPerWindow = 330 // every second
	maxPollShare   = 10  // every 33 s
	// doubtPatience is how long a list that fails keeps the slot.
	slotHoldLimit = time.Minute
	// lostMost is how many creates of a job may be lost without a task on the list: then
	// it is likelier that the list does not tell, and each has cost something.
	maxLostCreates = 3
	// doubtShortest bounds the looks where a simulator's limit is short.
	minPollInterval = 100 * time.Millisecond
)

const ambiguousMessage = "it is unknown whether a task was made; the account's list is searched for it, and until that is clear it is not submitted again: "

// doubtful is a record whose create has an unknown outcome.
func ambiguousRecord(rec *jobs.Record, a *account, why string) *jobs.Record {
	next := *rec
	next.Code, next.Message = jobs.CodeSubmitAmbiguous, ambiguousMessage+why
	if a != nil {
		next.AmbiguousAt, _ = a.serviceNow()
	}
	return &next
}

// beginDoubt parks an intent of which a task may have come. requestID is the
// service's name of the create, if its answer had one.
func (l *lane) markAmbiguous(ctx context.Context, rec *jobs.Record, why, requestID string) (*jobs.Record, error) {
	next := ambiguousRecord(rec, l.account, why)
	next.RequestID = requestID
	l.journal(journal.KindAmbiguous, next)
	l.log.Warn("create outcome unknown: reconciling", "job_id", rec.ID, "attempt", rec.Attempt, "err", why)
	return next, l.transition(ctx, rec, next)
}

// doubt finds out what became of a create whose outcome is unknown, by the account's
// list: it gives the job its task, or takes the intent back, or holds the job. The
// effort keeps its slot while a task that may be the job's is open, or may still come
// of a request that is on its way; other jobs go on then. It returns when the record is
// another one.
func (l *lane) reconcile(ctx context.Context, e *execution, rec *jobs.Record) (err error) {
	if rec.AmbiguousAt.IsZero() {
		if rec, err = l.markAmbiguous(ctx, rec, workerDied, ""); err != nil {
			return err
		}
	}
	t := l.timing()
	pace := backoff{first: max(t.Limit/pollsPerWindow, minPollInterval), most: max(t.Limit/maxPollShare, minPollInterval)}
	wait, answered, known := pace.first, time.Now(), map[string]*reconcile.Output{}
	for {
		if err := l.sleep(ctx, wait); err != nil {
			return err
		}
		now, err := l.jobs.Get(ctx, rec.ID)
		if err == nil && (now.State != jobs.StateSubmitting || now.Attempt != rec.Attempt || now.Term != rec.Term) || errors.Is(err, jobs.ErrNotFound) {
			return nil
		}
		view := (*reconcile.Snapshot)(nil)
		if err == nil {
			view, err = l.takeSnapshot(ctx)
		}
		if err == nil {
			err = l.inspectContested(ctx, view, known)
		}
		if errors.Is(err, ErrStopped) || ctx.Err() != nil {
			return err
		}
		if err != nil {
			l.log.Warn("task list unavailable, retrying", "job_id", rec.ID, "err", err)
			if now, _ := l.account.serviceNow(); now.Sub(l.intentOf(rec).From) > reconcile.MaxIntentAge {
				return l.holdAmbiguous(ctx, rec, nil)
			}
			if wait = pace.next(); time.Since(answered) > slotHoldLimit && l.quietIn(l.intentOf(rec)) <= 0 {
				l.releaseSlot(e)
			}
			continue
		}
		answered = time.Now()
		done, open, err := l.applyDecision(ctx, rec, view)
		if done || err != nil {
			return err
		}
		me := l.intentOf(rec)
		if wait = pace.first; !open && l.quietIn(me) <= 0 {
			l.releaseSlot(e)
			wait = pace.next()
		}
		// Its limit is a moment at which much can be decided.
		if left := l.untilService(me.From.Add(t.Limit)); left > 0 {
			wait = min(wait, left)
		}
	}
}

// intentOf is the intent of a record. A worker that died in the middle of its create did
// not say until when it waited: nobody waits for longer than the service's own limit.
func (l *lane) intentOf(rec *jobs.Record) reconcile.Intent {
	i := reconcile.IntentOf(rec)
	now, known := l.account.serviceNow()
	if i.Until.IsZero() {
		i.Until = now
	}
	if last := i.From.Add(l.submitLimit()); i.Until.After(last) {
		i.Until = last
	}
	i.ClockUnknown = i.ClockUnknown || !known
	return i
}

// timing is that of the lane's creates.
func (l *lane) timing() reconcile.Timing { return reconcile.TimingOf(l.submitLimit()) }

// untilService is how long it takes until a moment by the service's clock.
func (l *lane) untilService(at time.Time) time.Duration {
	now, _ := l.account.serviceNow()
	return at.Sub(now)
}

// quietIn is how long the lane must not send another create because of an open intent.
func (l *lane) quietIn(i reconcile.Intent) time.Duration {
	return l.untilService(i.QuietAt(l.timing()))
}

// settleDoubt acts on what a listing tells of an intent. open reports whether a task
// that may be its own waits or runs.
func (l *lane) applyDecision(ctx context.Context, rec *jobs.Record, view *reconcile.Snapshot) (done, open bool, err error) {
	key, err := l.keyID(ctx, rec.KeyFingerprint)
	if err != nil {
		l.log.Warn(redisAway, "job_id", rec.ID, "err", err)
		return false, true, nil
	}
	now, _ := l.account.serviceNow()
	me := l.intentOf(rec)
	if !slices.ContainsFunc(view.Intents, func(i reconcile.Intent) bool { return i.JobID == me.JobID && i.Attempt == me.Attempt }) {
		view.Intents = append(view.Intents, me)
	}
	what, tasks := reconcile.Decide(me, view, key, l.timing(), now)
	switch what {
	case reconcile.Adopt:
		return true, false, l.adopt(ctx, rec, tasks[0])
	case reconcile.Hold:
		return true, false, l.holdAmbiguous(ctx, rec, tasks)
	case reconcile.NotCreated:
		switch {
		case !l.listIsCurrent(ctx, rec, view):
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

// awaitQuiet waits until a task that shows up can be the next create's alone: until each
// create of the lane whose outcome is unknown is settled, or so old that nothing of it is
// expected any more. It fails with [jobs.ErrConflict] if it has waited: look again.
func (l *lane) awaitQuiet(ctx context.Context) error {
	for waited := false; ; waited = true {
		open, err := l.recordsIn(ctx, jobs.StateSubmitting)
		if err != nil {
			return &pauseError{backoff: &l.waits.unreachable, message: redisAway, cause: err}
		}
		quiet := time.Duration(0)
		for _, rec := range open {
			quiet = max(quiet, l.quietIn(l.intentOf(rec)))
		}
		switch {
		case quiet > 0:
		case waited:
			return jobs.ErrConflict
		default:
			return nil
		}
		if err := l.sleep(ctx, min(quiet, max(l.timing().Limit/pollsPerWindow, minPollInterval))); err != nil {
			return err
		}
	}
}

// lostBefore counts the creates of a job that were lost without a task since a person
// asked for it, or asked again.
func lostCreates(rec *jobs.Record) int {
	n := 0
	for _, past := range rec.PastAttempts {
		if past.Code == jobs.CodeNotCreated && past.SubmittedAt.After(rec.RetriedAt) {
			n++
		}
	}
	return n
}

// upToDate reports whether the list shows the last task that was made after an
// intent, if there is one: then it shows all before it. This worker's last is known by
// its journal, another holder's by Redis.
func (l *lane) listIsCurrent(ctx context.Context, rec *jobs.Record, view *reconcile.Snapshot) bool {
	last, err := l.lastCreated(ctx)
	if err != nil {
		l.log.Warn(redisAway, "job_id", rec.ID, "err", err)
		return false
	}
	for _, made := range []journal.CreatedTask{last, l.cfg.DataDir.Journal.LastCreated(l.account.name, l.model.Name)} {
		_, shown := view.All[made.ID]
		if made.ID != "" && !shown && made.At.After(rec.SubmittedAt) && view.TakenAt.Sub(made.At) < dashscope.TaskLifetime {
			return false
		}
	}
	return true
}

// latest is the key of the task that was made last on the lane, by whatever holder.
const lastTaskKey = rediskey.LaneLastTask

func (l *lane) lastCreated(ctx context.Context) (made journal.CreatedTask, err error) {
	encoded, err := l.cfg.Redis.Get(ctx, l.key(lastTaskKey)).Bytes()
	if errors.Is(err, redis.Nil) {
		return made, nil
	}
	if err == nil {
		err = json.Unmarshal(encoded, &made)
	}
	return made, err
}

func (l *lane) setLastCreated(ctx context.Context, task string) {
	encoded, err := encode(journal.CreatedTask{ID: task, At: time.Now().UTC()})
	if err == nil {
		err = l.cfg.Redis.Set(context.WithoutCancel(ctx), l.key(lastTaskKey), encoded, dashscope.TaskLifetime).Err()
	}
	if err != nil {
		l.log.Warn("last created task not recorded", "task_id", task, "err", err)
	}
}

// adopt gives a job the task that was made for it. The record claims it: a task that
// was claimed before, by a worker that died then, would be taken for another's.
func (l *lane) adopt(ctx context.Context, rec *jobs.Record, task dashscope.TaskInfo) error {
	next := *rec
	next.State, next.TaskID, next.Adopted = jobs.StateGenerating, task.TaskID, true
	next.Code, next.Message = "", ""
	if err := l.transition(ctx, rec, &next); err != nil {
		if errors.As(err, new(*jobs.TaskOwnedError)) {
			return nil // somebody was faster: look again
		}
		return err
	}
	l.journal(journal.KindTask, &next)
	l.tasks.Store(next.TaskID, true)
	l.log.Info("task adopted", "job_id", rec.ID, "task_id", task.TaskID, "attempt", rec.Attempt)
	return nil
}

// notMade takes an intent back of which no task came, so that the job is bought
// again. Should one show up all the same, it is known by what is noted here.
func (l *lane) resubmit(ctx context.Context, rec *jobs.Record) error {
	gone := l.intentOf(rec)
	gone.Resubmitted = true
	err := l.cfg.DataDir.Journal.Append(journal.KindNotCreated, rec)
	if err == nil {
		err = l.noteIntent(ctx, gone)
	}
	if err == nil {
		err = l.release(ctx, rec)
	}
	if err != nil {
		return &pauseError{backoff: &l.waits.unreachable, message: "an intent cannot be taken back", cause: err}
	}
	l.log.Warn("reconciled: no task created, resubmitting", "job_id", rec.ID, "attempt", rec.Attempt)
	next := *rec
	next.PastAttempts = append(rec.PastAttempts[:len(rec.PastAttempts):len(rec.PastAttempts)], jobs.Attempt{
		Attempt: rec.Attempt, Term: rec.Term, SubmittedAt: rec.SubmittedAt, EndedAt: time.Now().UTC(),
		Code: jobs.CodeNotCreated, Message: "its create was lost: the account's list has no task of it",
	})
	next.ClearIntent()
	next.Code, next.Message = "", ""
	if l.cancelRequested(ctx, rec) {
		return l.finishJob(ctx, rec, endedRecord(&next, jobs.StateCanceled, jobs.CodeCanceled, canceledUnmade))
	}
	next.State = jobs.StateQueued
	return l.transition(ctx, rec, &next)
}

// noteIntent keeps an intent that is decided: a task that shows up later may be its own.
func (l *lane) noteIntent(ctx context.Context, i reconcile.Intent) error {
	encoded, err := encode(i)
	if err == nil {
		err = l.cfg.Redis.HSet(ctx, l.key(intentsKey), intentField(i.JobID, i.Attempt), encoded).Err()
	}
	if err != nil {
		return fmt.Errorf("note intent of %s: %w", i.JobID, err)
	}
	return nil
}

// holdDoubt leaves it to a person which of the tasks, if any, is the job's. Their
// images are kept meanwhile: a task's live for a day.
func (l *lane) holdAmbiguous(ctx context.Context, rec *jobs.Record, candidates []dashscope.TaskInfo) error {
	next := *rec
	next.Candidates = nil
	for _, task := range candidates {
		next.Candidates = append(next.Candidates, task.TaskID)
	}
	why := fmt.Sprintf("a task may have been made, which may be one of %d on the account's list that are no known job's: their images are kept under _held/ in the bucket", len(candidates))
	switch {
	case len(candidates) > 0:
	case lostCreates(rec) >= maxLostCreates-1:
		why = fmt.Sprintf("%d creates of it were lost, and the account's list has no task of any: is it the right account's list? Look in the console before it is bought again", maxLostCreates)
	default:
		why = "a task may have been made; its intent is too old for the account's list to tell"
	}
	still := l.intentOf(rec)
	still.Held = true
	if err := l.noteIntent(ctx, still); err != nil {
		return &pauseError{backoff: &l.waits.unreachable, message: redisAway, cause: err}
	}
	for _, id := range next.Candidates {
		if err := l.addToQuarantine(ctx, quarantinedTask{JobID: rec.ID, Attempt: rec.Attempt, Account: l.account.name, Model: l.model.Name, TaskID: id}); err != nil {
			return &pauseError{backoff: &l.waits.unreachable, message: redisAway, cause: err}
		}
	}
	return l.holdJob(ctx, rec, heldRecord(&next, jobs.CodeSubmitAmbiguous, why))
}

// submitLimit is how long after an intent a task may still come of it. Only a
// simulator, whose manners are known, may be trusted with less than the service's own.
func (w *Worker) submitLimit() time.Duration {
	if w.cfg.SubmitLimit > 0 && w.Simulated() {
		return w.cfg.SubmitLimit
	}
	return max(w.cfg.SubmitLimit, reconcile.SubmitLimit)
}

// recoverDoubts tells Redis, which may have forgotten, of the intents that this
// worker has bought again or holds, and of the tasks to keep for those.
func (w *Worker) republishIntents(ctx context.Context) error {
	entries := w.cfg.DataDir.Journal.Resubmitted()
	for _, e := range w.cfg.DataDir.Journal.OpenJobs() {
		if e.Kind == journal.KindHeld && len(e.Record.Candidates) > 0 && time.Since(e.At) < journal.TaskRetention {
			entries = append(entries, e)
		}
	}
	for _, e := range entries {
		rec := e.Record
		i := reconcile.IntentOf(rec)
		i.Resubmitted, i.Held = e.Kind == journal.KindNotCreated, e.Kind == journal.KindHeld
		encoded, err := json.Marshal(i)
		if err != nil {
			return fmt.Errorf("encode intent of %s: %w", e.JobID, err)
		}
		if rec.Code != jobs.CodeOrphanedTask { // which has no intent
			err = w.cfg.Redis.HSetNX(ctx, rediskey.Lane(rec.Account, rec.Model, intentsKey), intentField(e.JobID, e.Attempt), encoded).Err()
		}
		for _, task := range rec.Candidates {
			err = errors.Join(err, w.addToQuarantine(ctx, quarantinedTask{JobID: e.JobID, Attempt: e.Attempt, Account: rec.Account, Model: rec.Model, TaskID: task}))
		}
		if err != nil {
			return fmt.Errorf("note intent of %s: %w", e.JobID, err)
		}
	}
	return nil
}
