package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
)

// handleDeletes replaces the UI's routes that delete messages of a lane: they cancel the
// job. If only the message were deleted, a worker would enqueue it again, because the
// record says that the job waits.
func (g *Gateway) handleDeletes(mux *http.ServeMux, ui http.Handler) {
	const list = uiPath + "/api/queues/{queue}/{list}"
	lane := func(suffix string, handle http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			name, matches := strings.CutSuffix(r.PathValue("list"), suffix)
			if _, known := g.listers()[name]; !matches || !known || !isLane(r.PathValue("queue")) {
				ui.ServeHTTP(w, r)
				return
			}
			r.SetPathValue("list", name)
			handle(w, r)
		}
	}
	mux.HandleFunc("DELETE "+list+"/{id}", lane("", g.deleteOne))
	mux.HandleFunc("POST "+list, lane(":batch_delete", g.deleteSome))
	mux.HandleFunc("DELETE "+list, lane(":delete_all", g.deleteAll))
}

// isLane reports whether a queue is one of a lane's, see [jobs.Queue].
func isLane(queue string) bool {
	parts := strings.Split(queue, ":")
	if len(parts) != 3 {
		return false
	}
	_, ok := jobs.LaneQueues(parts[1])[queue]
	return ok
}

// lister returns one page of a queue's messages in one state.
type lister func(queue string, opts ...asynq.ListOption) ([]*asynq.TaskInfo, error)

// listers are those of the states in which a message may belong to a waiting job, which
// excludes completed ones.
func (g *Gateway) listers() map[string]lister {
	return map[string]lister{
		"pending_tasks":   g.inspector.ListPendingTasks,
		"scheduled_tasks": g.inspector.ListScheduledTasks,
		"retry_tasks":     g.inspector.ListRetryTasks,
		"archived_tasks":  g.inspector.ListArchivedTasks,
	}
}

// deleteMessage cancels the job of a message. If the job has a task, the message stays: its
// lane cancels the task if that is still possible, and otherwise stores the images. If the
// job is finished, held or unknown, only the message is deleted.
func (g *Gateway) deleteMessage(ctx context.Context, queue, id string) error {
	_, err := g.jobs.Cancel(ctx, id, jobs.Decider{By: jobs.ByWebUI})
	if !errors.Is(err, jobs.ErrNotFound) && !errors.Is(err, jobs.ErrFinished) && !errors.Is(err, jobs.ErrInvalidState) {
		return err
	}
	if err := g.inspector.DeleteTask(queue, id); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
		return fmt.Errorf("delete message %s of %s: %w", id, queue, err)
	}
	return nil
}

func (g *Gateway) deleteOne(w http.ResponseWriter, r *http.Request) {
	if err := g.deleteMessage(r.Context(), r.PathValue("queue"), r.PathValue("id")); err != nil {
		g.writeUIError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// maxIDsBytes limits the body of a request with message IDs; it is asynqmon's limit.
const maxIDsBytes = 1_000_000

func (g *Gateway) deleteSome(w http.ResponseWriter, r *http.Request) {
	var body struct {
		IDs []string `json:"task_ids"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxIDsBytes)).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	done := struct {
		Deleted []string `json:"deleted_ids"`
		Failed  []string `json:"failed_ids"`
	}{[]string{}, []string{}}
	for _, id := range body.IDs {
		if err := g.deleteMessage(r.Context(), r.PathValue("queue"), id); err != nil {
			g.log.Warn("job not canceled", "job_id", id, "err", err)
			done.Failed = append(done.Failed, id)
			continue
		}
		done.Deleted = append(done.Deleted, id)
	}
	writeJSON(w, done)
}

func (g *Gateway) deleteAll(w http.ResponseWriter, r *http.Request) {
	queue, list := r.PathValue("queue"), g.listers()[r.PathValue("list")]
	tried := map[string]bool{}
	for more := true; more; {
		// Deleted messages have left the first page, so it is always the next one.
		page, err := list(queue, asynq.PageSize(100))
		if err != nil {
			g.writeUIError(w, err)
			return
		}
		more = false
		for _, message := range page {
			if tried[message.ID] {
				continue
			}
			tried[message.ID], more = true, true
			if err := g.deleteMessage(r.Context(), queue, message.ID); err != nil {
				g.writeUIError(w, err)
				return
			}
		}
	}
	writeJSON(w, struct {
		Deleted int `json:"deleted"`
	}{len(tried)})
}

// writeUIError answers like asynqmon: the UI shows the text.
func (g *Gateway) writeUIError(w http.ResponseWriter, err error) {
	g.log.Warn("web ui request failed", "err", err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
