package simulator_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

func TestTaskLife(t *testing.T) {
	t.Parallel()
	bubble(t, fixed(10*time.Second), func(c *client) {
		t := c.t
		id := c.create(t, fox)
		created := time.Now()
		assert.Equal(t, dashscope.StatusPending, c.status(t, id))

		time.Sleep(time.Second)
		running := c.query(t, id)
		assert.Equal(t, dashscope.StatusRunning, running.Output.TaskStatus)
		assert.Equal(t, &dashscope.TaskMetrics{Total: 1}, running.Output.TaskMetrics)
		assert.Nil(t, running.Usage)

		time.Sleep(10 * time.Second)
		done := c.query(t, id)
		assert.Equal(t, dashscope.StatusSucceeded, done.Output.TaskStatus)
		assert.Equal(t, &dashscope.TaskMetrics{Total: 1, Succeeded: 1}, done.Output.TaskMetrics)
		assert.Equal(t, &dashscope.Usage{ImageCount: 1}, done.Usage)
		require.Len(t, done.Output.Results, 1)
		assert.Equal(t, dashscope.Result{URL: done.Output.Results[0].URL}, done.Output.Results[0], "wanx-v1 returns the URL only")
		// The bubble begins at midnight UTC, which is 8 in the morning in China.
		assert.Equal(t, "2000-01-01 08:00:00.000", done.Output.SubmitTime)
		assert.Equal(t, "2000-01-01 08:00:00.025", done.Output.ScheduledTime)
		assert.Equal(t, "2000-01-01 08:00:10.025", done.Output.EndTime)

		time.Sleep(24*time.Hour - time.Since(created) - time.Millisecond)
		assert.Equal(t, dashscope.StatusSucceeded, c.status(t, id))
		time.Sleep(time.Millisecond)
		forgotten := c.query(t, id)
		assert.Equal(t, dashscope.TaskOutput{TaskID: id, TaskStatus: dashscope.StatusUnknown}, forgotten.Output)
	})
}

func TestUsualTaskTime(t *testing.T) {
	t.Parallel()
	sim := &simulator.Simulator{SubmitsPerSecond: -1, Concurrency: 200}
	bubble(t, sim, func(c *client) {
		t := c.t
		for range 200 {
			c.create(t, fox)
		}
		time.Sleep(time.Hour)
		var total time.Duration
		for _, task := range sim.Tasks() {
			took := task.EndedAt.Sub(task.StartedAt)
			assert.Greater(t, took, 15*time.Second)
			assert.Less(t, took, 50*time.Second)
			total += took
		}
		assert.InDelta(t, 27, (total / 200).Seconds(), 1.5, "the reference shows 26.6 s and 27.0 s")
	})
}

func TestTasksOfALaneRunOneByOne(t *testing.T) {
	t.Parallel()
	sim := fixed(10 * time.Second)
	bubble(t, sim, func(c *client) {
		t := c.t
		first, second := c.create(t, fox), c.create(t, fox)
		time.Sleep(time.Second)
		third := c.create(t, fox)
		assert.Equal(t, dashscope.StatusRunning, c.status(t, first))
		assert.Equal(t, dashscope.StatusPending, c.status(t, second))

		r := c.call(t, http.MethodPost, dashscope.PathTasks+"/"+second+"/cancel", nil, nil)
		assert.Equal(t, http.StatusOK, r.status)
		answer := decode[map[string]any](t, r)
		assert.NotContains(t, answer, "output")
		assert.Contains(t, answer, "request_id")
		assert.Equal(t, dashscope.StatusCanceled, c.status(t, second))

		time.Sleep(10 * time.Second)
		assert.Equal(t, dashscope.StatusSucceeded, c.status(t, first))
		assert.Equal(t, dashscope.StatusRunning, c.status(t, third), "moves up when the one before it is canceled")
		for _, id := range []string{first, second, third, "no-such-task"} {
			refused(t, c.call(t, http.MethodPost, dashscope.PathTasks+"/"+id+"/cancel/", []byte(`{}`), nil), http.StatusBadRequest, "UnsupportedOperation")
		}

		time.Sleep(time.Minute)
		stats := sim.Stats()
		assert.Equal(t, map[string]int{dashscope.StatusSucceeded: 2, dashscope.StatusCanceled: 1}, stats.Tasks)
		require.Len(t, stats.Lanes, 1)
		assert.Equal(t, 1, stats.Lanes[0].MaxRunning)
		assert.Equal(t, 20*time.Second, stats.Lanes[0].Busy)
		assert.InDelta(t, 20/20.025, stats.Lanes[0].Utilization, 1e-9)
		assert.Equal(t, 2, stats.Images)
		assert.EqualValues(t, 2*simulator.MicroYuanPerImage, stats.ChargedMicroYuan)
	})
}

