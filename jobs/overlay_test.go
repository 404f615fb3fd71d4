package jobs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The built-in models pass the checks of an overlay, so that one can correct any of them.
func TestBuiltInModelsPassTheChecks(t *testing.T) {
	t.Parallel()
	for _, m := range newCatalog() {
		require.NoError(t, checkModel(m, newCatalog()), m.Name)
		corrected, err := overlaid(newCatalog(), []byte(`{"models":{"`+m.Name+`":{}}}`))
		require.NoError(t, err)
		at := slices.IndexFunc(corrected, func(c Model) bool { return c.Name == m.Name })
		m.Overlaid = true
		assert.Equal(t, m, corrected[at], "what is left out stays")
	}
}

// An overlay corrects fields of a model, and adds models: on their own, or like another one.
func TestOverlay(t *testing.T) {
	t.Parallel()
	models, err := overlaid(newCatalog(), []byte(`{"models": {
	"wanx-v1": {"prices": {"cn-beijing": 0.18, "ap-southeast-1": 0.2}, "concurrency": 3, "sizes": {"list": ["1024*1024", "512*512"]}, "task_seconds": 12.5},
	"wanx2.1-t2i-plus": {"prices": {"ap-southeast-1": 0}, "regional_names": {"ap-southeast-1": ""}, "source": "a letter"},
	"wan2.8-image": {"like": "wan2.7-image", "prices": {"cn-beijing": 0.25}, "inputs": {"max": 3}, "regional_names": {"cn-beijing": "wan28"}},
	"new-image": {"protocol": "image-generation", "max_images": 2, "service_images": 1, "prices": {"cn-beijing": 0.01},
		"sizes": {"default": "1K", "keywords": ["1K", "2K"]}, "options": [{"name": "enable_thinking", "default": "false"}]}
	}}`))
	require.NoError(t, err)
	require.Len(t, models, len(newCatalog())+2)
	find := func(name string) Model {
		m, err := lookupModel(name, models)
		require.NoError(t, err)
		assert.True(t, m.Overlaid)
		return m
	}
	v1, before := find("wanx-v1"), wanxV1()
	assert.Equal(t, map[string]int64{RegionBeijing: 180_000, RegionSingapore: 200_000}, v1.Prices)
	assert.Equal(t, []any{3, 12500 * time.Millisecond, "1024*1024", before.Styles}, []any{v1.Concurrency, v1.TaskTime, v1.Sizes.Default, v1.Styles})
	assert.Equal(t, []string{"1024*1024", "512*512"}, v1.Sizes.List)
	assert.Equal(t, []string{"the overlay of the catalog", before.Sources["Styles"]}, []string{v1.Sources["Prices"], v1.Sources["Styles"]})
	assert.Equal(t, "wanx-v1", models[0].Name, "its place stays")

	plus := find("wanx2.1-t2i-plus")
	assert.Equal(t, map[string]int64{RegionBeijing: 200_000}, plus.Prices)
	assert.Empty(t, plus.RegionalNames)
	assert.Equal(t, "a letter", plus.Sources["Prices"])

	like, base := find("wan2.8-image"), wan27("wan2.7-image", nil)
	assert.Equal(t, map[string]int64{RegionBeijing: 250_000}, like.Prices, "prices are not taken over")
	assert.Equal(t, []any{base.Protocol, base.Sizes, 3, base.Inputs.MaxSide}, []any{like.Protocol, like.Sizes, like.Inputs.Max, like.Inputs.MaxSide})
	name, sold := like.NameIn(RegionBeijing)
	assert.Equal(t, []any{"wan28", true}, []any{name, sold})
	added := find("new-image")
	assert.Equal(t, []any{1, 1.0, int64(maxSeed)}, []any{added.Concurrency, added.SubmitsPerSecond, added.MaxSeed})
	assert.Equal(t, map[string]int{"danqing:new-image:critical": 1, "danqing:new-image:default": 1, "danqing:new-image:bulk": 1}, ones(LaneQueues(added.Name)))
}

// A derived seed is in the range of its model, which an overlay may have made smaller.
func TestDerivedSeeds(t *testing.T) {
	t.Parallel()
	for i := range 200 {
		seed := derivedSeed(fmt.Sprintf("job-%d", i), 4, 9)
		assert.GreaterOrEqual(t, seed, int64(0))
		assert.LessOrEqual(t, seed+3, int64(9))
	}
}

