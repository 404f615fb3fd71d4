package drill

import (
	"bufio"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRoutes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ method, path, want string }{
		{http.MethodPost, "/api/v1/services/aigc/text2image/image-synthesis", routeCreate},
		{http.MethodGet, "/api/v1/tasks", routeList},
		{http.MethodGet, "/api/v1/tasks/", routeList},
		{http.MethodGet, "/api/v1/tasks/86ecf553", routeQuery},
		{http.MethodPost, "/api/v1/tasks/86ecf553/cancel", routeCancel},
		{http.MethodGet, "/api/v1/uploads", routePolicy},
		{http.MethodPost, "/oss-upload", routeUpload},
		{http.MethodGet, "/1d/86/20231214/8d820c8d/x-1.png", routeResult},
		{http.MethodGet, "/elsewhere", noRoute},
		{http.MethodHead, "/danqing/a/a-1.png", routeHead},
		{http.MethodPut, "/danqing/a/a-1.png", routeImagePut},
		{http.MethodGet, "/danqing/_jobs/a.json", routeSidecarGet},
		{http.MethodPut, "/danqing/_jobs/a.json", routeSidecarPut},
		{http.MethodPut, "/danqing/_held/86ecf553/a", routeHeldPut},
		{http.MethodGet, "/danqing/_refs/00", routeRefGet},
		{http.MethodGet, "/danqing", routeBucketOther},
		{http.MethodGet, "/danqing/", routeBucketOther},
		{http.MethodDelete, "/danqing/a", routeBucketOther},
	} {
		assert.Equal(t, c.want, routeOf(httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil)), "%s %s", c.method, c.path)
	}
}

// The writes that matter are recognized by their keys, whatever script uses them.
func TestCommands(t *testing.T) {
	t.Parallel()
	swap := []string{
		"EVALSHA", "sha", "4", "danqing:job:a", "danqing:jobs:queued", "danqing:jobs:submitting", "danqing:task:1", "1700000000000", "owt",
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{swap, "submitting"},
		{append(slices.Clone(swap[:4]), append([]string{"danqing:jobs:submitting"}, swap[5:]...)...), ""}, // same state
		{[]string{"EVALSHA", "sha", "3", "danqing:job:a", "danqing:jobs:submitting", "danqing:jobs:submitting"}, ""},
		{[]string{"EVALSHA", "sha", "4", "danqing:job:a", "danqing:jobs:held", "danqing:job:b", "danqing:jobs:held"}, ""},
		{[]string{"EVALSHA", "sha", "1", "danqing:lane:default:wanx-v1:lease", "me"}, "lease"},
		{[]string{"HSET", "danqing:lane:default:wanx-v1:in_flight", "a", "1"}, "in-flight"},
		{[]string{"HGETALL", "danqing:lane:default:wanx-v1:in_flight"}, ""},
		{[]string{"EVALSHA", "sha", "2", "asynq:{danqing:store}:t:a.1", "asynq:{danqing:store}:pending"}, "enqueue-store"},
		{[]string{"EVALSHA", "sha", "2", "asynq:{danqing:wanx-v1:bulk}:t:a", "asynq:{danqing:wanx-v1:bulk}:pending"}, ""},
		{[]string{"EVALSHA", "sha", "4", "asynq:{q}:pending", "asynq:{q}:paused", "asynq:{q}:active", "asynq:{q}:lease"}, "dequeue"},
		{[]string{"EVALSHA", "sha", "3", "asynq:{q}:active", "asynq:{q}:lease", "asynq:{q}:completed"}, "done"},
		{[]string{"EVALSHA", "sha", "2", "danqing:ledger:default:2026-01-01", "danqing:ledger"}, "ledger"},
		{[]string{"EVALSHA", "sha", "3", "danqing:ledger:default:2026-01-01", "danqing:ledger", "danqing:task:1"}, "settle"},
		{[]string{"EVALSHA", "sha", "1", "danqing:task:1", "job", "a"}, "claim"},
		{[]string{"PING"}, ""},
		{[]string{"EVALSHA", "sha", "9", "asynq:{q}:pending"}, ""},
	} {
		assert.Equal(t, c.want, commandName(c.args), c.args)
	}
}

// Commands are forwarded byte by byte, pipelined or not.
func TestReadCommand(t *testing.T) {
	t.Parallel()
	first, second := "*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n", "*1\r\n$4\r\nPING\r\n"
	from := bufio.NewReader(strings.NewReader(first + second))
	raw, args, err := readCommand(from)
	require.NoError(t, err)
	assert.Equal(t, first, string(raw))
	assert.Equal(t, []string{"GET", "a\r\nb"}, args)
	raw, args, err = readCommand(from)
	require.NoError(t, err)
	assert.Equal(t, second, string(raw))
	assert.Equal(t, []string{"PING"}, args)
	_, _, err = readCommand(from)
	require.ErrorIs(t, err, io.EOF)
	for _, bad := range []string{"PING\r\n", "*1\r\n:4\r\nPING\r\n", "*1\r\n$-1\r\n", "*1\r\n$" + strconv.Itoa(1<<40) + "\r\n"} {
		_, _, err := readCommand(bufio.NewReader(strings.NewReader(bad)))
		assert.ErrorIs(t, err, errProtocol, bad)
	}
}

// A long drill hits every point, and the same seed hits them in the same order.
func TestPlan(t *testing.T) {
	t.Parallel()
	plan := func(seed uint64) []point {
		d := &drill{Config: Config{Queue: QueueServer, Faults: defaultFaults}}
		d.rng = rand.New(rand.NewPCG(seed, 0))
		return d.plan()
	}
	require.Len(t, plan(1), defaultFaults)
	assert.Equal(t, plan(1), plan(1))
	assert.NotEqual(t, plan(1), plan(2))
	for _, p := range points(QueueServer) {
		assert.Contains(t, plan(1), p)
	}
	kills := 0
	short := &drill{Config: Config{Queue: QueueEmbedded, Faults: 5, Short: true}, rng: rand.New(rand.NewPCG(1, 0))}
	for i, p := range short.plan() {
		if p.kills() {
			kills++
			assert.Less(t, i, 3, "kills come first")
		}
	}
	assert.Equal(t, 3, kills, "of 5 faults")
}
