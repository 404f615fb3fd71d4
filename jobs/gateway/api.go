package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// api answers programs.
type api struct {
	*Gateway
	cfg    API
	tokens []knownToken
	hub    *hub
	// seen has the last answer that each client got of each job.
	seen  *lru.Cache[string, seen]
	slots slots
	// transfers bound what is on its way into the bucket, by producer.
	transfers map[string]gate
	lists     gate
}

// knownToken is a token by its hash: all are as long, so that comparing tells nothing.
type knownToken struct {
	hash  [sha256.Size]byte
	token Token
}

func newAPI(g *Gateway, cfg API) (*api, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.DefaultN = cmp.Or(cfg.DefaultN, defaultN)
	answers, err := lru.New[string, seen](seenKept)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	a := &api{Gateway: g, cfg: cfg, hub: newHub(g.jobs, g.log), seen: answers, lists: make(gate, listsAtOnce), transfers: map[string]gate{"": make(gate, transfersAtOnce)}}
	a.cfg.StageFrom.Dir = cfg.TempDir
	for _, t := range cfg.Tokens {
		a.tokens = append(a.tokens, knownToken{sha256.Sum256([]byte(t.Secret)), t})
		a.transfers[t.Name] = make(gate, transfersOfToken)
	}
	return a, nil
}

// close answers what is held, and waits for what the API does by itself.
func (a *api) close() error {
	a.hub.close()
	return nil
}

// handle adds the API's routes.
func (a *api) handle(mux *http.ServeMux) {
	routes := http.NewServeMux()
	const services = "/api/v1/services/aigc/"
	a.route(routes, dashScopeShape, services+"text2image/image-synthesis", methods{http.MethodPost: a.create})
	for _, other := range []string{"image2image/image-synthesis", "image-generation/generation", "multimodal-generation/generation"} {
		a.route(routes, dashScopeShape, services+other, methods{http.MethodPost: a.otherEndpoint})
	}
	a.route(routes, dashScopeShape, "/api/v1/tasks", methods{http.MethodGet: a.list})
	a.route(routes, dashScopeShape, "/api/v1/tasks/{id}", methods{http.MethodGet: a.task})
	a.route(routes, dashScopeShape, "/api/v1/tasks/{id}/cancel", methods{http.MethodPost: a.cancel})
	a.route(routes, dashScopeShape, "/api/v1/uploads", methods{http.MethodGet: a.policy})
	routes.HandleFunc(formPath, a.handler(dashScopeShape, methods{http.MethodPost: a.upload}, false))
	a.route(routes, dashScopeShape, "/api/", nil)
	a.handleOpenAI(routes)
	guarded := a.guarded(routes)
	mux.Handle("/api/", guarded)
	mux.Handle("/v1/", guarded)
	images := http.NewServeMux()
	images.HandleFunc("GET "+imagesPath+"{name}", a.image)
	mux.Handle(imagesPath, a.guardedImages(images))
}

// guarded keeps foreign pages away from an API that asks for no token.
func (a *api) guarded(next http.Handler) http.Handler {
	if len(a.tokens) > 0 {
		return next
	}
	return guard("default-src 'none'", next)
}

// guardedImages lets images be shown by other pages, but while there are no tokens
// under this machine's own names alone.
func (a *api) guardedImages(next http.Handler) http.Handler {
	if len(a.tokens) > 0 {
		return next
	}
	return localOnly(next)
}

// caller is who asks.
type caller struct {
	Token
	// all says that there are no tokens: whoever reaches the gateway may see all jobs.
	all bool
}

// owns reports whether the caller may know of the job.
func (c caller) owns(rec *jobs.Record) bool { return c.all || rec.Producer == c.Name }

