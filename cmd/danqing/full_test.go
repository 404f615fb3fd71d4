package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// Redis is full when the reply to a create arrives, and the worker is killed and started
// again before there is room: the job gets its task like any other whose reply was lost.
func TestRedisFullAtTheReplyOfACreate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reply time.Duration // after the task was made
		until string        // the worker's log says so, when it is killed
	}{
		"killed before the reply": {reply: 10 * time.Second},
		"killed after the reply":  {until: "write record of job-1: OOM"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, redistest.Start(t).Socket)
			options, err := redis.ParseURL(f.redis)
			require.NoError(t, err)
			rdb := redis.NewClient(options)
			defer rdb.Close() //nolint:errcheck // the server ends too
			room := func(bytes string) { assert.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory", bytes).Err()) }
			f.start(0)
			enqueue := func(id string) {
				_, err := f.client.Enqueue(t.Context(), jobs.Request{ID: id, Prompt: "prompt of " + id})
				require.NoError(t, err)
			}
			enqueue("first")
			require.Equal(t, jobs.StateSucceeded, f.wait("first").State)
			made := make(chan struct{})
			f.sim.Script(simulator.Fault{Route: simulator.RouteCreate, AfterWork: true, Detached: true, Delay: c.reply, Match: func(*http.Request) bool {
				room("1")
				close(made)
				return true
			}})
			enqueue("job-1")
			<-made
			f.logged(0, c.until, 1)
			require.NoError(t, f.members[0].Process.Kill())
			_ = f.members[0].Wait()
			f.start(0)
			f.logged(0, "write danqing:dataset: OOM", 1)
			room("0")
			require.Equal(t, jobs.StateSucceeded, f.wait("job-1").State)
			assert.Len(t, f.sim.Tasks(), 2)
			_, err = os.Stat(f.files.Path("single/job-1-1.png"))
			require.NoError(t, err)
		})
	}
}

// logged waits until a worker's log has a text so many times.
func (f *fleet) logged(i int, text string, times int) {
	f.t.Helper()
	require.Eventually(f.t, func() bool {
		log, err := os.ReadFile(filepath.Join(f.dirs[i], "log"))
		return err == nil && strings.Count(string(log), text) >= times
	}, time.Minute, 20*time.Millisecond, text)
}
