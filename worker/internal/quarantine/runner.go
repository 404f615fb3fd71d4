package quarantine

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/internal/watch"
)

// Service is what the runner needs of the DashScope account.
type Service interface {
	Query(ctx context.Context, taskID string) (*dashscope.Task, error)
	Cancel(ctx context.Context, taskID string) error
}

// Runner stores the images of a lane's quarantined tasks.
type Runner struct {
	List           *List
	Account, Model string
	Service        Service
	// Cost is the price of a task of a job; the record's request may be nil.
	Cost func(rec *jobs.Record, task *dashscope.Task, images int) (microYuan int64)
	// MaxImages is the most images that a request for the model may ask for.
	MaxImages int
	Recorder  *recorder.Recorder
	Watcher   *watch.Watcher
	Log       *slog.Logger

	group  sync.WaitGroup
	mu     sync.Mutex
	states map[string]state // by task ID
}

// state is what a runner has done with a task.
type state int

const (
	waiting state = iota
	processing
	stored // all its images
)

const (
	// pollLongest is the longest poll interval of a task.
	pollLongest = 10 * time.Second
	// retryLongest is the longest interval while images are not stored or a task is not found.
	retryLongest = time.Minute
	// incompleteAnswers is how often a succeeded task that may name more images is queried.
	incompleteAnswers = 6
	// Interval is how often a runner checks for new tasks.
	Interval = 5 * time.Second
)

// Run processes the lane's tasks, looking for new ones at an interval, until stop is called.
func (q *Runner) Run(ctx context.Context, interval time.Duration) (stop func()) {
	q.states = map[string]state{}
	ctx, cancel := context.WithCancel(ctx)
	stopLooking := loop.Every(ctx, interval, func(ctx context.Context) {
		if !q.Watcher.MayExist(key(q.Account, q.Model)) {
			return
		}
		if err := q.startAll(ctx); err != nil && ctx.Err() == nil {
			loop.WarnRedis(q.Log, err)
		}
	})
	return func() { cancel(); stopLooking(); q.group.Wait() }
}

// WaitStored waits until the images of all tasks of the lane are stored, and only those are
// left for which a job is to be held.
func (q *Runner) WaitStored(ctx context.Context) error {
	for {
		tasks, err := q.List.tasks(ctx, q.Account, q.Model)
		q.mu.Lock()
		maps.DeleteFunc(tasks, func(id string, task Task) bool { return q.states[id] == stored && task.HoldsNext })
		q.mu.Unlock()
		if err == nil && len(tasks) == 0 {
			return nil
		}
		if err := loop.Sleep(ctx, Interval); err != nil {
			return err
		}
	}
}

// startAll starts processing the tasks that are not being processed, and removes those
// whose images are stored.
func (q *Runner) startAll(ctx context.Context) error {
	tasks, err := q.List.tasks(ctx, q.Account, q.Model)
	if err != nil {
		return err
	}
	for id, task := range tasks {
		q.mu.Lock()
		state := q.states[id]
		if state == waiting {
			q.states[id] = processing
		}
		q.mu.Unlock()
		switch {
		case state == waiting:
			q.group.Go(func() {
				after, err := waiting, q.process(ctx, task)
				if err == nil && task.HoldsNext {
					err = q.List.markStored(ctx, id)
				}
				if err == nil {
					after = stored
				}
				q.mu.Lock()
				q.states[id] = after
				q.mu.Unlock()
				if after == stored && !task.HoldsNext {
					q.remove(ctx, id)
				}
			})
		case state == stored && !task.HoldsNext:
			q.remove(ctx, id)
		}
	}
	return nil
}

// remove removes a stored task. If it is added again, it is processed again.
func (q *Runner) remove(ctx context.Context, id string) {
	if err := q.List.Redis.HDel(context.WithoutCancel(ctx), key(q.Account, q.Model), id).Err(); err != nil {
		q.Log.Warn("quarantine: entry not removed", "task_id", id, "err", err)
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.states, id)
}

