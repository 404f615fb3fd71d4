package dashscope_test

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// bubbled is the environment of a test in a bubble.
type bubbled struct {
	*testing.T
	*dashscope.Client
}

// bubble runs f in a synctest bubble with a client of sim.
func bubble(t *testing.T, sim *simulator.Simulator, f func(bubbled)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, err := dashscope.New(dashscope.Config{BaseURL: "http://dashscope.test/api/v1", APIKey: "sk-test", DialContext: sim.DialContext})
		require.NoError(t, err)
		f(bubbled{t, c})
		c.CloseIdleConnections()
		require.NoError(t, sim.Close())
	})
}

func request(prompt string) dashscope.CreateRequest {
	one := 1
	return dashscope.CreateRequest{
		Model: "wanx-v1", Input: dashscope.Input{Prompt: prompt},
		Parameters: dashscope.Parameters{Style: "<auto>", N: &one},
	}
}

// await polls until the task has ended.
func await(t *testing.T, c *dashscope.Client, taskID string) *dashscope.Task {
	t.Helper()
	for {
		task, err := c.Query(t.Context(), taskID)
		require.NoError(t, err)
		switch task.Output.TaskStatus {
		case dashscope.StatusPending, dashscope.StatusRunning:
			<-time.After(time.Second)
		default:
			return task
		}
	}
}

func TestSimulatedTask(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(b bubbled) {
		t, c := b.T, b.Client
		who, err := c.Probe(t.Context())
		require.NoError(t, err)
		assert.True(t, who.Simulated)
		assert.False(t, who.Gateway)
		assert.WithinDuration(t, time.Now(), who.Date, time.Second)

		var image bytes.Buffer
		require.NoError(t, png.Encode(&image, uniform(256, 256)))
		ref, err := c.Upload(t.Context(), "wanx-v1", "小猫.png", "image/png", int64(image.Len()), &image)
		require.NoError(t, err)

		start := time.Now()
		req := request("一只猫")
		req.Input.RefImg = ref
		created, err := c.Create(t.Context(), req)
		require.NoError(t, err)
		assert.True(t, created.Simulated)
		assert.Equal(t, dashscope.StatusPending, created.Status)

		task := await(t, c, created.TaskID)
		require.Equal(t, dashscope.StatusSucceeded, task.Output.TaskStatus, task.Output.Message)
		require.Len(t, task.Output.Results, 1)
		assert.NotEmpty(t, task.Output.Results[0].URL)
		assert.Equal(t, 1, task.Usage.ImageCount)
		submitted, err := dashscope.ParseTime(task.Output.SubmitTime)
		require.NoError(t, err)
		assert.WithinDuration(t, start, submitted, time.Millisecond)

		page, err := c.List(t.Context(), dashscope.ListFilter{Model: "wanx-v1"})
		require.NoError(t, err)
		require.Len(t, page.Data, 1)
		assert.Equal(t, created.TaskID, page.Data[0].TaskID)
		assert.Equal(t, created.RequestID, page.Data[0].RequestID)
		require.ErrorIs(t, c.Cancel(t.Context(), created.TaskID), dashscope.ErrNotPending)
	})
}

func uniform(w, h int) image.Image {
	m := image.NewGray(image.Rect(0, 0, w, h))
	for i := range m.Pix {
		m.Pix[i] = color.Gray{Y: 128}.Y
	}
	return m
}

func TestSimulatedCancelAndUnknown(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(b bubbled) {
		t, c := b.T, b.Client
		_, err := c.Create(t.Context(), request("first"))
		require.NoError(t, err)
		second, err := c.Create(t.Context(), request("second"))
		require.NoError(t, err)
		require.NoError(t, c.Cancel(t.Context(), second.TaskID))
		assert.Equal(t, dashscope.StatusCanceled, await(t, c, second.TaskID).Output.TaskStatus)

		task, err := c.Query(t.Context(), "00000000-0000-0000-0000-000000000000")
		require.NoError(t, err)
		assert.Equal(t, dashscope.StatusUnknown, task.Output.TaskStatus)
	})
}

func TestSimulatedThrottle(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(b bubbled) {
		t, c := b.T, b.Client
		for range 2 {
			_, err := c.Create(t.Context(), request("x"))
			require.NoError(t, err)
		}
		_, err := c.Create(t.Context(), request("x"))
		requireKind(t, err, dashscope.KindThrottled)
		for range 100 { // the client limits its own rate
			_, err = c.List(t.Context(), dashscope.ListFilter{})
			require.NoError(t, err)
		}
		assert.Equal(t, 1, sim.Stats().Throttled)
	})
}

