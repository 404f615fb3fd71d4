package worker

import (
	"bytes"
	"context"
	"crypto/tls"
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
	// callbackTime is what a receiver has for one try; the Standard Webhooks
	// specification recommends 15 to 30 s.
	callbackTime = 20 * time.Second
	// callbackHandshake bounds the TLS handshake in it.
	callbackHandshake = 10 * time.Second
	// callbackAnswer and callbackHeader bound what is read of an answer, whose status
	// alone counts, in bytes.
	callbackAnswer = 4 << 10
	callbackHeader = 32 << 10
)

// callbacks sends events to the URLs that producers have named.
type callbacks struct {
	client *http.Client
	// secrets are several while they are rotated.
	secrets []string
	silent  hostBreaker
}

func newCallbacks(cfg Config) (*callbacks, error) {
	c := &callbacks{secrets: cfg.CallbackSecrets}
	for i, secret := range cfg.CallbackSecrets {
		if err := webhook.ValidSecret(secret); err != nil {
			return nil, fmt.Errorf("worker: CallbackSecrets[%d]: %w", i, err)
		}
	}
	dial := cfg.DialCallback
	if dial == nil {
		dial = storage.PublicDialer(cfg.CallbackAllow)
	}
	c.client = &http.Client{
		// No proxy, which would connect to whatever it is told to. A connection is used
		// once: the next event may be for another host, or hours away.
		Transport: &http.Transport{
			DialContext: dial, DisableKeepAlives: true, DisableCompression: true,
			TLSHandshakeTimeout: callbackHandshake, MaxResponseHeaderBytes: callbackHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// post sends an event once. It fails with an [*undeliveredError], unless ctx ends.
func (c *callbacks) post(ctx context.Context, link, eventID string, body []byte) error {
	u, err := url.Parse(link)
	if err != nil {
		return &deliveryError{final: true, cause: "the callback is no URL"}
	}
	to := "callback to " + u.Host
	if len(c.secrets) == 0 {
		return &deliveryError{cause: to + ": the worker has no secret to sign it with", remedy: "set DANQING_CALLBACK_SECRET"}
	}
	if !c.silent.Allow(u.Host, time.Now()) {
		return &deliveryError{cause: to + ": it did not answer another one in time, a moment ago"}
	}
	trying, cancel := context.WithTimeout(ctx, callbackTime)
	defer cancel()
	req, err := http.NewRequestWithContext(trying, http.MethodPost, link, bytes.NewReader(body))
	if err != nil {
		return &deliveryError{final: true, cause: to + ": its URL cannot be called"}
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
		c.silent.Record(u.Host, time.Now(), failed.silent)
		failed.cause = to + ": " + failed.cause
		return failed
	}
	defer answer.Body.Close()                                               //nolint:errcheck // nothing was written to it
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, callbackAnswer)) // or the receiver sees a reset
	c.silent.Record(u.Host, time.Now(), trying.Err() != nil)                // the body may not end either
	return statusError(to, answer)
}

// refused is nil for an answer that means delivered.
func statusError(to string, answer *http.Response) error {
	failed := &deliveryError{
		cause: fmt.Sprintf("%s: it answered %s", to, strings.TrimSpace(strconv.Itoa(answer.StatusCode)+" "+http.StatusText(answer.StatusCode))),
		after: retryAfter(answer.Header.Get("Retry-After"), time.Now()),
	}
	switch code := answer.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		failed.cause += ": redirects are not followed"
		failed.remedy = "name the final address as callback"
	case code == http.StatusGone:
		failed.final = true
		failed.cause += ": it wants no more"
	}
	return failed
}

// retryAfter reads the header of that name: seconds, or a date. Whatever is none of
// both, or past, is 0.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
		return max(0, time.Duration(seconds)*time.Second)
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// unanswered says why there was no answer. The errors of net/http are not shown as they
// are: they repeat the link, and some of them what came instead of an answer.
func transportError(err error) *deliveryError {
	var (
		lookup      *net.DNSError
		network     *net.OpError
		certificate *tls.CertificateVerificationError
		timeout     interface{ Timeout() bool }
	)
	switch {
	case errors.Is(err, storage.ErrNotPublic):
		return &deliveryError{final: true, cause: storage.ErrNotPublic.Error(), remedy: "to allow it add the address to DANQING_CALLBACK_ALLOW"}
	case errors.As(err, &lookup):
		return &deliveryError{cause: "its name cannot be resolved: " + lookup.Err}
	case errors.As(err, &certificate):
		return &deliveryError{cause: "its certificate is not to be trusted: " + certificate.Err.Error()}
	case errors.As(err, &timeout) && timeout.Timeout():
		return &deliveryError{cause: "no answer in time", silent: true}
	case errors.As(err, &network):
		return &deliveryError{cause: network.Error()}
	case errors.Is(err, http.ErrSchemeMismatch):
		return &deliveryError{cause: "it does not speak TLS"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &deliveryError{cause: "the connection was closed without an answer"}
	}
	return &deliveryError{cause: "what came back is no answer of HTTP"}
}