// process polls a task to its end and stores its images in the bucket. A task that the service does
// not find may have images: it is polled until it is too old to be found. After an error process must
// be called again.
func (q *Runner) process(ctx context.Context, entry Task) error {
	if err := q.List.Add(ctx, entry); err != nil {
		return err
	}
	pace, retry := loop.Backoff{First: time.Second, Most: pollLongest}, loop.Backoff{First: time.Second, Most: retryLongest}
	incomplete, unknown, stored := 0, false, map[int]bool{}
	for {
		task, err := q.Service.Query(ctx, entry.TaskID)
		status, wait := "", pace.Next()
		if err == nil {
			status = task.Output.TaskStatus
		}
		switch status {
		case dashscope.StatusSucceeded:
			incomplete++
			if incomplete < incompleteAnswers && (task.IsInconclusive() || task.MayNameMore(q.MaxImages)) {
				break
			}
			if err := q.storeImages(ctx, entry, task, stored); err == nil {
				return nil
			}
			wait = retry.Next()
		case dashscope.StatusFailed, dashscope.StatusCanceled:
			q.Log.Info("quarantine: task has no image", "job_id", entry.JobID, "task_id", entry.TaskID, "status", status)
			return nil
		case dashscope.StatusUnknown:
			if time.Since(entry.KnownAt) >= dashscope.TaskLifetime {
				q.Log.Warn("quarantine: task given up: it is more than 24 hours old", "job_id", entry.JobID, "task_id", entry.TaskID)
				return nil
			}
			if !unknown {
				q.Log.Warn("quarantine: DashScope does not find the task, polling on", "job_id", entry.JobID, "task_id", entry.TaskID)
			}
			unknown, wait = true, retry.Next()
		case dashscope.StatusPending:
			if entry.Extra {
				if err := q.Service.Cancel(ctx, entry.TaskID); err != nil && !errors.Is(err, dashscope.ErrNotPending) {
					q.Log.Warn("task not canceled", "job_id", entry.JobID, "task_id", entry.TaskID, "err", err)
				}
			}
		}
		if err := loop.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// storeImages stores a task's images under _held/ and books its cost in the ledger. An image that
// cannot be stored does not delay the others: their links expire too. stored has the indexes of those
// that need nothing more.
func (q *Runner) storeImages(ctx context.Context, entry Task, task *dashscope.Task, stored map[int]bool) error {
	rec := &jobs.Record{Job: jobs.Job{ID: entry.JobID, Attempt: entry.Attempt, Account: entry.Account, Model: entry.Model, SubmittedAt: time.Now().UTC()}}
	current, err := q.List.Store.Get(ctx, entry.JobID)
	switch {
	case err == nil:
		rec.Batch, rec.Labels, rec.Request = current.Batch, current.Labels, current.Request
		if current.Attempt == entry.Attempt && !current.SubmittedAt.IsZero() {
			rec.SubmittedAt = current.SubmittedAt // the ledger day of its reservation
		}
	case !errors.Is(err, jobs.ErrNotFound):
		return err
	}
	charged := min(task.ChargedImages(), q.MaxImages)
	if err := q.Recorder.Settle(ctx, rec, entry.TaskID, charged, q.Cost(rec, task, charged)); err != nil {
		loop.WarnRedis(q.Log, err, "task_id", entry.TaskID)
		return err
	}
	named, failed := 0, error(nil)
	for i, result := range task.Output.Results[:min(len(task.Output.Results), q.MaxImages)] {
		if result.URL == "" {
			continue
		}
		named++
		if stored[i] {
			continue
		}
		err := q.storeImage(ctx, entry, i+1, dashscope.SecureURL(result.URL))
		stored[i] = err == nil
		failed = errors.Join(failed, err)
	}
	if failed != nil {
		q.Log.Warn("quarantine: image not stored, retrying", "job_id", entry.JobID, "task_id", entry.TaskID, "err", failed)
		return failed
	}
	if charged > named || task.IsInconclusive() {
		q.Log.Warn("quarantine: answer lacks images", "job_id", entry.JobID, "task_id", entry.TaskID, "images", named, "missing", charged-named)
	}
	q.Log.Error("orphaned task quarantined", "job_id", entry.JobID, "task_id", entry.TaskID, "images", named)
	return nil
}

// storeImage stores an image. One whose link is refused is given up once the link has expired: each
// query asks for a new one.
func (q *Runner) storeImage(ctx context.Context, entry Task, n int, link string) error {
	name := entry.TaskID + "-" + strconv.Itoa(n)
	file, err := q.Recorder.Spool.Fetch(ctx, name, link)
	path, ext := "", ""
	var failed *storage.FetchError
	switch {
	case err == nil:
		path, ext = file.Path, storage.Extension(file.ContentType)
	case errors.As(err, &failed) && failed.Path != "":
		path = failed.Path // stored unverified
	case failed != nil && (failed.Kind == storage.FetchGone || failed.Kind == storage.FetchForbidden) && time.Now().After(dashscope.URLExpiry(link)):
		q.Log.Error("quarantine: image given up: its link has expired", "job_id", entry.JobID, "task_id", entry.TaskID, "err", err)
		return nil
	default:
		return err
	}
	if _, err := q.Recorder.Bucket.Quarantine(ctx, entry.TaskID, name+ext, path); err != nil {
		return err
	}
	return q.Recorder.Spool.Remove(name)
}