// A create without an answer is ambiguous and sent once, whether or not a task was
// created.
func TestSimulatedFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		fault simulator.Fault
		kind  dashscope.Kind
		tasks int
	}{
		"reset before":    {simulator.Fault{Reset: simulator.ResetBefore}, dashscope.KindAmbiguous, 0},
		"reset after":     {simulator.Fault{Reset: simulator.ResetAfter}, dashscope.KindAmbiguous, 1},
		"cut short":       {simulator.Fault{Truncate: true}, dashscope.KindAmbiguous, 1},
		"garbage":         {simulator.Fault{Garbage: true}, dashscope.KindAmbiguous, 0},
		"slow":            {simulator.Fault{Delay: 6 * time.Minute}, dashscope.KindAmbiguous, 0},
		"slow after":      {simulator.Fault{Delay: 6 * time.Minute, AfterWork: true}, dashscope.KindAmbiguous, 1},
		"500":             {simulator.Fault{Status: 500}, dashscope.KindAmbiguous, 0},
		"500 after":       {simulator.Fault{Status: 500, AfterWork: true}, dashscope.KindAmbiguous, 1},
		"503 capacity":    {simulator.Fault{Status: 503, Code: "ModelServingError"}, dashscope.KindRefused, 0},
		"arrears":         {simulator.Fault{Status: 400, Code: "Arrearage"}, dashscope.KindAccount, 0},
		"wrong parameter": {simulator.Fault{Status: 400, Code: "InvalidParameter"}, dashscope.KindTerminal, 0},
	} {
		t.Run(name, func(t *testing.T) {
			sim := &simulator.Simulator{}
			bubble(t, sim, func(b bubbled) {
				t, c := b.T, b.Client
				tc.fault.Route = simulator.RouteCreate
				sim.Script(tc.fault)
				_, err := c.Create(t.Context(), request("x"))
				requireKind(t, err, tc.kind)
				assert.Equal(t, 1, sim.Stats().Requests[simulator.RouteCreate])
				assert.Len(t, sim.Tasks(), tc.tasks)

				created, err := c.Create(t.Context(), request("y"))
				require.NoError(t, err)
				query := tc.fault
				query.Route = simulator.RouteQuery
				sim.Script(query)
				_, err = c.Query(t.Context(), created.TaskID)
				if tc.kind == dashscope.KindAccount {
					requireKind(t, err, dashscope.KindAccount)
				} else if err != nil { // net/http retries a GET
					requireKind(t, err, dashscope.KindTemporary)
				}
				assert.Equal(t, dashscope.StatusSucceeded, await(t, c, created.TaskID).Output.TaskStatus)
			})
		})
	}
}

// A moderation failure is returned as a FAILED task, or as an image without a URL.
func TestSimulatedFailures(t *testing.T) {
	sim := &simulator.Simulator{Outcome: func(r dashscope.CreateRequest) simulator.Outcome {
		if r.Input.Prompt == "bad" {
			return simulator.Outcome{Code: "DataInspectionFailed", Message: "m"}
		}
		return simulator.Outcome{Images: map[int]simulator.Failure{1: {Code: "InternalError.Timeout", Message: "m"}}}
	}}
	bubble(t, sim, func(b bubbled) {
		t, c := b.T, b.Client
		created, err := c.Create(t.Context(), request("bad"))
		require.NoError(t, err)
		out := await(t, c, created.TaskID).Output
		assert.Equal(t, dashscope.StatusFailed, out.TaskStatus)
		assert.Equal(t, dashscope.KindTerminal, dashscope.ClassifyTask(out.Code, out.Message))

		two := 2
		partial := request("half")
		partial.Parameters.N = &two
		created, err = c.Create(t.Context(), partial)
		require.NoError(t, err)
		out = await(t, c, created.TaskID).Output
		assert.Equal(t, dashscope.StatusSucceeded, out.TaskStatus)
		require.Len(t, out.Results, 2)
		assert.NotEmpty(t, out.Results[0].URL)
		assert.Equal(t, dashscope.KindRetry, dashscope.ClassifyTask(out.Results[1].Code, out.Results[1].Message))
	})
}

func TestSimulatedKeyIsRefused(t *testing.T) {
	sim := &simulator.Simulator{Keys: map[string]simulator.Key{"sk-other": {}}}
	bubble(t, sim, func(b bubbled) {
		t, c := b.T, b.Client
		who, err := c.Probe(t.Context())
		e := typed(t, err, dashscope.KindAccount)
		assert.Equal(t, http.StatusUnauthorized, e.Status)
		assert.Contains(t, e.Hint(), "DASHSCOPE_API_KEY")
		assert.True(t, who.Simulated)
		_, err = c.Create(t.Context(), request("x"))
		requireKind(t, err, dashscope.KindAccount)
		assert.Empty(t, sim.Tasks())
	})
}

func requireKind(t *testing.T, err error, want dashscope.Kind) {
	t.Helper()
	_ = typed(t, err, want)
}

// typed returns err as an *Error.
func typed(t *testing.T, err error, want dashscope.Kind) *dashscope.Error {
	t.Helper()
	var e *dashscope.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, want, e.Kind, "%v", err)
	return e
}

// The simulator tells what the catalog says, page by page, and when a model is retired.
func TestSimulatedOffers(t *testing.T) {
	sim := &simulator.Simulator{Region: dashscope.RegionSingapore}
	bubble(t, sim, func(b bubbled) {
		t, c := b.T, b.Client
		at := time.Now().Add(24 * time.Hour).Truncate(time.Second)
		sim.Retire("qwen-image", at)
		offers, err := c.Offers(t.Context())
		require.NoError(t, err)
		limits, err := c.Limits(t.Context())
		require.NoError(t, err)
		assert.Contains(t, offers, "wan2.1-t2i-turbo", "in the region's spelling")
		assert.NotContains(t, offers, "wanx-v1")
		assert.WithinDuration(t, at, offers["qwen-image"].RetiresAt, 0)
		assert.Equal(t, []dashscope.OfferPrice{{Micro: 220_177, Unit: "image_number per image image_number"}}, offers["wan2.6-t2i"].PricesMicroYuan)
		assert.Equal(t, dashscope.Limit{Model: "wan2.6-t2i", Concurrency: 5, Queue: 100, Requests: 1, Period: time.Second}, limits["wan2.6-t2i"])
		assert.Len(t, limits, len(offers))

		_, err = c.Create(t.Context(), request("still there"))
		require.Error(t, err, "wanx-v1 is not sold here")
		req := request("a cat")
		req.Model = "qwen-image"
		_, err = c.Create(t.Context(), req)
		require.NoError(t, err)
		<-time.After(24 * time.Hour)
		_, err = c.Create(t.Context(), req)
		var refused *dashscope.Error
		require.ErrorAs(t, err, &refused)
		assert.Equal(t, dashscope.KindModel, refused.Kind)
	})
}
