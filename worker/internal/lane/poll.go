package lane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/account"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// pendingLongest bounds the wait between two queries of a task that is not running yet:
	// it can still be canceled.
	pendingLongest = 2 * time.Second

	// maxAttempts limits the tasks of a job whose tasks fail for reasons outside the job.
	// Failed tasks are free.
	maxAttempts = 3
	// retryFirst is the wait before the second attempt; it doubles with each attempt.
	retryFirst = 30 * time.Second
	// unknownGrace is how long an UNKNOWN task is polled before the account's task list
	// decides: the service limits a create to 300 s.
	unknownGrace = 300 * time.Second
	// emptyAnswers is how often a succeeded task that names neither an image nor a reason
	// is queried before the job is held for an operator, and one that may name more images
	// before those are stored that it names.
	emptyAnswers = 6
)

// poll queries the job's task until it has ended. Errors of the service or the network do
// not end the wait: they do not show the state of the task. When an answer, or the task list, shows
// that it has succeeded, the next create may be sent at once: what belongs to this task follows it.
func (l *lane) poll(ctx context.Context, e *execution, rec *jobs.Record) error {
	l.setWorking(e)
	stopwatch := l.startStopwatch(rec)
	defer l.tasks.Delete(rec.TaskID) // the record and the journal name it, or the lane ends
	schedule := l.pollSchedule(ctx, rec)
	errorBackoff := loop.Backoff{First: time.Second, Most: 30 * time.Second}
	inconclusiveBackoff := loop.Backoff{First: time.Second, Most: 30 * time.Second} // while answers are UNKNOWN, or lack images
	var unknownSince time.Time
	var first runningWrite
	empty, failing := 0, false
	poller := l.cfg.Account.SharedList.Register(rec.TaskID)
	defer poller.Done()
	slot := taskSlot{l: l, e: e, keep: rec.Adopted} // its images may be another job's: reconcile needs the slot
	defer slot.settled()
	for interval := schedule.First() - stopwatch.age(); ; {
		wait := func() (string, error) { return "", loop.Sleep(ctx, interval) }
		if !failing {
			wait = func() (string, error) {
				return l.awaitQuery(ctx, poller, interval, func() time.Duration {
					l.markRunning(ctx, rec, &first)
					stopwatch.querying()
					return schedule.Next(stopwatch.age())
				})
			}
		}
		listed, err := wait()
		if err != nil {
			return err
		}
		if listed == dashscope.StatusSucceeded && int(l.settling.Load()) < cap(l.slots) { // else queries fail
			slot.release()
		}
		stopwatch.querying()
		task, err := l.cfg.Account.Client.Query(ctx, rec.TaskID)
		interval = schedule.Next(stopwatch.age())
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			interval = max(interval, errorBackoff.Next())
			l.queryFailed(ctx, rec, err, interval, !failing)
			failing = true
			continue
		}
		if failing {
			l.log.Info("task query answered again", "job_id", rec.ID, "task_id", rec.TaskID)
			l.publishStatus(ctx, jobs.LaneStatus{State: jobs.LaneOpen})
		}
		failing = false
		errorBackoff.Reset()
		l.cfg.Account.SetServiceTime(task.Date)
		l.discoverKeyID(ctx, rec)
		switch task.Output.TaskStatus {
		case dashscope.StatusSucceeded:
			slot.release()
			if empty++; empty < emptyAnswers && (task.IsInconclusive() || task.MayNameMore(len(rec.Missing()))) {
				interval = max(interval, inconclusiveBackoff.Next())
				continue
			}
			slot.awaitNextCreate(ctx)
			l.checkList(ctx)
			if at, err := dashscope.ParseTime(task.Output.EndTime); err == nil {
				poller.Ended(at)
			}
			return l.taskSucceeded(ctx, rec, task, stopwatch.duration(task))
		case dashscope.StatusFailed:
			return l.taskFailed(ctx, rec, task.Output.Code, task.Output.Message)
		case dashscope.StatusCanceled:
			return l.taskCanceled(ctx, rec)
		case dashscope.StatusUnknown:
			if unknownSince.IsZero() {
				unknownSince = time.Now()
			}
			interval = max(interval, inconclusiveBackoff.Next())
			if held, err := l.holdUnknown(ctx, rec, unknownSince); held || ctx.Err() != nil {
				return err
			}
		case dashscope.StatusPending:
			unknownSince = time.Time{}
			interval = min(interval, pendingLongest)
			l.cancelTask(ctx, rec)
		default:
			unknownSince = time.Time{}
			l.markRunning(ctx, rec, &first)
			if slot.released {
				poller.Disable()
			}
		}
	}
}

// taskSlot is the slot of a task that is polled.
type taskSlot struct {
	l              *lane
	e              *execution
	keep, released bool
	// next is [lane.nextCreate], nil if no job was prepared when the slot was released.
	next       <-chan struct{}
	releasedAt time.Time
}

