package worker_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
	"github.com/danqing-queue/danqing/worker/journal"
)

// hosts are base URLs of the regions that have models.
func hosts() map[string]string {
	return map[string]string{
		jobs.RegionBeijing:   "http://dashscope.aliyuncs.com/api/v1",
		jobs.RegionSingapore: "http://dashscope-intl.aliyuncs.com/api/v1",
	}
}

// everyModel has a lane for each model of the catalog.
func everyModel() []worker.Lane {
	var lanes []worker.Lane
	for _, m := range jobs.Models() {
		lanes = append(lanes, worker.Lane{Model: m.Name})
	}
	return lanes
}

// One job of each model, with the parameters of that model: the images have the
// requested size, the sidecar has the request and the actual prompt, and the cost is
// what the service charged.
func TestEveryModelFromQueueToBucket(t *testing.T) {
	sim := &simulator.Simulator{Render: painter.Paint}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.accounts = map[string][]worker.Lane{"": everyModel()}
		s.start()
		reference := s.stage()
		for _, m := range jobs.Models() {
			req := requestOf(m, reference)
			req.ID, req.N = m.Name, m.MaxImages
			if m.Watermark {
				req.Watermark = new(true)
			}
			s.enqueue(req)
		}
		charged := map[string]int64{}
		for _, m := range jobs.Models() {
			rec := s.wait(m.Name)
			require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
			sidecar := s.requireStored(m.Name, m.MaxImages)
			asked := requestOf(m, reference)
			want, _ := m.CostOf(nil, jobs.RegionBeijing, m.Most(&asked, m.MaxImages))
			assert.Equal(t, want, sidecar.CostMicroYuan, m.Name)
			charged[m.Name] = sidecar.CostMicroYuan
			for _, image := range sidecar.Images {
				assert.Equal(t, cmp.Or(requestOf(m, "").Size, "1024*1024"), fmt.Sprintf("%d*%d", image.Width, image.Height), m.Name)
				assert.Equal(t, m.PromptExtend && m.Protocol == jobs.ProtocolText2Image, image.ActualPrompt != "", "%s: actual_prompt %q", m.Name, image.ActualPrompt)
			}
			var stored jobs.Request
			require.NoError(t, json.Unmarshal(sidecar.Request, &stored))
			assert.Equal(t, m.PromptExtend, stored.PromptExtend != nil && *stored.PromptExtend, "the service's default, written out")
			assert.Equal(t, m.Watermark, stored.Watermark != nil && *stored.Watermark)
		}
		for _, task := range sim.Tasks() {
			p := task.Request.Parameters
			assert.Equal(t, charged[task.Request.Model], task.ChargedMicroYuan)
			m, err := jobs.LookupModel(task.Request.Model)
			require.NoError(t, err)
			assert.Equal(t, dashscope.Protocol(m.Protocol), task.Request.Protocol)
			assert.Equal(t, m.PromptExtend, p.PromptExtend != nil && *p.PromptExtend && *p.Watermark)
			assert.Equal(t, task.Request.Model == "wanx-v1", p.Style == "<auto>")
			assert.Equal(t, !m.NoNegativePrompt, task.Request.Input.NegativePrompt == "雾")
			assert.Equal(t, m.ImagesAtMost() > 0, p.N != nil, "n is always sent")
			assert.Equal(t, m.Sizes.Default != "", p.Size != "", "size is always sent")
			for _, name := range task.Request.Input.References() {
				assert.Contains(t, name, "oss://")
			}
			assert.Len(t, task.Request.Input.References(), m.Inputs.Min)
		}
		assert.Zero(t, sim.Stats().Throttled)
	})
}

