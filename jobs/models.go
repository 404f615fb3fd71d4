package jobs

import (
	"maps"
	"slices"
	"time"
)

// Pages of the facts, below help.aliyun.com/zh/model-studio unless they have a host.
const (
	seedPage      = "wanx-v1 help page (model table, key parameters)"
	referenceV1   = "wanx-v1 API reference, text-to-image-api-reference"
	referenceV2   = "text-to-image V2 API reference, text-to-image-v2-api-reference"
	referenceQwen = "Qwen-Image API reference, qwen-image-api"
	pricePage     = "model-pricing"
	ratePage      = "rate-limit"
)

// usualTaskTime is the middle of what the API reference of the V2 models says: usually one to
// two minutes.
const usualTaskTime = 90 * time.Second

// Models returns the catalog in the order for people. The caller may change the result.
func Models() []Model {
	models := slices.Clone(catalog())
	for i, m := range models {
		models[i] = m.clone()
	}
	return models
}

// catalog returns the catalog that is used for every request. Nothing may change it.
func catalog() []Model { return catalogInUse().models }

func newCatalog() []Model {
	const v2cut = "; the revision of December 2025 says 800"
	turbo20 := wan("wanx2.0-t2i-turbo", prices(40_000, 0))
	turbo20.PromptRunes = 800

	turbo21 := wan("wanx2.1-t2i-turbo", prices(140_000, 183_481))
	plus21 := wan("wanx2.1-t2i-plus", prices(200_000, 366_962))
	turbo21.RegionalNames = map[string]string{RegionSingapore: "wan2.1-t2i-turbo"}
	plus21.RegionalNames = map[string]string{RegionSingapore: "wan2.1-t2i-plus"}
	for _, m := range []*Model{&turbo21, &plus21} {
		m.TaskTime = 11 * time.Second
		m.Sources["TaskTime"] = referenceV2 + ", samples of January 2025: 10.8 and 11.7 s"
	}
	turbo21.Sources["RegionalNames"] = ratePage + ", " + pricePage
	plus21.Sources["RegionalNames"] = ratePage + ", " + pricePage

	flash22 := wan("wan2.2-t2i-flash", prices(140_000, 183_481))
	plus22 := wan("wan2.2-t2i-plus", prices(200_000, 366_962))
	for _, m := range []*Model{&turbo21, &plus21, &flash22, &plus22} {
		m.PromptRunes, m.PromptRunesElsewhere = 500, 800
		m.Sources["PromptRunes"] = referenceV2
		m.Sources["PromptRunesElsewhere"] = referenceV2 + v2cut
	}

	preview25 := wan("wan2.5-t2i-preview", prices(200_000, 220_177))
	preview25.PromptRunes = 2000
	preview25.Sizes = Sizes{Default: "1280*1280", MinPixels: 1280 * 1280, MaxPixels: 1440 * 1440, MaxRatio: 4}
	preview25.SubmitsPerSecond, preview25.Concurrency = 5, 5

	return append([]Model{
		wanxV1(), turbo20, turbo21, plus21, flash22, plus22, preview25,
		qwen("qwen-image", prices(250_000, 256_873)), qwen("qwen-image-plus", prices(200_000, 220_177)),
	}, otherPathModels()...)
}

// prices are in micro-yuan an image in Beijing and in Singapore, which the price
// page lists as international; 0: not sold there.
func prices(beijing, singapore int64) map[string]int64 {
	p := map[string]int64{RegionBeijing: beijing, RegionSingapore: singapore}
	maps.DeleteFunc(p, func(_ string, price int64) bool { return price == 0 })
	return p
}

