package lane

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Each option of a request is sent under its name: a digest has it, and its images are paid for.
func TestEveryOptionIsSent(t *testing.T) {
	t.Parallel()
	for _, name := range jobs.OptionNames() {
		req := jobs.Request{Prompt: "a cat"}
		require.True(t, slices.ContainsFunc([]string{"true", "2", "direct"}, func(value string) bool {
			return req.SetOption(name, value) == nil
		}), name)
		sent, err := json.Marshal(newBody(jobs.Model{}, "", req, 1, nil).Parameters)
		require.NoError(t, err)
		assert.Contains(t, string(sent), `"`+name+`":`)
	}
}

// What a usage does not say is booked at the dearest, each part for itself.
func TestPurchaseOfAUsage(t *testing.T) {
	t.Parallel()
	m, err := jobs.LookupModel("qwen-image-3.0-pro")
	require.NoError(t, err)
	edit := &jobs.Request{N: 2, Size: "1024*1024", RefImages: []string{"a", "b"}}
	for name, c := range map[string]struct {
		usage *dashscope.Usage
		want  jobs.Purchase
	}{
		"none":          {nil, jobs.Purchase{Images: 2, LargeImages: 2, Inputs: 4}},
		"all":           {&dashscope.Usage{OutputImageType: dashscope.SmallImageType, InputImageCount: new(2)}, jobs.Purchase{Images: 2, Inputs: 2}},
		"only the type": {&dashscope.Usage{OutputImageType: dashscope.SmallImageType}, jobs.Purchase{Images: 2, Inputs: 4}},
		"only inputs":   {&dashscope.Usage{InputImageCount: new(0)}, jobs.Purchase{Images: 2, LargeImages: 2}},
		"another type":  {&dashscope.Usage{OutputImageType: "qima_output_4k", InputImageCount: new(1)}, jobs.Purchase{Images: 2, LargeImages: 2, Inputs: 1}},
	} {
		task := &dashscope.Task{TaskResponse: dashscope.TaskResponse{Usage: c.usage}}
		assert.Equal(t, c.want, purchase(m, edit, task, 2), name)
	}
}
