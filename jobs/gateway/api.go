package gateway

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// api serves the APIs and the images.
type api struct {
	redis    redis.UniversalClient
	jobs     *jobs.Client
	operator *jobs.Inspector
	log      *slog.Logger
	cfg      API
	tokens   []hashedToken
	hub      *hub
	// lastAnswers has the last answer to each client about each job.
	lastAnswers *lru.Cache[string, lastAnswer]
	slots       slotCache
	workers     workerCache
	waiters     *waiters
	shares      map[string]*share // by producer
}

// hashedToken is a token with its hash. Hashes have equal lengths, so that the time of
// a comparison reveals nothing.
type hashedToken struct {
	hash  [sha256.Size]byte
	token Token
}

func newAPI(g *Gateway, cfg API) (*api, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.DefaultN = cmp.Or(cfg.DefaultN, defaultN)
	answers, err := lru.New[string, lastAnswer](lastAnswersKept)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	a := &api{
		redis: g.redis, jobs: g.jobs, operator: g.operator, log: g.log, cfg: cfg,
		hub: newHub(g.jobs, g.log), lastAnswers: answers, shares: newShares(cfg), waiters: newWaiters(g.redis),
	}
	a.cfg.Staging.Dir = cfg.TempDir
	removeLeftovers(cfg.TempDir)
	for _, t := range cfg.Tokens {
		a.tokens = append(a.tokens, hashedToken{sha256.Sum256([]byte(t.Secret)), t})
	}
	return a, nil
}

// close answers requests in a long poll, and waits for the API's goroutines.
func (a *api) close() { a.hub.close() }

// handle adds the API's routes.
func (a *api) handle(mux *http.ServeMux) {
	routes := http.NewServeMux()
	for _, p := range dashscope.Protocols() {
		a.route(routes, encodeDashScopeError, servicesPath+p.Path(), methods{http.MethodPost: a.create(p)})
	}
	a.route(routes, encodeDashScopeError, servicesPath+"/services/aigc/multimodal-generation/generation", methods{http.MethodPost: a.synchronousEndpoint})
	a.route(routes, encodeDashScopeError, "/api/v1/tasks", methods{http.MethodGet: a.list})
	a.route(routes, encodeDashScopeError, "/api/v1/tasks/{id}", methods{http.MethodGet: a.task})
	a.route(routes, encodeDashScopeError, "/api/v1/tasks/{id}/cancel", methods{http.MethodPost: a.cancel})
	a.route(routes, encodeDashScopeError, "/api/v1/uploads", methods{http.MethodGet: a.getPolicy})
	routes.HandleFunc(formPath+"{policy}", a.handler(encodeDashScopeError, methods{http.MethodPost: a.upload}, false))
	a.route(routes, encodeDashScopeError, "/api/", nil)
	a.handleOpenAI(routes)
	guarded := a.cors(a.protect(routes))
	mux.Handle("/api/", guarded)
	mux.Handle("/v1/", guarded)
	images := http.NewServeMux()
	images.HandleFunc("GET "+imagesPath+"{name}", a.serveImage)
	mux.Handle(imagesPath, a.cors(a.protectImages(images)))
}

// open reports whether the API asks for no token.
func (a *api) open() bool { return len(a.tokens) == 0 && !a.cfg.RequireToken }

// protect refuses cross-origin requests to an API without tokens.
func (a *api) protect(next http.Handler) http.Handler {
	if !a.open() {
		return next
	}
	return secureHeaders("default-src 'none'", localOnly(trusting(a.cfg.CORSOrigins, next)))
}

// protectImages allows other pages to show images, but without tokens only under
// loopback names.
func (a *api) protectImages(next http.Handler) http.Handler {
	if !a.open() {
		return next
	}
	return localOnly(next)
}

// caller is the sender of a request.
type caller struct {
	Token
	// all is set if there are no tokens: every caller can see all jobs then.
	all bool
}

// canSee reports whether the caller may see the job.
func (c caller) canSee(rec *jobs.Job) bool { return c.all || rec.Producer == c.Name }

