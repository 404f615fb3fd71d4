package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// hangTime is how long a request gets no reply. A worker waits minutes for the
	// reply to a create, so the connection ends first.
	hangTime = 2 * time.Second
	// delayTime is how long a request is delayed.
	delayTime = time.Second
	// wireBytes bounds the recorded body of a request, far above what a worker sends
	// here.
	wireBytes = 32 << 20
)

// wire is one worker's connection to DashScope and to the bucket.
type wire struct {
	*drill
	worker *process
}

// ServeHTTP serves a request, or injects the fault that is armed for it.
func (w *wire) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	route, handler := routeOf(r), w.service
	_, ofBucket := bucketKey(r.URL.Path)
	if ofBucket {
		handler = w.store
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, wireBytes))
	if err != nil {
		panic(http.ErrAbortHandler) // the worker has disconnected
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	w.observe(route, r.URL.Path, body)
	switch {
	case ofBucket && w.outages.active(bucketOutage):
		answerError(rw, true, http.StatusServiceUnavailable)
		return
	case ofBucket && w.outages.active(bucketRefuses), !ofBucket && w.outages.active(serviceOutage):
		reset(rw)
	}
	if route == routeCreate {
		if what := w.injector.takeSecond(modelOf(body)); what != "" {
			w.injectRequest(what, rw, r, handler, ofBucket)
			return
		}
	}
	fault := w.injector.match(route)
	switch {
	case fault == nil && route == routeList && w.outages.active(listLags):
		w.laggingList(rw, r)
		return
	case fault == nil:
		handler.ServeHTTP(rw, r)
		return
	}
	defer close(fault.done)
	what, second, paired := strings.Cut(string(fault.action), "+")
	if paired {
		w.injector.armSecond(modelOf(body), action(second))
	}
	w.injectRequest(action(what), rw, r, handler, ofBucket)
}

// modelOf returns the model of a create.
func modelOf(body []byte) string {
	var req dashscope.CreateRequest
	_ = json.Unmarshal(body, &req) // the service rejects what cannot be decoded
	return req.Model
}

// injectRequest applies an action to a request.
func (w *wire) injectRequest(what action, rw http.ResponseWriter, r *http.Request, handler http.Handler, ofBucket bool) {
	// Work without its client is completed.
	done := func() *reply {
		kept := &reply{header: http.Header{}}
		handler.ServeHTTP(kept, r.WithContext(context.WithoutCancel(r.Context())))
		return kept
	}
	switch what {
	case killAfter:
		handler.ServeHTTP(rw, r)
		_ = http.NewResponseController(rw).Flush() // the worker is killed next
		w.kill(w.worker, 0)
	case delayed:
		wait(r.Context(), delayTime)
		handler.ServeHTTP(rw, r)
	case late, lateKill:
		hangUp(rw)
		if what == lateKill {
			w.kill(w.worker, 0)
		}
		wait(context.WithoutCancel(r.Context()), lateCreate)
		done()
	case slow:
		wait(context.WithoutCancel(r.Context()), slowCreate)
		done().send(rw)
	case full:
		w.fillRedis(r.Context())
		done().send(rw)
	case absurd:
		w.absurdReply(rw, routeOf(r), done())
	case throttled:
		answerError(rw, ofBucket, http.StatusTooManyRequests)
	case failed:
		answerError(rw, ofBucket, http.StatusInternalServerError)
	case htmlError:
		answerHTML(rw)
	case halfBody:
		done().sendHalf(rw)
	default:
		w.loseReply(what, r, done)
		reset(rw)
	}
}

// loseReply applies an action whose request gets no reply. done serves the request.
func (w *wire) loseReply(what action, r *http.Request, done func() *reply) {
	switch what {
	case killBefore:
		w.kill(w.worker, 0)
	case killDone:
		done()
		w.kill(w.worker, 0)
	case lagKill:
		w.outages.begin(listLags, lagTime)
		done()
		w.kill(w.worker, 0)
	case fullKill:
		w.fillRedis(r.Context())
		done()
		w.kill(w.worker, 0)
	case resetDone:
		done()
	case hang:
		done()
		wait(r.Context(), hangTime)
	case slowReset:
		wait(context.WithoutCancel(r.Context()), slowCreate)
		done()
	default: // resetBefore
	}
}

// observe passes the model of a worker's request to recovery.
func (w *wire) observe(route, path string, body []byte) {
	switch route {
	case routeCreate:
		w.recovery.requestSeen(w.worker, modelOf(body))
	case routeQuery:
		id := path[strings.LastIndexByte(path, '/')+1:]
		for _, task := range w.sim.Tasks() {
			if task.ID == id {
				w.recovery.requestSeen(w.worker, task.Request.Model)
			}
		}
	}
}

