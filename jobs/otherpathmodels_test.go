package jobs

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The figures of the pages about the models of the paths image-generation and image2image, a second time.
func TestOtherPathModelFigures(t *testing.T) {
	t.Parallel()
	type figures struct {
		protocol                     Protocol
		prompt, images, group        int
		inputs                       [2]int
		concurrency                  int
		perSecond                    float64
		beijing, singapore, virginia int64 // micro-yuan; 0: not sold
	}
	want := map[string]figures{
		"wan2.6-t2i":         {ProtocolImageGeneration, 2000, 4, 0, [2]int{0, 0}, 5, 1, 200_000, 220_177, 200_000},
		"wan2.6-image":       {ProtocolImageGeneration, 2000, 4, 0, [2]int{1, 4}, 5, 5, 200_000, 220_177, 0},
		"wan2.7-image":       {ProtocolImageGeneration, 5000, 4, 12, [2]int{0, 9}, 5, 5, 200_000, 220_177, 0},
		"wan2.7-image-pro":   {ProtocolImageGeneration, 5000, 4, 12, [2]int{0, 9}, 5, 5, 500_000, 562_065, 0},
		"wan2.5-i2i-preview": {ProtocolImage2Image, 2000, 4, 0, [2]int{1, 3}, 5, 5, 200_000, 220_177, 0},
		"wanx2.1-imageedit":  {ProtocolImage2Image, 800, 4, 0, [2]int{1, 1}, 2, 2, 140_000, 0, 0},
		"qwen-image-3.0":     {ProtocolImageGeneration, 0, 6, 0, [2]int{0, 3}, 1, 1, 180_000, 0, 0},
		"qwen-image-3.0-pro": {ProtocolImageGeneration, 0, 6, 0, [2]int{0, 3}, 1, 1, 250_000, 0, 0},
	}
	models := slices.DeleteFunc(Models(), func(m Model) bool { return m.Protocol == ProtocolText2Image })
	require.Len(t, models, len(want))
	for _, m := range models {
		got := figures{m.Protocol, m.PromptRunes, m.MaxImages, m.MaxGroup, [2]int{m.Inputs.Min, m.Inputs.Max}, m.Concurrency, m.SubmitsPerSecond, 0, 0, 0}
		got.beijing, got.singapore, got.virginia = m.Prices[RegionBeijing], m.Prices[RegionSingapore], m.Prices[RegionVirginia]
		assert.Equal(t, want[m.Name], got, m.Name)
		assert.Contains(t, m.Unknown, listUnknown, m.Name)
	}
}

