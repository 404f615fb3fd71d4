package gateway

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// heldAnswer is an answer that takes minutes. With signs of life its header is sent before the
// outcome is known, with status 200: an error is in the body then.
type heldAnswer struct {
	w      http.ResponseWriter
	events bool          // server-sent events
	every  time.Duration // between signs of life; 0 means none
	sent   bool          // the header was sent
}

// keepAlive gives signs of life until stop is called: white space before the JSON, or comments
// between events.
func (h *heldAnswer) keepAlive() (stop func()) {
	if h.every == 0 {
		return func() {}
	}
	if h.events {
		h.alive()
	}
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(h.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				h.alive()
			case <-done:
				return
			}
		}
	})
	return func() { close(done); group.Wait() }
}

func (h *heldAnswer) alive() {
	text := "\n"
	if !h.sent {
		h.sent = true
		header := h.w.Header()
		header.Set("Content-Type", "application/json; charset=utf-8")
		header.Set("X-Accel-Buffering", "no") // nginx
		if h.events {
			header.Set("Content-Type", "text/event-stream; charset=utf-8")
		}
		h.w.WriteHeader(http.StatusOK)
	}
	if h.events {
		text = ": the images are not ready yet\n\n"
	}
	control := http.NewResponseController(h.w)
	_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // unsupported in tests
	_, _ = io.WriteString(h.w, text)                           // fails only if the client has disconnected
	_ = control.Flush()
}

// writer is the writer of the answer.
func (h *heldAnswer) writer() http.ResponseWriter {
	if h.sent {
		return bodyWriter{h.w}
	}
	return h.w
}

// bodyWriter is a ResponseWriter whose header was sent.
type bodyWriter struct{ http.ResponseWriter }

// WriteHeader does nothing.
func (bodyWriter) WriteHeader(int) {}

// Unwrap is for [http.ResponseController].
func (b bodyWriter) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// send answers with an error that is final.
func (h *heldAnswer) send(r *request, e *apiError) {
	body := encodeOpenAIError(r.id, e)
	if !h.sent || !h.events {
		writeAnswer(h.writer(), e.status, body)
		return
	}
	encoded, _ := json.Marshal(body) // strings
	_, _ = fmt.Fprintf(h.w, "event: error\ndata: %s\n\n", encoded)
}

// writeError sends an error if the header was sent, and else returns it.
func (h *heldAnswer) writeError(r *request, err error) error {
	if !h.sent {
		return err
	}
	h.send(r, toAPIError(err))
	return nil
}

// streamImages sends an event for each image.
func (a *api) streamImages(out *heldAnswer, r *request, asked generation, rec *jobs.Job) error {
	usage := ""
	if isGPTImage(asked.alias) {
		usage = gptImageUsage + ","
	}
	for _, image := range rec.Images {
		if image.Key == "" {
			continue
		}
		body, _, err := a.cfg.Bucket.Get(r.Context(), image.Key)
		if err != nil {
			return err
		}
		_ = http.NewResponseController(out.w).SetWriteDeadline(time.Now().Add(writeTimeout)) // unsupported in tests
		before := fmt.Sprintf("event: %s\ndata: {\"type\":%q,\"created_at\":%d,\"size\":\"%dx%d\",\"quality\":\"auto\",\"background\":\"opaque\",\"output_format\":%q,%s\"b64_json\":\"",
			asked.event, asked.event, rec.FinishedAt.Unix(), image.Width, image.Height, image.Format(), usage)
		err = writeBase64(out.w, before, body)
		_ = body.Close() // read only
		if err != nil {
			a.log.Warn("image response aborted", "job_id", rec.ID, "key", image.Key, "err", err)
			panic(http.ErrAbortHandler) // a truncated event must not look complete
		}
		_, _ = io.WriteString(out.w, "\n\n") // the caller checks Flush
	}
	return nil
}
