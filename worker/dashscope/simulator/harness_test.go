package simulator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// client is a plain HTTP client of a simulator, with a key.
type client struct {
	http *http.Client
	base string
	key  string
	t    *testing.T // of its bubble
}

// reply is a completely read answer.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// decode reads the body as JSON.
func decode[T any](tb testing.TB, r reply) T {
	tb.Helper()
	var v T
	require.NoError(tb, json.Unmarshal(r.body, &v), "body %s", r.body)
	return v
}

// bubble runs a test in a synctest bubble with a client over DialContext.
func bubble(t *testing.T, sim *simulator.Simulator, test func(c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := inProcess(sim)
		defer func() {
			c.http.CloseIdleConnections()
			require.NoError(t, sim.Close())
		}()
		c.t = t
		test(c)
	})
}

func inProcess(sim *simulator.Simulator) *client {
	return &client{
		http: &http.Client{Transport: &http.Transport{DialContext: sim.DialContext, DisableCompression: true}},
		base: "http://dashscope.test/api/v1", key: "sk-test",
	}
}

// overTCP serves a simulator on a socket.
func overTCP(t *testing.T, sim *simulator.Simulator) *client {
	t.Helper()
	server := httptest.NewServer(sim)
	t.Cleanup(server.Close)
	return &client{http: server.Client(), base: server.URL + "/api/v1", key: "sk-test"}
}

// send sends a request and reads its answer.
func (c *client) send(ctx context.Context, method, url string, body []byte, header map[string]string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	req.GetBody = nil // a create must not be sent twice
	for name, value := range header {
		req.Header.Set(name, value)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end below
	content, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, content}, err
}

// call sends an API call with the client's key.
func (c *client) call(t *testing.T, method, path string, body []byte, header map[string]string) reply {
	t.Helper()
	all := map[string]string{"Authorization": "Bearer " + c.key}
	maps.Copy(all, header)
	r, err := c.send(t.Context(), method, c.base+path, body, all)
	require.NoError(t, err)
	assert.Equal(t, "true", r.header.Get(dashscope.HeaderSimulated))
	assert.NotEmpty(t, r.header.Get("Date"))
	return r
}

func (c *client) get(t *testing.T, path string) reply {
	t.Helper()
	return c.call(t, http.MethodGet, path, nil, nil)
}

// asyncHeader is required on every create.
func asyncHeader() map[string]string {
	return map[string]string{dashscope.HeaderAsync: "enable", dashscope.HeaderOSSResolve: "enable", "Content-Type": "application/json"}
}

// post sends a create with this body.
func (c *client) post(t *testing.T, body string) reply {
	t.Helper()
	return c.call(t, http.MethodPost, dashscope.PathText2Image, []byte(body), asyncHeader())
}

// create makes a task and returns its ID.
func (c *client) create(t *testing.T, body string) string {
	t.Helper()
	r := c.post(t, body)
	require.Equal(t, http.StatusOK, r.status, "body %s", r.body)
	out := decode[dashscope.TaskResponse](t, r).Output
	require.Equal(t, dashscope.StatusPending, out.TaskStatus)
	require.NotEmpty(t, out.TaskID)
	return out.TaskID
}

func (c *client) query(t *testing.T, id string) dashscope.TaskResponse {
	t.Helper()
	r := c.get(t, dashscope.PathTasks+"/"+id)
	require.Equal(t, http.StatusOK, r.status, "body %s", r.body)
	return decode[dashscope.TaskResponse](t, r)
}

func (c *client) status(t *testing.T, id string) string {
	t.Helper()
	return c.query(t, id).Output.TaskStatus
}

func (c *client) list(t *testing.T, query string) dashscope.ListResponse {
	t.Helper()
	r := c.get(t, dashscope.PathTasks+"/"+query)
	require.Equal(t, http.StatusOK, r.status, "body %s", r.body)
	return decode[dashscope.ListResponse](t, r)
}

// refused asserts an error of the API.
func refused(t *testing.T, r reply, status int, code string) {
	t.Helper()
	assert.Equal(t, status, r.status, "body %s", r.body)
	assert.Equal(t, "application/json", r.header.Get("Content-Type"))
	e := decode[dashscope.ErrorResponse](t, r)
	assert.Equal(t, code, e.Code)
	assert.NotEmpty(t, e.Message)
	assert.NotEmpty(t, e.RequestID)
}

// fixed returns a TaskTime of constant length.
func fixed(d time.Duration) *simulator.Simulator {
	return &simulator.Simulator{TaskTime: simulator.Between(d, d)}
}

const fox = `{"model":"wanx-v1","input":{"prompt":"一只狐狸"},"parameters":{"n":1}}`

// record sends a request straight to the handler.
func record(sim http.Handler, method, path, body string, header map[string]string) reply {
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(context.Background(), method, "/api/v1"+path, bytes.NewReader([]byte(body)))
	r.Header.Set("Authorization", "Bearer sk-test")
	for name, value := range header {
		r.Header.Set(name, value)
	}
	sim.ServeHTTP(w, r)
	return reply{w.Code, w.Header(), w.Body.Bytes()}
}
