package worker_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/journal"
)

// disguise serves the simulator with changed headers.
func disguise(t *testing.T, sim *simulator.Simulator, change func(http.Header)) func(context.Context, string, string) (net.Conn, error) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sim.ServeHTTP(&changedHeader{w, change}, r)
	}))
	t.Cleanup(server.Close)
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}
}

type changedHeader struct {
	http.ResponseWriter
	change func(http.Header)
}

func (c *changedHeader) WriteHeader(status int) {
	c.change(c.Header())
	c.ResponseWriter.WriteHeader(status)
}

func (c *changedHeader) Write(body []byte) (int, error) {
	c.change(c.Header())
	return c.ResponseWriter.Write(body)
}

// A simulated job in the bucket neither counts as the result of a real job nor is
// overwritten, even if the bucket's mode was lost.
func TestSimulatedSidecarIsNotUsedForARealJob(t *testing.T) {
	t.Parallel()
	sim := &simulator.Simulator{TaskTime: simulator.Between(time.Millisecond, time.Millisecond)}
	s := newStack(t, memoryDir(t), sim)
	req, _, err := jobs.Request{ID: "job-1", Prompt: "prompt of job-1"}.Normalize()
	require.NoError(t, err)
	before := &storage.Sidecar{JobID: "job-1", Digest: req.Digest(), State: "succeeded", Simulated: true}
	require.NoError(t, s.bucket.PutSidecar(t.Context(), before))
	s.dial = disguise(t, sim, func(h http.Header) { h.Del(dashscope.HeaderSimulated) })
	s.start()
	require.False(t, s.worker.Simulated())
	_, err = s.worker.Finished(t.Context(), "job-1", before.Digest)
	require.ErrorIs(t, err, worker.ErrSimulated)
	s.enqueueMany(2)
	assert.Equal(t, jobs.StateFailed, s.wait("job-1").State)
	assert.Equal(t, jobs.StateSucceeded, s.wait("job-2").State)
	after, err := s.bucket.Sidecar(t.Context(), "job-1")
	require.NoError(t, err)
	assert.Equal(t, before, after)
	second, err := s.bucket.Sidecar(t.Context(), "job-2")
	require.NoError(t, err)
	assert.False(t, second.Simulated)
	assert.Len(t, sim.Tasks(), 1)
	s.close()
}

// A base URL that leads to Danqing's own API is refused first.
func TestGatewayIsRefused(t *testing.T) {
	t.Parallel()
	sim := &simulator.Simulator{}
	s := newStack(t, memoryDir(t), sim)
	s.dial = disguise(t, sim, func(h http.Header) { h.Set(dashscope.HeaderGateway, "true") })
	embedded := queue.Open()
	s.redis = embedded.Client()
	w, data := s.newWorker("data")
	require.ErrorIs(t, w.Prepare(t.Context()), worker.ErrGateway)
	require.NoError(t, data.Close())
	require.NoError(t, embedded.Close())
	require.NoError(t, s.files.Close())
	assert.Empty(t, sim.Tasks())
}

// An invalid configuration is reported by field name, before any connection.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	_, err := worker.New(worker.Config{})
	require.ErrorContains(t, err, "all required")

	s := newStack(t, memoryDir(t), &simulator.Simulator{})
	embedded := queue.Open()
	s.redis = embedded.Client()
	_, data := s.newWorker("data")
	require.NoError(t, data.Close())
	data, err = journal.OpenDataDir(filepath.Join(s.dir, "data"))
	require.NoError(t, err)
	cfg := s.config(data)
	cfg.Accounts[0].Lanes[0].Concurrency = 2
	_, err = worker.New(cfg)
	require.ErrorContains(t, err, "concurrency 2: allowed for wanx-v1: 1 to 1")
	cfg.Accounts[0].Lanes[0] = worker.Lane{Model: "wanx-v2"}
	_, err = worker.New(cfg)
	require.ErrorContains(t, err, "wanx-v2")
	require.NoError(t, data.Close())
	require.NoError(t, embedded.Close())
	require.NoError(t, s.files.Close())
}

// A key that the service refuses is found before anything is queued or spent.
func TestRefusedKeyIsFoundAtTheStart(t *testing.T) {
	t.Parallel()
	s := newStack(t, memoryDir(t), &simulator.Simulator{Keys: map[string]simulator.Key{"sk-another": {}}})
	embedded := queue.Open()
	s.redis = embedded.Client()
	w, data := s.newWorker("data")
	var refused *dashscope.Error
	require.ErrorAs(t, w.Prepare(t.Context()), &refused)
	assert.Equal(t, dashscope.KindAccount, refused.Kind)
	assert.NotEmpty(t, refused.Hint())
	assert.NotContains(t, refused.Error(), "sk-test")
	require.NoError(t, data.Close())
	require.NoError(t, embedded.Close())
	s.close()
}