func ones(queues map[string]int) map[string]int {
	for name := range queues {
		queues[name] = 1
	}
	return queues
}

// Each mistake gets one error with model, field, value and what is allowed.
func TestOverlayMistakes(t *testing.T) {
	t.Parallel()
	const wanx, plain = `model "wanx-v1": `, `"protocol":"image-generation","max_images":1,"service_images":1,"prices":{"cn-beijing":1},"sizes":{"default":"1K","keywords":["1K"]}`
	for in, want := range map[string]string{
		``:                                       `not valid JSON: it ends early`,
		`{"models":`:                             `not valid JSON: it ends early`,
		`{"models":{]}`:                          `not valid JSON at byte 11`,
		`{"models":{}} x`:                        `there is something after the JSON object`,
		`{"models":{}} {}`:                       `there is something after the JSON object`,
		`{}`:                                     `models: missing; allowed: an object`,
		`[]`:                                     `: array; allowed: another type`,
		`{"model":{}}`:                           `model: is not a field; allowed: models; did you mean "models"?`,
		`{"models":{"wanx-v1":{},"wanx-v1":{}}}`: `wanx-v1: is there twice; leave one out`,
		`{"models":{"wanx-v1":3}}`:               wanx + `model: 3; allowed: an object with fields of a model`,
		`{"models":{"wanx-v1":null}}`:            wanx + `model: null; allowed: an object`,
		`{"models":{"wanx-v1":{"concurency":2}}}`:                                                                      wanx + `concurency: is not a field; allowed: concurrency, `,
		`{"models":{"wanx-v1":{"Concurrency":2}}}`:                                                                     wanx + `Concurrency: is not a field`,
		`{"models":{"wanx-v1":{"name":"x"}}}`:                                                                          wanx + `name: is not a field`,
		`{"models":{"wanx-v1":{"sizes":{"lists":[]}}}}`:                                                                wanx + `lists: is not a field`,
		`{"models":{"wanx-v1":{"concurrency":0}}}`:                                                                     wanx + `concurrency: 0; allowed: 1 to 1000`,
		`{"models":{"wanx-v1":{"concurrency":"two"}}}`:                                                                 wanx + `concurrency: string; allowed: a whole number`,
		`{"models":{"wanx-v1":{"concurrency":1.5}}}`:                                                                   wanx + `concurrency: number 1.5; allowed: a whole number`,
		`{"models":{"wanx-v1":{"concurrency":1e30}}}`:                                                                  wanx + `concurrency: number 1e30; allowed: a whole number`,
		`{"models":{"wanx-v1":{"watermark":1}}}`:                                                                       wanx + `watermark: number; allowed: true or false`,
		`{"models":{"wanx-v1":{"prices":{"cn-beijing":-1}}}}`:                                                          wanx + `prices.cn-beijing: -1; allowed: yuan for an image, above 0 and at most 1000; 0 removes the region`,
		`{"models":{"wanx-v1":{"prices":{"cn-beijing":1001}}}}`:                                                        wanx + `prices.cn-beijing: 1001`,
		`{"models":{"wanx-v1":{"prices":{"cn-beijing":1e-9}}}}`:                                                        wanx + `prices.cn-beijing: 1e-9`,
		`{"models":{"wanx-v1":{"prices":{"Beijing":1}}}}`:                                                              wanx + `prices.Beijing: is not a region`,
		`{"models":{"wanx-v1":{"prices":{"cn-beijing":0}}}}`:                                                           wanx + `prices: ""; allowed: the price of an image in a region; as in {"cn-beijing": 0.2}`,
		`{"models":{"wanx-v1":{"like":"qwen-image"}}}`:                                                                 wanx + `like: "qwen-image"; allowed: only for a model that the catalog does not have`,
		`{"models":{"x":{"like":"wan2.7-imag"}}}`:                                                                      `model "x": like: "wan2.7-imag"; allowed: wanx-v1,`,
		`{"models":{"x":{"like":"wan2.7-image"}}}`:                                                                     `model "x": prices: ""`,
		`{"models":{"x":{}}}`:                                                                                          `model "x": protocol: ""; allowed: text2image, image2image, image-generation`,
		`{"models":{"a/b":{` + plain + `}}}`:                                                                           `model "a/b": model: "a/b"; allowed: 1 to 64 of`,
		`{"models":{"z-image-turbo":{` + plain + `}}}`:                                                                 `model "z-image-turbo": model: "z-image-turbo"; allowed: models with asynchronous tasks`,
		`{"models":{"wan2.1-t2i-plus":{` + plain + `}}}`:                                                               `model "wan2.1-t2i-plus": model: "wan2.1-t2i-plus"; allowed: a name of this model alone; it is a region's name of wanx2.1-t2i-plus`,
		`{"models":{"x":{` + plain + `,"regional_names":{"cn-beijing":"wanx-v1"}}}}`:                                   `regional_names.cn-beijing: "wanx-v1"; allowed: a name of this model alone; it is one of wanx-v1`,
		`{"models":{"x":{` + plain + `,"regional_names":{"us-east-1":"y"}}}}`:                                          `regional_names.us-east-1: "y"; allowed: a region with a price; add prices.us-east-1`,
		`{"models":{"wanx-v1":{"sizes":{"default":"3*3"}}}}`:                                                           wanx + `sizes.default: "3*3"; allowed: one of the sizes`,
		`{"models":{"wanx-v1":{"sizes":{"list":["1024x1024"]}}}}`:                                                      wanx + `sizes.list[0]: "1024x1024"; allowed: width*height; as in 1024*1024`,
		`{"models":{"wanx-v1":{"sizes":{"default":""}}}}`:                                                              wanx + `sizes.default: ""; allowed: one of the sizes`,
		`{"models":{"x":{"protocol":"image-generation","max_images":1,"service_images":1,"prices":{"cn-beijing":1}}}}`: `sizes.default: ""; allowed: a size, as the service's own default may cost more`,
		`{"models":{"wan2.7-image":{"sizes":{"keywords":["big"]}}}}`:                                                   `sizes.keywords[0]: "big"; allowed: 1K to 8K`,
		`{"models":{"wan2.6-t2i":{"sizes":{"min_pixels":9999999}}}}`:                                                   `sizes.min_pixels: 9999999; allowed: 0 to 2073600`,
		`{"models":{"wanx-v1":{"max_images":0}}}`:                                                                      wanx + `max_images: 0; allowed: 1 to 100`,
		`{"models":{"wanx-v1":{"max_group":5}}}`:                                                                       wanx + `max_group: 5; allowed: only with the option enable_sequential`,
		`{"models":{"wanx-v1":{"service_images":5}}}`:                                                                  wanx + `service_images: 5; allowed: 1 to 4`,
		`{"models":{"wanx-v1":{"max_seed":2}}}`:                                                                        wanx + `max_seed: 2; allowed: 4 to 2147483647`,
		`{"models":{"wanx-v1":{"submits_per_second":0}}}`:                                                              wanx + `submits_per_second: 0; allowed: above 0`,
		`{"models":{"wanx-v1":{"submits_per_minute":-1}}}`:                                                             wanx + `submits_per_minute: -1; allowed: 0 to`,
		`{"models":{"wanx-v1":{"task_seconds":-1}}}`:                                                                   wanx + `task_seconds: -1; allowed: 0 to 86400`,
		`{"models":{"wanx-v1":{"inputs":{"max":2}}}}`:                                                                  wanx + `inputs.max: 2; allowed: 0 with the protocol text2image; it takes ref_modes`,
		`{"models":{"wan2.7-image":{"inputs":{"min":10}}}}`:                                                            `inputs.min: 10; allowed: 0 to 9`,
		`{"models":{"wan2.7-image":{"ref_modes":["repaint"]}}}`:                                                        `ref_modes: "repaint"; allowed: only with the protocol text2image`,
		`{"models":{"wan2.7-image":{"functions":[{"name":"expand"}]}}}`:                                                `functions: 1; allowed: only with the protocol image2image and inputs`,
		`{"models":{"wanx2.1-imageedit":{"functions":[{"name":"a"},{"name":"a"}]}}}`:                                   `functions[1].name: "a"; allowed: each name once`,
		`{"models":{"wan2.7-image":{"large_pixels":5}}}`:                                                               `large_pixels: 5; allowed: with large_prices, and they with it`,
		`{"models":{"wan2.7-image":{"large_pixels":5,"large_prices":{"cn-beijing":0.1}}}}`:                             `large_prices.cn-beijing: 0.1; allowed: at least the price there of an image`,
		`{"models":{"wan2.6-t2i":{"input_prices":{"cn-beijing":0.1}}}}`:                                                `input_prices.cn-beijing: 0.1; allowed: for a model with inputs that is sold there`,
		`{"models":{"wanx-v1":{"styles":[{"value":"<a>"},{"value":"A"}]}}}`:                                            wanx + `styles[1]: "A"; allowed: a name of one style alone`,
		`{"models":{"wanx-v1":{"styles":[{"value":"<>"}]}}}`:                                                           wanx + `styles[0]: "<>"; allowed: a name`,
		`{"models":{"wan2.7-image":{"max_group":0,"options":[{"name":"color_palette"}]}}}`:                             `options[0].name: "color_palette"; allowed: prompt_extend_mode, `,
		`{"models":{"wan2.7-image":{"max_group":0,"options":[{"name":"thinking_mode","default":"maybe"}]}}}`:           `options[0].default: "maybe"; allowed: true, false`,
		`{"models":{"wan2.7-image":{"max_group":0,"options":[{"name":"strength","default":"2","max":1}]}}}`:            `options[0].default: "2"; allowed: 0 to 1`,
		`{"models":{"wan2.7-image":{"max_group":0,"options":[{"name":"strength"}]}}}`:                                  `options[0].max: 0; allowed: above 0`,
		`{"models":{"wan2.7-image":{"max_group":0,"options":[{"name":"prompt_extend_mode"}]}}}`:                        `options[0].values: "prompt_extend_mode"; allowed: the allowed texts`,
		`{"models":{"wan2.7-image":{"max_group":0,"options":[{"name":"thinking_mode","with":"x"}]}}}`:                  `options[0].with: "x"; allowed: prompt_extend, or none`,
	} {
		_, err := overlaid(newCatalog(), []byte(in))
		if assert.ErrorContains(t, err, want, in) {
			assert.NotContains(t, err.Error(), "\n")
		}
	}
}