// Each row is one request, and what is wrong with it, all at once.
func TestEditingRequests(t *testing.T) {
	t.Parallel()
	const url = "https://example.com/a.png"
	none := "none: wan2.6-t2i takes no reference image"
	for name, c := range map[string]struct {
		in   Request
		want string // the error; "" if it is taken
	}{
		"a text":                           {Request{Model: "wan2.6-t2i"}, ""},
		"an image for a text model":        {Request{Model: "wan2.6-t2i", RefImages: []string{url}}, `ref_img: "https://example.com/a.png"; allowed: ` + none + `; leave it out, or name a model that takes one: wanx-v1, wan2.6-image, wan2.7-image, wan2.7-image-pro, wan2.5-i2i-preview, wanx2.1-imageedit, qwen-image-3.0, qwen-image-3.0-pro`},
		"nine images":                      {Request{Model: "wan2.7-image", RefImages: slices.Repeat([]string{url}, 9)}, ""},
		"ten images":                       {Request{Model: "wan2.7-image", RefImages: slices.Repeat([]string{url}, 10)}, `ref_images: 10 images; allowed: 0 to 9`},
		"no image":                         {Request{Model: "wan2.6-image"}, `ref_images: missing; allowed: 1 to 4; wan2.6-image edits images: name the image to edit, or a model that needs none`},
		"ref_img is an image":              {Request{Model: "wan2.6-image", RefImg: url}, ""},
		"a path":                           {Request{Model: "wan2.6-image", RefImages: []string{url, "a.png"}}, `ref_images 2: "a.png"; allowed: an http or https URL that Alibaba can reach, or a staged name ("sha256:" and 64 hex digits); a file must be staged first, as danqing batch does for paths`},
		"several for wanx-v1":              {Request{RefImages: []string{url, url}}, `ref_images: 2 images; allowed: at most one: wanx-v1 takes no more; name a model that takes several: wan2.6-image, wan2.7-image, wan2.7-image-pro, wan2.5-i2i-preview, qwen-image-3.0, qwen-image-3.0-pro`},
		"a negative prompt":                {Request{Model: "wan2.7-image", NegativePrompt: "雾"}, `negative_prompt: "雾"; allowed: none: wan2.7-image has no negative_prompt; say in the prompt what to avoid`},
		"a size by name":                   {Request{Model: "wan2.7-image", Size: "1k"}, ""},
		"4K is for pro":                    {Request{Model: "wan2.7-image", Size: "4K"}, `size: "4K"; allowed: 1K, 2K, width*height, 589824 to 4194304 pixels in all, at most 8:1 either way; write it as 2K`},
		"4K without images":                {Request{Model: "wan2.7-image-pro", Size: "4K"}, ""},
		"4K with images":                   {Request{Model: "wan2.7-image-pro", Size: "4K", RefImages: []string{url}}, `size: "4K"; allowed: 1K, 2K, width*height, 589824 to 4194304 pixels in all, at most 8:1 either way; write it as 2K`},
		"a group":                          {Request{Model: "wan2.7-image", N: 12, EnableSequential: new(true)}, ""},
		"twelve that are none":             {Request{Model: "wan2.7-image", N: 12}, `n: 12; allowed: 1 to 4`},
		"a group of another model":         {Request{Model: "wan2.6-t2i", N: 12, EnableSequential: new(true)}, `enable_sequential: true; allowed: none: wan2.6-t2i has no enable_sequential; remove it`},
		"thinking":                         {Request{Model: "wan2.7-image", ThinkingMode: new(false)}, ""},
		"thinking of another model":        {Request{Model: "wan2.7-image", EnableThinking: new(true)}, `enable_thinking: true; allowed: none: wan2.7-image has no enable_thinking; remove it`},
		"a function":                       {Request{Model: "wanx2.1-imageedit", Function: "Expand", RefImg: url, LeftScale: new(1.5)}, ""},
		"no function":                      {Request{Model: "wanx2.1-imageedit", RefImg: url}, `function: missing; allowed: stylization_all, stylization_local, description_edit, description_edit_with_mask, remove_watermark, expand, super_resolution, colorization, doodle, control_cartoon_feature`},
		"a function of another model":      {Request{Function: "expand"}, `function: "expand"; allowed: none: wanx-v1 has no function; remove it`},
		"a mask":                           {Request{Model: "wanx2.1-imageedit", Function: "description_edit_with_mask", RefImg: url, MaskImageURL: url}, ""},
		"no mask":                          {Request{Model: "wanx2.1-imageedit", Function: "description_edit_with_mask", RefImg: url}, `mask_image_url: missing; allowed: an image of the base image's size, white where it is to be edited, black elsewhere`},
		"a mask for nothing":               {Request{Model: "wanx2.1-imageedit", Function: "doodle", RefImg: url, MaskImageURL: url}, `mask_image_url: "https://example.com/a.png"; allowed: none: doodle takes no mask; remove it`},
		"many things":                      {Request{Model: "wanx2.1-imageedit", Function: "expand", RefImg: url, Size: "1024*1024", Strength: new(0.5), TopScale: new(2.5), N: 5}, `size: "1024*1024"; allowed: none: the image has the size that wanx2.1-imageedit gives it; remove it | n: 5; allowed: 1 to 4 | strength: 0.5; allowed: only with function stylization_all or description_edit; remove it | top_scale: 2.5; allowed: 1 to 2`},
		"a whole number":                   {Request{Model: "wanx2.1-imageedit", Function: "super_resolution", RefImg: url, UpscaleFactor: new(1.5)}, `upscale_factor: 1.5; allowed: 1 to 4, a whole number`},
		"thinking, and a rewritten prompt": {Request{Model: "qwen-image-3.0", PromptExtendMode: "Agent", EnableThinking: new(false)}, ""},
		"thinking without a rewrite":       {Request{Model: "qwen-image-3.0", PromptExtend: new(false), EnableThinking: new(true)}, `enable_thinking: true; allowed: only with prompt_extend; remove it, or prompt_extend`},
		"an agent that sees no images":     {Request{Model: "qwen-image-3.0", PromptExtendMode: "agent", RefImg: url}, `prompt_extend_mode: "agent"; allowed: only without reference images; leave it out`},
		"a size by name of Qwen-Image":     {Request{Model: "qwen-image-3.0", Size: "1K"}, `size: "1K"; allowed: width*height, 262144 to 4194304 pixels in all, at most 8:1 either way; write it as 1024*1024`},
		"a synchronous model":              {Request{Model: "qwen-image-2.0-pro-2026-03-03"}, `model: "qwen-image-2.0-pro-2026-03-03"; allowed: models with asynchronous tasks; qwen-image-2.0-pro-2026-03-03 answers with the image itself: if that reply is lost, so is the image, which is paid for, and nothing can find it; use qwen-image-3.0-pro`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.in.Prompt = "猫"
			r, _, err := c.in.Normalize()
			if c.want != "" {
				assert.EqualError(t, err, c.want)
				return
			}
			require.NoError(t, err)
			again, _, err := r.Normalize()
			require.NoError(t, err)
			assert.Equal(t, r, again)
			assert.Equal(t, r.Digest(), c.in.Digest())
		})
	}
}