// release releases the slot of a task that has succeeded, unless it is kept.
func (s *taskSlot) release() {
	if !s.keep && !s.released {
		s.released, s.releasedAt = true, time.Now()
		s.l.settling.Add(1)
		if s.l.prepared.Load() > 0 {
			s.next = s.l.nextCreate()
		}
		s.l.releaseSlot(s.e)
	}
}

// maxWriteDelay is how long the writes of a task that has ended wait at most for the next create of
// the lane: its record is written to the same queue and the same disk, and the slot is idle until it is
// sent, which takes a few milliseconds. The value is our choice, and stands in speed.md.
const maxWriteDelay = 50 * time.Millisecond

// awaitNextCreate waits until the next create has its outcome, at most [maxWriteDelay] since the slot
// was released.
func (s *taskSlot) awaitNextCreate(ctx context.Context) {
	if s.next == nil {
		return
	}
	timer := time.NewTimer(time.Until(s.releasedAt.Add(maxWriteDelay)))
	defer timer.Stop()
	select {
	case <-s.next:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// settled records that a task whose slot was released is booked.
func (s *taskSlot) settled() {
	if s.released {
		s.l.settling.Add(-1)
	}
}

// unqueriedLongest is how long the task list stands for queries of a running task at most.
const unqueriedLongest = 10 * time.Second

// awaitQuery waits until the task should be queried: after the interval, or, if many tasks of
// the account are polled, when its task list does not show the task running any more. It returns
// what the list shows then, "" if nothing.
func (l *lane) awaitQuery(ctx context.Context, poller *account.Poller, interval time.Duration, running func() (next time.Duration)) (listed string, err error) {
	select {
	case <-poller.Status: // before the last query
	default:
	}
	begun, asked := time.Now(), false
	for due := begun.Add(interval); ; {
		timer := time.NewTimer(time.Until(due))
		select {
		case status := <-poller.Status:
			timer.Stop()
			switch {
			case status == dashscope.StatusRunning:
				due, asked = time.Now().Add(running()), false
			case status != "" || asked:
				return status, nil
			}
		case <-timer.C:
			if asked || time.Since(begun) > unqueriedLongest || !poller.Refresh(ctx, l.cfg.Account.Client) {
				return "", nil
			}
			due, asked = time.Now().Add(unqueriedLongest), true // Status comes first
		case <-ctx.Done():
			timer.Stop()
			return "", context.Cause(ctx)
		}
	}
}

// queryFailed logs the first of some failed queries, and publishes each in the lane's status.
func (l *lane) queryFailed(ctx context.Context, rec *jobs.Record, err error, wait time.Duration, first bool) {
	if first {
		l.log.Warn("task query failed, retrying", "job_id", rec.ID, "task_id", rec.TaskID, "err", err, "wait", wait, "hint", hint(err))
	}
	l.publishStatus(ctx, jobs.LaneStatus{
		State: jobs.LaneOpen, Message: "task of job " + rec.ID + " cannot be queried: " + withHint(err.Error(), hint(err)), RetryAt: time.Now().Add(wait),
	})
}

// runningWrite is the write of the time at which a task was first seen running.
type runningWrite struct {
	name string      // the write ID
	busy atomic.Bool // the write is in progress
	done atomic.Bool
}

// markRunning records that the task is running, if the record does not have it yet. It does
// not block: while Redis is unavailable polling continues, and the next poll, or the next
// change of the record, writes it.
func (l *lane) markRunning(ctx context.Context, rec *jobs.Record, first *runningWrite) {
	if rec.RunningAt.IsZero() {
		rec.RunningAt, first.name = time.Now().UTC(), rand.Text()
	}
	if first.name == "" || first.done.Load() || !first.busy.CompareAndSwap(false, true) {
		return
	}
	old, next := *rec, *rec
	l.group.Go(func() {
		defer first.busy.Store(false)
		err := l.recorder.Store.UpdateOnce(ctx, first.name, &old, &next)
		first.done.Store(err == nil || errors.Is(err, jobs.ErrConflict))
	})
}

// rejectAdopted gives up an adopted task whose output does not match the job's request: another
// open intent may have created it. The job's own create is reconciled again.
func (l *lane) rejectAdopted(ctx context.Context, rec *jobs.Record) error {
	next := reconcile.AmbiguousRecord(rec, "the output of the adopted task does not match the request")
	next.State, next.TaskID, next.Adopted, next.RunningAt = jobs.StateSubmitting, "", false, time.Time{}
	next.Rejected = append(slices.Clone(rec.Rejected), rec.TaskID)
	l.recorder.Journal(journal.KindAmbiguous, next)
	l.log.Warn("adopted task rejected: output does not match the request", "job_id", rec.ID, "task_id", rec.TaskID, "attempt", rec.Attempt)
	l.tasks.Delete(rec.TaskID) // before the record releases the task
	return l.recorder.Transition(ctx, rec, next)
}

// cancelTask cancels a task that is pending at DashScope, if its cancellation was
// requested. The next poll shows the result.
func (l *lane) cancelTask(ctx context.Context, rec *jobs.Record) {
	if !l.cancelRequested(ctx, rec) {
		return
	}
	if err := l.cfg.Account.Client.Cancel(ctx, rec.TaskID); err != nil {
		l.log.Warn("task not canceled", "job_id", rec.ID, "task_id", rec.TaskID, "err", err)
	}
}

// holdUnknown holds a job whose task the service no longer finds.
func (l *lane) holdUnknown(ctx context.Context, rec *jobs.Record, since time.Time) (bool, error) {
	reason := "DashScope no longer finds the task: it is more than 24 hours old"
	if time.Since(rec.SubmittedAt) < dashscope.TaskLifetime {
		if time.Since(since) < unknownGrace {
			return false, nil
		}
		page, err := l.cfg.Account.Client.List(ctx, dashscope.ListFilter{TaskID: rec.TaskID})
		if err != nil || page.Total > 0 {
			return false, err
		}
		reason = "DashScope does not find the task: does the API key still belong to the account that submitted it?"
	}
	return true, l.recorder.Hold(ctx, rec, recorder.Held(rec, jobs.CodeTaskUnknown, reason))
}

// taskSucceeded passes the images to the store stage, their URLs to the journal first.
func (l *lane) taskSucceeded(ctx context.Context, rec *jobs.Record, task *dashscope.Task, took time.Duration) error {
	missing := rec.Missing()
	most := len(missing)
	if rec.AdoptedByOperator() { // the task may have more images
		most = max(most, l.cfg.Model.ImagesAtMost())
	}
	least := len(missing)
	if rec.Request != nil && rec.Request.IsGroup() { // it has as many images as the model makes of it
		least = min(task.ChargedImages(), most)
	}
	results := renumber(readResults(task, least, most), missing)
	made := 0
	var first jobs.Result
	for _, r := range results {
		if r.URL != "" {
			made++
		} else if first.Code == "" {
			first = r
		}
	}
	if task.IsInconclusive() || made == 0 && task.ChargedImages() > 0 { // its images are beyond the request
		return l.recorder.Hold(ctx, rec, recorder.Held(rec, jobs.CodeNoImages, "the task succeeded and may be charged, but its reply names no image"))
	}
	if made == 0 {
		return l.taskFailed(ctx, rec, first.Code, first.Message)
	}
	if rec.Adopted && !(&reconcile.Output{Task: task}).Fits(reconcile.IntentOf(rec)) {
		return l.rejectAdopted(ctx, rec)
	}
	next := *rec
	next.Warnings = l.checkAnswer(rec, task, made, most)
	made = min(task.ChargedImages(), most)
	next.State, next.Results, next.GeneratedAt = jobs.StateStoring, results, time.Now().UTC()
	next.Simulated = task.Simulated // first known here for an adopted task
	next.TaskImages, next.TaskMicroYuan = made, l.cfg.Account.Cost(l.cfg.Model, purchase(l.cfg.Model, rec.Request, task, made))
	next.CostMicroYuan = ledger.Sum(rec.CostMicroYuan, next.TaskMicroYuan)
	l.recorder.Journal(journal.KindResults, &next)
	if err := l.recorder.Retry(ctx, rec.ID, func(ctx context.Context) error {
		return l.recorder.Settle(ctx, &next, next.TaskID, made, next.TaskMicroYuan)
	}); err != nil {
		return err
	}
	if err := l.recorder.Store.RecordDuration(ctx, l.taskKind(rec), took); err != nil {
		l.log.Debug("duration not recorded", "job_id", rec.ID, "err", err)
	}
	l.log.Info("task succeeded", "job_id", next.ID, "task_id", next.TaskID, "duration", time.Since(rec.SubmittedAt), "images", made, "cost_yuan", ledger.FormatYuan(next.TaskMicroYuan))
	if err := l.recorder.Transition(ctx, rec, &next); err != nil {
		return err
	}
	if err := l.recorder.Store.EnqueueStore(context.WithoutCancel(ctx), &next); err != nil {
		return err
	}
	return errLeft
}

// checkAnswer returns the job's warnings, with those about an answer that names some images for a
// request of at most so many.
func (l *lane) checkAnswer(rec *jobs.Record, task *dashscope.Task, named, most int) []string {
	warnings := slices.Clip(rec.Warnings)
	if reported := max(task.ChargedImages(), len(task.Output.Results)); reported > most {
		warning := fmt.Sprintf("DashScope reported %d images for a request of %d: no more than those are stored and booked", reported, most)
		l.log.Error("answer exceeds the request", "job_id", rec.ID, "task_id", rec.TaskID, "images", reported, "err", warning)
		warnings = append(warnings, warning)
	}
	if charged := min(task.ChargedImages(), most); charged > named {
		warning := fmt.Sprintf("DashScope charged %d images and names %d: look for the others in its console before buying them again", charged, named)
		l.log.Error("answer lacks images", "job_id", rec.ID, "task_id", rec.TaskID, "images", named, "err", warning)
		warnings = append(warnings, warning)
	}
	return warnings
}

// readResults returns the images of a task, numbered in the order of the request: at least n,
// of which those that the service does not mention are marked as missing, and at most most.
func readResults(task *dashscope.Task, n, most int) []jobs.Result {
	var results []jobs.Result
	for i, r := range task.Output.Results[:min(len(task.Output.Results), most)] {
		result := jobs.Result{N: i + 1, URL: r.URL, ActualPrompt: r.ActualPrompt, Code: r.Code, Message: r.Message}
		if r.URL != "" {
			result.URL, result.ExpiresAt = dashscope.SecureURL(r.URL), dashscope.URLExpiry(r.URL)
		}
		results = append(results, result)
	}
	for i := len(results) + 1; i <= n; i++ {
		results = append(results, jobs.Result{N: i, Code: jobs.CodeImageMissing, Message: "the task ended without a result for this image"})
	}
	return results
}

// taskCanceled ends a job whose task was canceled while it was pending.
func (l *lane) taskCanceled(ctx context.Context, rec *jobs.Record) error {
	if err := l.recorder.Retry(ctx, rec.ID, func(ctx context.Context) error { return l.recorder.Release(ctx, rec) }); err != nil {
		return err
	}
	l.recorder.Journal(journal.KindAttemptOver, rec)
	return l.finishJob(ctx, rec, recorder.Ended(rec, jobs.StateCanceled, jobs.CodeCanceled, "the task was canceled at DashScope while pending; no cost"))
}

// taskFailed schedules another attempt or ends the job. Failed tasks are free.
func (l *lane) taskFailed(ctx context.Context, rec *jobs.Record, code, message string) error {
	past := jobs.Attempt{
		Attempt: rec.Attempt, Term: rec.Term, TaskID: rec.TaskID,
		SubmittedAt: rec.SubmittedAt, EndedAt: time.Now().UTC(), Code: code, Message: message,
	}
	l.log.Warn("task failed", "job_id", rec.ID, "task_id", rec.TaskID, "attempt", rec.Attempt, "code", code, "err", message)
	if err := l.recorder.Retry(ctx, rec.ID, func(ctx context.Context) error { return l.recorder.Release(ctx, rec) }); err != nil {
		return err
	}
	remedy := dashscope.Hint(code, message)
	kind := dashscope.ClassifyTask(code, message)
	if kind == dashscope.KindTerminal || kind == dashscope.KindRetry && attemptsThisRound(rec) >= maxAttempts {
		return l.fail(ctx, rec, code, withHint(message, remedy))
	}
	next := *rec
	next.State, next.TaskID, next.RunningAt, next.PastAttempts = jobs.StateRetrying, "", time.Time{}, append(rec.PastAttempts, past)
	next.Code, next.Message = code, message
	l.recorder.Journal(journal.KindAttemptOver, rec)
	if l.cancelRequested(ctx, &next) {
		return l.finishJob(ctx, rec, recorder.Ended(&next, jobs.StateCanceled, jobs.CodeCanceled, "canceled on request after its task failed; no cost"))
	}
	if err := l.recorder.Transition(ctx, rec, &next); err != nil {
		return err
	}
	reason := fmt.Errorf("task %s: %s: %s", rec.TaskID, code, withHint(message, remedy))
	switch kind {
	case dashscope.KindAccount, dashscope.KindModel:
		return l.refusedPause(kind, code, 0, reason)
	case dashscope.KindThrottled:
		return &pauseError{backoff: &l.waits.throttled, reason: jobs.PauseThrottled, message: temporarilyRefused, cause: reason}
	default:
		return &jobError{retryIn: retryFirst << (attemptsThisRound(rec) - 1), message: reason.Error(), attempt: true}
	}
}

// attemptsThisRound returns the number of attempts that the service has refused or failed since the
// job was submitted, or an operator last decided to try it again, this one included.
func attemptsThisRound(rec *jobs.Record) int {
	n := 1
	for _, past := range rec.PastAttempts {
		if past.Code != jobs.CodeNotCreated && past.SubmittedAt.After(rec.RetriedAt) && past.SubmittedAt.After(rec.ResolvedAt) {
			n++
		}
	}
	return n
}