func TestLanesAreSeparate(t *testing.T) {
	t.Parallel()
	sim := fixed(10 * time.Second)
	sim.Keys = map[string]simulator.Key{"sk-a": {Account: "a"}, "sk-a2": {Account: "a", ID: "77"}, "sk-b": {Account: "b"}}
	bubble(t, sim, func(c *client) {
		t := c.t
		c.key = "sk-a"
		ofA := c.create(t, fox)
		c.key = "sk-b"
		ofB := c.create(t, fox)
		assert.Equal(t, dashscope.StatusUnknown, c.status(t, ofA), "another account's task")
		refused(t, c.call(t, http.MethodPost, dashscope.PathTasks+"/"+ofA+"/cancel", nil, nil), http.StatusBadRequest, "UnsupportedOperation")
		time.Sleep(time.Second)
		assert.Equal(t, dashscope.StatusRunning, c.status(t, ofB))
		c.key = "sk-a2"
		assert.Equal(t, dashscope.StatusRunning, c.status(t, ofA), "another key of the same account")
		c.create(t, fox)
		listed := c.list(t, "")
		require.Len(t, listed.Data, 2)
		assert.Equal(t, "77", listed.Data[0].APIKeyID)
		assert.NotEqual(t, "77", listed.Data[1].APIKeyID)
		assert.Equal(t, listed.Data[0].CallerParentID, listed.Data[1].CallerParentID)
		assert.Len(t, c.list(t, "?api_key_id=77").Data, 1)
		c.key = "sk-c"
		refused(t, c.get(t, dashscope.PathTasks), http.StatusUnauthorized, "InvalidApiKey")
	})
}

func TestCreateRefusals(t *testing.T) {
	t.Parallel()
	c := overTCP(t, &simulator.Simulator{SubmitsPerSecond: -1})
	for name, test := range map[string]struct {
		body   string
		status int
		code   string
	}{
		"not JSON":         {`{"model":`, http.StatusBadRequest, "InvalidParameter"},
		"a list":           {`[]`, http.StatusBadRequest, "InvalidParameter"},
		"empty":            {``, http.StatusBadRequest, "InvalidParameter"},
		"no model":         {`{"input":{"prompt":"a"}}`, http.StatusBadRequest, "BadRequest.EmptyModel"},
		"unknown model":    {`{"model":"wanx-v9","input":{"prompt":"a"}}`, http.StatusBadRequest, "InvalidParameter"},
		"other endpoint":   {`{"model":"wan2.6-t2i","input":{"prompt":"a"}}`, http.StatusBadRequest, "InvalidParameter"},
		"qwen's n":         {`{"model":"qwen-image","input":{"prompt":"a"},"parameters":{"n":2}}`, http.StatusBadRequest, "InvalidParameter"},
		"Singapore's name": {`{"model":"wan2.1-t2i-plus","input":{"prompt":"a"}}`, http.StatusBadRequest, "InvalidParameter"},
		"no prompt":        {`{"model":"wanx-v1","input":{}}`, http.StatusBadRequest, "InvalidParameter"},
		"prompt no string": {`{"model":"wanx-v1","input":{"prompt":1}}`, http.StatusBadRequest, "InvalidParameter"},
		"n 0":              {`{"model":"wanx-v1","input":{"prompt":"a"},"parameters":{"n":0}}`, http.StatusBadRequest, "InvalidParameter"},
		"n 5":              {`{"model":"wanx-v1","input":{"prompt":"a"},"parameters":{"n":5}}`, http.StatusBadRequest, "InvalidParameter"},
		"n no number":      {`{"model":"wanx-v1","input":{"prompt":"a"},"parameters":{"n":"1"}}`, http.StatusBadRequest, "InvalidParameter"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, c.post(t, test.body), test.status, test.code)
		})
	}
}

