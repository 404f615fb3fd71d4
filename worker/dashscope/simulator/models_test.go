package simulator_test

import (
	"bytes"
	"fmt"
	"image"
	"image/png"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// beijing lists the models of Beijing with their documented properties.
func beijing() []struct {
	name                                string
	submits, concurrency, images, price int
} {
	return []struct {
		name                                string
		submits, concurrency, images, price int
	}{
		{"wanx-v1", 2, 1, 4, 160_000},
		{"wanx2.0-t2i-turbo", 2, 2, 4, 40_000},
		{"wanx2.1-t2i-turbo", 2, 2, 4, 140_000},
		{"wanx2.1-t2i-plus", 2, 2, 4, 200_000},
		{"wan2.2-t2i-flash", 2, 2, 4, 140_000},
		{"wan2.2-t2i-plus", 2, 2, 4, 200_000},
		{"wan2.5-t2i-preview", 5, 5, 4, 200_000},
		{"qwen-image", 2, 2, 1, 250_000},
		{"qwen-image-plus", 2, 2, 1, 200_000},
	}
}

func create(model, parameters string) string {
	return fmt.Sprintf(`{"model":%q,"input":{"prompt":"一只狐狸"},"parameters":{%s}}`, model, parameters)
}

// Each model has its own limits, lanes and price; an absent n is the model's maximum.
func TestModelLimitsAndPrices(t *testing.T) {
	t.Parallel()
	for _, m := range beijing() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			sim := fixed(10 * time.Second)
			bubble(t, sim, func(c *client) {
				t := c.t
				for range m.submits {
					c.create(t, create(m.name, ""))
				}
				refused(t, c.post(t, create(m.name, "")), http.StatusTooManyRequests, "Throttling.RateQuota")
				time.Sleep(time.Second)
				for range m.submits {
					c.create(t, create(m.name, ""))
				}
				time.Sleep(time.Minute)
				stats := sim.Stats()
				require.Len(t, stats.Lanes, 1)
				assert.Equal(t, m.concurrency, stats.Lanes[0].MaxRunning)
				assert.Equal(t, 2*m.submits*m.images, stats.Images)
				assert.EqualValues(t, 2*m.submits*m.images*m.price, stats.ChargedMicroYuan)
				assert.EqualValues(t, m.images*m.price, sim.Tasks()[0].ChargedMicroYuan)
				assert.Equal(t, m.images, sim.Tasks()[0].N)
			})
		})
	}
}

// The simulator's own fields override every model's limits.
func TestFieldsOverrideModels(t *testing.T) {
	t.Parallel()
	sim := fixed(10 * time.Second)
	sim.SubmitsPerSecond, sim.Concurrency = 3, 3
	bubble(t, sim, func(c *client) {
		t := c.t
		for _, model := range []string{"wanx-v1", "wan2.5-t2i-preview"} {
			for range 3 {
				c.create(t, create(model, ""))
			}
			refused(t, c.post(t, create(model, "")), http.StatusTooManyRequests, "Throttling.RateQuota")
		}
		time.Sleep(time.Minute)
		for _, lane := range sim.Stats().Lanes {
			assert.Equal(t, 3, lane.MaxRunning, lane.Model)
		}
	})
}

