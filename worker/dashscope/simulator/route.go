package simulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Paths of the server. The real service answers uploads and results on OSS
// hosts of their own; here they are other paths of the same host.
const (
	basePath   = "/api/v1"
	uploadPath = "/oss-upload"
	resultPath = "/1d/" // as in a published result URL
)

// maxRequestBytes bounds the body of an API call. The real bound is not
// published.
const maxRequestBytes = 6 << 20

// Route is one kind of request.
type Route string

// The routes of the service. The zero Route stands for any of them in a
// [Fault]; a request that fits none is counted as RouteOther.
const (
	RouteAny    Route = ""
	RouteCreate Route = "create"
	RouteQuery  Route = "query"
	RouteCancel Route = "cancel"
	RouteList   Route = "list"
	RoutePolicy Route = "policy"
	RouteUpload Route = "upload"
	RouteResult Route = "result"
	RouteOther  Route = "other"
)

// storage reports whether OSS answers on the route, with XML errors.
func (r Route) storage() bool { return r == RouteUpload || r == RouteResult }

// routeOf names the route of a request and the task that its path names.
// Every path is answered with and without a trailing slash: the pages and the
// SDKs differ.
func routeOf(r *http.Request) (route Route, taskID string) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	rest, ofTask := strings.CutPrefix(path, basePath+dashscope.PathTasks+"/")
	switch {
	case path == uploadPath && r.Method == http.MethodPost:
		return RouteUpload, ""
	case strings.HasPrefix(path, resultPath) && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		return RouteResult, ""
	case path == basePath+dashscope.PathText2Image && r.Method == http.MethodPost:
		return RouteCreate, ""
	case path == basePath+dashscope.PathTasks && r.Method == http.MethodGet:
		return RouteList, ""
	case path == basePath+dashscope.PathUploads && r.Method == http.MethodGet:
		return RoutePolicy, ""
	case ofTask && r.Method == http.MethodGet && !strings.Contains(rest, "/"):
		return RouteQuery, rest
	case ofTask && r.Method == http.MethodPost && strings.HasSuffix(rest, "/cancel"):
		return RouteCancel, strings.TrimSuffix(rest, "/cancel")
	default:
		return RouteOther, ""
	}
}

// ServeHTTP answers one request. Every answer carries
// [dashscope.HeaderSimulated].
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(dashscope.HeaderSimulated, "true")
	w.Header().Set("Date", wallClock().Format(http.TimeFormat))
	if err := s.Load(); err != nil {
		s.log.ErrorContext(r.Context(), "state not readable", "err", err)
		writeError(w, &refusal{http.StatusInternalServerError, "InternalError", err.Error()}, newID())
		return
	}
	route, _ := routeOf(r)
	rewind := func() {}
	if route != RouteUpload {
		// Read at once, so that a fault can look at it and a departed client
		// is noticed.
		body, err := io.ReadAll(io.LimitReader(r.Body, maxRequestBytes))
		if err != nil {
			panic(http.ErrAbortHandler) // the client is gone
		}
		rewind = func() { r.Body = io.NopCloser(bytes.NewReader(body)) }
		rewind()
	}
	fault := s.meet(route, r)
	rewind()
	if fault == nil {
		s.work(w, r)
		return
	}
	fault.serve(w, r, route, s.work)
}

// work answers a request without faults.
func (s *Simulator) work(w http.ResponseWriter, r *http.Request) {
	route, taskID := routeOf(r)
	requestID := newID()
	switch route {
	case RouteUpload:
		s.storeUpload(w, r, requestID)
		return
	case RouteResult:
		s.serveResult(w, r, requestID)
		return
	case RouteAny, RouteOther, RouteCreate, RouteQuery, RouteCancel, RouteList, RoutePolicy:
	}
	answer, err := s.answer(route, taskID, requestID, r)
	if err != nil {
		s.log.DebugContext(r.Context(), "request refused", "request_id", requestID, "err", err)
		writeError(w, err, requestID)
		return
	}
	writeJSON(w, http.StatusOK, answer, requestID)
}

// answer does the work of one API call.
func (s *Simulator) answer(route Route, taskID, requestID string, r *http.Request) (any, error) {
	c, err := s.caller(r)
	if err != nil {
		return nil, err
	}
	switch route {
	case RouteCreate:
		return s.create(r, c, requestID)
	case RouteList:
		return s.list(r, c, requestID)
	case RoutePolicy:
		return s.policy(r, c, requestID)
	case RouteQuery:
		return s.query(r, c, requestID, taskID)
	case RouteCancel:
		return s.cancel(r, c, requestID, taskID)
	case RouteAny, RouteOther, RouteUpload, RouteResult:
	}
	return nil, &refusal{http.StatusNotFound, "NotFound", "Not Found"}
}

// refusal is an error of the API.
type refusal struct {
	status        int
	code, message string
}

func (e *refusal) Error() string { return e.code + ": " + e.message }

// writeError writes an error as the API shapes it.
func writeError(w http.ResponseWriter, err error, requestID string) {
	r := &refusal{http.StatusInternalServerError, "InternalError", err.Error()}
	errors.As(err, &r)
	writeJSON(w, r.status, dashscope.ErrorResponse{Code: r.code, Message: r.message, RequestID: requestID}, requestID)
}

func writeJSON(w http.ResponseWriter, status int, v any, requestID string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Request-Id", requestID)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}

// bearer is the request's API key.
func bearer(r *http.Request) string {
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(key)
}
