package dashscope

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Kind classifies failures by what the caller must do.
type Kind string

const (
	// KindRefused means that certainly no task was created, and the same call can be retried
	// later without using up an attempt. The connection was not established, or the
	// service has no capacity.
	KindRefused Kind = "refused"
	// KindThrottled means that certainly no task was created, because of too many calls. Slow
	// down, by Error.RetryAfter if set; no attempt is used up. Throttling usually ends
	// within a minute (rate-limit page).
	KindThrottled Kind = "throttled"
	// KindAccount means that certainly no task was created, and every call of this account
	// will fail until an operator acts: key, arrears, entitlement, quota.
	KindAccount Kind = "account"
	// KindModel means that certainly no task was created, and every call of this account for
	// this model will fail: the service has retired the model, or does not offer it to the
	// account. Other models are not affected.
	KindModel Kind = "model"
	// KindAmbiguous means, for a create only: a task may exist and may be paid for. The caller
	// must look for the task before it creates again.
	KindAmbiguous Kind = "ambiguous"
	// KindTerminal means that this request will always fail: its parameters are invalid, or
	// moderation rejects it.
	KindTerminal Kind = "terminal"
	// KindRetry means that this task or image failed at no cost, because of an error in the
	// service; a new attempt may succeed. Unlike KindRefused it uses up an attempt,
	// since a task was run.
	KindRetry Kind = "retry"
	// KindTemporary means, for all calls except create: no usable answer. It says nothing
	// about the task; repeat the call, more slowly.
	KindTemporary Kind = "temporary"
)

// The calls, as named in Error.Op and in the log.
const (
	opCreate = "create"
	opQuery  = "query"
	opCancel = "cancel"
	opList   = "list"
	opUpload = "upload"
	opModels = "models"
	opLimits = "limits"
)

// ErrNotPending means that a task could not be canceled because it is not PENDING (HTTP
// 400 UnsupportedOperation, manage-asynchronous-tasks page).
var ErrNotPending = errors.New("task is not pending")

// Error is the error of every call. Its text contains neither the key nor the query of
// a URL, which may be a signature.
type Error struct {
	Op         string        // create, query, cancel, list, upload, models or limits
	Kind       Kind          // what to do
	Status     int           // HTTP status; 0 if no answer came
	Code       string        // the service's code; "" if the answer has none
	Message    string        // the service's message, cleaned
	RequestID  string        // Alibaba's support needs it
	RetryAfter time.Duration // from the Retry-After header; 0 if absent
	Err        error         // the cause, if not an answer of the service
}

// Error returns the failed call and the reason.
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

// Hint returns advice for the operator, or "" if waiting is all that helps.
func (e *Error) Hint() string {
	if e.Code != "" {
		if h := Hint(e.Code, e.Message); h != "" {
			return h
		}
	}
	switch e.Kind {
	case KindAccount:
		return hintAccount
	case KindModel:
		return hintModel
	case KindTerminal:
		return hintTerminal
	case KindAmbiguous:
		return "a task may exist and may be charged: look for it in the account's task list before submitting again"
	case KindRefused, KindTemporary:
		if e.Code == "" {
			return "check the network, the proxy (HTTPS_PROXY) and the base URL (DASHSCOPE_HTTP_BASE_URL)"
		}
	case KindThrottled, KindRetry:
	}
	return ""
}

// invalid returns the error of a call that was not sent because its arguments are
// invalid.
func invalid(op string, err error) *Error { return &Error{Op: op, Kind: KindTerminal, Err: err} }