// A size at the bound is accepted; one beyond it fails the task.
func TestModelSizes(t *testing.T) {
	t.Parallel()
	for model, sizes := range map[string]struct{ good, bad string }{
		"wanx2.0-t2i-turbo":  {"512*1440", "511*1440 512*1441 1024x1024 *"},
		"wan2.2-t2i-plus":    {"1440*512", "1441*512 1024*1024*1 -512*1024 wide"},
		"wan2.5-t2i-preview": {"768*2700 640*2560 1280*1280", "1441*1440 640*2561 1279*1280 1024*1024 99999999999999999999*1"},
		"qwen-image":         {"928*1664", "1024*1024"},
		"wanx-v1":            {"768*1152", "512*512"},
	} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			sim := fixed(time.Second)
			sim.SubmitsPerSecond, sim.Concurrency, sim.QueriesPerSecond = -1, 100, -1
			bubble(t, sim, func(c *client) {
				t := c.t
				ids := map[string]string{}
				for size := range strings.SplitSeq(sizes.good+" "+sizes.bad, " ") {
					ids[size] = c.create(t, create(model, `"n":1,"size":"`+size+`"`))
				}
				ids[""] = c.create(t, create(model, `"n":1`))
				time.Sleep(2 * time.Second)
				for size := range strings.SplitSeq(sizes.bad, " ") {
					got := c.query(t, ids[size]).Output
					assert.Equal(t, dashscope.StatusFailed, got.TaskStatus, size)
					assert.Equal(t, "InvalidParameter", got.Code)
					assert.Contains(t, got.Message, "The size is not match")
				}
				for size := range strings.SplitSeq(sizes.good+" ", " ") {
					got := c.query(t, ids[size]).Output
					require.Equal(t, dashscope.StatusSucceeded, got.TaskStatus, size)
					width, height := 0, 0
					if size == "" {
						size = map[string]string{"wan2.5-t2i-preview": "1280*1280", "qwen-image": "1664*928"}[model]
					}
					if size == "" {
						size = "1024*1024"
					}
					_, err := fmt.Sscanf(size, "%d*%d", &width, &height)
					require.NoError(t, err)
					assert.Equal(t, image.Pt(width, height), c.picture(t, got.Results[0].URL).Bounds().Size(), size)
				}
			})
		})
	}
}

// picture downloads a result.
func (c *client) picture(t *testing.T, url string) image.Image {
	t.Helper()
	r, err := c.send(t.Context(), http.MethodGet, url, nil, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, r.status)
	img, err := png.Decode(bytes.NewReader(r.body))
	require.NoError(t, err)
	return img
}

func TestPromptExtend(t *testing.T) {
	t.Parallel()
	sim := &simulator.Simulator{SubmitsPerSecond: -1, Concurrency: 1000, QueriesPerSecond: -1}
	painted := recordPictures(sim)
	bubble(t, sim, func(c *client) {
		t := c.t
		const model = "wan2.2-t2i-flash"
		on, off := c.create(t, create(model, `"n":2,"seed":1`)), c.create(t, create(model, `"n":1,"seed":1,"prompt_extend":false`))
		english := c.create(t, `{"model":"qwen-image","input":{"prompt":"A fox. "},"parameters":{"prompt_extend":true}}`)
		v1 := c.create(t, create("wanx-v1", `"n":1,"prompt_extend":true`))
		time.Sleep(time.Minute)

		results := c.query(t, on).Output.Results
		require.Len(t, results, 2)
		for _, r := range results {
			assert.Equal(t, "一只狐狸", r.OrigPrompt)
			assert.Regexp(t, "^一只狐狸，.+，.+。$", r.ActualPrompt)
		}
		assert.Equal(t, results, c.query(t, on).Output.Results, "always the same")
		plain := c.query(t, off).Output.Results[0]
		assert.Equal(t, dashscope.Result{URL: plain.URL, OrigPrompt: "一只狐狸"}, plain)
		r := c.query(t, english).Output.Results[0]
		assert.Equal(t, "A fox. ", r.OrigPrompt)
		assert.Regexp(t, `^A fox, [ a-z]+, [ a-z]+\.$`, r.ActualPrompt)
		bare := c.query(t, v1).Output.Results[0]
		assert.Equal(t, dashscope.Result{URL: bare.URL}, bare)
		c.picture(t, results[0].URL)
		c.picture(t, plain.URL)
		require.Len(t, *painted, 2)
		assert.Equal(t, results[0].ActualPrompt, (*painted)[0].ActualPrompt, "the rewritten prompt is painted")
		assert.Empty(t, (*painted)[1].ActualPrompt)
	})
}

