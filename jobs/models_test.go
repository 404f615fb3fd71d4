package jobs

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The figures of the pages, a second time: an error in the catalog costs money or refuses a
// valid request.
func TestModelFigures(t *testing.T) {
	t.Parallel()
	type figures struct {
		prompt, images, concurrency int
		perSecond                   float64
		beijing, singapore          int64 // micro-yuan; -1: not sold
		inSingapore                 string
	}
	want := map[string]figures{
		"wanx-v1":            {500, 4, 1, 2, 160_000, -1, ""},
		"wanx2.0-t2i-turbo":  {800, 4, 2, 2, 40_000, -1, ""},
		"wanx2.1-t2i-turbo":  {500, 4, 2, 2, 140_000, 183_481, "wan2.1-t2i-turbo"},
		"wanx2.1-t2i-plus":   {500, 4, 2, 2, 200_000, 366_962, "wan2.1-t2i-plus"},
		"wan2.2-t2i-flash":   {500, 4, 2, 2, 140_000, 183_481, "wan2.2-t2i-flash"},
		"wan2.2-t2i-plus":    {500, 4, 2, 2, 200_000, 366_962, "wan2.2-t2i-plus"},
		"wan2.5-t2i-preview": {2000, 4, 5, 5, 200_000, 220_177, "wan2.5-t2i-preview"},
		"qwen-image":         {800, 1, 2, 2, 250_000, 256_873, "qwen-image"},
		"qwen-image-plus":    {800, 1, 2, 2, 200_000, 220_177, "qwen-image-plus"},
	}
	models := textModels()
	require.Len(t, models, len(want))
	for _, m := range models {
		got := figures{m.PromptRunes, m.MaxImages, m.Concurrency, m.SubmitsPerSecond, -1, -1, ""}
		if price, sold := m.CostIn(RegionBeijing, 1); sold {
			got.beijing = price
		}
		if price, sold := m.CostIn(RegionSingapore, 1); sold {
			got.singapore = price
		}
		got.inSingapore, _ = m.NameIn(RegionSingapore)
		assert.Equal(t, want[m.Name], got, m.Name)
		assert.Equal(t, m.Name != "wanx-v1", m.PromptExtend && m.Watermark, m.Name)
		assert.Equal(t, m.Name == "wanx-v1", len(m.Styles) > 0 && len(m.RefModes) > 0, m.Name)
		assert.Equal(t, 500, m.NegativePromptRunes, m.Name)

		name, sold := m.NameIn(RegionBeijing)
		assert.True(t, sold)
		assert.Equal(t, m.Name, name, "the catalog's names are Beijing's")
		cost, _ := m.CostIn(RegionBeijing, 3)
		assert.Equal(t, m.Cost(3), cost)
	}
}

func TestModelInRegion(t *testing.T) {
	t.Parallel()
	m, err := LookupModel("wanx-v1")
	require.NoError(t, err)
	require.NoError(t, m.CheckRegion(RegionBeijing))
	assert.EqualError(t, m.CheckRegion(RegionSingapore), `model: "wanx-v1"; allowed: in ap-southeast-1 only wanx2.1-t2i-turbo, wanx2.1-t2i-plus, wan2.2-t2i-flash, wan2.2-t2i-plus, wan2.5-t2i-preview, qwen-image, qwen-image-plus, wan2.6-t2i, wan2.6-image, wan2.7-image, wan2.7-image-pro, wan2.5-i2i-preview; wanx-v1 is offered in cn-beijing: set DASHSCOPE_HTTP_BASE_URL to a host there`)
	assert.EqualError(t, m.CheckRegion("us-east-1"), `model: "wanx-v1"; allowed: in us-east-1 only wan2.6-t2i; wanx-v1 is offered in cn-beijing: set DASHSCOPE_HTTP_BASE_URL to a host there`)
	name, sold := m.NameIn(RegionSingapore)
	assert.False(t, sold)
	assert.Empty(t, name)
	price, sold := m.CostIn(RegionSingapore, 4)
	assert.False(t, sold)
	assert.Zero(t, price)
}

