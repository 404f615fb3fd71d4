package simulator

import (
	"bytes"
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Fault is something that goes wrong with a request. The zero value of each
// field asks for nothing; what is set combines.
//
// The faults of a [Simulator] are looked at in the order they were scripted,
// and a request meets the first one that is due.
type Fault struct {
	// Route limits the fault to one kind of request; zero means any.
	Route Route
	// Match limits it further; nil means every request of the route. It may
	// read the body of all but uploads. It must not call the simulator.
	Match func(*http.Request) bool
	// Nth makes the fault due from the n-th request that fits, counted from
	// the moment it was scripted. 0 and 1 mean the next one.
	Nth int
	// Times is how many requests meet it; 0 means one, below 0 all of them.
	Times int
	// Probability, if not 0, lets each request that is due meet it only with
	// this chance, in (0, 1].
	Probability float64

	// Delay holds the request for this long: before the work, or with
	// AfterWork and ResetAfter after it. If the client leaves while the work
	// is not done yet, it is not done, unless the fault is Detached.
	Delay time.Duration
	// Detached lets the work be done although the client has left.
	Detached bool
	// AfterWork lets the work be done, for example the task be made, before
	// Status, Body or Garbage replaces its answer.
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
	// Garbage replaces the answer by a 200 whose body is not JSON.
	Garbage bool
	// Reset ends the connection without an answer. Mind that [http.Transport]
	// repeats a GET by itself if that befalls a kept connection.
	Reset Reset
	// Truncate announces the whole answer, sends half of it and ends the
	// connection.
	Truncate bool
}

// Reset says when a [Fault] ends the connection.
type Reset int

// ResetBefore ends it before the work is done, so that nothing exists;
// ResetAfter once it is done, so that a task exists of which the client was not
// told.
const (
	ResetNone Reset = iota
	ResetBefore
	ResetAfter
)

// garbage is what a proxy in trouble may answer with status 200.
const garbage = "<html><body><h1>upstream connect error</h1>\x00\xff"

// scripted is a fault and how far it has come.
type scripted struct {
	Fault
	seen, fired int
}

// meet counts a request and returns the fault that it meets, if any.
func (s *Simulator) meet(route Route, r *http.Request) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.requests[route]++
	var met *Fault
	for _, f := range s.faults {
		if f.Route != RouteAny && f.Route != route || f.Match != nil && !f.Match(r) {
			continue
		}
		f.seen++
		if met != nil || f.seen < f.Nth || f.Times >= 0 && f.fired >= max(f.Times, 1) ||
			f.Probability != 0 && s.faultRNG.Float64() >= f.Probability {
			continue
		}
		f.fired++
		s.counts.faults++
		met = &f.Fault
	}
	return met
}

// replaces reports whether the fault has an answer of its own.
func (f *Fault) replaces() bool { return f.Status != 0 || f.Body != "" || f.Garbage }

// serve answers a request that meets the fault.
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
	status := f.Status
	if status == 0 {
		status = http.StatusOK
	}
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
	code := f.Code
	if code == "" {
		code = "InternalError"
	}
	if route.storage() {
		writeOSSError(w, &ossError{status: status, Code: code, Message: f.Message}, newID())
		return
	}
	id := newID()
	writeJSON(w, status, dashscope.ErrorResponse{Code: code, Message: f.Message, RequestID: id}, id)
}

// wait lets the time pass unless the client leaves.
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

// reset ends the connection as a crash of the other side does: with RST over
// TCP, else by closing it. It does not return.
func reset(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		raw := conn
		if secured, ok := conn.(*tls.Conn); ok {
			raw = secured.NetConn()
		}
		if tcp, ok := raw.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // makes Close send RST; at worst it sends FIN
		}
		_ = raw.Close() // nothing can be done about it
	}
	panic(http.ErrAbortHandler)
}

// recorder keeps an answer instead of sending it.
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

// writeTo sends the answer, or the first half of it before it ends the
// connection.
func (r *recorder) writeTo(w http.ResponseWriter, half bool) {
	clear(w.Header())
	maps.Copy(w.Header(), r.header)
	r.WriteHeader(http.StatusOK)
	if !half {
		w.WriteHeader(r.status)
		_, _ = w.Write(r.body.Bytes()) // the client is gone
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(r.body.Len()))
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body.Bytes()[:r.body.Len()/2]) // the client is gone
	_ = http.NewResponseController(w).Flush()       // a recorder of tests cannot
	panic(http.ErrAbortHandler)
}