// Rewriting takes 3 to 4 s more, measured by the median over many tasks.
func TestPromptExtendTakesTime(t *testing.T) {
	t.Parallel()
	sim := &simulator.Simulator{SubmitsPerSecond: -1, Concurrency: 1000}
	bubble(t, sim, func(c *client) {
		t := c.t
		for range 200 {
			c.create(t, create("wan2.2-t2i-plus", ``))
			c.create(t, create("wan2.2-t2i-plus", `"prompt_extend":false`))
		}
		time.Sleep(time.Hour)
		var with, without time.Duration
		for i, task := range sim.Tasks() {
			if i%2 == 0 {
				with += task.EndedAt.Sub(task.StartedAt)
			} else {
				without += task.EndedAt.Sub(task.StartedAt)
			}
		}
		assert.InDelta(t, 3.5, (with-without).Seconds()/200, 0.3)
		assert.InDelta(t, 7.7, without.Seconds()/200, 0.3)
	})
}

// recordPictures records what a simulator paints.
func recordPictures(sim *simulator.Simulator) *[]painter.Picture {
	painted := &[]painter.Picture{}
	sim.Render = func(p painter.Picture) []byte {
		*painted = append(*painted, p)
		return painter.Paint(p)
	}
	return painted
}

func TestWatermark(t *testing.T) {
	t.Parallel()
	for model, text := range map[string]string{"wan2.2-t2i-flash": "AI生成", "qwen-image": "Qwen-Image", "wanx-v1": ""} {
		sim := fixed(time.Second)
		painted := recordPictures(sim)
		bubble(t, sim, func(c *client) {
			t := c.t
			for _, parameters := range []string{`"n":1,"watermark":true`, `"n":1,"watermark":false`, `"n":1`} {
				c.picture(t, c.links(t, create(model, parameters))[0])
			}
		})
		require.Len(t, *painted, 3)
		assert.Equal(t, text, (*painted)[0].Watermark, model)
		assert.Empty(t, (*painted)[1].Watermark, model)
		assert.Empty(t, (*painted)[2].Watermark, model)
	}
}

func TestModelsOfARegion(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	sim.Region, sim.SubmitsPerSecond = dashscope.RegionSingapore, -1
	bubble(t, sim, func(c *client) {
		t := c.t
		for _, model := range []string{"wan2.1-t2i-turbo", "wan2.1-t2i-plus", "wan2.2-t2i-flash", "wan2.2-t2i-plus", "wan2.5-t2i-preview", "qwen-image", "qwen-image-plus"} {
			c.create(t, create(model, `"n":1`))
		}
		for _, model := range []string{"wanx-v1", "wanx2.0-t2i-turbo", "wanx2.1-t2i-turbo"} {
			refused(t, c.post(t, create(model, `"n":1`)), http.StatusBadRequest, "InvalidParameter")
		}
		time.Sleep(time.Minute)
		var charged []int64
		for _, task := range sim.Tasks() {
			charged = append(charged, task.ChargedMicroYuan)
		}
		assert.Equal(t, []int64{183_481, 366_962, 183_481, 366_962, 220_177, 256_873, 220_177}, charged)
		assert.Equal(t, "ap-southeast-1", c.list(t, "?model_name=wan2.1-t2i-plus").Data[0].Region)
	})
	nowhere := &simulator.Simulator{Region: dashscope.RegionVirginia}
	refused(t, record(nowhere, http.MethodPost, dashscope.PathText2Image, create("qwen-image", ""), asyncHeader()), http.StatusBadRequest, "InvalidParameter")
}

// A revoked key is rejected everywhere; its account's tasks continue, another key sees
// them, and paid images can still be downloaded.
func TestRevoke(t *testing.T) {
	t.Parallel()
	sim := fixed(5 * time.Second)
	sim.Keys = map[string]simulator.Key{"sk-a": {Account: "a"}, "sk-a2": {Account: "a"}, "sk-b": {Account: "b"}}
	bubble(t, sim, func(c *client) {
		t := c.t
		c.key = "sk-a"
		first := c.create(t, fox)
		time.Sleep(10 * time.Second)
		url := c.query(t, first).Output.Results[0].URL
		behind := c.create(t, fox)

		sim.Revoke("sk-a")
		for _, r := range []reply{
			c.post(t, fox), c.get(t, dashscope.PathTasks), c.get(t, dashscope.PathTasks+"/"+first),
			c.get(t, dashscope.PathUploads+"?action=getPolicy&model=wanx-v1"),
			c.call(t, http.MethodPost, dashscope.PathTasks+"/"+behind+"/cancel", nil, nil),
		} {
			refused(t, r, http.StatusUnauthorized, "InvalidApiKey")
		}
		c.picture(t, url)
		time.Sleep(10 * time.Second)
		c.key = "sk-a2"
		assert.Equal(t, dashscope.StatusSucceeded, c.status(t, behind))
		c.key = "sk-b"
		c.create(t, fox)

		sim.Restore("sk-a")
		c.key = "sk-a"
		assert.Equal(t, dashscope.StatusSucceeded, c.status(t, behind))
		c.create(t, fox)
	})
	assert.Len(t, sim.Tasks(), 4)
}

