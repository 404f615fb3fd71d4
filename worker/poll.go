package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/reconcile"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// A task is looked at every 8 % of the time it has taken so far, which
	// leaves the slot idle for 4 % on average, but not more than 20 times a
	// second, and not less than every 10 s (the document's own advice).
	pollShare    = 0.08
	pollShortest = 50 * time.Millisecond
	pollLongest  = 10 * time.Second

	// maxAttempts bounds the tasks made for a job whose tasks fail for reasons
	// that are not its own. Failed tasks cost nothing.
	maxAttempts = 3
	// retryFirst is the wait before the second attempt; it doubles.
	retryFirst = 30 * time.Second
	// unknownGrace is how long an UNKNOWN task is asked for again before the
	// account's list is believed: a create is bounded by the service's own limit
	// of 300 s per request.
	unknownGrace = 300 * time.Second
	// emptyAnswers is how often a task is asked for that succeeded without a
	// single image or reason before a person must look.
	emptyAnswers = 6
)

// poll asks for the job's task until it is over. Nothing else ends the wait: a
// fault of the service or of the way to it says nothing about the task.
func (l *lane) poll(ctx context.Context, rec *jobs.Record) error {
	l.tasks.Store(rec.TaskID, true)
	defer l.tasks.Delete(rec.TaskID) // the record and the journal have it, or the lane ends
	trouble := backoff{first: time.Second, most: 30 * time.Second}
	var unknownSince time.Time
	var first runningWrite
	empty := 0
	for interval := pollShortest; ; {
		if err := l.sleep(ctx, max(interval, l.queries.Reserve().Delay())); err != nil {
			return err
		}
		task, err := l.account.remote.Query(ctx, rec.TaskID)
		interval = min(max(time.Duration(pollShare*float64(time.Since(rec.SubmittedAt))), pollShortest), pollLongest)
		if err != nil {
			interval = max(interval, trouble.next())
			l.log.Warn("task not queried, asking again", "job_id", rec.ID, "task_id", rec.TaskID, "err", err, "wait", interval, "hint", hint(err))
			continue
		}
		trouble.reset()
		l.account.clock(task.Date)
		l.discoverKeyID(ctx, rec)
		switch task.Output.TaskStatus {
		case dashscope.StatusSucceeded:
			if empty++; isInconclusive(task) && empty < emptyAnswers {
				interval = max(interval, trouble.next())
				continue
			}
			return l.taskSucceeded(ctx, rec, task)
		case dashscope.StatusFailed:
			return l.taskFailed(ctx, rec, task.Output.Code, task.Output.Message)
		case dashscope.StatusCanceled:
			if err := l.retryRedis(ctx, rec.ID, func(ctx context.Context) error { return l.release(ctx, rec) }); err != nil {
				return err
			}
			l.journal(journal.KindAttemptOver, rec)
			return l.finishJob(ctx, rec, endedRecord(rec, jobs.StateCanceled, jobs.CodeCanceled, "the task was cancelled at DashScope while it waited there; it cost nothing"))
		case dashscope.StatusUnknown:
			if unknownSince.IsZero() {
				unknownSince = time.Now()
			}
			interval = max(interval, trouble.next())
			if lost, err := l.holdUnknown(ctx, rec, unknownSince); lost || errors.Is(err, ErrStopped) {
				return err
			}
		case dashscope.StatusPending:
			unknownSince = time.Time{}
			l.cancelTask(ctx, rec)
		default:
			unknownSince = time.Time{}
			l.markRunning(ctx, rec, &first)
		}
	}
}

// sighting is the write of when a task was first seen at work.
type runningWrite struct {
	name string      // of the write
	busy atomic.Bool // it is on its way
	done atomic.Bool
}

// saw notes in the record that the task is at work, if that is not there yet. Nothing
// waits for it: while Redis is away the task is asked for all the same, and the next
// look writes it, or whatever the record says next.
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
		err := l.jobs.UpdateOnce(ctx, first.name, &old, &next)
		first.done.Store(err == nil || errors.Is(err, jobs.ErrConflict))
	})
}