// authenticate returns the caller of a request. It takes the same time for every token.
func (a *api) authenticate(r *http.Request) (caller, error) {
	if a.open() {
		return caller{all: true}, nil
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if secret = strings.TrimSpace(secret); !strings.EqualFold(scheme, "Bearer") || secret == "" {
		return caller{}, newAPIError(http.StatusUnauthorized, codeInvalidKey, "No API-key provided. This is a Danqing server: send Authorization: Bearer and a token of its DANQING_SERVE_TOKENS.", 0)
	}
	hash := sha256.Sum256([]byte(secret))
	var found caller
	matched := 0
	for _, t := range a.tokens {
		same := subtle.ConstantTimeCompare(hash[:], t.hash[:])
		if matched |= same; same == 1 {
			found.Token = t.token
		}
	}
	if matched == 0 {
		return caller{}, newAPIError(http.StatusUnauthorized, codeInvalidKey, "Invalid API-key provided. This is a Danqing server: send a token of its DANQING_SERVE_TOKENS, not a DashScope key.", 0)
	}
	return found, nil
}

// DashScope's error codes that the gateway uses (error-code page).
const (
	codeInvalidKey  = "InvalidApiKey"
	codeParameter   = "InvalidParameter"
	codeDenied      = "AccessDenied"
	codeNotFound    = "NotFound"
	codeThrottled   = "Throttling"
	codeQuota       = "Throttling.AllocationQuota"
	codeUnsupported = "UnsupportedOperation"
	codeInternal    = "InternalError"
	codeUnavailable = "ServiceUnavailable"
	codeTooLarge    = "RequestTooLarge"
	codeKeyReused   = "IdempotencyKeyReused" // not DashScope's
)

// apiError is an error for the client.
type apiError struct {
	status     int
	code       string
	message    string
	retryAfter time.Duration // 0: no Retry-After
	param      string        // name of the wrong field, "" if it is not a single one
}

func newAPIError(status int, code, message string, retryAfter time.Duration) *apiError {
	return &apiError{status: status, code: code, message: message, retryAfter: retryAfter}
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// toAPIError returns the error for the client. It omits internal details, which are
// logged.
func toAPIError(err error) *apiError {
	var apiErr *apiError
	var invalid *jobs.InvalidError
	var limit *jobs.LimitError
	var large *http.MaxBytesError
	var busy *referenceUnavailableError
	switch {
	case errors.As(err, &apiErr):
		return apiErr
	case errors.As(err, &invalid):
		e := newAPIError(http.StatusBadRequest, codeParameter, invalid.Error(), 0)
		if len(invalid.Fields) == 1 {
			e.param = invalid.Fields[0].Field
		}
		return e
	case errors.As(err, &busy):
		return newAPIError(http.StatusServiceUnavailable, codeUnavailable, busy.Error()+": nothing was queued; retry later", unavailableRetryAfter)
	case errors.Is(err, jobs.ErrDigestConflict):
		return newAPIError(http.StatusUnprocessableEntity, codeKeyReused, "this Idempotency-Key was used for a different request: nothing was queued; use another key", 0)
	case errors.As(err, &limit) && limit.Kind == jobs.LimitDay:
		return newAPIError(http.StatusTooManyRequests, codeQuota, limit.Error()+" (DANQING_TOKEN_DAILY_BUDGET)", untilMidnight(time.Now()))
	case errors.As(err, &limit) && limit.Kind == jobs.LimitDepth:
		return newAPIError(http.StatusTooManyRequests, codeThrottled, limit.Error()+" (DANQING_SERVE_MAX_QUEUED)", throttledRetryAfter)
	case errors.As(err, &limit) && limit.Kind == jobs.LimitScheduled:
		return newAPIError(http.StatusTooManyRequests, codeThrottled, limit.Error()+" (half of DANQING_TOKEN_MAX_QUEUED)", throttledRetryAfter)
	case errors.As(err, &limit):
		return newAPIError(http.StatusTooManyRequests, codeThrottled, limit.Error()+" (DANQING_TOKEN_MAX_QUEUED)", throttledRetryAfter)
	case errors.As(err, &large):
		return newAPIError(http.StatusRequestEntityTooLarge, codeTooLarge, fmt.Sprintf("the body has more than %d bytes", large.Limit), 0)
	}
	return newAPIError(http.StatusServiceUnavailable, codeUnavailable, "the queue is unavailable: retry later", unavailableRetryAfter)
}

const (
	// throttledRetryAfter is how long a client should wait for space in the queue: about
	// the time of one wanx-v1 task.
	throttledRetryAfter   = 30 * time.Second
	unavailableRetryAfter = 5 * time.Second
)

// untilMidnight returns the rest of the ledger's day, which ends at midnight, UTC+8.
func untilMidnight(now time.Time) time.Duration {
	const day = 24 * time.Hour
	east := now.Add(8 * time.Hour)
	return east.Truncate(day).Add(day).Sub(east)
}

// errorEncoder returns an error in the JSON format of one of the APIs.
type errorEncoder func(requestID string, e *apiError) any

func encodeDashScopeError(requestID string, e *apiError) any {
	return dashscope.ErrorResponse{Code: e.code, Message: e.message, RequestID: requestID}
}

// openAIError is an error in the format of OpenAI's API reference.
type openAIError struct {
	Error struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	} `json:"error"`
}

func encodeOpenAIError(_ string, e *apiError) any {
	var body openAIError
	body.Error.Message, body.Error.Code, body.Error.Type = e.message, e.code, "invalid_request_error"
	switch e.code {
	case codeInvalidKey:
		body.Error.Code = "invalid_api_key"
	case codeNoModel:
		body.Error.Code = "model_not_found"
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

// request is an HTTP request with its caller and ID.
type request struct {
	*http.Request
	caller caller
	id     string // request_id
	// crowded is set if the caller has more open requests than its share.
	crowded bool
	// simulated is set if the answer is about a simulated job.
	simulated bool
}

// endpoint handles a request. It returns the answer, which is encoded as JSON, or an
// error. A nil answer means that the endpoint has written it already.
type endpoint func(w http.ResponseWriter, r *request) (any, error)

// methods are the endpoints of a path by HTTP method.
type methods map[string]endpoint

// route adds a path, with and without a trailing slash. Without methods, it answers
// that the path does not exist.
func (a *api) route(mux *http.ServeMux, in errorEncoder, path string, by methods) {
	handler := a.handler(in, by, true)
	mux.HandleFunc(path, handler)
	if !strings.HasSuffix(path, "/") {
		mux.HandleFunc(path+"/{$}", handler)
	}
}

// handler handles one path; token says whether a token is required.
func (a *api) handler(in errorEncoder, by methods, token bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req := &request{Request: r, id: uuid.NewString()}
		header := w.Header()
		header.Set(dashscope.HeaderGateway, "1")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Cache-Control", "no-store")
		var answer any
		var err error
		if token {
			req.caller, err = a.authenticate(r)
		}
		if err == nil && token {
			defer a.enter(req)()
		}
		if err == nil {
			answer, err = a.dispatch(w, req, by)
		}
		if err != nil {
			e := toAPIError(err)
			if r.Context().Err() == nil && e.status >= http.StatusInternalServerError {
				a.log.Warn("request failed", "request_id", req.id, "path", r.URL.Path, "status", e.status, "err", err)
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

func (a *api) dispatch(w http.ResponseWriter, r *request, by methods) (any, error) {
	if by == nil {
		return nil, newAPIError(http.StatusNotFound, codeNotFound, "this path does not exist", 0)
	}
	answer, ok := by[r.Method]
	if !ok {
		for method := range by {
			w.Header().Add("Allow", method)
		}
		return nil, newAPIError(http.StatusMethodNotAllowed, "MethodNotAllowed", "this path does not allow "+r.Method, 0)
	}
	if r.crowded && r.Method != http.MethodGet {
		return nil, a.errCrowded(r)
	}
	return answer(w, r)
}

// writeTimeout limits the time in which a client must read an answer.
const writeTimeout = time.Minute

// writeAnswer writes body as JSON with its Content-Length, so that the client has it
// complete when its last byte arrives.
func writeAnswer(w http.ResponseWriter, status int, body any) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // unsupported in tests
	encoded, _ := compactjson.Marshal(body)                                          // cannot fail: strings and numbers
	encoded = append(encoded, '\n')
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(encoded)))
	w.WriteHeader(status)
	_, _ = w.Write(encoded) // fails only if the client has disconnected
}

const (
	// bodyTimeout limits the time in which a client must send a body, and
	// unacceptedBodyTimeout that of one whose credential was not accepted.
	bodyTimeout           = 30 * time.Second
	unacceptedBodyTimeout = 5 * time.Second
)

// readBody reads a body of at most limit bytes, within bodyTimeout. After an error that
// deadline stays: net/http reads the rest of a body before it answers.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // unsupported in tests
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		_ = control.SetReadDeadline(time.Time{}) // net/http must notice a disconnect during a long poll
	}
	if large := (*http.MaxBytesError)(nil); err != nil && !errors.As(err, &large) {
		status := http.StatusBadRequest
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			status = http.StatusRequestTimeout
		}
		return nil, newAPIError(status, codeParameter, "the body is incomplete", 0)
	}
	return body, err
}

