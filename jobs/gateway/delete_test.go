package gateway_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// moveMessages moves the messages of waiting jobs into one of asynq's states.
func (w *testGateway) moveMessages(t *testing.T, state string, ids ...string) {
	t.Helper()
	switch state {
	case "archived":
		for _, id := range ids {
			require.NoError(t, w.inspector.ArchiveTask(queue, id))
		}
	case "retry":
		w.processAll(t, func(context.Context, *asynq.Task) error { return errors.New("try again") })
	case "scheduled":
		client := asynq.NewClientFromRedisClient(w.redis)
		for _, id := range ids {
			info, err := w.inspector.GetTaskInfo(queue, id)
			require.NoError(t, err)
			require.NoError(t, w.inspector.DeleteTask(queue, id))
			_, err = client.EnqueueContext(t.Context(), asynq.NewTask(info.Type, info.Payload), asynq.TaskID(id), asynq.Queue(queue), asynq.ProcessIn(time.Hour))
			require.NoError(t, err)
		}
	}
}

// Deleting a waiting job's message, by any button, cancels the job. Otherwise a worker
// would enqueue the message again and pay for the image.
func TestDeletingMessageCancelsJob(t *testing.T) {
	t.Parallel()
	for name, start := range queues() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTestGateway(t, start(t))
			for _, state := range []string{"pending", "scheduled", "retry", "archived"} {
				one, two, three, four := state+"-1", state+"-2", state+"-3", state+"-4"
				w.enqueue(t, one, two, three, four)
				w.moveMessages(t, state, one, two, three, four)
				list := "/ui/api/queues/" + queue + "/" + state + "_tasks"

				status, _, body := w.request(t, http.MethodDelete, list+"/"+one, "")
				assert.Equal(t, http.StatusNoContent, status, body)
				w.requireCanceled(t, one)

				status, _, body = w.request(t, http.MethodPost, list+":batch_delete", `{"task_ids":["`+two+`"]}`)
				assert.Equal(t, http.StatusOK, status, body)
				assert.JSONEq(t, `{"deleted_ids":["`+two+`"],"failed_ids":[]}`, body)
				w.requireCanceled(t, two)

				for _, id := range []string{three, four} {
					rec, err := w.jobs.Get(t.Context(), id)
					require.NoError(t, err)
					assert.Equal(t, jobs.StateQueued, rec.State, "the other jobs still wait")
				}
				status, _, body = w.request(t, http.MethodDelete, list+":delete_all", "")
				assert.Equal(t, http.StatusOK, status, body)
				assert.JSONEq(t, `{"deleted":2}`, body)
				w.requireCanceled(t, three)
				w.requireCanceled(t, four)
			}
		})
	}
}

func (w *testGateway) requireCanceled(t *testing.T, id string) {
	t.Helper()
	rec, err := w.jobs.Get(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, jobs.StateCanceled, rec.State, id)
	_, err = w.inspector.GetTaskInfo(queue, id)
	require.ErrorIs(t, err, asynq.ErrTaskNotFound, id)
}

// A job with a task is canceled by its lane: only the request to cancel is recorded.
func TestDeletingMessageOfJobWithTask(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	w.enqueue(t, "cat")
	w.setState(t, "cat", jobs.StateGenerating)
	status, _, body := w.request(t, http.MethodDelete, "/ui/api/queues/"+queue+"/pending_tasks/cat", "")
	assert.Equal(t, http.StatusNoContent, status, body)
	rec, err := w.jobs.Get(t.Context(), "cat")
	require.NoError(t, err)
	assert.Equal(t, jobs.StateGenerating, rec.State)
	assert.False(t, rec.CancelRequestedAt.IsZero())
	_, err = w.inspector.GetTaskInfo(queue, "cat")
	require.NoError(t, err)
}