// caller finds out who asks, by a time that tells nothing of the tokens.
func (a *api) caller(r *http.Request) (caller, error) {
	if len(a.tokens) == 0 {
		return caller{all: true}, nil
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if secret = strings.TrimSpace(secret); !strings.EqualFold(scheme, "Bearer") || secret == "" {
		return caller{}, refuse(http.StatusUnauthorized, codeKey, "No API-key provided. This is a Danqing: send Authorization: Bearer and a token of its DANQING_SERVE_TOKENS.", 0)
	}
	hash := sha256.Sum256([]byte(secret))
	var found caller
	known := 0
	for _, t := range a.tokens {
		same := subtle.ConstantTimeCompare(hash[:], t.hash[:])
		if known |= same; same == 1 {
			found.Token = t.token
		}
	}
	if known == 0 {
		return caller{}, refuse(http.StatusUnauthorized, codeKey, "Invalid API-key provided. This is a Danqing: it takes a token of its DANQING_SERVE_TOKENS, and no key of DashScope's.", 0)
	}
	return found, nil
}

// Codes of DashScope's that the gateway answers with (error-code page).
const (
	codeKey       = "InvalidApiKey"
	codeParameter = "InvalidParameter"
	codeDenied    = "AccessDenied"
	codeNotFound  = "NotFound"
	codeThrottled = "Throttling"
	codeQuota     = "Throttling.AllocationQuota"
	codeUnable    = "UnsupportedOperation"
	codeInternal  = "InternalError"
	codeAway      = "ServiceUnavailable"
	codeTooLarge  = "RequestTooLarge"
	codeKeyReused = "IdempotencyKeyReused" // ours
)

// refusal is what a client may read of an error.
type refusal struct {
	status     int
	code       string
	message    string
	retryAfter time.Duration // 0: nothing is said
	param      string        // the field that is wrong, "" if not one is
}

func refuse(status int, code, message string, retryAfter time.Duration) *refusal {
	return &refusal{status: status, code: code, message: message, retryAfter: retryAfter}
}

func (e *refusal) Error() string { return e.code + ": " + e.message }

// refuseFor is what a client may read of any error; what it may not, the log keeps.
func refuseFor(err error) *refusal {
	var known *refusal
	var invalid *jobs.InvalidError
	var limit *jobs.LimitError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &invalid):
		e := refuse(http.StatusBadRequest, codeParameter, invalid.Error(), 0)
		if len(invalid.Fields) == 1 {
			e.param = invalid.Fields[0].Field
		}
		return e
	case errors.Is(err, jobs.ErrDigestConflict):
		return refuse(http.StatusUnprocessableEntity, codeKeyReused, "this Idempotency-Key was used for another request: nothing was queued; choose another key", 0)
	case errors.As(err, &limit) && limit.Kind == jobs.LimitDay:
		return refuse(http.StatusTooManyRequests, codeQuota, limit.Error(), untilMidnight(time.Now()))
	case errors.As(err, &limit):
		return refuse(http.StatusTooManyRequests, codeThrottled, limit.Error(), throttlePause)
	case errors.As(err, &large):
		return refuse(http.StatusRequestEntityTooLarge, codeTooLarge, fmt.Sprintf("the body has more than %d bytes", large.Limit), 0)
	}
	return refuse(http.StatusServiceUnavailable, codeAway, "the queue does not answer: ask again", awayPause)
}

const (
	// throttlePause is how long a client should wait for room in the queue: about one
	// image of wanx-v1.
	throttlePause = 30 * time.Second
	awayPause     = 5 * time.Second
)

// untilMidnight is how long the ledger's day still lasts: it ends at midnight, UTC+8.
func untilMidnight(now time.Time) time.Duration {
	const day = 24 * time.Hour
	east := now.Add(8 * time.Hour)
	return east.Truncate(day).Add(day).Sub(east)
}

// shape writes an error in the manner of one of the APIs.
type shape func(requestID string, e *refusal) any

func dashScopeShape(requestID string, e *refusal) any {
	return dashscope.ErrorResponse{Code: e.code, Message: e.message, RequestID: requestID}
}

// openAIError is an error as OpenAI's API reference has it.
type openAIError struct {
	Error struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	} `json:"error"`
}

func openAIShape(_ string, e *refusal) any {
	var body openAIError
	body.Error.Message, body.Error.Code, body.Error.Type = e.message, e.code, "invalid_request_error"
	if e.code == codeKey {
		body.Error.Code = "invalid_api_key"
	}
	if e.param != "" {
		body.Error.Param = &e.param
	}
	switch {
	case e.status == http.StatusTooManyRequests:
		body.Error.Type = "rate_limit_error"
	case e.status >= http.StatusInternalServerError:
		body.Error.Type = "server_error"
	}
	return body
}

