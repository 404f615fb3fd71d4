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

// handleDeletes takes over the routes by which the UI deletes messages of a lane:
// whoever deletes a waiting job's message wants the job canceled. A message that
// merely vanished would be put back by a worker, which goes by the record.
func (g *Gateway) handleDeletes(mux *http.ServeMux, ui http.Handler) {
	const list = uiPath + "/api/queues/{queue}/{list}"
	lane := func(suffix string, handle http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			name, ours := strings.CutSuffix(r.PathValue("list"), suffix)
			if _, known := g.lists()[name]; !ours || !known || !isLane(r.PathValue("queue")) {
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

// isLane reports whether a queue is one of [jobs.Queue]'s.
func isLane(queue string) bool {
	parts := strings.Split(queue, ":")
	if len(parts) != 3 {
		return false
	}
	_, ok := jobs.LaneQueues(parts[1])[queue]
	return ok
}

// lister reads one page of a queue's messages of one state.
type lister func(queue string, opts ...asynq.ListOption) ([]*asynq.TaskInfo, error)

// lists are those whose messages may stand for a waiting job. Completed ones
// stand for none.
func (g *Gateway) lists() map[string]lister {
	return map[string]lister{
		"pending_tasks":   g.inspector.ListPendingTasks,
		"scheduled_tasks": g.inspector.ListScheduledTasks,
		"retry_tasks":     g.inspector.ListRetryTasks,
		"archived_tasks":  g.inspector.ListArchivedTasks,
	}
}

// delete cancels the job whose message this is. A job that has a task keeps its
// message: its lane cancels the task if it still can, else keeps the images. The
// message of a job that is over, held or unknown goes alone.
func (g *Gateway) delete(ctx context.Context, queue, id string) error {
	_, err := g.jobs.Cancel(ctx, id)
	if !errors.Is(err, jobs.ErrNotFound) && !errors.Is(err, jobs.ErrOver) && !errors.Is(err, jobs.ErrState) {
		return err
	}
	if err := g.inspector.DeleteTask(queue, id); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
		return fmt.Errorf("delete message %s of %s: %w", id, queue, err)
	}
	return nil
}

func (g *Gateway) deleteOne(w http.ResponseWriter, r *http.Request) {
	if err := g.delete(r.Context(), r.PathValue("queue"), r.PathValue("id")); err != nil {
		g.refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// maxIDsBytes bounds the body of a request that names messages; asynqmon's own.
const maxIDsBytes = 1_000_000

func (g *Gateway) deleteSome(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		IDs []string `json:"task_ids"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxIDsBytes)).Decode(&asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	done := struct {
		Deleted []string `json:"deleted_ids"`
		Failed  []string `json:"failed_ids"`
	}{[]string{}, []string{}}
	for _, id := range asked.IDs {
		if err := g.delete(r.Context(), r.PathValue("queue"), id); err != nil {
			g.log.Warn("job not canceled", "job_id", id, "err", err)
			done.Failed = append(done.Failed, id)
			continue
		}
		done.Deleted = append(done.Deleted, id)
	}
	writeJSON(w, done)
}

func (g *Gateway) deleteAll(w http.ResponseWriter, r *http.Request) {
	queue, list := r.PathValue("queue"), g.lists()[r.PathValue("list")]
	tried := map[string]bool{}
	for fresh := true; fresh; {
		// What was deleted has left the first page, so that is always the next.
		page, err := list(queue, asynq.PageSize(100))
		if err != nil {
			g.refuse(w, err)
			return
		}
		fresh = false
		for _, message := range page {
			if tried[message.ID] {
				continue
			}
			tried[message.ID], fresh = true, true
			if err := g.delete(r.Context(), queue, message.ID); err != nil {
				g.refuse(w, err)
				return
			}
		}
	}
	writeJSON(w, struct {
		Deleted int `json:"deleted"`
	}{len(tried)})
}

// refuse answers as asynqmon does: the UI shows the text.
func (g *Gateway) refuse(w http.ResponseWriter, err error) {
	g.log.Warn("request of the web ui failed", "err", err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
