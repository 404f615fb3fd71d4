package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"sync"
)

// inProcess is a transport that calls a handler directly, without a network.
type inProcess struct{ handler http.Handler }

// RoundTrip returns as soon as the handler has written its header or returned, and
// streams the body. It does not return while the handler may still read the request's
// body, so that a retry can rewind it. When the context is canceled, the handler's reads
// fail, which ends it.
func (t inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	in, sent := serverRequest(req.WithContext(ctx))
	body, out := io.Pipe()
	w := &responseWriter{header: http.Header{}, body: out, length: -1, head: req.Method == http.MethodHead, ready: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = out.CloseWithError(context.Cause(ctx)) })
	go func() {
		defer cancel(nil)
		defer stop()
		err := serve(t.handler, w, in)
		if err != nil {
			w.once.Do(func() { w.failed = err; close(w.ready) })
		}
		w.WriteHeader(http.StatusOK)
		if err == nil && w.length > w.written && !w.head {
			err = io.ErrUnexpectedEOF
		}
		_ = out.CloseWithError(err) // nil is io.EOF to the reader
	}()
	<-w.ready
	sent.end()
	if req.Body != nil {
		_ = req.Body.Close()
	}
	if w.failed != nil {
		return nil, w.failed
	}
	if ctx := req.Context(); ctx.Err() != nil {
		cancel(context.Cause(ctx))
		return nil, context.Cause(ctx)
	}
	return &http.Response{
		Status:     strconv.Itoa(w.status) + " " + http.StatusText(w.status),
		StatusCode: w.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        w.sent,
		ContentLength: w.length,
		Body:          responseBody{body, req.Context()},
		Request:       req,
	}, nil
}

// serve runs the handler and turns its panic into an error, as net/http does.
func serve(h http.Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	h.ServeHTTP(w, r)
	return nil
}

// serverRequest converts a client's request to a server's, and returns its body too.
func serverRequest(req *http.Request) (*http.Request, *requestBody) {
	in := req.Clone(req.Context())
	in.RequestURI = req.URL.RequestURI()
	in.RemoteAddr = "in-process"
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/1.1", 1, 1
	if in.Host == "" {
		in.Host = req.URL.Host
	}
	in.Header.Del("Host")
	switch {
	case req.Body == nil || req.Body == http.NoBody:
		in.Body, in.ContentLength = http.NoBody, 0
	case req.ContentLength == 0: // means unknown in an http.Request with a body
		in.ContentLength, in.TransferEncoding = -1, []string{"chunked"}
	}
	if in.ContentLength > 0 || in.ContentLength == 0 && req.Method == http.MethodPut {
		in.Header.Set("Content-Length", strconv.FormatInt(in.ContentLength, 10))
	}
	body := &requestBody{ctx: req.Context(), r: in.Body}
	in.Body = body
	return in, body
}

// requestBody fails reads after the client has canceled or has its response.
type requestBody struct {
	ctx context.Context //nolint:containedctx // the request's context

	mu    sync.Mutex // held while reading
	r     io.Reader
	ended bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	if b.ended {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.r.Read(p)
}

// end waits for a read in progress and makes later ones fail.
func (b *requestBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
}

// Close does nothing: RoundTrip closes the body.
func (b *requestBody) Close() error { return nil }

// responseBody is the client's end of a response. Reads fail after the context has
// ended.
type responseBody struct {
	*io.PipeReader

	ctx context.Context //nolint:containedctx // the request's context
}

func (b responseBody) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	return b.PipeReader.Read(p)
}

var errTooLong = errors.New("the handler wrote more than the Content-Length it declared")

// responseWriter is the handler's end of a response.
type responseWriter struct {
	header  http.Header
	body    *io.PipeWriter
	head    bool // the request is a HEAD: the body is dropped
	written int64

	once  sync.Once
	ready chan struct{} // closed once the fields below are set
	sent  http.Header
	// status and length are the declared ones; length is -1 if none was declared.
	status int
	length int64
	failed error // set if the handler ended without a header
}

// Header implements http.ResponseWriter.
func (w *responseWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter; only the first call counts.
func (w *responseWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, maps.Clone(w.header)
		if n, err := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64); err == nil {
			w.length = n
		}
		close(w.ready)
	})
}

// Write implements http.ResponseWriter. It blocks until the client reads.
func (w *responseWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.head || len(p) == 0 {
		return len(p), nil
	}
	if w.length >= 0 && w.written+int64(len(p)) > w.length {
		return 0, errTooLong
	}
	n, err := w.body.Write(p)
	w.written += int64(n)
	return n, err
}