func wanxV1() Model {
	return Model{
		Name:                 "wanx-v1",
		Protocol:             ProtocolText2Image,
		ServiceImages:        4,
		PromptRunes:          500,
		PromptRunesElsewhere: 800,
		NegativePromptRunes:  500,
		Styles: []Style{
			{"<auto>", []string{"默认", "自动"}},
			{"<photography>", []string{"摄影"}},
			{"<portrait>", []string{"人像写真", "人像"}},
			{"<3d cartoon>", []string{"3D卡通"}},
			{"<anime>", []string{"动画", "动漫"}},
			{"<oil painting>", []string{"油画"}},
			{"<watercolor>", []string{"水彩", "水彩画"}},
			{"<sketch>", []string{"素描"}},
			{"<chinese painting>", []string{"中国画", "国画"}},
			{"<flat illustration>", []string{"扁平插画"}},
		},
		Sizes: Sizes{
			Default: "1024*1024",
			List:    []string{"1024*1024", "720*1280", "768*1152", "1280*720"},
		},
		MaxImages:        4,
		MaxSeed:          maxSeed,
		RefModes:         []string{"repaint", "refonly"},
		Prices:           prices(160_000, 0),
		SubmitsPerSecond: 2,
		Concurrency:      1,
		TaskTime:         27 * time.Second,
		Sources: map[string]string{
			"Name":                 seedPage,
			"Protocol":             seedPage,
			"ServiceImages":        referenceV1,
			"PromptRunes":          seedPage,
			"PromptRunesElsewhere": referenceV1,
			"NegativePromptRunes":  seedPage + "; the API reference agrees",
			"Styles":               seedPage + ", with the Chinese names; 默认, 自动, 人像, 动漫, 水彩画 and 国画 are Danqing's",
			"Sizes":                referenceV1 + "; the FAILED example of the same page leaves out 768*1152",
			"MaxImages":            referenceV1,
			"MaxSeed":              referenceV1,
			"RefModes":             seedPage,
			"Prices":               seedPage + "; " + pricePage + " lists Beijing only",
			"SubmitsPerSecond":     seedPage + "; " + ratePage + " agrees",
			"Concurrency":          seedPage + "; " + ratePage + " agrees",
			"TaskTime":             referenceV1 + ", samples of October and November 2024: 26.6 and 27.0 s",
		},
	}
}

// wan returns the common fields of the Wanxiang models 2.0 to 2.2. [newCatalog] changes
// some of them for 2.5.
func wan(name string, prices map[string]int64) Model {
	return Model{
		Name:                name,
		Protocol:            ProtocolText2Image,
		ServiceImages:       4,
		NegativePromptRunes: 500,
		Sizes:               Sizes{Default: "1024*1024", MinSide: 512, MaxSide: 1440},
		MaxImages:           4,
		MaxSeed:             maxSeed,
		PromptExtend:        true,
		Watermark:           true,
		Prices:              prices,
		SubmitsPerSecond:    2,
		Concurrency:         2,
		TaskTime:            usualTaskTime,
		Sources: map[string]string{
			"Name":                referenceV2,
			"Protocol":            referenceV2,
			"ServiceImages":       referenceV2,
			"PromptRunes":         referenceV2,
			"NegativePromptRunes": referenceV2,
			"Sizes":               referenceV2,
			"MaxImages":           referenceV2,
			"MaxSeed":             referenceV2 + "; an older revision says that the images take the seeds that follow, the present one does not",
			"PromptExtend":        referenceV2,
			"Watermark":           referenceV2,
			"Prices":              pricePage,
			"SubmitsPerSecond":    ratePage,
			"Concurrency":         ratePage,
			"TaskTime":            referenceV2 + ": usually one to two minutes",
		},
	}
}

// qwen returns the common fields of the Qwen-Image models of this endpoint.
func qwen(name string, prices map[string]int64) Model {
	return Model{
		Name:                name,
		Protocol:            ProtocolText2Image,
		ServiceImages:       1,
		PromptRunes:         800,
		NegativePromptRunes: 500,
		Sizes: Sizes{
			Default: "1664*928",
			List:    []string{"1664*928", "1472*1104", "1328*1328", "1104*1472", "928*1664"},
		},
		MaxImages:        1,
		MaxSeed:          maxSeed,
		PromptExtend:     true,
		Watermark:        true,
		Prices:           prices,
		SubmitsPerSecond: 2,
		Concurrency:      2,
		Sources: map[string]string{
			"Name":                referenceQwen + " (asynchronous calls)",
			"Protocol":            referenceQwen + " (asynchronous calls)",
			"ServiceImages":       referenceQwen,
			"PromptRunes":         referenceQwen,
			"NegativePromptRunes": referenceQwen,
			"Sizes":               referenceQwen + "; older revisions default to 1328*1328, which is why a size is always sent",
			"MaxImages":           referenceQwen + ": any other n is an error",
			"MaxSeed":             referenceQwen,
			"PromptExtend":        referenceQwen,
			"Watermark":           referenceQwen,
			"Prices":              pricePage,
			"SubmitsPerSecond":    ratePage,
			"Concurrency":         ratePage + ", asynchronous calls",
		},
	}
}
