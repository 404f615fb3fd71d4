package dashscope

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Kind sorts failures by what the caller must do.
type Kind string

const (
	// KindRefused means: for certain nothing was made; the same call can be tried
	// again later, and no attempt is spent. The connection was never made, or
	// the service has no capacity.
	KindRefused Kind = "refused"
	// KindThrottled means: for certain nothing was made; too many calls. Slow down,
	// by Error.RetryAfter if that is set; no attempt is spent. Throttles usually
	// clear within a minute (rate-limit page).
	KindThrottled Kind = "throttled"
	// KindAccount means: for certain nothing was made, and no call of this account
	// and model will pass until a person acts: key, arrears, entitlement, quota.
	KindAccount Kind = "account"
	// KindAmbiguous means, of a create only: a task may exist and may be paid
	// for. The caller must not create again before it has looked for the task.
	KindAmbiguous Kind = "ambiguous"
	// KindTerminal means: this request will never pass: its parameters are wrong, or
	// moderation refuses it.
	KindTerminal Kind = "terminal"
	// KindRetry means: this task or image failed, at no cost, for a reason on the
	// service's side; a new attempt may pass. Unlike KindRefused it spends an
	// attempt, since a task was run for it.
	KindRetry Kind = "retry"
	// KindTemporary means, of all calls but a create: no usable answer. It says
	// nothing about the task; ask again, slower.
	KindTemporary Kind = "temporary"
)

// The calls, as Error.Op and the log name them.
const (
	opCreate = "create"
	opQuery  = "query"
	opCancel = "cancel"
	opList   = "list"
	opUpload = "upload"
)

// ErrNotPending is what a cancel fails with when the task is not PENDING any
// more: the service cancels no other (HTTP 400 UnsupportedOperation,
// manage-asynchronous-tasks page).
var ErrNotPending = errors.New("task is not pending")

// Error is the error of every call. Its text holds neither the key nor the query
// of a URL, which may be a signature.
type Error struct {
	Op         string        // create, query, cancel, list or upload
	Kind       Kind          // what to do
	Status     int           // HTTP status; 0 if no answer came
	Code       string        // the service's code; "" if the answer has none
	Message    string        // the service's message, cleaned
	RequestID  string        // what Alibaba's support asks for
	RetryAfter time.Duration // from the header of that name; 0 if absent
	Err        error         // the cause, where it is not the service's word
}

// Error says which call failed, and how.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("dashscope " + e.Op)
	if e.Status != 0 {
		fmt.Fprintf(&b, ": HTTP %d", e.Status)
	}
	for _, s := range []string{e.Code, e.Message} {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	if e.Err != nil {
		b.WriteString(": " + clean(e.Err.Error()))
	}
	if e.RequestID != "" {
		b.WriteString(" (request_id " + e.RequestID + ")")
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint returns a sentence that tells a person what to do, or "" where there is
// nothing to do but wait.
func (e *Error) Hint() string {
	if e.Code != "" {
		if h := Hint(e.Code, e.Message); h != "" {
			return h
		}
	}
	switch e.Kind {
	case KindAccount:
		return hintAccount
	case KindTerminal:
		return hintTerminal
	case KindAmbiguous:
		return "a task may have been made and may be charged: look for it among the account's tasks before submitting again"
	case KindRefused, KindTemporary:
		if e.Code == "" {
			return "check the network, the proxy (HTTPS_PROXY) and the base URL (DASHSCOPE_HTTP_BASE_URL)"
		}
	case KindThrottled, KindRetry:
	}
	return ""
}

// invalid is the error of a call that was not made because its own arguments are
// wrong.
func invalid(op string, err error) *Error { return &Error{Op: op, Kind: KindTerminal, Err: err} }

// refusal is the body of an error. The OpenAI style occurs too (Java SDK
// 2.22.29).
type refusal struct {
	ErrorResponse
	OpenAI struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// fault makes the error of an answer that is not the wanted one.
func (c *Client) fault(op string, a answer) *Error {
	e := &Error{Op: op, Status: a.status, Err: a.err, RetryAfter: retryAfter(a)}
	var r refusal
	if a.err == nil && json.Unmarshal(a.body, &r) == nil {
		e.Code = or(r.Code, r.OpenAI.Code)
		e.Message = c.scrub(or(r.Message, r.OpenAI.Message))
		e.RequestID = r.RequestID
	}
	if e.Code == "" && e.Err == nil {
		e.Message = ""
		e.Err = fmt.Errorf("answer is not the service's JSON (%d bytes of %q)", len(a.body), clean(a.header.Get("Content-Type")))
	}
	e.Code, e.Message, e.RequestID = clean(e.Code), clean(e.Message), clean(e.RequestID)
	if op == opCreate {
		e.Kind = createKind(e, a.connected)
	} else {
		e.Kind = otherKind(e)
	}
	return e
}

// createKind sorts a create without a task_id: HTTP status first, then code.
// Whatever is not for certain a refusal is ambiguous.
func createKind(e *Error, connected bool) Kind {
	switch {
	case !connected:
		return KindRefused
	case e.Code == "":
		return KindAmbiguous
	case e.Status == http.StatusServiceUnavailable && capacity(e.Code):
		return KindRefused
	case e.Status < 400, e.Status > 499:
		return KindAmbiguous
	case e.Status == http.StatusRequestTimeout, e.Status == 499:
		// No page has them: they are a proxy's, which may have sent the request on.
		return KindAmbiguous
	}
	return refusedKind(e)
}

// refusedKind sorts a 4xx with the service's JSON.
func refusedKind(e *Error) Kind {
	c, known := findCode(e.Code, e.Message)
	switch {
	case known && c.kind == KindAccount:
		return KindAccount
	case e.Status == http.StatusTooManyRequests:
		return KindThrottled
	case known:
		return c.kind
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden, e.Status == http.StatusNotFound:
		return KindAccount
	}
	return KindTerminal
}

// otherKind sorts a fault of any other call. That a question was not answered
// says nothing about the task, so only the account and the pace matter; a cancel
// and an upload can be refused for good.
func otherKind(e *Error) Kind {
	if e.Code == "" || e.Status < 400 || e.Status > 499 {
		return KindTemporary
	}
	switch k := refusedKind(e); {
	case e.Status == http.StatusNotFound && e.Op != opUpload: // perhaps the task
		return KindTemporary
	case k == KindAccount, k == KindThrottled:
		return k
	case k == KindTerminal && (e.Op == opCancel || e.Op == opUpload):
		return k
	}
	return KindTemporary
}

// retryAfter reads the header, which no page mentions. It takes both of its
// forms.
func retryAfter(a answer) time.Duration {
	v := a.header.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil {
		return time.Duration(min(max(s, 0), 86400)) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil || a.date().IsZero() {
		return 0
	}
	return min(max(at.Sub(a.date()), 0), 24*time.Hour)
}

var signedQuery = regexp.MustCompile(`(https?://[^\s"'<>?]+)\?[^\s"'<>]+`)

// scrub removes the key, and the query of every URL, from what the service says.
func scrub(s, key string) string {
	if key != "" {
		s = strings.ReplaceAll(s, key, "**redacted**")
	}
	return signedQuery.ReplaceAllString(s, "$1?**redacted**")
}

// maxTextRunes keeps a page of HTML out of the log.
const maxTextRunes = 500

// clean makes one line of text of bounded length.
func clean(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
	if r := []rune(s); len(r) > maxTextRunes {
		s = string(r[:maxTextRunes]) + "…"
	}
	return s
}