// Every field that shapes an image is a part of the job's identity, and its defaults are written
// out.
func TestEditingIdentity(t *testing.T) {
	t.Parallel()
	r, _, err := Request{Model: "wanx2.1-imageedit", Function: "expand", Prompt: "猫", RefImg: "https://example.com/a.png", LeftScale: new(1.5)}.Normalize()
	require.NoError(t, err)
	assert.Equal(t, Request{
		Model: "wanx2.1-imageedit", Function: "expand", Prompt: "猫", RefImages: []string{"https://example.com/a.png"}, N: 1, Priority: "default",
		Watermark: new(false), TopScale: new(1.0), BottomScale: new(1.0), LeftScale: new(1.5), RightScale: new(1.0),
	}, r)
	assert.Equal(t, `danqing/request/1
model=17:wanx2.1-imageedit
prompt=3:猫
n=1:1
watermark=5:false
ref_images=25:https://example.com/a.png
function=6:expand
top_scale=1:1
bottom_scale=1:1
left_scale=3:1.5
right_scale=1:1
`, string(r.digestBytes()))
	one, two := Request{RefImg: "https://example.com/a.png", Prompt: "猫"}, Request{RefImages: []string{"https://example.com/a.png"}, Prompt: "猫"}
	assert.Equal(t, one.Digest(), two.Digest(), "both spellings of wanx-v1's reference image")
}

// The dearest possible is reserved; what a task's usage says is booked.
func TestTiersOfPrices(t *testing.T) {
	t.Parallel()
	pro, err := LookupModel("qwen-image-3.0-pro")
	require.NoError(t, err)
	plain, err := LookupModel("qwen-image-3.0")
	require.NoError(t, err)
	edit := []string{"https://example.com/a.png", "https://example.com/b.png"}
	for name, c := range map[string]struct {
		model    Model
		request  *Request
		images   int
		contract map[string]int64
		want     int64
	}{
		"small":                           {pro, &Request{Size: "1500*1500"}, 2, nil, 500_000},
		"large":                           {pro, &Request{Size: "1500*1501"}, 2, nil, 1_000_000},
		"an edit may be large":            {pro, &Request{Size: "512*512", RefImages: edit}, 1, nil, 540_000},
		"references for each image":       {pro, &Request{Size: "512*512", RefImages: edit}, 3, nil, 1_620_000},
		"an unknown request":              {pro, nil, 1, nil, 560_000},
		"one tier":                        {plain, &Request{Size: "2048*2048"}, 2, nil, 360_000},
		"one tier, an edit":               {plain, &Request{Size: "2048*2048", RefImages: edit}, 2, nil, 440_000},
		"a contract keeps the proportion": {pro, &Request{Size: "2048*2048"}, 1, map[string]int64{"qwen-image-3.0-pro": 200_000}, 400_000},
		"a contract of one tier":          {plain, &Request{Size: "2048*2048"}, 2, map[string]int64{"qwen-image-3.0": 100_000}, 200_000},
	} {
		cost, sold := c.model.CostOf(c.contract, RegionBeijing, c.model.Most(c.request, c.images))
		assert.True(t, sold, name)
		assert.Equal(t, c.want, cost, name)
	}
	for _, m := range Models() {
		most, _ := m.CostIn(RegionBeijing, 4)
		known, _ := m.CostOf(nil, RegionBeijing, m.Most(&Request{Size: m.Sizes.Default}, 4))
		assert.GreaterOrEqual(t, most, known, m.Name)
	}
}
