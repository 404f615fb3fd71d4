package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs/webhook"
	"github.com/danqing-queue/danqing/storage"
)

const (
	// callbackTimeout is the timeout of one attempt; the Standard Webhooks specification
	// recommends 15 to 30 s.
	callbackTimeout = 20 * time.Second
	// callbackHandshakeTimeout bounds its TLS handshake.
	callbackHandshakeTimeout = 10 * time.Second
	// callbackMaxBody and callbackMaxHeader bound the bytes read of a response; only its
	// status counts.
	callbackMaxBody   = 4 << 10
	callbackMaxHeader = 32 << 10
)

// callbacks sends events to the callback URLs of producers.
type callbacks struct {
	client *http.Client
	// secrets are one, or several while they are rotated: a receiver has only one of them.
	secrets []string
	breaker hostBreaker
}

func newCallbacks(secrets []string, dial func(context.Context, string, string) (net.Conn, error)) (*callbacks, error) {
	c := &callbacks{secrets: secrets}
	for i, secret := range secrets {
		if err := webhook.ValidSecret(secret); err != nil {
			return nil, fmt.Errorf("worker: CallbackSecrets[%d]: %w", i, err)
		}
	}
	c.client = &http.Client{
		// No proxy: it would connect to any address. A connection is used once: the
		// next event may be for another host, or hours later.
		Transport: &http.Transport{
			DialContext: dial, DisableKeepAlives: true, DisableCompression: true,
			TLSHandshakeTimeout: callbackHandshakeTimeout, MaxResponseHeaderBytes: callbackMaxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// post sends an event once. It fails with a [*deliveryError], or with the cause of ctx
// if ctx ends.
func (c *callbacks) post(ctx context.Context, producer, link, eventID string, body []byte) error {
	u, err := url.Parse(link)
	if err != nil {
		return &deliveryError{final: true, cause: "the callback is not a URL"}
	}
	to := "callback to " + u.Host
	if len(c.secrets) == 0 {
		return &deliveryError{cause: to + ": no secret is configured to sign it", remedy: "set DANQING_CALLBACK_SECRET"}
	}
	receiver := producer + " " + u.Host
	if !c.breaker.Allow(receiver, time.Now()) {
		return &deliveryError{cause: to + ": skipped, because the receiver has just timed out"}
	}
	trying, cancel := context.WithTimeout(ctx, callbackTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(trying, http.MethodPost, link, bytes.NewReader(body))
	if err != nil {
		return &deliveryError{final: true, cause: to + ": its URL is invalid"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "danqing")
	if err := webhook.Sign(req.Header, body, c.secrets, eventID, time.Now()); err != nil {
		return &deliveryError{cause: to + ": it cannot be signed"}
	}
	answer, err := c.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failed := transportError(err)
		c.breaker.Record(receiver, time.Now(), failed.timedOut)
		failed.cause = to + ": " + failed.cause
		return failed
	}
	defer answer.Body.Close()                                                //nolint:errcheck // read only
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, callbackMaxBody)) // closing earlier would reset the connection
	c.breaker.Record(receiver, time.Now(), trying.Err() != nil)              // the body may time out too
	return statusError(to, answer)
}

// statusError returns the error of a response, or nil for a status that means
// delivered.
func statusError(to string, answer *http.Response) error {
	failed := &deliveryError{
		cause:      fmt.Sprintf("%s: the receiver answered %s", to, strings.TrimSpace(strconv.Itoa(answer.StatusCode)+" "+http.StatusText(answer.StatusCode))),
		retryAfter: retryAfter(answer.Header.Get("Retry-After"), time.Now()),
	}
	switch code := answer.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		failed.cause += ": redirects are not followed"
		failed.remedy = "use the final address as callback"
	case code == http.StatusGone:
		failed.final = true
		failed.cause += ": the receiver accepts no more events"
	}
	return failed
}

// retryAfter parses the Retry-After header: seconds or a date. An invalid or past value
// is 0.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
		return max(0, time.Duration(seconds)*time.Second)
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// transportError describes why there was no response. It does not quote the errors of
// net/http: they contain the URL, and some of them what the receiver sent.
func transportError(err error) *deliveryError {
	if errors.Is(err, storage.ErrNotPublic) {
		return &deliveryError{final: true, cause: storage.ErrNotPublic.Error(), remedy: "to allow it, add the address to DANQING_CALLBACK_ALLOW"}
	}
	reason := storage.ExplainNoResponse(err)
	return &deliveryError{cause: reason.Text, timedOut: reason.TimedOut}
}