// requestOf returns a request that a model takes, of a small image, with its negative prompt and as
// many reference images as it needs.
func requestOf(m jobs.Model, reference string) jobs.Request {
	req := jobs.Request{Model: m.Name, Prompt: "猫在" + m.Name, NegativePrompt: "雾", Size: m.Sizes.Default}
	if m.NoNegativePrompt {
		req.NegativePrompt = ""
	}
	if len(m.Sizes.Keywords) > 0 {
		req.Size = "768*768"
	}
	for range m.Inputs.Min {
		req.RefImages = append(req.RefImages, reference)
	}
	if len(m.Functions) > 0 {
		req.Function = m.Functions[0].Name
	}
	return req
}

// inRegion returns a client of a simulator in a region.
func inRegion(t *testing.T, sim *simulator.Simulator, region string) *dashscope.Client {
	t.Helper()
	client, err := dashscope.New(dashscope.Config{BaseURL: hosts()[region], APIKey: "sk-test", DialContext: sim.DialContext, QueriesPerSecond: 1000})
	require.NoError(t, err)
	require.Equal(t, region, client.Region())
	return client
}

// body returns a normalized request as the worker sends it in a region.
func body(t *testing.T, req jobs.Request, region string) dashscope.CreateRequest {
	t.Helper()
	m, err := jobs.LookupModel(req.Model)
	require.NoError(t, err)
	name, sold := m.NameIn(region)
	require.True(t, sold)
	return dashscope.CreateRequest{
		Protocol: dashscope.Protocol(m.Protocol),
		Model:    name, Input: dashscope.Input{Prompt: req.Prompt, Images: req.RefImages, Function: req.Function},
		Parameters: dashscope.Parameters{Size: req.Size, N: &req.N, PromptExtend: req.PromptExtend, Watermark: req.Watermark},
	}
}

// soldIn returns the catalog's models of a region.
func soldIn(region string) []jobs.Model {
	var sold []jobs.Model
	for _, m := range jobs.Models() {
		if m.CheckRegion(region) == nil {
			sold = append(sold, m)
		}
	}
	return sold
}

// The catalog and the simulator were written independently. In every region they have
// the same models, prices and limits.
func TestCatalogAgreesWithTheSimulator(t *testing.T) {
	t.Parallel()
	for region := range hosts() {
		for _, m := range jobs.Models() {
			t.Run(region+"/"+m.Name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { agree(t, m, region) })
			})
		}
	}
}

func agree(t *testing.T, m jobs.Model, region string) {
	t.Helper()
	sim := &simulator.Simulator{Region: region, TaskTime: simulator.Between(time.Minute, time.Minute)}
	defer func() { assert.NoError(t, sim.Close()) }()
	client := inRegion(t, sim, region)
	defer client.CloseIdleConnections()
	asked := requestOf(m, "https://example.com/a.png")
	price, sold := m.CostOf(nil, region, m.Most(&asked, m.MaxImages))
	if !sold {
		_, err := client.Create(t.Context(), dashscope.CreateRequest{Model: m.Name, Input: dashscope.Input{Prompt: "猫"}})
		require.Error(t, err)
		return
	}
	req := requestOf(m, "https://example.com/a.png")
	req.N = m.MaxImages
	req, _, err := req.Normalize()
	require.NoError(t, err)
	rounds := 1 + max(1, m.Concurrency/int(m.SubmitsPerSecond)) // so that every slot is taken
	for range rounds {
		// The catalog's number of creates within a second is accepted, and no more.
		for range int(m.SubmitsPerSecond) {
			_, err := client.Create(t.Context(), body(t, req, region))
			require.NoError(t, err)
		}
		_, err := client.Create(t.Context(), body(t, req, region))
		require.Error(t, err)
		<-time.After(time.Second)
	}
	<-time.After(time.Hour)
	stats := sim.Stats()
	assert.Equal(t, rounds, stats.Throttled)
	assert.Equal(t, m.Concurrency, stats.Lanes[0].MaxRunning)
	assert.Equal(t, int64(rounds)*int64(m.SubmitsPerSecond)*price, stats.ChargedMicroYuan)

	more := body(t, req, region)
	more.Parameters.N = new(m.ImagesAtMost() + 1)
	_, err = client.Create(t.Context(), more)
	require.Error(t, err, "one image too many")
}