// reject gives an adopted task back that has made something else than the job asks for:
// another open intent may have made it. What became of the job's own create is looked
// for again.
func (l *lane) reject(ctx context.Context, rec *jobs.Record) error {
	next := ambiguousRecord(rec, nil, "the task that was adopted has made something else")
	next.State, next.TaskID, next.Adopted, next.RunningAt = jobs.StateSubmitting, "", false, time.Time{}
	next.Rejected = append(slices.Clone(rec.Rejected), rec.TaskID)
	l.journal(journal.KindAmbiguous, next)
	l.log.Warn("adopted task rejected: output does not match the request", "job_id", rec.ID, "task_id", rec.TaskID, "attempt", rec.Attempt)
	if err := l.transition(ctx, rec, next); err != nil {
		return err
	}
	return nil
}

// cancelTask cancels a task that waits at DashScope, if somebody asked for that.
// What becomes of it the next look tells.
func (l *lane) cancelTask(ctx context.Context, rec *jobs.Record) {
	if !l.cancelRequested(ctx, rec) {
		return
	}
	if l.ask(ctx) != nil {
		return
	}
	if err := l.account.remote.Cancel(ctx, rec.TaskID); err != nil {
		l.log.Warn("task not cancelled", "job_id", rec.ID, "task_id", rec.TaskID, "err", err)
	}
}

// lost holds a job whose task the service has stopped to know.
func (l *lane) holdUnknown(ctx context.Context, rec *jobs.Record, since time.Time) (bool, error) {
	why := "DashScope does not know the task any more: it is more than 24 hours old"
	if time.Since(rec.SubmittedAt) < dashscope.TaskLifetime {
		if time.Since(since) < unknownGrace {
			return false, nil
		}
		if err := l.ask(ctx); err != nil {
			return false, err
		}
		page, err := l.account.remote.List(ctx, dashscope.ListFilter{TaskID: rec.TaskID})
		if err != nil || page.Total > 0 {
			return false, err
		}
		why = "DashScope does not know the task: is the API key still one of the account that submitted it?"
	}
	return true, l.holdJob(ctx, rec, heldRecord(rec, jobs.CodeTaskUnknown, why))
}

// taskSucceeded hands the images on to the store stage. The journal has their
// URLs before the slot is free again.
func (l *lane) taskSucceeded(ctx context.Context, rec *jobs.Record, task *dashscope.Task) error {
	missing := rec.Missing()
	results := renumber(readResults(task, len(missing)), missing)
	made := 0
	var first jobs.Result
	for _, r := range results {
		if r.URL != "" {
			made++
		} else if first.Code == "" {
			first = r
		}
	}
	if isInconclusive(task) {
		return l.holdJob(ctx, rec, heldRecord(rec, jobs.CodeNoImages, "the task succeeded, and may be charged, but names no image"))
	}
	if made == 0 {
		return l.taskFailed(ctx, rec, first.Code, first.Message)
	}
	if rec.Adopted && !(&reconcile.Output{Task: task}).Matches(len(missing), rec.Request.Prompt) {
		return l.reject(ctx, rec)
	}
	made = chargedImages(task)
	next := *rec
	next.State, next.Results, next.GeneratedAt = jobs.StateStoring, results, time.Now().UTC()
	next.Simulated = task.Simulated // an adopted task tells it here for the first time
	next.TaskImages, next.TaskMicroYuan = made, l.cost(l.account.name, l.model.Name, made)
	next.CostMicroYuan = rec.CostMicroYuan + next.TaskMicroYuan
	l.journal(journal.KindResults, &next)
	if err := l.retryRedis(ctx, rec.ID, func(ctx context.Context) error {
		return l.settleTask(ctx, &next, next.TaskID, made, next.TaskMicroYuan)
	}); err != nil {
		return err
	}
	if err := l.jobs.RecordDuration(ctx, l.model.Name, next.GeneratedAt.Sub(rec.SubmittedAt)); err != nil {
		l.log.Debug("duration not recorded", "job_id", rec.ID, "err", err)
	}
	l.log.Info("task succeeded", "job_id", next.ID, "task_id", next.TaskID, "duration", time.Since(rec.SubmittedAt), "images", made)
	if err := l.transition(ctx, rec, &next); err != nil {
		return err
	}
	return l.jobs.EnqueueStore(context.WithoutCancel(ctx), &next)
}