// routeOf returns the route of a request.
func routeOf(r *http.Request) string {
	if key, ok := bucketKey(r.URL.Path); ok {
		return bucketRoute(r.Method, key)
	}
	path := strings.TrimSuffix(r.URL.Path, "/")
	switch {
	case isCreate(path):
		return routeCreate
	case strings.HasSuffix(path, dashscope.PathTasks):
		return routeList
	case strings.HasSuffix(path, "/cancel"):
		return routeCancel
	case strings.Contains(path, dashscope.PathTasks+"/"):
		return routeQuery
	case strings.HasSuffix(path, dashscope.PathUploads):
		return routePolicy
	case r.Method == http.MethodPost:
		return routeUpload
	case strings.HasPrefix(path, "/1d/"): // the simulator's result URLs
		return routeResult
	}
	return noRoute
}

// isCreate reports whether a path is that of a protocol's creates.
func isCreate(path string) bool {
	return slices.ContainsFunc(dashscope.Protocols(), func(p dashscope.Protocol) bool { return strings.HasSuffix(path, p.Path()) })
}

// bucketKey returns the key of a path ("" for the bucket itself), and whether the path
// is the bucket's.
func bucketKey(path string) (key string, ok bool) {
	key, ok = strings.CutPrefix(path, "/"+bucket.DefaultBucket)
	return strings.TrimPrefix(key, "/"), ok && (key == "" || key[0] == '/')
}

// modeKey is the object that says that the bucket is simulated.
const modeKey = "_mode.json"

// bucketRoute returns the route of a bucket request; the prefixes are those of the
// bucket layout.
func bucketRoute(method, key string) string {
	sidecar := strings.HasPrefix(key, "_jobs/")
	switch {
	case key == modeKey:
		return routeBucketOther
	case method == http.MethodHead:
		return routeHead
	case method == http.MethodPut && sidecar:
		return routeSidecarPut
	case method == http.MethodPut && strings.HasPrefix(key, "_held/"):
		return routeHeldPut
	case method == http.MethodPut:
		return routeImagePut
	case method == http.MethodGet && sidecar:
		return routeSidecarGet
	case method == http.MethodGet && strings.HasPrefix(key, "_refs/"):
		return routeRefGet
	}
	return routeBucketOther
}

// answerError sends an error as the service or the bucket does.
func answerError(rw http.ResponseWriter, ofBucket bool, status int) {
	code := "InternalError"
	if status == http.StatusTooManyRequests {
		code = "Throttling.RateQuota"
	}
	if ofBucket {
		rw.Header().Set("Content-Type", "application/xml")
		rw.WriteHeader(status)
		_, _ = fmt.Fprintf(rw, `<?xml version="1.0"?><Error><Code>%s</Code><Message>drill</Message></Error>`, code) // the worker has disconnected
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set(dashscope.HeaderSimulated, "true")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(dashscope.ErrorResponse{Code: code, Message: "drill", RequestID: "drill"}) // the worker has disconnected
}

// answerHTML sends an error as a proxy without its upstream does.
func answerHTML(rw http.ResponseWriter) {
	rw.Header().Set("Content-Type", "text/html")
	rw.WriteHeader(http.StatusBadGateway)
	_, _ = io.WriteString(rw, "<html><body><h1>502 Bad Gateway</h1></body></html>") // the worker has disconnected
}

// hangUp resets the connection of a request with RST, as a crash does.
func hangUp(rw http.ResponseWriter) {
	conn, _, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return // the worker has disconnected
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // without it the connection ends with FIN
	}
	_ = conn.Close() // closing is intended
}

// reset is hangUp for a handler that has nothing left to do. It does not return.
func reset(rw http.ResponseWriter) {
	hangUp(rw)
	panic(http.ErrAbortHandler)
}

// wait sleeps for d and reports whether ctx did not end first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// reply records an answer instead of sending it.
type reply struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *reply) Header() http.Header { return r.header }

func (r *reply) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

func (r *reply) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(b)
}

// send sends the reply.
func (r *reply) send(rw http.ResponseWriter) {
	maps.Copy(rw.Header(), r.header)
	r.WriteHeader(http.StatusOK)
	rw.WriteHeader(r.status)
	_, _ = rw.Write(r.body.Bytes()) // the worker has disconnected
}

// sendHalf announces the whole reply and sends half of it.
func (r *reply) sendHalf(rw http.ResponseWriter) {
	maps.Copy(rw.Header(), r.header)
	rw.Header().Set("Content-Length", strconv.Itoa(r.body.Len()))
	r.WriteHeader(http.StatusOK)
	rw.WriteHeader(r.status)
	_, _ = rw.Write(r.body.Bytes()[:r.body.Len()/2]) // the reply is cut off in any case
	_ = http.NewResponseController(rw).Flush()       // the same
	panic(http.ErrAbortHandler)
}
