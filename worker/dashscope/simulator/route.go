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

// Paths of the server. The real service serves uploads and results on separate OSS
// hosts; here they are paths of the same host.
const (
	basePath   = "/api/v1"
	uploadPath = "/oss-upload"
	resultPath = "/1d/" // as in a published result URL
)

// maxRequestBytes bounds the body of an API call. The real limit is not documented.
const maxRequestBytes = 6 << 20

// Route is one kind of request.
type Route string

// The routes of the service. The zero Route means any route in a [Fault]; a request
// that matches none is counted as RouteOther.
const (
	RouteAny    Route = ""
	RouteCreate Route = "create"
	RouteQuery  Route = "query"
	RouteCancel Route = "cancel"
	RouteList   Route = "list"
	RoutePolicy Route = "policy"
	RouteUpload Route = "upload"
	RouteResult Route = "result"
	RouteModels Route = "models"
	RouteLimits Route = "limits"
	RouteOther  Route = "other"
)

// storage reports whether OSS serves the route, with XML errors.
func (r Route) storage() bool { return r == RouteUpload || r == RouteResult }

// routeOf returns the route of a request and the task in its path. Every path is
// accepted with and without a trailing slash: the pages and the SDKs differ.
func routeOf(r *http.Request) (route Route, taskID string) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	rest, ofTask := strings.CutPrefix(path, basePath+dashscope.PathTasks+"/")
	switch {
	case path == uploadPath && r.Method == http.MethodPost:
		return RouteUpload, ""
	case strings.HasPrefix(path, resultPath) && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		return RouteResult, ""
	case protocolOf(r) != "" && r.Method == http.MethodPost:
		return RouteCreate, ""
	case path == basePath+dashscope.PathTasks && r.Method == http.MethodGet:
		return RouteList, ""
	case path == basePath+dashscope.PathModels && r.Method == http.MethodGet:
		return RouteModels, ""
	case (path == basePath+dashscope.PathLimits || path == basePath+dashscope.PathQuotas) && r.Method == http.MethodGet:
		return RouteLimits, ""
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

// protocolOf returns the protocol of a create by its path, "" of any other request.
func protocolOf(r *http.Request) dashscope.Protocol {
	path := strings.TrimSuffix(r.URL.Path, "/")
	for _, p := range dashscope.Protocols() {
		if path == basePath+p.Path() {
			return p
		}
	}
	return ""
}

// ServeHTTP serves one request. Every answer carries [dashscope.HeaderSimulated].
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(dashscope.HeaderSimulated, "true")
	w.Header().Set("Date", wallClock().Format(http.TimeFormat))
	if err := s.Load(); err != nil {
		s.log.ErrorContext(r.Context(), "state unreadable", "err", err)
		writeError(w, &apiError{http.StatusInternalServerError, "InternalError", err.Error()}, newID())
		return
	}
	route, _ := routeOf(r)
	rewind := func() {}
	if route != RouteUpload {
		// Read at once, so that a fault can inspect it and a disconnected client is
		// noticed.
		body, err := io.ReadAll(io.LimitReader(r.Body, maxRequestBytes))
		if err != nil {
			panic(http.ErrAbortHandler) // the client has disconnected
		}
		rewind = func() { r.Body = io.NopCloser(bytes.NewReader(body)) }
		rewind()
	}
	fault := s.matchFault(route, r)
	rewind()
	if fault == nil {
		fault = s.promptedFault(route, r)
	}
	if fault == nil {
		s.work(w, r)
		return
	}
	fault.serve(w, r, route, s.work)
}

// work serves a request without faults.
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
	case RouteAny, RouteOther, RouteCreate, RouteQuery, RouteCancel, RouteList, RoutePolicy, RouteModels, RouteLimits:
	}
	answer, err := s.answer(route, taskID, requestID, r)
	if err != nil {
		s.log.DebugContext(r.Context(), "request rejected", "request_id", requestID, "err", err)
		writeError(w, err, requestID)
		return
	}
	writeJSON(w, http.StatusOK, answer, requestID)
}

// answer handles one API call.
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
	case RouteModels:
		return s.offers(r, requestID)
	case RouteLimits:
		return s.limits(r, requestID)
	case RouteQuery:
		return s.query(r, c, requestID, taskID)
	case RouteCancel:
		return s.cancel(r, c, requestID, taskID)
	case RouteAny, RouteOther, RouteUpload, RouteResult:
	}
	return nil, &apiError{http.StatusNotFound, "NotFound", "Not Found"}
}

// apiError is an error of the API.
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// writeError writes an error in the API's format.
func writeError(w http.ResponseWriter, err error, requestID string) {
	r := &apiError{http.StatusInternalServerError, "InternalError", err.Error()}
	errors.As(err, &r)
	writeJSON(w, r.status, dashscope.ErrorResponse{Code: r.code, Message: r.message, RequestID: requestID}, requestID)
}

func writeJSON(w http.ResponseWriter, status int, v any, requestID string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Request-Id", requestID)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has disconnected
}

// bearer returns the request's API key.
func bearer(r *http.Request) string {
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(key)
}