// saysNothing reports whether a task that succeeded names neither an image nor,
// for every one, a reason; or was charged without an image.
func isInconclusive(task *dashscope.Task) bool {
	for _, r := range task.Output.Results {
		if r.URL != "" {
			return false
		}
	}
	charged := task.Usage != nil && task.Usage.ImageCount > 0
	return charged || len(task.Output.Results) == 0 || slices.ContainsFunc(task.Output.Results, func(r dashscope.Result) bool { return r.Code == "" })
}

// readResults numbers the images as they were asked for. What the service does
// not mention is missing, and said so.
func readResults(task *dashscope.Task, n int) []jobs.Result {
	var results []jobs.Result
	for i, r := range task.Output.Results {
		result := jobs.Result{N: i + 1, URL: r.URL, ActualPrompt: r.ActualPrompt, Code: r.Code, Message: r.Message}
		if r.URL != "" {
			result.URL, result.ExpiresAt = forceHTTPS(r.URL), urlExpiry(r.URL)
		}
		results = append(results, result)
	}
	for i := len(results) + 1; i <= n; i++ {
		results = append(results, jobs.Result{N: i, Code: jobs.CodeImageMissing, Message: "the task ended without saying what became of this image"})
	}
	return results
}

// secure asks Aliyun's own store over TLS; a link's signature does not cover that.
func forceHTTPS(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" || u.Port() != "" || !strings.HasSuffix(u.Hostname(), ".aliyuncs.com") {
		return raw
	}
	u.Scheme = "https"
	return u.String()
}

// deadlineBound is how far from now the deadline of a link can be; a link lives for
// a day. What is beyond is none, and could not even be written into a record: JSON
// has no year after 9999.
const deadlineBound = 366 * 24 * time.Hour

// urlExpiry reads the deadline that an OSS link bears; without one it is the
// documented 24 hours from now.
func urlExpiry(raw string) time.Time {
	now := time.Now().UTC()
	if u, err := url.Parse(raw); err == nil {
		seconds, err := strconv.ParseInt(u.Query().Get("Expires"), 10, 64)
		if at := time.Unix(seconds, 0).UTC(); err == nil && at.Sub(now).Abs() < deadlineBound {
			return at
		}
	}
	return now.Add(dashscope.TaskLifetime)
}

// taskFailed plans another attempt, or ends the job. Failed tasks are free.
func (l *lane) taskFailed(ctx context.Context, rec *jobs.Record, code, message string) error {
	past := jobs.Attempt{
		Attempt: rec.Attempt, Term: rec.Term, TaskID: rec.TaskID,
		SubmittedAt: rec.SubmittedAt, EndedAt: time.Now().UTC(), Code: code, Message: message,
	}
	l.log.Warn("task failed", "job_id", rec.ID, "task_id", rec.TaskID, "attempt", rec.Attempt, "code", code, "err", message)
	if err := l.retryRedis(ctx, rec.ID, func(ctx context.Context) error { return l.release(ctx, rec) }); err != nil {
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
	l.journal(journal.KindAttemptOver, rec)
	if l.cancelRequested(ctx, rec) {
		return l.finishJob(ctx, rec, endedRecord(&next, jobs.StateCanceled, jobs.CodeCanceled, "canceled on request after its task had failed; it cost nothing"))
	}
	if err := l.transition(ctx, rec, &next); err != nil {
		return err
	}
	why := fmt.Errorf("task %s: %s: %s", rec.TaskID, code, withHint(message, remedy))
	switch kind {
	case dashscope.KindAccount:
		return &pauseError{backoff: &l.waits.account, message: accountPaused, cause: why}
	case dashscope.KindThrottled:
		return &pauseError{backoff: &l.waits.throttled, message: refusedForNow, cause: why}
	default:
		return &jobError{retryIn: retryFirst << (attemptsThisRound(rec) - 1), message: why.Error()}
	}
}

// tries counts the tasks made for a job since a person asked for it, or asked
// again.
func attemptsThisRound(rec *jobs.Record) int {
	n := 1
	for _, past := range rec.PastAttempts {
		if past.TaskID != "" && past.SubmittedAt.After(rec.RetriedAt) {
			n++
		}
	}
	return n
}