// A task of the simulator succeeds with each size that the catalog accepts, and fails
// with each size that it refuses.
func TestCatalogAndSimulatorAgreeOnSizes(t *testing.T) {
	t.Parallel()
	for _, m := range soldIn(jobs.RegionBeijing) {
		if m.Sizes.Default == "" {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				sim := &simulator.Simulator{SubmitsPerSecond: -1, QueriesPerSecond: -1, Concurrency: 10_000, TaskTime: simulator.Between(0, 0)}
				defer func() { assert.NoError(t, sim.Close()) }()
				client := inRegion(t, sim, jobs.RegionBeijing)
				defer client.CloseIdleConnections()
				rng := rand.New(rand.NewPCG(3, 4))
				sizes := []string{m.Sizes.Default, "1440*1440", "1441*1440", "768*2700", "769*2700", "640*2560", "640*2561", "512*512", "511*512", "1280*1280", "1279*1280"}
				sizes = append(append(sizes, m.Sizes.List...), m.Sizes.Keywords...)
				sizes = append(sizes, "2048*2049", "4096*4097")
				for range 200 {
					sizes = append(sizes, strconv.Itoa(400+rng.IntN(1300))+"*"+strconv.Itoa(400+rng.IntN(2400)))
				}
				took := map[bool]int{}
				for _, size := range sizes {
					req := requestOf(m, "https://example.com/a.png")
					req.Size = size
					req, _, err := req.Normalize()
					took[err == nil]++
					wire := body(t, req, jobs.RegionBeijing)
					created, createErr := client.Create(t.Context(), wire)
					require.NoError(t, createErr, "a wrong size is found when the task runs")
					<-time.After(time.Minute)
					task, queryErr := client.Query(t.Context(), created.TaskID)
					require.NoError(t, queryErr)
					assert.Equal(t, err == nil, task.Output.TaskStatus == dashscope.StatusSucceeded, "%s: %v", size, err)
				}
				assert.Positive(t, took[true])
				assert.Positive(t, took[false])
			})
		})
	}
}

// In Singapore a job is submitted under that region's model name and charged at that
// region's price; the record has the catalog's name. Images are not downloaded from an
// Alibaba host without TLS.
func TestModelNameInARegion(t *testing.T) {
	sim := &simulator.Simulator{Region: jobs.RegionSingapore}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.stop()
		s.queue = queue.Open()
		s.redis = s.queue.Client()
		var err error
		s.data, err = journal.OpenDataDir(filepath.Join(s.dir, "data"))
		require.NoError(t, err)
		cfg := s.config(s.data)
		client := inRegion(t, sim, jobs.RegionSingapore)
		defer client.CloseIdleConnections()
		cfg.Accounts = []worker.Account{{DashScope: client, Lanes: []worker.Lane{{Model: "wanx2.1-t2i-plus"}}}}
		s.worker, err = worker.New(cfg)
		require.NoError(t, err)
		require.NoError(t, s.worker.Prepare(t.Context()))
		s.run()

		s.enqueue(jobs.Request{ID: "cat", Model: "wan2.1-t2i-plus", Prompt: "猫", N: 2})
		rec := s.state("cat", jobs.StateStoring)
		s.stop()
		require.Equal(t, "wanx2.1-t2i-plus", rec.Model)
		require.Len(t, sim.Tasks(), 1)
		assert.Equal(t, "wan2.1-t2i-plus", sim.Tasks()[0].Request.Model)
		m, err := jobs.LookupModel(rec.Model)
		require.NoError(t, err)
		price, sold := m.CostIn(jobs.RegionSingapore, 2)
		assert.True(t, sold)
		assert.Equal(t, price, sim.Stats().ChargedMicroYuan)
	})
}