// Each row is one request of a model, which is accepted at a limit and refused beyond it.
func TestModelBounds(t *testing.T) {
	t.Parallel()
	sides := []string{"wanx2.0-t2i-turbo", "wanx2.1-t2i-turbo", "wanx2.1-t2i-plus", "wan2.2-t2i-flash", "wan2.2-t2i-plus"}
	pixels := []string{"wan2.5-t2i-preview"}
	qwens := []string{"qwen-image", "qwen-image-plus"}
	v2 := append(append(append([]string{}, sides...), pixels...), qwens...)
	v1 := []string{"wanx-v1"}
	const (
		sideRule  = `; allowed: width*height, each side 512 to 1440; `
		pixelRule = `; allowed: width*height, 1638400 to 2073600 pixels in all, at most 4:1 either way; `
	)
	for _, c := range []struct {
		models []string
		in     Request
		want   string // the error; "" if it is taken
	}{
		{sides, Request{Size: "512*512"}, ""},
		{sides, Request{Size: "1440x1440"}, ""},
		{sides, Request{Size: "512*1440"}, ""},
		{sides, Request{Size: "511*1440"}, `size: "511*1440"` + sideRule + `the shorter side has 511, less than 512`},
		{sides, Request{Size: "1441*512"}, `size: "1441*512"` + sideRule + `the longer side has 1441, more than 1440`},
		{sides, Request{Size: "1920*1080"}, `size: "1920*1080"` + sideRule + `the longer side has 1920, more than 1440; ask for 1440*810`},
		{sides, Request{Size: "0*1024"}, `size: "0*1024"` + sideRule + `ask for 1024*1024`},
		{sides, Request{Size: "square"}, `size: "square"` + sideRule + `write it as 1024*1024`},

		{pixels, Request{Size: "1280*1280"}, ""},
		{pixels, Request{Size: "1440*1440"}, ""},
		{pixels, Request{Size: "768*2700"}, ""},
		{pixels, Request{Size: "2700*768"}, ""},
		{pixels, Request{Size: "2880*720"}, ""},
		{pixels, Request{Size: "1920*1080"}, ""},
		{pixels, Request{Size: "1441*1440"}, `size: "1441*1440"` + pixelRule + `2075040 pixels are more than 2073600; ask for 1440*1440`},
		{pixels, Request{Size: "769*2700"}, `size: "769*2700"` + pixelRule + `2076300 pixels are more than 2073600; ask for 768*2698`},
		{pixels, Request{Size: "1279*1280"}, `size: "1279*1280"` + pixelRule + `1637120 pixels are fewer than 1638400; ask for 1280*1281`},
		{pixels, Request{Size: "1024*1024"}, `size: "1024*1024"` + pixelRule + `1048576 pixels are fewer than 1638400; ask for 1280*1280`},
		{pixels, Request{Size: "640*2561"}, `size: "640*2561"` + pixelRule + `the sides are more than 4:1 apart; ask for 640*2560`},
		{pixels, Request{Size: "640*2560"}, ""},

		{qwens, Request{Size: "1664*928"}, ""},
		{qwens, Request{Size: "1104×1472"}, ""},
		{qwens, Request{Size: "1024*1024"}, `size: "1024*1024"; allowed: 1664*928, 1472*1104, 1328*1328, 1104*1472, 928*1664`},
		{qwens, Request{N: 1, Seed: new(int64(maxSeed))}, ""},
		{pixels, Request{N: 4, Seed: new(int64(maxSeed - 3))}, ""},
		{v2[:6], Request{N: 5}, `n: 5; allowed: 1 to 4`},

		{v2, Request{PromptExtend: new(false), Watermark: new(true)}, ""},
		{v1, Request{PromptExtend: new(true)}, `prompt_extend: true; allowed: none: wanx-v1 has no prompt_extend; remove it`},
		{v1, Request{Watermark: new(false)}, `watermark: false; allowed: none: wanx-v1 has no watermark; remove it`},
		{v2, Request{Seed: new(int64(-1))}, `seed: -1; allowed: 0 to 2147483647`},
		{v2, Request{Seed: new(int64(maxSeed + 1))}, `seed: 2147483648; allowed: 0 to 2147483647`},
	} {
		for _, model := range c.models {
			c.in.Model, c.in.Prompt = model, "猫"
			_, warnings, err := c.in.Normalize()
			assert.Empty(t, warnings)
			if c.want == "" {
				assert.NoError(t, err, model)
			} else {
				assert.EqualError(t, err, c.want, model)
			}
		}
	}
}

// textModels are the models of the path text2image.
func textModels() []Model {
	return slices.DeleteFunc(Models(), func(m Model) bool { return m.Protocol != ProtocolText2Image })
}

