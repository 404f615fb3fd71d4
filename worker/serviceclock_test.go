package worker_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// requireOwnPair waits for two jobs, a with a number of images and b with one, and checks
// that each is bought once.
func (s *stack) requireOwnPair(images int) {
	s.t.Helper()
	s.requireOwn("a", images)
	s.requireOwn("b", 1)
	assert.Len(s.t, s.sim.Tasks(), 3)
	s.requireLedger()
}

// pipeListener accepts connections within the process.
type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l pipeListener) Close() error   { return nil }
func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// proxy changes the service's replies. It applies to workers that are started later.
func (s *stack) proxy(change func(*http.Request, http.Header, []byte) []byte) {
	l := make(pipeListener)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.RequestURI, out.URL.Scheme, out.URL.Host = "", "http", "dashscope.simulated"
		client := &http.Transport{DisableKeepAlives: true, DialContext: s.sim.DialContext}
		resp, err := client.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close() //nolint:errcheck // it is read to its end
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		body = change(r, resp.Header, body)
		maps.Copy(w.Header(), resp.Header)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(resp.StatusCode)
		_, _ = w.Write(body)
	})}
	go server.Serve(l) //nolint:errcheck // it ends with the listener
	s.others = append(s.others, func() { close(l); _ = server.Close() })
	s.dial = func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		l <- there
		return here, nil
	}
}

var gmt = regexp.MustCompile(`"(gmt_create)":(\d+)`)

// ahead sets the service's clock.
func (s *stack) ahead(d time.Duration) {
	s.proxy(func(_ *http.Request, h http.Header, body []byte) []byte {
		if at, err := http.ParseTime(h.Get("Date")); err == nil {
			h.Set("Date", at.Add(d).UTC().Format(http.TimeFormat))
		}
		return gmt.ReplaceAllFunc(body, func(m []byte) []byte {
			sub := gmt.FindSubmatch(m)
			ms, _ := strconv.ParseInt(string(sub[2]), 10, 64)
			return fmt.Appendf(nil, `"gmt_create":%d`, ms+d.Milliseconds())
		})
	})
}

// A worker crashes during its create; its clock differs from the service's.
func TestRestartWithAnotherClock(t *testing.T) {
	for _, ahead := range []time.Duration{0, 2 * time.Minute, -2 * time.Minute, 20 * time.Minute, -20 * time.Minute} {
		for _, late := range []time.Duration{5 * time.Second, 8 * time.Second, 12 * time.Second, 30 * time.Second} {
			t.Run(fmt.Sprint(ahead, late), func(t *testing.T) {
				bubble(t, quickTasks(), func(t *testing.T, s *stack) {
					s.ahead(ahead)
					s.stop()
					s.start()
					s.known()
					s.sim.Script(html("b"))
					s.killedIn(simulator.Fault{Delay: late, Detached: true}, "a", 0)
					begin := time.Now()
					s.want("b", 1)
					s.requireOwn("a", 1)
					assert.Less(t, time.Since(begin), time.Minute)
					s.requireOwnPair(1)
				})
			})
		}
	}
}