// A file is named in its error; without one, too long, or a second one, the catalog stays.
func TestLoadCatalog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	require.ErrorIs(t, LoadCatalog(filepath.Join(dir, "none.json")), os.ErrNotExist)
	require.ErrorContains(t, LoadCatalog(file("wrong.json", `{"models":{"wanx-v1":{"concurrency":0}}}`)), `wrong.json: model "wanx-v1": concurrency: 0`)
	require.ErrorContains(t, LoadCatalog(file("long.json", string(make([]byte, maxOverlayBytes+1)))), "longer than 1048576 bytes")
	assert.Equal(t, newCatalog(), Models())

	empty := file("empty.json", `{"models": {}}`) // it changes nothing for the other tests
	require.NoError(t, LoadCatalog(empty))
	require.NoError(t, LoadCatalog(empty))
	require.ErrorIs(t, LoadCatalog(file("other.json", `{"models":{"wanx-v1":{"concurrency":2}}}`)), ErrCatalogInUse)
	assert.Equal(t, newCatalog(), Models())
}

// Whatever is in the file, it is an overlay or an error, and each request for its models is
// answered.
func FuzzOverlay(f *testing.F) {
	f.Add([]byte(`{"models":{"wanx-v1":{"concurrency":3,"prices":{"cn-beijing":0.2}}}}`))
	f.Add([]byte(`{"models":{"x":{"like":"wanx2.1-imageedit","prices":{"cn-beijing":0.2},"functions":[{"name":"a","options":[{"name":"strength","max":1}]}]}}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		models, err := overlaid(newCatalog(), content)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		for _, m := range models {
			require.NoError(t, checkModel(m, models))
			require.Positive(t, len(m.Prices))
			for region := range m.Prices {
				cost, sold := m.CostIn(region, m.ImagesAtMost())
				require.True(t, sold && cost > 0)
			}
		}
	})
}
