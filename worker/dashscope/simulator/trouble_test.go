package simulator_test

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// trouble returns what went wrong with a task of two images, "" for nothing.
func trouble(c *client, sim *simulator.Simulator, prompt string) string {
	ctx, begun := c.t.Context(), time.Now()
	header := asyncHeader()
	header["Authorization"] = "Bearer " + c.key
	made, err := c.send(ctx, http.MethodPost, c.base+dashscope.PathText2Image, []byte(`{"model":"wanx-v1","input":{"prompt":"`+prompt+`"},"parameters":{"n":2}}`), header)
	switch {
	case err != nil && len(sim.Tasks()) == 1:
		return "lost"
	case err != nil:
		return err.Error()
	case made.status != http.StatusOK:
		return strconv.Itoa(made.status) + " " + decode[dashscope.ErrorResponse](c.t, made).Code
	}
	id := decode[dashscope.TaskResponse](c.t, made).Output.TaskID
	out := c.query(c.t, id).Output
	for out.TaskStatus == dashscope.StatusPending || out.TaskStatus == dashscope.StatusRunning {
		<-time.After(time.Second)
		out = c.query(c.t, id).Output
	}
	switch {
	case out.TaskStatus == dashscope.StatusFailed:
		return "task " + out.Code
	case time.Since(begun) > 100*time.Second:
		return "slow"
	}
	for _, result := range out.Results {
		if result.Code != "" {
			return "image " + result.Code
		}
		image, err := c.send(ctx, http.MethodGet, result.URL, nil, nil)
		switch {
		case err != nil:
			return "cut off"
		case image.status != http.StatusOK:
			return "image " + strconv.Itoa(image.status)
		}
	}
	return ""
}

// Every trouble can be rehearsed by its name, and by words in a prompt.
func TestTroubles(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"401": "401 InvalidApiKey", "429": "429 Throttling.RateQuota", "503": "503 ModelUnavailable", "arrears": "400 Arrearage",
		"quota": "403 AllocationQuota.FreeTierOnly", "retired": "404 ModelNotFound", "lost": "lost", "review": "task DataInspectionFailed", "error": "task InternalError",
		"partial": "image DataInspectionFailed", "slow": "slow", "broken": "cut off", "expired": "image 403",
	}
	require.Len(t, simulator.Troubles(), len(want))
	for _, one := range simulator.Troubles() {
		t.Run(one.Name, func(t *testing.T) {
			t.Parallel()
			assert.NotEmpty(t, one.Meaning)
			named := &simulator.Simulator{}
			require.NoError(t, named.Trouble(one.Name, 1))
			bubble(t, named, func(c *client) { assert.Equal(c.t, want[one.Name], trouble(c, named, "a cat")) })
			asked := &simulator.Simulator{}
			bubble(t, asked, func(c *client) {
				assert.Equal(c.t, want[one.Name], trouble(c, asked, "a cat [fail:"+one.Name+"]"))
			})
		})
	}
	// A prompt that the service refuses is refused twice: an account that pauses goes on.
	sim := &simulator.Simulator{}
	bubble(t, sim, func(c *client) {
		assert.Equal(c.t, "400 Arrearage", trouble(c, sim, "a cat [fail:arrears]"))
		assert.Equal(c.t, "400 Arrearage", trouble(c, sim, "a cat [fail:arrears]"))
		assert.Empty(c.t, trouble(c, sim, "a cat [fail:arrears]"))
		assert.Empty(c.t, trouble(c, sim, "a cat [fail:nothing]"))
	})
	require.ErrorContains(t, sim.Trouble("rain", 1), `trouble "rain": allowed: 401, 429, 503, arrears, quota, retired, lost, review, error, partial, slow, broken, expired`)
	for _, share := range []float64{0, -1, 1.1} {
		require.ErrorContains(t, sim.Trouble("slow", share), "above 0, at most 1")
	}
}