// request is one that is being answered.
type request struct {
	*http.Request
	caller caller
	id     string // request_id
	// simulated says that what is answered tells of a simulated job.
	simulated bool
}

// answerer answers a request with what is encoded as JSON, or by an error; nil has
// been answered already.
type answerer func(w http.ResponseWriter, r *request) (any, error)

// methods are what a path answers.
type methods map[string]answerer

// route adds a path, with and without a slash at its end. Without methods it is for
// what no other path takes.
func (a *api) route(mux *http.ServeMux, in shape, path string, by methods) {
	handler := a.handler(in, by, true)
	mux.HandleFunc(path, handler)
	if !strings.HasSuffix(path, "/") {
		mux.HandleFunc(path+"/{$}", handler)
	}
}

// handler answers one path; token says whether one is needed.
func (a *api) handler(in shape, by methods, token bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req := &request{Request: r, id: uuid.NewString()}
		header := w.Header()
		header.Set(dashscope.HeaderGateway, "1")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Cache-Control", "no-store")
		var answer any
		var err error
		if token {
			req.caller, err = a.caller(r)
		}
		if err == nil {
			answer, err = answerBy(w, req, by)
		}
		if err != nil {
			e := refuseFor(err)
			if r.Context().Err() == nil && e.status >= http.StatusInternalServerError {
				a.log.Warn("request not answered", "request_id", req.id, "path", r.URL.Path, "status", e.status, "err", err)
			}
			if e.retryAfter > 0 {
				header.Set("Retry-After", strconv.Itoa(int((e.retryAfter+time.Second-1)/time.Second)))
			}
			writeAnswer(w, e.status, in(req.id, e))
			return
		}
		if answer != nil {
			writeAnswer(w, http.StatusOK, answer)
		}
	}
}

func answerBy(w http.ResponseWriter, r *request, by methods) (any, error) {
	if by == nil {
		return nil, refuse(http.StatusNotFound, codeNotFound, "there is nothing at this path", 0)
	}
	answer, ok := by[r.Method]
	if !ok {
		for method := range by {
			w.Header().Add("Allow", method)
		}
		return nil, refuse(http.StatusMethodNotAllowed, "MethodNotAllowed", "this path does not take "+r.Method, 0)
	}
	return answer(w, r)
}

// writeTimeout bounds how slowly a client may read an answer.
const writeTimeout = time.Minute

// writeAnswer says how long its body is, so that a client has it whole with its last byte.
func writeAnswer(w http.ResponseWriter, status int, body any) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has one
	var encoded bytes.Buffer
	enc := json.NewEncoder(&encoded)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(body) // texts and numbers
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(encoded.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(encoded.Bytes()) // the client has gone
}

// bodyTimeout bounds how slowly a client may send a body of this kind.
const bodyTimeout = 30 * time.Second

// readBody reads a body of at most so many bytes, within bodyTimeout.
func readBody(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // not every reader has one
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	_ = control.SetReadDeadline(time.Time{}) // the connection is watched while the request is held
	if large := (*http.MaxBytesError)(nil); err != nil && !errors.As(err, &large) {
		status := http.StatusBadRequest
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			status = http.StatusRequestTimeout
		}
		return nil, refuse(status, codeParameter, "the body did not arrive whole", 0)
	}
	return body, err
}

// get reads a job that the caller may know of, from Redis or the bucket; otherwise it
// fails with [jobs.ErrNotFound].
func (a *api) get(ctx context.Context, c caller, id string) (*jobs.Record, error) {
	if err := jobs.ValidID(id); err != nil {
		return nil, jobs.ErrNotFound
	}
	rec, err := a.jobs.Get(ctx, id)
	if errors.Is(err, jobs.ErrNotFound) {
		rec, err = a.cfg.Recall(ctx, id)
	}
	if err == nil && !c.owns(rec) {
		return nil, jobs.ErrNotFound
	}
	return rec, err
}

// base is the gateway's URL as the client knows it, without a slash at its end.
func (a *api) base(r *http.Request) string {
	switch {
	case a.cfg.BaseURL != "":
		return a.cfg.BaseURL
	case r.TLS != nil:
		return "https://" + r.Host
	}
	return "http://" + r.Host
}