func TestCreateHeaders(t *testing.T) {
	t.Parallel()
	sim := &simulator.Simulator{}
	c := overTCP(t, sim)
	create := func(header map[string]string, body string) reply {
		return c.call(t, http.MethodPost, dashscope.PathText2Image+"/", []byte(body), header)
	}
	synchronous := create(nil, fox)
	refused(t, synchronous, http.StatusForbidden, "AccessDenied")
	assert.Equal(t, "current user api does not support synchronous calls", decode[dashscope.ErrorResponse](t, synchronous).Message)
	withRef := `{"model":"wanx-v1","input":{"prompt":"a","ref_img":"oss://dashscope-instant/x/y/z.png"}}`
	refused(t, create(map[string]string{dashscope.HeaderAsync: "enable"}, withRef), http.StatusBadRequest, "InvalidParameter")

	c.key = ""
	refused(t, create(asyncHeader(), fox), http.StatusUnauthorized, "InvalidApiKey")
	assert.Empty(t, sim.Tasks())
}

func TestUnknownRoutes(t *testing.T) {
	t.Parallel()
	sim := &simulator.Simulator{}
	c := overTCP(t, sim)
	refused(t, c.get(t, "/images"), http.StatusNotFound, "NotFound")
	refused(t, c.get(t, dashscope.PathText2Image), http.StatusNotFound, "NotFound")
	refused(t, c.call(t, http.MethodDelete, dashscope.PathTasks+"/1", nil, nil), http.StatusNotFound, "NotFound")
	assert.Equal(t, 3, sim.Stats().Requests[simulator.RouteOther])
}

// Errors that the service reports only when a task runs.
func TestTasksThatFailOnTheirParameters(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ input, parameters, code string }{
		"size":           {``, `"size":"1000*1000"`, "InvalidParameter"},
		"style":          {``, `"style":"watercolor"`, "InvalidParameter"},
		"negative seed":  {``, `"seed":-1`, "InvalidParameter"},
		"large seed":     {``, `"seed":2147483648`, "InvalidParameter"},
		"ref_strength":   {``, `"ref_strength":1.1`, "InvalidParameter"},
		"ref_mode":       {``, `"ref_mode":"paint"`, "InvalidParameter"},
		"Chinese URL":    {`,"ref_img":"https://example.com/猫.png"`, ``, "InvalidURL"},
		"local path":     {`,"sketch_image_url":"./girl.png"`, ``, "InvalidURL"},
		"missing upload": {`,"ref_image":"oss://dashscope-instant/a/b/c.png"`, ``, "InvalidURL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := fixed(time.Minute)
			bubble(t, sim, func(c *client) {
				t := c.t
				id := c.create(t, fmt.Sprintf(`{"model":"wanx-v1","input":{"prompt":"a"%s},"parameters":{%s}}`, test.input, test.parameters))
				time.Sleep(time.Second)
				got := c.query(t, id)
				assert.Equal(t, dashscope.StatusFailed, got.Output.TaskStatus)
				assert.Equal(t, test.code, got.Output.Code)
				assert.NotEmpty(t, got.Output.Message)
				assert.Equal(t, &dashscope.TaskMetrics{Total: 4, Failed: 4}, got.Output.TaskMetrics, "an absent n is 4")
				assert.Nil(t, got.Usage)
				assert.Zero(t, sim.Stats().ChargedMicroYuan)
			})
		})
	}
}

