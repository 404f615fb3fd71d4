package notify

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/webhook"
)

const (
	// receiverUnknownWait is when an alert is tried again whose receiver this process does not have:
	// another one may. unknownLifetime is for how long.
	receiverUnknownWait = time.Minute
	unknownLifetime     = 24 * time.Hour
)

// notifyAlert is the kind of alerts in metrics.
const notifyAlert jobs.NotificationKind = "alert"

// newAlertClient returns the HTTP client of alerts. Unlike callbacks they go where the operator says,
// by a proxy too.
func newAlertClient(dial func(context.Context, string, string) (net.Conn, error)) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: dial, DisableKeepAlives: true, DisableCompression: true,
			TLSHandshakeTimeout: callbackHandshakeTimeout, MaxResponseHeaderBytes: callbackMaxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// SendAlert sends a message to a receiver at once, outside of any queue. It fails with the reason why
// it was not accepted.
func SendAlert(ctx context.Context, r *Receiver, m jobs.AlertMessage) error {
	return postAlert(ctx, newAlertClient(nil), r, &m)
}

// handleAlert adapts the sending of alerts to asynq.
func (n *Server) handleAlert(ctx context.Context, message *asynq.Task) error {
	var m jobs.AlertMessage
	if err := json.Unmarshal(message.Payload(), &m); err != nil {
		return fmt.Errorf("the payload is not a danqing alert: %w: %w", err, asynq.SkipRetry)
	}
	log := n.log.With("event_id", m.ID, "kind", string(notifyAlert))
	var to *Receiver
	for _, r := range n.cfg.Receivers {
		if r.ID == m.Receiver {
			to = r
		}
	}
	if to == nil && time.Since(m.At) < unknownLifetime {
		return &notYetError{receiverUnknownWait}
	}
	if to == nil {
		log.Warn("alert dropped: no process has its receiver any more")
		n.cfg.Metrics.Notified(notifyAlert, "dropped")
		return nil
	}
	return n.attempted(ctx, log.With("receiver", to.String()), notifyAlert, postAlert(ctx, n.alertClient, to, &m), "danqing alert test tries the receiver")
}

// postAlert sends a message once. It fails with a [*deliveryError], or with the cause of ctx.
func postAlert(ctx context.Context, client *http.Client, r *Receiver, m *jobs.AlertMessage) error {
	now := time.Now()
	body, err := r.body(m, now)
	if err != nil {
		return &deliveryError{final: true, cause: r.String() + ": the message cannot be encoded"}
	}
	trying, cancel := context.WithTimeout(ctx, callbackTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(trying, http.MethodPost, r.target(now), bytes.NewReader(body))
	if err != nil {
		return &deliveryError{final: true, cause: r.String() + ": its URL is invalid"}
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "danqing")
	if r.format == formatGeneric {
		if err := webhook.Sign(req.Header, body, []string{r.link.Fragment}, m.ID, now); err != nil {
			return &deliveryError{final: true, cause: r.String() + ": it cannot be signed"}
		}
	}
	answer, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failed := transportError(err)
		failed.cause = r.String() + ": " + failed.cause
		return failed
	}
	defer answer.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(io.LimitReader(answer.Body, callbackMaxBody))
	if err = cmp.Or(err, trying.Err()); err != nil && !errors.Is(err, io.EOF) {
		return &deliveryError{cause: r.String() + ": the answer was cut off"}
	}
	return r.check(answer, text)
}
