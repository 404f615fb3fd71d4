package gateway

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// canceled answers a cancel, as DashScope does: with nothing but its ID.
type canceled struct {
	RequestID string `json:"request_id"`
}

const (
	// cancelMost is how long a cancel waits for the lane's answer: it looks at its task
	// every 10 s at the longest.
	cancelMost = 12 * time.Second
	// ignoredBody bounds the body of a cancel, which the SDK's asyncio client sends.
	ignoredBody = 64 << 10
)

// cancel gives up a job that waits here, or at DashScope. Any other is refused as there,
// and so is one that the caller may not know of.
func (a *api) cancel(w http.ResponseWriter, r *request) (any, error) {
	if _, err := readBody(w, r.Request, ignoredBody); err != nil {
		return nil, err
	}
	tooLate := refuse(http.StatusBadRequest, codeUnable, "Failed to cancel the task, please confirm if the task is in PENDING status.", 0)
	id := r.PathValue("id")
	rec, err := a.get(r.Context(), r.caller, id)
	switch {
	case errors.Is(err, jobs.ErrNotFound):
		return nil, tooLate
	case err != nil:
		return nil, err
	case !cancelable(rec):
		return nil, tooLate
	}
	ctx := context.WithoutCancel(r.Context()) // half a cancel helps nobody
	rec, err = a.jobs.Cancel(ctx, id)
	switch {
	case errors.Is(err, jobs.ErrOver), errors.Is(err, jobs.ErrState), errors.Is(err, jobs.ErrNotFound):
		return nil, tooLate
	case err != nil:
		return nil, err
	}
	if cancelable(rec) { // its lane was told
		ctx, stop := context.WithTimeout(r.Context(), cancelMost)
		defer stop()
		if rec, err = a.await(ctx, r.caller, id, func(rec *jobs.Record) bool { return !cancelable(rec) }); err != nil {
			return nil, err
		}
	}
	if rec.State != jobs.StateCanceled {
		return nil, tooLate
	}
	return canceled{r.id}, nil
}

// cancelable reports whether a job may still be given up.
func cancelable(rec *jobs.Record) bool {
	return rec.State.Waiting() || rec.State == jobs.StateSubmitting || rec.State == jobs.StateGenerating && rec.RunningAt.IsZero()
}
