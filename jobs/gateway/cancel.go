package gateway

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// cancelResponse is DashScope's answer to a cancel.
type cancelResponse struct {
	RequestID string `json:"request_id"`
}

const (
	// cancelTimeout is how long a cancel waits for the lane, which polls its task at least
	// every 10 s.
	cancelTimeout = 12 * time.Second
	// maxIgnoredBytes limits the body of a cancel, which the SDK's asyncio client sends.
	maxIgnoredBytes = 64 << 10
)

// cancel cancels a job that waits in the queue or at DashScope. For any other job it fails
// like DashScope, and also for a job that the caller may not see.
func (a *api) cancel(w http.ResponseWriter, r *request) (any, error) {
	if _, err := readBody(w, r.Request, maxIgnoredBytes); err != nil {
		return nil, err
	}
	tooLate := newAPIError(http.StatusBadRequest, codeUnsupported, "Failed to cancel the task, please confirm if the task is in PENDING status.", 0)
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
	ctx := context.WithoutCancel(r.Context()) // several steps: complete them
	rec, err = a.jobs.Cancel(ctx, id, jobs.Decider{By: cmp.Or(r.caller.Name, "HTTP API")})
	switch {
	case errors.Is(err, jobs.ErrFinished), errors.Is(err, jobs.ErrInvalidState), errors.Is(err, jobs.ErrNotFound):
		return nil, tooLate
	case err != nil:
		return nil, err
	}
	if cancelable(rec) { // its lane will cancel it
		ctx, stop := context.WithTimeout(r.Context(), cancelTimeout)
		defer stop()
		if rec, err = a.waitFor(ctx, r.caller, id, func(rec *jobs.Job) bool { return !cancelable(rec) }); err != nil {
			return nil, err
		}
	}
	if rec.State != jobs.StateCanceled {
		return nil, tooLate
	}
	return cancelResponse{r.id}, nil
}

// cancelable reports whether a job can still be canceled.
func cancelable(rec *jobs.Job) bool {
	return rec.State.Waiting() || rec.State == jobs.StateSubmitting || rec.State == jobs.StateGenerating && rec.RunningAt.IsZero()
}
