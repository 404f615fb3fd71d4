package gateway

import (
	"context"
	"errors"
	"net/http"
	"path"
	"strings"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
)

// endingArchived serves the UI and, when it has archived messages, ends the waiting
// jobs that they stand for: a worker would find out by itself, but minutes later.
func (g *Gateway) endingArchived(ui http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ui.ServeHTTP(w, r)
		_, action, _ := strings.Cut(path.Base(r.URL.Path), ":")
		queue, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, uiPath+"/api/queues/"), "/")
		if r.Method != http.MethodPost || !isLane(queue) || !strings.Contains(action, "archive") {
			return
		}
		if err := g.endArchived(r.Context(), queue); err != nil {
			g.log.Warn("archived jobs not ended: a worker will", "err", err)
		}
	})
}

// endArchived ends the waiting jobs whose messages lie in a queue's archive.
func (g *Gateway) endArchived(ctx context.Context, queue string) error {
	const pageSize = 100
	for number := 1; ; number++ {
		page, err := g.inspector.ListArchivedTasks(queue, asynq.PageSize(pageSize), asynq.Page(number))
		if err != nil {
			return err
		}
		for _, message := range page {
			rec, err := g.jobs.Get(ctx, message.ID)
			if err == nil && rec.State.Waiting() {
				_, err = g.jobs.Mend(ctx, rec)
			}
			if err != nil && !errors.Is(err, jobs.ErrNotFound) && !errors.Is(err, jobs.ErrConflict) {
				return err
			}
		}
		if len(page) < pageSize {
			return nil
		}
	}
}