func (w *testGateway) setState(t *testing.T, id string, state jobs.State) {
	t.Helper()
	store := jobs.NewStore(w.redis)
	old, err := store.Get(t.Context(), id)
	require.NoError(t, err)
	next := *old
	next.State, next.Attempt, next.TaskID = state, 1, "task-"+id
	require.NoError(t, store.Update(t.Context(), old, &next))
}

// Deleting a message does not change a job that is finished, held or unknown.
func TestDeletingMessageKeepsOtherStates(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	for _, state := range []jobs.State{jobs.StateFailed, jobs.StateHeld, jobs.StateStoring} {
		id := string(state)
		w.enqueue(t, id)
		w.setState(t, id, state)
		if state == jobs.StateStoring { // the others are there already
			w.moveMessages(t, "archived", id)
		}
		before, err := w.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		status, _, body := w.request(t, http.MethodDelete, "/ui/api/queues/"+queue+"/archived_tasks/"+id, "")
		assert.Equal(t, http.StatusNoContent, status, body)
		after, err := w.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, before, after)
		_, err = w.inspector.GetTaskInfo(queue, id)
		require.ErrorIs(t, err, asynq.ErrTaskNotFound)
	}
}

// There are more messages than on a page, and some vanish in the meantime.
func TestDeleteAllPages(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	var ids []string
	for range 250 {
		ids = append(ids, jobs.NewID())
	}
	w.enqueue(t, ids...)
	status, _, body := w.request(t, http.MethodDelete, "/ui/api/queues/"+queue+"/pending_tasks:delete_all", "")
	assert.Equal(t, http.StatusOK, status, body)
	assert.JSONEq(t, `{"deleted":250}`, body)
	for _, id := range ids {
		w.requireCanceled(t, id)
	}
}

func TestDeleteInvalidBody(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	w.enqueue(t, "cat")
	status, _, _ := w.request(t, http.MethodPost, "/ui/api/queues/"+queue+"/pending_tasks:batch_delete", `{"task_ids":`)
	assert.Equal(t, http.StatusBadRequest, status)
}

// Messages of other queues are deleted by asynqmon.
func TestDeleteInOtherQueues(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	client := asynq.NewClientFromRedisClient(w.redis)
	for _, name := range []string{"mail", jobs.QueueStore, "danqing:wanx-v1:urgent"} {
		_, err := client.EnqueueContext(t.Context(), asynq.NewTask("send", nil), asynq.TaskID("one"), asynq.Queue(name))
		require.NoError(t, err)
		status, _, body := w.request(t, http.MethodDelete, "/ui/api/queues/"+name+"/pending_tasks/one", "")
		assert.Equal(t, http.StatusNoContent, status, body)
		_, err = w.inspector.GetTaskInfo(name, "one")
		require.ErrorIs(t, err, asynq.ErrTaskNotFound)
	}
}

// Archiving a waiting job's message, by any button, cancels the job at once.
func TestArchivingMessageCancelsJob(t *testing.T) {
	t.Parallel()
	for name, start := range queues() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTestGateway(t, start(t))
			list := "/ui/api/queues/" + queue + "/pending_tasks"
			for id, ask := range map[string]struct{ route, body string }{
				"one":  {list + "/one:archive", ""},
				"some": {list + ":batch_archive", `{"task_ids":["some"]}`},
				"all":  {list + ":archive_all", ""},
			} {
				w.enqueue(t, id)
				status, _, body := w.request(t, http.MethodPost, ask.route, ask.body)
				require.Less(t, status, 300, body)
				rec, err := w.jobs.Get(t.Context(), id)
				require.NoError(t, err)
				assert.Equal(t, jobs.StateCanceled, rec.State, id)
				assert.Equal(t, jobs.CodeArchived, rec.Code)
				info, err := w.inspector.GetTaskInfo(queue, id)
				require.NoError(t, err)
				assert.Equal(t, asynq.TaskStateArchived, info.State, "it can be run from there")
			}
		})
	}
}