// Keys may be revoked while requests are being served.
func TestRevokeWhileServing(t *testing.T) {
	t.Parallel()
	sim := &simulator.Simulator{QueriesPerSecond: -1}
	sim.Revoke("sk-test") // before the first use
	refused(t, record(sim, http.MethodGet, dashscope.PathTasks, "", nil), http.StatusUnauthorized, "InvalidApiKey")
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 50 {
				if i%2 == 0 {
					sim.Restore("sk-test")
					sim.Revoke("sk-test")
					continue
				}
				r := record(sim, http.MethodGet, dashscope.PathTasks, "", nil)
				assert.Contains(t, []int{http.StatusOK, http.StatusUnauthorized}, r.status)
			}
		})
	}
	all.Wait()
	sim.Restore("sk-test")
	assert.Equal(t, http.StatusOK, record(sim, http.MethodGet, dashscope.PathTasks, "", nil).status)
}

// Two accounts share nothing: neither limits, nor tasks, nor lists, nor uploads.
func TestAccountsAreSeparate(t *testing.T) {
	t.Parallel()
	sim := fixed(10 * time.Second)
	sim.Keys = map[string]simulator.Key{"sk-a": {Account: "a"}, "sk-b": {Account: "b"}}
	sim.QueriesPerSecond = 3
	bubble(t, sim, func(c *client) {
		t := c.t
		ids := map[string][]string{}
		parents := map[string]string{}
		for _, key := range []string{"sk-a", "sk-b"} {
			c.key = key
			for range 2 {
				ids[key] = append(ids[key], c.create(t, fox))
			}
			refused(t, c.post(t, fox), http.StatusTooManyRequests, "Throttling.RateQuota")
			listed := c.list(t, "")
			require.Len(t, listed.Data, 2, "the list is the account's")
			parents[key] = listed.Data[0].CallerParentID
			assert.Equal(t, dashscope.StatusPending, c.status(t, ids[key][0]))
			assert.Equal(t, dashscope.StatusPending, c.status(t, ids[key][1]))
			refused(t, c.get(t, dashscope.PathTasks), http.StatusTooManyRequests, "Throttling")
		}
		assert.NotEqual(t, parents["sk-a"], parents["sk-b"])
		time.Sleep(time.Second)
		for _, lane := range sim.Stats().Lanes {
			assert.Equal(t, 1, lane.MaxRunning, lane.Account)
		}
		// b cannot cancel a's pending task; a can.
		cancel := dashscope.PathTasks + "/" + ids["sk-a"][1] + "/cancel"
		refused(t, c.call(t, http.MethodPost, cancel, nil, nil), http.StatusBadRequest, "UnsupportedOperation")
		c.key = "sk-a"
		assert.Equal(t, http.StatusOK, c.call(t, http.MethodPost, cancel, nil, nil).status)
		assert.Equal(t, dashscope.StatusCanceled, c.status(t, ids["sk-a"][1]))
	})
}

// A task recorded before a restart keeps its model's price and size.
func TestModelsSurviveARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bubble(t, &simulator.Simulator{StateDir: dir, TaskTime: simulator.Between(0, 0)}, func(c *client) {
		c.create(c.t, create("wan2.5-t2i-preview", `"size":"768*2700"`))
	})
	again := &simulator.Simulator{StateDir: dir}
	require.NoError(t, again.Load())
	assert.EqualValues(t, 4*200_000, again.Stats().ChargedMicroYuan)
	assert.EqualValues(t, 4*200_000, again.Tasks()[0].ChargedMicroYuan)
	require.NoError(t, again.Close())
}