// get returns a job from Redis or from its sidecar. It fails with [jobs.ErrNotFound] if
// there is none, or if the caller may not see it.
func (a *api) get(ctx context.Context, c caller, id string) (*jobs.Job, error) {
	if err := jobs.ValidID(id); err != nil {
		return nil, jobs.ErrNotFound
	}
	began := time.Now()
	rec, err := a.jobs.Get(ctx, id)
	if errors.Is(err, jobs.ErrNotFound) {
		rec, err = a.cfg.LoadSidecar(ctx, id)
	}
	if err == nil && !c.canSee(rec) {
		rec, err = nil, jobs.ErrNotFound
	}
	if errors.Is(err, jobs.ErrNotFound) {
		a.hideDuration(ctx, began)
	}
	return rec, err
}

// notFoundStep is longer than a lookup in Redis and in the bucket commonly takes.
const notFoundStep = 200 * time.Millisecond

// hideDuration waits until a whole number of steps has passed since began. The ID of a job
// follows from the token's name and its Idempotency-Key: how long an answer takes must not
// tell another token whether the job exists.
func (a *api) hideDuration(ctx context.Context, began time.Time) {
	if a.open() {
		return
	}
	timer := time.NewTimer(notFoundStep - time.Since(began)%notFoundStep)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// baseURL returns the gateway's URL for the client, without a trailing slash.
func (a *api) baseURL(r *http.Request) string {
	switch {
	case a.cfg.BaseURL != "":
		return a.cfg.BaseURL
	case r.TLS != nil:
		return "https://" + r.Host
	}
	return "http://" + r.Host
}