func TestAllSizesAndStyles(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	sim.SubmitsPerSecond, sim.Concurrency = -1, 100
	bubble(t, sim, func(c *client) {
		t := c.t
		for _, size := range []string{"1024*1024", "720*1280", "768*1152", "1280*720"} {
			c.create(t, `{"model":"wanx-v1","input":{"prompt":"a"},"parameters":{"n":1,"size":"`+size+`"}}`)
		}
		for style := range strings.SplitSeq("auto,photography,portrait,3d cartoon,anime,oil painting,watercolor,sketch,chinese painting,flat illustration", ",") {
			c.create(t, `{"model":"wanx-v1","input":{"prompt":"a"},"parameters":{"n":1,"style":"<`+style+`>"}}`)
		}
		time.Sleep(time.Minute)
		assert.Equal(t, map[string]int{dashscope.StatusSucceeded: 14}, sim.Stats().Tasks)
	})
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	blocked := simulator.Failure{Code: "DataInspectionFailed", Message: "Output data may contain inappropriate content."}
	sim := fixed(time.Second)
	sim.Outcome = func(req dashscope.CreateRequest) simulator.Outcome {
		switch req.Input.Prompt {
		case "partial":
			return simulator.Outcome{Images: map[int]simulator.Failure{1: blocked}}
		case "all":
			return simulator.Outcome{Images: map[int]simulator.Failure{0: blocked, 1: blocked, 2: blocked}}
		default:
			return simulator.Outcome{Code: "InternalError.Algo", Message: "boom"}
		}
	}
	bubble(t, sim, func(c *client) {
		t := c.t
		run := func(prompt string) dashscope.TaskResponse {
			id := c.create(t, `{"model":"wanx-v1","input":{"prompt":"`+prompt+`"},"parameters":{"n":3,"seed":7}}`)
			time.Sleep(2 * time.Second)
			return c.query(t, id)
		}
		partial := run("partial")
		assert.Equal(t, dashscope.StatusSucceeded, partial.Output.TaskStatus)
		assert.Equal(t, &dashscope.TaskMetrics{Total: 3, Succeeded: 2, Failed: 1}, partial.Output.TaskMetrics)
		assert.Equal(t, &dashscope.Usage{ImageCount: 2}, partial.Usage)
		require.Len(t, partial.Output.Results, 3)
		assert.NotEmpty(t, partial.Output.Results[0].URL)
		assert.Equal(t, dashscope.Result{Code: blocked.Code, Message: blocked.Message}, partial.Output.Results[1])
		assert.NotEmpty(t, partial.Output.Results[2].URL)

		all := run("all")
		assert.Equal(t, dashscope.StatusFailed, all.Output.TaskStatus)
		assert.Equal(t, blocked.Code, all.Output.Code)
		assert.Empty(t, all.Output.Results)

		failed := run("other")
		assert.Equal(t, dashscope.StatusFailed, failed.Output.TaskStatus)
		assert.Equal(t, "InternalError.Algo", failed.Output.Code)

		tasks := sim.Tasks()
		require.Len(t, tasks, 3)
		assert.Equal(t, []int64{7, 8, 9}, tasks[0].Seeds)
		assert.EqualValues(t, 2*simulator.MicroYuanPerImage, tasks[0].ChargedMicroYuan)
		assert.Equal(t, 2, sim.Stats().Images)
	})
}

// After three hours without a result a task fails, started or not.
func TestTaskTimeout(t *testing.T) {
	t.Parallel()
	sim := fixed(4 * time.Hour)
	bubble(t, sim, func(c *client) {
		t := c.t
		first, behind := c.create(t, fox), c.create(t, fox)
		time.Sleep(3*time.Hour - time.Second)
		assert.Equal(t, dashscope.StatusRunning, c.status(t, first))
		assert.Equal(t, dashscope.StatusPending, c.status(t, behind))
		time.Sleep(time.Second)
		for _, id := range []string{first, behind} {
			got := c.query(t, id).Output
			assert.Equal(t, dashscope.StatusFailed, got.TaskStatus)
			assert.Equal(t, "InternalError.Timeout", got.Code)
		}
		assert.Zero(t, sim.Stats().Images)
	})
}

func TestSameSeedSameTimes(t *testing.T) {
	t.Parallel()
	times := func(seed uint64) []time.Duration {
		var out []time.Duration
		sim := &simulator.Simulator{Seed: seed, TaskTime: simulator.Between(time.Second, 12*time.Second)}
		bubble(t, sim, func(c *client) {
			t := c.t
			for range 4 {
				c.create(t, fox)
				time.Sleep(time.Second)
			}
			time.Sleep(time.Minute)
			for _, task := range sim.Tasks() {
				out = append(out, task.EndedAt.Sub(task.StartedAt))
			}
		})
		return out
	}
	first := times(1)
	assert.Equal(t, first, times(1))
	assert.NotEqual(t, first, times(2))
}

func FuzzCreate(f *testing.F) {
	f.Add(fox)
	f.Add(`{"model":"wanx-v1","input":{"prompt":"a","ref_img":"oss://x"},"parameters":{"size":"*","n":null,"seed":9223372036854775807,"ref_strength":1e308}}`)
	f.Add(`{"model":"wan2.5-t2i-preview","input":{"prompt":"猫"},"parameters":{"size":"768*2700","prompt_extend":false,"watermark":true}}`)
	f.Add(`{"model":"wanx-v1","input":null,"parameters":[]}`)
	f.Fuzz(func(t *testing.T, body string) {
		sim := &simulator.Simulator{TaskTime: simulator.Between(0, 0)}
		r := record(sim, http.MethodPost, dashscope.PathText2Image, body, asyncHeader())
		require.Contains(t, []int{http.StatusOK, http.StatusBadRequest, http.StatusNotFound}, r.status)
		require.True(t, json.Valid(r.body))
		for _, task := range sim.Tasks() {
			query := record(sim, http.MethodGet, dashscope.PathTasks+"/"+task.ID, "", nil)
			require.Equal(t, http.StatusOK, query.status)
			require.Len(t, task.Seeds, task.N)
		}
	})
}
