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

// cancelArchived serves the UI. After a request that archives messages, it cancels their
// waiting jobs. A worker would do that too, but minutes later.
func (g *Gateway) cancelArchived(ui http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ui.ServeHTTP(w, r)
		_, action, _ := strings.Cut(path.Base(r.URL.Path), ":")
		queue, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, uiPath+"/api/queues/"), "/")
		if r.Method != http.MethodPost || !isLane(queue) || !strings.Contains(action, "archive") {
			return
		}
		if err := g.cancelArchivedJobs(r.Context(), queue); err != nil {
			g.log.Warn("archived jobs not canceled: a worker will do it later", "err", err)
		}
	})
}

// cancelArchivedJobs cancels the waiting jobs whose messages are in a queue's archive.
func (g *Gateway) cancelArchivedJobs(ctx context.Context, queue string) error {
	const pageSize = 100
	for number := 1; ; number++ {
		page, err := g.inspector.ListArchivedTasks(queue, asynq.PageSize(pageSize), asynq.Page(number))
		if err != nil {
			return err
		}
		for _, message := range page {
			rec, err := g.jobs.Get(ctx, message.ID)
			if err == nil && rec.State.Waiting() {
				_, err = g.operator.RequeueOrphan(ctx, rec.ID)
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
