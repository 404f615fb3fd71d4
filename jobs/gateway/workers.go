package gateway

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// workerCache caches what the workers have announced.
type workerCache struct {
	mu      sync.Mutex
	readAt  time.Time
	workers []jobs.WorkerStatus
}

// get returns the workers, none if Redis does not respond or no worker has run yet. What was
// read at least maxAge ago is read again.
func (c *workerCache) get(ctx context.Context, operator *jobs.Inspector, maxAge time.Duration) []jobs.WorkerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); c.readAt.IsZero() || now.Sub(c.readAt) >= maxAge {
		if workers, err := operator.Workers(ctx); err == nil {
			c.readAt, c.workers = now, workers
		}
	}
	return c.workers
}

// recheckWorkers is how old what is known of the workers may be when a job is refused because
// of it: a worker may just have started.
const recheckWorkers = time.Second

// workedModels returns the models that workers work on, in the catalog's order; all of them if
// no worker has run yet.
func (a *api) workedModels(ctx context.Context, maxAge time.Duration) []jobs.Model {
	workers := a.workers.get(ctx, a.operator, maxAge)
	return slices.DeleteFunc(jobs.Models(), func(m jobs.Model) bool { return !workOn(workers, m.Name) })
}

// workOn reports whether one of the workers works on a model, or none has run yet.
func workOn(workers []jobs.WorkerStatus, model string) bool {
	return len(workers) == 0 || slices.ContainsFunc(workers, func(w jobs.WorkerStatus) bool { return slices.Contains(w.Models, model) })
}

// isWorked reports whether a worker works on a model.
func (a *api) isWorked(ctx context.Context, model string) bool {
	for _, maxAge := range []time.Duration{slotCacheLifetime, recheckWorkers} {
		if workOn(a.workers.get(ctx, a.operator, maxAge), model) {
			return true
		}
	}
	return false
}

// codeNoModel is DashScope's code for a model that does not exist (error-code page).
const codeNoModel = "ModelNotFound"

// modelNotWorked is the error for a model that no worker works on.
func (a *api) modelNotWorked(ctx context.Context, model string) error {
	var names []string
	for _, m := range a.workedModels(ctx, recheckWorkers) {
		names = append(names, m.Name)
	}
	e := jobs.FieldError{Field: "model", Value: model, Allowed: strings.Join(names, ", "), Remedy: "no worker of this Danqing server works on it: nothing was queued"}
	answer := newAPIError(http.StatusNotFound, codeNoModel, e.Error(), 0)
	answer.param = "model"
	return answer
}

// checkWorkers fails if no worker would do a normalized request, or send its callback. A job
// that exists is not refused.
func (a *api) checkWorkers(ctx context.Context, req jobs.Request) error {
	var err error
	if !a.isWorked(ctx, req.Model) {
		err = a.modelNotWorked(ctx, req.Model)
	} else if req.Callback != "" {
		err = a.checkCallback(ctx, req.Callback)
	}
	if err != nil && req.ID != "" {
		if _, missing := a.jobs.Get(ctx, req.ID); missing == nil {
			return nil
		}
	}
	return err
}

// checkCallback fails if no worker can ever deliver a callback: none has a secret to sign it,
// or its address is private. Names are not resolved here: the worker does, for each attempt.
func (a *api) checkCallback(ctx context.Context, callback string) error {
	var remedy string
	for _, maxAge := range []time.Duration{slotCacheLifetime, recheckWorkers} {
		if remedy = callbackRemedy(a.workers.get(ctx, a.operator, maxAge), callback); remedy == "" {
			return nil
		}
	}
	return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: "callback", Value: "cannot be delivered", Remedy: remedy}}}
}

// callbackRemedy returns what to do so that one of the workers can deliver a callback, "" if
// one can or none is known.
func callbackRemedy(workers []jobs.WorkerStatus, callback string) string {
	if len(workers) == 0 {
		return ""
	}
	u, err := url.Parse(callback)
	if err != nil {
		return "" // refused as invalid
	}
	host := u.Hostname()
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		host = "127.0.0.1"
	}
	address, err := netip.ParseAddr(host)
	remedy := "the workers have no secret to sign it: set DANQING_CALLBACK_SECRET for them"
	for _, w := range workers {
		switch {
		case !w.Callbacks:
		case err != nil || storage.MayDial(address, w.CallbackAllow):
			return ""
		default:
			remedy = "its address is not public: to allow it, add " + address.String() + " to the workers' DANQING_CALLBACK_ALLOW"
		}
	}
	return remedy
}
