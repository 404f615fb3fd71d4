package simulator_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

func TestListShowsTheAccountsTasks(t *testing.T) {
	t.Parallel()
	sim := fixed(10 * time.Second)
	bubble(t, sim, func(c *client) {
		t := c.t
		created := time.Now()
		first, second := c.create(t, fox), c.create(t, fox)
		time.Sleep(5 * time.Second)
		got := c.list(t, "")
		assert.Equal(t, 2, got.Total)
		assert.Equal(t, 1, got.TotalPage)
		assert.Equal(t, 1, got.PageNo)
		assert.Equal(t, 10, got.PageSize)
		require.Len(t, got.Data, 2)
		assert.Equal(t, second, got.Data[0].TaskID, "newest first")
		pending, running := got.Data[0], got.Data[1]
		assert.Zero(t, pending.StartTime)
		assert.Equal(t, dashscope.TaskInfo{
			TaskID: first, Status: dashscope.StatusRunning, ModelName: "wanx-v1", Region: "cn-beijing",
			APIKeyID: running.APIKeyID, CallerUID: running.CallerUID, CallerParentID: running.CallerParentID, RequestID: running.RequestID,
			GmtCreate: created.UnixMilli(), StartTime: created.Add(25 * time.Millisecond).UnixMilli(),
			UserAPIUniqueKey: "apikey:v1:aigc:text2image:image-synthesis:wanx-v1",
		}, running)
		assert.NotEmpty(t, running.APIKeyID)
		assert.Len(t, running.CallerParentID, 16)
		assert.Equal(t, sim.Tasks()[0].RequestID, running.RequestID, "that of the create")
		assert.NotContains(t, string(c.get(t, dashscope.PathTasks).body), `"output"`, "the Java SDK would take it instead")
		assert.NotContains(t, string(c.get(t, dashscope.PathTasks).body), "狐狸")

		time.Sleep(24*time.Hour - 5*time.Second)
		assert.Empty(t, c.list(t, "").Data)
		assert.NotNil(t, c.list(t, "").Data)
	})
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	sim := fixed(10 * time.Second)
	bubble(t, sim, func(c *client) {
		t := c.t
		var ids []string
		for range 5 { // at 08:00:00, 08:00:20 … in China
			ids = append(ids, c.create(t, fox))
			time.Sleep(20 * time.Second)
		}
		for query, want := range map[string][]string{
			"?task_id=" + ids[3]:         {ids[3]},
			"?task_id=other":             {},
			"?model_name=wanx-v1":        {ids[4], ids[3], ids[2], ids[1], ids[0]},
			"?model_name=other":          {},
			"?status=PENDING":            {},
			"?status=SUCCEEDED":          {ids[4], ids[3], ids[2], ids[1], ids[0]},
			"?page_size=2":               {ids[4], ids[3]},
			"?page_size=2&page_no=3":     {ids[0]},
			"?page_size=2&page_no=4":     {},
			"?start_time=20000101080030": {ids[4], ids[3], ids[2]},
			"?end_time=20000101080030":   {ids[1], ids[0]},
			"?start_time=20000101080010&end_time=20000101080050": {ids[2], ids[1]},
		} {
			got := []string{}
			for _, task := range c.list(t, query).Data {
				got = append(got, task.TaskID)
			}
			assert.Equal(t, want, got, query)
			time.Sleep(time.Second)
		}
		page := c.list(t, "?page_size=2")
		assert.Equal(t, 5, page.Total)
		assert.Equal(t, 3, page.TotalPage)
		assert.Equal(t, 100, c.list(t, "?page_size=5000").PageSize)
		for _, query := range []string{
			"?page_no=0", "?page_size=x", "?start_time=2000-01-01",
			"?start_time=20000101000000&end_time=20000102000001", "?start_time=20000102000000&end_time=20000101000000",
		} {
			refused(t, c.get(t, dashscope.PathTasks+query), http.StatusBadRequest, "InvalidParameter")
		}
	})
}

func TestListLag(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	sim.ListLag = 30 * time.Second
	bubble(t, sim, func(c *client) {
		t := c.t
		id := c.create(t, fox)
		time.Sleep(30*time.Second - time.Millisecond)
		assert.Empty(t, c.list(t, "").Data)
		assert.Equal(t, dashscope.StatusSucceeded, c.status(t, id), "a query knows the task at once")
		time.Sleep(time.Millisecond)
		assert.Len(t, c.list(t, "").Data, 1)
	})
}

func TestSubmitLimitIsASlidingWindow(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	bubble(t, sim, func(c *client) {
		t := c.t
		c.create(t, fox)
		time.Sleep(600 * time.Millisecond)
		c.create(t, fox)
		refused(t, c.post(t, fox), http.StatusTooManyRequests, "Throttling.RateQuota")
		time.Sleep(400 * time.Millisecond)
		c.create(t, fox) // the first left the window
		refused(t, c.post(t, fox), http.StatusTooManyRequests, "Throttling.RateQuota")
		c.key = "sk-other" // of the same account
		refused(t, c.post(t, fox), http.StatusTooManyRequests, "Throttling.RateQuota")
		assert.Equal(t, 3, sim.Stats().Throttled)
		assert.Len(t, sim.Tasks(), 3)
	})
}

func TestQueriesListsAndCancelsShareALimit(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	bubble(t, sim, func(c *client) {
		t := c.t
		id := c.create(t, fox)
		for i := range 20 {
			path := dashscope.PathTasks + "/" + id
			if i%2 == 0 {
				path = dashscope.PathTasks
			}
			require.Equal(t, http.StatusOK, c.get(t, path).status)
		}
		for method, path := range map[string]string{http.MethodGet: "/" + id, http.MethodPost: "/" + id + "/cancel"} {
			refused(t, c.call(t, method, dashscope.PathTasks+path, nil, nil), http.StatusTooManyRequests, "Throttling")
		}
		refused(t, c.get(t, dashscope.PathTasks), http.StatusTooManyRequests, "Throttling")
		c.create(t, fox) // has a limit of its own
		time.Sleep(2 * time.Second)
		assert.Equal(t, dashscope.StatusSucceeded, c.status(t, id))
	})
}

func TestPolicyLimit(t *testing.T) {
	t.Parallel()
	bubble(t, fixed(time.Second), func(c *client) {
		t := c.t
		for range 100 {
			require.Equal(t, http.StatusOK, c.get(t, dashscope.PathUploads+"?action=getPolicy&model=wanx-v1").status)
		}
		refused(t, c.get(t, dashscope.PathUploads+"?action=getPolicy&model=wanx-v1"), http.StatusTooManyRequests, "Throttling.RateQuota")
	})
}

func TestLimitsCanBeLifted(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	sim.SubmitsPerSecond, sim.QueriesPerSecond, sim.Concurrency = -1, -1, 3
	bubble(t, sim, func(c *client) {
		t := c.t
		for range 30 {
			c.status(t, c.create(t, fox))
		}
		time.Sleep(time.Minute)
		lane := sim.Stats().Lanes[0]
		assert.Equal(t, 3, lane.MaxRunning)
		assert.Equal(t, 30*time.Second, lane.Busy)
		assert.Equal(t, "10.025s", fmt.Sprint(lane.LastEndAt.Sub(lane.FirstSubmitAt)))
	})
}