// errorBody is the body of an error. The OpenAI format occurs too (Java SDK 2.22.29).
type errorBody struct {
	ErrorResponse
	OpenAI struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// fault returns the error of an unexpected answer.
func (c *Client) fault(op string, a answer) *Error {
	e := &Error{Op: op, Status: a.status, Err: a.err, RetryAfter: retryAfter(a)}
	var r errorBody
	if a.err == nil && json.Unmarshal(a.body, &r) == nil {
		e.Code = c.scrub(cmp.Or(r.Code, r.OpenAI.Code))
		e.Message = c.scrub(cmp.Or(r.Message, r.OpenAI.Message))
		e.RequestID = c.scrub(r.RequestID)
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

// createKind classifies a create without a task_id: HTTP status first, then code. What
// is not certainly a refusal is ambiguous.
func createKind(e *Error, connected bool) Kind {
	switch {
	case !connected:
		return KindRefused
	case e.Code == "":
		return KindAmbiguous
	case e.Status == http.StatusServiceUnavailable && isCapacityCode(e.Code):
		return KindRefused
	case e.Status < 400, e.Status > 499:
		return KindAmbiguous
	case e.Status == http.StatusRequestTimeout, e.Status == 499:
		// Not documented; they come from a proxy, which may have forwarded the request.
		return KindAmbiguous
	}
	return rejectedKind(e)
}

// rejectedKind classifies a 4xx with the service's JSON.
func rejectedKind(e *Error) Kind {
	c, known := findCode(e.Code, e.Message)
	switch {
	case known && (c.kind == KindAccount || c.kind == KindModel):
		return c.kind
	case e.Status == http.StatusTooManyRequests:
		return KindThrottled
	case known:
		return c.kind
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden, e.Status == http.StatusNotFound:
		return KindAccount
	}
	return KindTerminal
}

// otherKind classifies a failure of any other call. It says nothing about the task, so
// only account errors and throttling matter; a cancel and an upload can be rejected
// permanently.
func otherKind(e *Error) Kind {
	if e.Code == "" || e.Status < 400 || e.Status > 499 {
		return KindTemporary
	}
	switch k := rejectedKind(e); {
	case e.Status == http.StatusNotFound && e.Op != opUpload: // possibly the task
		return KindTemporary
	case k == KindAccount, k == KindThrottled:
		return k
	case (k == KindTerminal || k == KindModel) && (e.Op == opCancel || e.Op == opUpload):
		return k
	}
	return KindTemporary
}

// retryAfter parses the Retry-After header in both of its forms. No page of the service
// documents it.
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

// minKeyBytes is the length from which a key is redacted wherever it stands. A shorter one, as
// in a trial, is redacted as a word of its own: it may be a part of any other word.
const minKeyBytes = 12

// scrub removes the key, and the query of every URL, from the service's text.
func scrub(s, key string) string {
	switch {
	case len(key) >= minKeyBytes:
		s = strings.ReplaceAll(s, key, "**redacted**")
	case key != "":
		s = redactWord(s, key)
	}
	return signedQuery.ReplaceAllString(s, "$1?**redacted**")
}

// redactWord redacts a key where no letter or digit is next to it.
func redactWord(s, key string) string {
	isPart := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	var b strings.Builder
	for rest := s; ; {
		at := strings.Index(rest, key)
		if at < 0 {
			b.WriteString(rest)
			return b.String()
		}
		end := at + len(key)
		before, _ := utf8.DecodeLastRuneInString(s[:len(s)-len(rest)+at])
		after, _ := utf8.DecodeRuneInString(rest[end:])
		b.WriteString(rest[:at])
		if isPart(before) || isPart(after) {
			b.WriteString(key)
		} else {
			b.WriteString("**redacted**")
		}
		rest = rest[end:]
	}
}

// text returns a text of the service for people: without secrets, printable, on one line and
// of bounded length.
func (c *Client) text(s string) string { return clean(c.scrub(s)) }

// maxPromptRunes is the longest rewritten prompt that is kept.
const maxPromptRunes = 5000

// maxTextRunes keeps an HTML page out of the log.
const maxTextRunes = 500

// clean returns text as a single printable line of bounded length.
func clean(s string) string { return cleanTo(s, maxTextRunes) }

func cleanTo(s string, runes int) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), isUnprintable), " ")
	if r := []rune(s); len(r) > runes {
		s = string(r[:runes]) + "…"
	}
	return s
}

// isUnprintable reports whether a rune could change a terminal, a log line or the order of
// a text: control characters, line separators and bidirectional marks.
func isUnprintable(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp, unicode.Bidi_Control)
}