// Parameters that only wanx-v1 has are errors for other models.
func TestModelsWithoutStylesAndReferences(t *testing.T) {
	t.Parallel()
	for _, m := range textModels()[1:] {
		_, _, err := Request{
			Model: m.Name, Prompt: "猫", Style: "<anime>",
			RefImg: "https://example.com/a.png?Signature=hunter2", RefStrength: new(0.5), RefMode: "repaint",
		}.Normalize()
		none := "none: " + m.Name + " takes no reference image"
		assert.EqualError(t, err, `style: "<anime>"; allowed: none: `+m.Name+` has no style`+
			` | ref_img: "https://example.com/a.png?…"; allowed: `+none+`; leave it out, or name a model that takes one: wanx-v1, wan2.6-image, wan2.7-image, wan2.7-image-pro, wan2.5-i2i-preview, wanx2.1-imageedit, qwen-image-3.0, qwen-image-3.0-pro`+
			` | ref_strength: 0.5; allowed: `+none+` | ref_mode: "repaint"; allowed: `+none)
	}
}

// Qwen-Image creates one image per request; the error says how to get more.
func TestOneImageModels(t *testing.T) {
	t.Parallel()
	for _, model := range []string{"qwen-image", "qwen-image-plus"} {
		_, _, err := Request{Model: model, Prompt: "猫", N: 2}.Normalize()
		assert.EqualError(t, err, `n: 2; allowed: 1; `+model+` creates one image per request: use another job for another image`)
	}
}

// Normalize sets the service's defaults, so that the sidecar has them even if the service
// changes them.
func TestNormalizeWritesDefaultsOut(t *testing.T) {
	t.Parallel()
	for _, m := range textModels()[1:] {
		r, _, err := Request{Model: m.Name, Prompt: "猫"}.Normalize()
		require.NoError(t, err)
		assert.Equal(t, Request{
			Model: m.Name, Prompt: "猫", Size: m.Sizes.Default, N: 1, Priority: "default",
			PromptExtend: new(true), Watermark: new(false),
		}, r)
	}
	given := Request{Model: "wan2.1-t2i-turbo", Prompt: "猫", PromptExtend: new(false)}
	r, _, err := given.Normalize()
	require.NoError(t, err)
	assert.Equal(t, "wanx2.1-t2i-turbo", r.Model, "Singapore's spelling is read too")
	assert.False(t, *r.PromptExtend)
	assert.Nil(t, given.Watermark, "the receiver is unchanged")
}

func TestModelsWarnOfLongPrompts(t *testing.T) {
	t.Parallel()
	for _, m := range textModels() {
		just := strings.Repeat("猫", m.PromptRunes)
		_, warnings, err := Request{Model: m.Name, Prompt: just, NegativePrompt: strings.Repeat("雾", 500)}.Normalize()
		require.NoError(t, err)
		assert.Empty(t, warnings, m.Name)
		r, warnings, err := Request{Model: m.Name, Prompt: just + "狗", NegativePrompt: strings.Repeat("雾", 501)}.Normalize()
		require.NoError(t, err)
		require.Len(t, warnings, 2)
		assert.Contains(t, warnings[0], "the service reads "+strconv.Itoa(m.PromptRunes)+" and drops the rest")
		assert.Equal(t, just+"狗", r.Prompt)
	}
}

// For every size, a proposed one is allowed, and has about the same ratio or the limit.
func TestSizeRemedyIsAllowed(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	proposed := 0
	for _, m := range Models() {
		for range 5000 {
			w, h := 1+rng.IntN(4000), 1+rng.IntN(4000)
			size := strconv.Itoa(w) + "*" + strconv.Itoa(h)
			if m.Sizes.Allows(size) {
				continue
			}
			_, near, found := strings.Cut(m.Sizes.remedy(size), "ask for ")
			if !found {
				continue
			}
			proposed++
			require.True(t, m.Sizes.Allows(near), "%s: %s for %s", m.Name, near, size)
			nw, nh, _ := parseSize(near)
			ratio := float64(w) / float64(h)
			if m.Sizes.MaxRatio > 0 {
				most := float64(m.Sizes.MaxRatio)
				ratio = min(max(ratio, 1/most), most)
			}
			require.InEpsilon(t, ratio, float64(nw)/float64(nh), 0.005, "%s: %s for %s", m.Name, near, size)
		}
	}
	assert.Greater(t, proposed, 10_000)
}
