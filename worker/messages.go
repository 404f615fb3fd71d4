package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
)

const (
	// archiveSize is how many messages remain in a queue's archive; asynq's own
	// trimming fails permanently once it must delete some 8,000 at a time.
	archiveSize = 1000
	archivePage = 100
)

// queues are those of the worker's models, the store, the notifications and the alerts.
func (j *janitor) queues() []string {
	queues := []string{jobs.QueueStore, jobs.QueueNotify, jobs.QueueAlert}
	for _, model := range j.models {
		for queue := range jobs.LaneQueues(model) {
			queues = append(queues, queue)
		}
	}
	return queues
}

// repairMessages corrects what asynq's web UI would show wrongly, and what somebody has done
// there that would lose a paid image. last is when it ran last.
func (j *janitor) repairMessages(ctx context.Context, last time.Time) error {
	for _, queue := range j.queues() {
		left, err := j.recorder.Store.ReleaseAbandoned(ctx, queue)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			j.recorder.Log.Warn("messages left behind requeued", "queue", queue, "messages", len(left))
		}
	}
	resumed, err := j.recorder.Store.Resume(ctx, jobs.QueueStore)
	if err != nil {
		return err
	}
	if resumed {
		j.recorder.Log.Warn("queue of paid images resumed: it cannot be paused, since their links expire", "queue", jobs.QueueStore)
	}
	return j.archiveMessages(ctx, last)
}

// archiveMessages moves messages that asynq took for completed to the archive: of the jobs that
// are held, and of those that have failed since the last maintenance or shortly before.
func (j *janitor) archiveMessages(ctx context.Context, last time.Time) error {
	for state, since := range map[jobs.State]time.Time{jobs.StateHeld: {}, jobs.StateFailed: last.Add(-janitorInterval)} {
		filter := jobs.ListFilter{States: []jobs.State{state}, UpdatedAfter: since, Limit: requeuePage}
		for more := true; more; more = filter.Cursor != "" {
			records, cursor, err := j.recorder.Store.List(ctx, filter)
			if err != nil {
				return err
			}
			if err := j.recorder.Store.ArchiveCompleted(ctx, records); err != nil {
				return err
			}
			filter.Cursor = cursor
		}
	}
	return nil
}

// trimArchives bounds the archives of Danqing's queues. The message of a held job stays longer
// than others; the job itself is in its record.
func (j *janitor) trimArchives(ctx context.Context) error {
	inspector := asynq.NewInspectorFromRedisClient(j.recorder.Redis)
	for _, queue := range j.queues() {
		for {
			archived, err := j.recorder.Store.ArchivedMessages(ctx, queue)
			if err != nil {
				return err
			}
			if archived == 0 {
				break
			}
			// Oldest first, contrary to asynq's documentation.
			page, err := inspector.ListArchivedTasks(queue, asynq.PageSize(archivePage))
			if err != nil {
				return fmt.Errorf("list archive of %s: %w", queue, err)
			}
			deleted := int64(0)
			for _, message := range page {
				// A message that an operator has archived did not fail and has no date.
				young := message.LastFailedAt.IsZero() || time.Since(message.LastFailedAt) < jobs.RecordLifetime
				if archived-deleted <= archiveSize && young {
					break
				}
				if archived-deleted <= archiveSize && j.isHeld(ctx, message.ID) {
					continue
				}
				if err := inspector.DeleteTask(queue, message.ID); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
					return fmt.Errorf("delete %s from archive of %s: %w", message.ID, queue, err)
				}
				deleted++
			}
			if deleted < archivePage {
				break
			}
		}
	}
	return nil
}

// isHeld reports whether a message of a lane is that of a held job, as far as Redis answers.
func (j *janitor) isHeld(ctx context.Context, id string) bool {
	rec, err := j.recorder.Store.Get(ctx, id)
	return err == nil && rec.State == jobs.StateHeld
}
