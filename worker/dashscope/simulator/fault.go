package simulator

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Fault is a failure that is injected into requests. The zero value of each field has
// no effect; the fields can be combined.
//
// The faults of a [Simulator] are checked in the order in which they were scripted, and
// a request gets the first one that applies.
type Fault struct {
	// Route limits the fault to one kind of request; zero means any.
	Route Route
	// Match limits it further; nil matches every request of the route. It may read the
	// body of every request except uploads. It must not call the simulator.
	Match func(*http.Request) bool
	// Nth makes the fault apply from the n-th matching request on, counted from when it
	// was scripted. 0 and 1 mean the next one.
	Nth int
	// Times is how many requests get it; 0 means one, a negative number all of them.
	Times int
	// Probability, if not 0, is the chance, in (0, 1], that it applies to a matching
	// request.
	Probability float64

	// Delay delays the request: before the work, or after it with AfterWork and
	// ResetAfter. If the client disconnects before the work, the work is not done,
	// unless the fault is Detached.
	Delay time.Duration
	// Detached does the work even if the client has disconnected.
	Detached bool
	// AfterWork does the work, for example creates the task, before Status, Body or
	// Garbage replaces the answer.
	AfterWork bool
	// Status replaces the answer. Without a Body it is an error of the API, or
	// of OSS for uploads and results, with Code and Message.
	Status int
	// Code and Message of the error. An empty Code means InternalError.
	Code, Message string
	// Body replaces the answer's body. Without a Status the status is 200.
	Body string
	// Header is added to the answer.
	Header http.Header
	// Garbage replaces the answer with a 200 whose body is not JSON.
	Garbage bool
	// Reset ends the connection without an answer. [http.Transport] retries a GET by
	// itself if that happens on a reused connection.
	Reset Reset
	// Truncate announces the whole answer, sends half of it and closes the connection.
	Truncate bool
}

// Reset is when a [Fault] ends the connection.
type Reset int

// ResetBefore ends it before the work is done, so that nothing exists; ResetAfter ends
// it after the work, so that a task exists that the client does not know of.
const (
	ResetNone Reset = iota
	ResetBefore
	ResetAfter
)

// garbage is what a failing proxy may answer with status 200.
const garbage = "<html><body><h1>upstream connect error</h1>\x00\xff"

// scripted is a fault and its counters.
type scripted struct {
	Fault
	seen, fired int
}

// matchFault counts a request and returns the fault that applies to it, or nil.
func (s *Simulator) matchFault(route Route, r *http.Request) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.requests[route]++
	var hit *Fault
	for _, f := range s.faults {
		if f.Route != RouteAny && f.Route != route || f.Match != nil && !f.Match(r) {
			continue
		}
		f.seen++
		if hit != nil || f.seen < f.Nth || f.Times >= 0 && f.fired >= max(f.Times, 1) ||
			f.Probability != 0 && s.faultRNG.Float64() >= f.Probability {
			continue
		}
		f.fired++
		s.counts.faults++
		hit = &f.Fault
	}
	return hit
}

// replaces reports whether the fault has its own answer.
func (f *Fault) replaces() bool { return f.Status != 0 || f.Body != "" || f.Garbage }

// serve handles a request with the fault.
func (f *Fault) serve(w http.ResponseWriter, r *http.Request, route Route, work http.HandlerFunc) {
	if f.Detached {
		r = r.WithContext(context.WithoutCancel(r.Context()))
	}
	after := f.AfterWork || f.Reset == ResetAfter
	if !after && !wait(r.Context(), f.Delay) {
		panic(http.ErrAbortHandler)
	}
	rec := &recorder{header: w.Header().Clone()}
	if after || f.Reset == ResetNone && !f.replaces() {
		work(rec, r)
	}
	if after && !wait(r.Context(), f.Delay) {
		panic(http.ErrAbortHandler)
	}
	if f.Reset != ResetNone {
		reset(w)
	}
	if f.replaces() {
		rec = &recorder{header: w.Header().Clone()}
		f.answer(rec, route)
	}
	for name, values := range f.Header {
		rec.header[http.CanonicalHeaderKey(name)] = values
	}
	rec.writeTo(w, f.Truncate)
}

// answer writes the fault's own answer.
func (f *Fault) answer(w http.ResponseWriter, route Route) {
	status := cmp.Or(f.Status, http.StatusOK)
	body := f.Body
	if f.Garbage {
		body = garbage
	}
	if body != "" {
		w.Header().Set("Content-Type", http.DetectContentType([]byte(body)))
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // a recorder
		return
	}
	code := cmp.Or(f.Code, "InternalError")
	if route.storage() {
		writeOSSError(w, &ossError{status: status, Code: code, Message: f.Message}, newID())
		return
	}
	id := newID()
	writeJSON(w, status, dashscope.ErrorResponse{Code: code, Message: f.Message, RequestID: id}, id)
}

// wait sleeps for d and reports whether ctx did not end first.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// reset ends the connection as a crash of the peer does: with RST over TCP, otherwise
// by closing it. It does not return.
func reset(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		raw := conn
		if secured, ok := conn.(*tls.Conn); ok {
			raw = secured.NetConn()
		}
		if tcp, ok := raw.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // makes Close send RST; without it Close sends FIN
		}
		_ = raw.Close() // an error changes nothing
	}
	panic(http.ErrAbortHandler)
}

// recorder records an answer instead of sending it.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

func (r *recorder) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(b)
}

// writeTo sends the answer, or half of it before it closes the connection.
func (r *recorder) writeTo(w http.ResponseWriter, half bool) {
	clear(w.Header())
	maps.Copy(w.Header(), r.header)
	r.WriteHeader(http.StatusOK)
	if !half {
		w.WriteHeader(r.status)
		_, _ = w.Write(r.body.Bytes()) // the client has disconnected
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(r.body.Len()))
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body.Bytes()[:r.body.Len()/2]) // the client has disconnected
	_ = http.NewResponseController(w).Flush()       // test recorders cannot flush
	panic(http.ErrAbortHandler)
}
