package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// maxClaims limits how often a request looks for a job: a job that it joined may just have been
// canceled, because the request that started it has gone.
const maxClaims = 3

// generations makes images while the client waits, like OpenAI's API. The default of n
// is 1, as there.
//
// Clients of that API retry by themselves. A retry joins the job of the request that it
// repeats, until a complete answer to one of them was sent: see [waiters].
func (a *api) generations(w http.ResponseWriter, r *request) (any, error) {
	body, err := readBody(w, r.Request, maxCreateBytes)
	if err != nil {
		return nil, err
	}
	asked, err := parseGeneration(body, a.cfg.Aliases)
	if err != nil {
		return nil, err
	}
	return a.serveImages(w, r, asked)
}

// serveImages answers a request of OpenAI's API with images.
func (a *api) serveImages(w http.ResponseWriter, r *request, asked generation) (any, error) {
	setIgnored(w.Header(), asked.ignored)
	if err := applyHeaders(&asked.request, r.Header, r.caller); err != nil {
		return nil, err
	}
	out := &heldAnswer{w: w, events: asked.stream, every: a.cfg.KeepAlive}
	if asked.stream {
		out.every = eventInterval
	}
	for tries := 1; ; tries++ {
		again, err := a.generate(out, r, asked)
		if err == nil && again && tries < maxClaims {
			continue
		}
		if err != nil {
			err = out.writeError(r, asked.names.rename(err))
		}
		return nil, err // nil: already answered
	}
}

// generate starts or joins a job, and answers with its images. again is set if it has joined a
// job that was canceled because nobody waited for it.
func (a *api) generate(out *heldAnswer, r *request, asked generation) (again bool, err error) {
	c := claim{job: asked.request.ID}
	if c.job == "" {
		if c, err = a.waiters.claim(r.Context(), r, asked.identity); err != nil {
			return false, err
		}
	}
	over := false // no later request may join the job
	defer func() { a.leave(r, asked, c, over) }()
	asked.request.ID = c.job
	if !c.isNew && (asked.chooseModel || asked.alias != "" && c.key != "") {
		a.keepModel(r.Context(), &asked.request)
	}
	rec, _, err := a.accept(r.Context(), r.caller, asked.request)
	if err != nil {
		over = c.isNew && toAPIError(err).status < http.StatusInternalServerError // certainly not queued
		return false, err
	}
	if c.key != "" && !c.isNew && unwanted(rec) {
		over = true
		return true, nil
	}
	out.w.Header().Set("X-Danqing-Job", rec.ID)
	if rec, err = a.awaitEnd(out, r, c.job); err != nil {
		return false, err
	}
	if c.key != "" && !c.isNew && unwanted(rec) {
		over = true
		return true, nil
	}
	if err := a.answer(out, r, asked, rec); err != nil {
		return false, err
	}
	// A later request may join if the client may not have the complete answer.
	over = http.NewResponseController(out.w).Flush() == nil && r.Context().Err() == nil
	return false, nil
}

// awaitEnd waits for the end of a job, with signs of life to the client.
func (a *api) awaitEnd(out *heldAnswer, r *request, id string) (*jobs.Job, error) {
	timeout := a.cfg.OpenAIWait
	if timeout == 0 {
		timeout = defaultOpenAIWait
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	stop := out.keepAlive()
	rec, err := a.waitFor(ctx, r.caller, id, func(rec *jobs.Job) bool { return rec.State.Final() })
	stop()
	if rec != nil && rec.Simulated {
		out.w.Header().Set(dashscope.HeaderSimulated, "true")
	}
	if errors.Is(err, jobs.ErrNotFound) {
		return nil, err
	}
	if err != nil || !rec.State.Final() {
		return nil, newAPIError(http.StatusGatewayTimeout, codeTimeout, "the images are not ready yet, and the job continues: send the same request again to join it", 0)
	}
	return rec, nil
}

// answer sends the images of a job that has ended, or why there are none. It fails if a retry
// may help.
func (a *api) answer(out *heldAnswer, r *request, asked generation, rec *jobs.Job) error {
	if rec.State != jobs.StateSucceeded {
		out.send(r, jobError(rec))
		return nil
	}
	var err error
	if asked.stream {
		err = a.streamImages(out, r, asked, rec)
	} else {
		err = a.sendImages(out.writer(), r, asked, rec)
	}
	if errors.Is(err, storage.ErrNotExist) { // permanent: a retry would fail as well
		a.log.Warn("image missing from the bucket", "job_id", rec.ID, "err", err)
		out.send(r, newAPIError(http.StatusGone, "image_removed", "the images were deleted from the bucket: send the request again for new ones", 0))
		return nil
	}
	return err
}

// headerDisconnect says what becomes of a job that is not submitted when its client
// disconnects: "cancel", the default, or "continue".
const headerDisconnect = "X-Danqing-On-Disconnect"

// unwanted reports whether a job was canceled because nobody waited for it.
func unwanted(rec *jobs.Job) bool {
	return rec.State == jobs.StateCanceled && rec.Message == jobs.UnwantedMessage
}

// retryGrace is how long the job of a client that retries by itself keeps its place after a
// disconnect. OpenAI's libraries retry after 0.5 to 8 s.
const retryGrace = 10 * time.Second

// leave ends a request's wait. If its client has disconnected and nobody else waits, the job is
// canceled, unless it was submitted or its client wants it later: it has a key, or a callback. A
// client that may retry still counts as waiting for some seconds, so that its retry joins the
// job.
func (a *api) leave(r *request, asked generation, c claim, over bool) {
	wanted := c.key == "" || asked.request.Callback != "" || strings.EqualFold(r.Header.Get(headerDisconnect), "continue")
	gone := r.Context().Err() != nil && a.hub.done.Err() == nil
	if gone && !over && !wanted && r.Header.Get(headerRetryCount) != "" {
		time.AfterFunc(retryGrace, func() { a.endWait(c, over, true) })
		return
	}
	a.endWait(c, over, gone && !over && !wanted)
}

// endWait ends a request's wait and, if nobody else waits, cancels the job if cancel is set.
func (a *api) endWait(c claim, over, cancel bool) {
	others, err := a.waiters.leave(c, over)
	if err != nil {
		a.log.Warn("wait not ended in redis: a repeated request may get the same images", "job_id", c.job, "err", err)
		return
	}
	if others > 0 || !cancel {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), readTimeout)
	defer stop()
	_, err = a.jobs.CancelUnsubmitted(ctx, c.job)
	switch {
	case err == nil:
		a.log.Info("job canceled: client disconnected", "job_id", c.job)
		err = a.waiters.forget(ctx, c)
	case errors.Is(err, jobs.ErrInvalidState), errors.Is(err, jobs.ErrFinished), errors.Is(err, jobs.ErrNotFound):
		return
	}
	if err != nil {
		a.log.Warn("job of a disconnected client not canceled", "job_id", c.job, "err", err)
	}
}

// eventInterval is how often a stream of events has a sign of life: proxies cut a silent
// connection after 60 s, some after 30.
const eventInterval = 15 * time.Second
