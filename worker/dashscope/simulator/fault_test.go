package simulator_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// tryCreate sends a create that may not be answered.
func (c *client) tryCreate(ctx context.Context) (reply, error) {
	header := asyncHeader()
	header["Authorization"] = "Bearer " + c.key
	return c.send(ctx, http.MethodPost, c.base+dashscope.PathText2Image, []byte(fox), header)
}

// Each fault works over a socket and over the in-process dialer.
func TestFaults(t *testing.T) {
	t.Parallel()
	lost := func(t *testing.T, r reply, err error) {
		t.Helper()
		require.Error(t, err)
		assert.Empty(t, r.status, "no answer came")
		assert.True(t, errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET), "%v", err)
	}
	for name, test := range map[string]struct {
		fault simulator.Fault
		tasks int
		check func(t *testing.T, r reply, err error)
	}{
		"reset before": {simulator.Fault{Reset: simulator.ResetBefore}, 0, lost},
		"reset after":  {simulator.Fault{Reset: simulator.ResetAfter}, 1, lost},
		"truncated": {simulator.Fault{Truncate: true}, 1, func(t *testing.T, r reply, err error) {
			t.Helper()
			require.True(t, errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET), "%v", err)
			assert.Equal(t, http.StatusOK, r.status)
			assert.NotEmpty(t, r.body)
			assert.NotContains(t, string(r.body), "}}")
		}},
		"garbage": {simulator.Fault{Garbage: true}, 0, func(t *testing.T, r reply, err error) {
			t.Helper()
			require.NoError(t, err)
			assert.Equal(t, http.StatusOK, r.status)
			assert.Contains(t, string(r.body), "<html>")
		}},
		"garbage after the work": {simulator.Fault{Garbage: true, AfterWork: true}, 1, func(t *testing.T, r reply, err error) {
			t.Helper()
			require.NoError(t, err)
			assert.Contains(t, string(r.body), "<html>")
		}},
		"refusal": {simulator.Fault{Status: 429, Code: "Throttling", Message: "slow down", Header: http.Header{"Retry-After": {"7"}}}, 0, func(t *testing.T, r reply, err error) {
			t.Helper()
			require.NoError(t, err)
			refused(t, r, http.StatusTooManyRequests, "Throttling")
			assert.Equal(t, "7", r.header.Get("Retry-After"))
			assert.Equal(t, "true", r.header.Get(dashscope.HeaderSimulated))
		}},
		"500 although made": {simulator.Fault{Status: 500, Body: "oops", AfterWork: true}, 1, func(t *testing.T, r reply, err error) {
			t.Helper()
			require.NoError(t, err)
			assert.Equal(t, http.StatusInternalServerError, r.status)
			assert.Equal(t, "oops", string(r.body))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run := func(t *testing.T, sim *simulator.Simulator, c *client) {
				t.Helper()
				sim.Script(test.fault)
				r, err := c.tryCreate(t.Context())
				test.check(t, r, err)
				assert.Len(t, sim.Tasks(), test.tasks)
				c.create(t, fox) // the fault applies once
				assert.Equal(t, 1, sim.Stats().Faults)
				assert.Equal(t, map[simulator.Route]int{simulator.RouteCreate: 2}, sim.Stats().Requests, "sent once each")
			}
			t.Run("TCP", func(t *testing.T) {
				t.Parallel()
				sim := fixed(time.Second)
				run(t, sim, overTCP(t, sim))
			})
			t.Run("in process", func(t *testing.T) {
				t.Parallel()
				sim := fixed(time.Second)
				bubble(t, sim, func(c *client) { run(c.t, sim, c) })
			})
		})
	}
}

// A reset over TCP is an RST, as from a crashed machine.
func TestResetOverTCP(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	c := overTCP(t, sim)
	sim.Script(simulator.Fault{Reset: simulator.ResetBefore})
	_, err := c.tryCreate(t.Context())
	assert.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestDelay(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	bubble(t, sim, func(c *client) {
		t := c.t
		start := time.Now()
		sim.Script(simulator.Fault{Delay: 5 * time.Second})
		c.create(t, fox)
		assert.Equal(t, 5*time.Second, time.Since(start))
		assert.Equal(t, start.Add(5*time.Second).UnixNano(), sim.Tasks()[0].CreatedAt.UnixNano(), "the delay comes before the work")

		impatient := func(f simulator.Fault) {
			sim.Script(f)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := c.tryCreate(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			time.Sleep(time.Minute)
		}
		impatient(simulator.Fault{Delay: 5 * time.Second})
		assert.Len(t, sim.Tasks(), 1, "the client left before the work")
		impatient(simulator.Fault{Delay: 5 * time.Second, AfterWork: true})
		assert.Len(t, sim.Tasks(), 2, "the client left after it")
	})
}

func TestFaultsAreMetInOrder(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	sim.SubmitsPerSecond = -1
	foxes := func(r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		return err == nil && strings.Contains(string(body), "狐狸")
	}
	bubble(t, sim, func(c *client) {
		t := c.t
		sim.Script(
			simulator.Fault{Route: simulator.RouteCreate, Status: 500, Times: 2},
			simulator.Fault{Route: simulator.RouteCreate, Status: 501, Nth: 4},
			simulator.Fault{Route: simulator.RouteCreate, Status: 502},
			simulator.Fault{Route: simulator.RouteQuery, Status: 503, Times: -1},
			simulator.Fault{Route: simulator.RouteCreate, Status: 504, Match: foxes, Nth: 6},
		)
		var got []int
		for range 8 {
			got = append(got, c.post(t, fox).status)
			assert.Equal(t, 503, c.get(t, dashscope.PathTasks+"/x").status)
		}
		assert.Equal(t, []int{500, 500, 502, 501, 200, 504, 200, 200}, got)
		assert.Len(t, sim.Tasks(), 3)
		assert.Equal(t, http.StatusOK, c.get(t, dashscope.PathTasks).status)
	})
}

func TestFaultsByChance(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	sim.QueriesPerSecond = -1
	bubble(t, sim, func(c *client) {
		t := c.t
		sim.Script(simulator.Fault{Probability: 0.25, Times: -1, Status: 500})
		for range 400 {
			c.get(t, dashscope.PathTasks)
		}
		assert.InDelta(t, 100, sim.Stats().Faults, 30)
	})
}

func TestFaultsOfDownloads(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	bubble(t, sim, func(c *client) {
		t := c.t
		link := c.links(t, fox)[0]
		whole := c.download(t, link, nil)
		sim.Script(
			simulator.Fault{Route: simulator.RouteResult, Status: 403, Code: "AccessDenied", Message: "no"},
			simulator.Fault{Route: simulator.RouteResult, Truncate: true},
		)
		refusedByOSS(t, c.download(t, link, nil), http.StatusForbidden, "AccessDenied")
		half, err := c.send(t.Context(), http.MethodGet, link, nil, nil)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Equal(t, whole.body[:len(whole.body)/2], half.body)
		assert.Equal(t, whole.body, c.download(t, link, nil).body)
	})
}

func TestClosedSimulatorIsNotReached(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	c := inProcess(sim)
	c.create(t, fox)
	require.NoError(t, sim.Close())
	_, err := c.send(t.Context(), http.MethodGet, c.base+dashscope.PathTasks, nil, nil)
	require.Error(t, err)
	_, err = sim.DialContext(t.Context(), "tcp", "any:80")
	require.Error(t, err)
}
