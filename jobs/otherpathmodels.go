package jobs

import (
	"maps"
	"strings"
	"time"
)

// Pages of the facts about the models of the other paths, beside those in models.go.
const (
	pythonSDK      = "dashscope-sdk-python 1.26.2, aigc/image_generation.py"
	javaSDK        = "dashscope-sdk-java 2.22.29, ImageGenerationParam"
	referenceQwen3 = "Qwen-Image 3.0 API reference, qwen-image-generation-and-editing-api-reference; " + copies
	referenceEdit  = "wanx2.1 API reference, wanx-image-edit-api-reference"
	copies         = "copies of the API reference by other services"
	reports        = "reports of users with a key of their own"
	ownChoice      = "Danqing's choice"
)

// listUnknown is the question that decides how a lost create of these models ends.
const listUnknown = "whether the account's task list shows their tasks: a lane asks, and until it has seen one, a lost create is held"

// otherPathModels are the models of the paths image-generation and image2image.
func otherPathModels() []Model {
	return []Model{
		wan26Text(), wan26Image(),
		wan27("wan2.7-image", prices(200_000, 220_177)), wan27Pro(),
		wan25Edit(), wanx21Edit(), qwen3("qwen-image-3.0", 180_000, 20), qwen3Pro(),
	}
}

// otherPathModel returns the common fields of these models. sources and confidence are completed by
// the fields that only some have.
func otherPathModel(m Model, path string, sources, confidence map[string]string) Model {
	m.MaxSeed, m.Watermark, m.SubmitsPerSecond, m.Concurrency = maxSeed, true, 5, 5
	m.Sources = map[string]string{
		"Name": ratePage + ", " + pricePage, "Protocol": path, "PromptRunes": path, "Sizes": path, "MaxImages": path, "ServiceImages": path,
		"MaxSeed": path, "Watermark": path, "Prices": pricePage, "SubmitsPerSecond": ratePage, "Concurrency": ratePage,
	}
	maps.Copy(m.Sources, sources)
	m.Confidence = map[string]string{}
	for fact, source := range m.Sources {
		switch {
		case strings.Contains(source, ownChoice):
			m.Confidence[fact] = "–"
		case strings.Contains(source, copies) || strings.Contains(source, reports):
			m.Confidence[fact] = "B"
		}
	}
	maps.Copy(m.Confidence, confidence)
	m.Unknown = append(m.Unknown, listUnknown)
	return m
}

func wan26Text() Model {
	m := otherPathModel(Model{
		Name: "wan2.6-t2i", Protocol: ProtocolImageGeneration, PromptRunes: 2000, PromptRunesElsewhere: 2100, NegativePromptRunes: 500,
		Sizes:     Sizes{Default: "1280*1280", MinPixels: 1280 * 1280, MaxPixels: 1440 * 1440, MaxRatio: 4},
		MaxImages: 4, ServiceImages: 4, PromptExtend: true, Prices: prices(200_000, 220_177), TaskTime: 27 * time.Second,
	}, referenceV2, map[string]string{
		"PromptRunesElsewhere": referenceV2 + "; another revision says 2100", "NegativePromptRunes": referenceV2, "PromptExtend": referenceV2,
		"SubmitsPerSecond": ratePage + ": 1 in Beijing, 5 elsewhere",
		"TaskTime":         referenceV2 + ", a sample of December 2025: 27.4 s",
	}, nil)
	m.Prices[RegionVirginia] = 200_000
	m.SubmitsPerSecond = 1
	m.Unknown = append(m.Unknown, "its price in Frankfurt (eu-central-1), where it is offered too")
	return m
}

func wan26Image() Model {
	return otherPathModel(Model{
		Name: "wan2.6-image", Protocol: ProtocolImageGeneration, PromptRunes: 2000, NegativePromptRunes: 500,
		Sizes:     Sizes{Default: "1280*1280", MinPixels: 768 * 768, MaxPixels: 1440 * 1440, MaxRatio: 4},
		Inputs:    Inputs{Min: 1, Max: 4, MinSide: 384, MaxSide: 5000, MaxBytes: 10 << 20},
		MaxImages: 4, ServiceImages: 4, PromptExtend: true, Prices: prices(200_000, 220_177),
		Unknown: []string{"whether 1K and 2K are sizes: copies of the page differ, and only width*height is sent", "the mode enable_interleave, which mixes texts and images: not offered"},
	}, pythonSDK+"; "+copies, map[string]string{
		"NegativePromptRunes": copies, "PromptExtend": pythonSDK, "Inputs": copies,
	}, map[string]string{"Sizes": "C", "Inputs": "C"})
}

// wan27 returns the common fields of the two models of 2.7.
func wan27(name string, prices map[string]int64) Model {
	return otherPathModel(Model{
		Name: name, Protocol: ProtocolImageGeneration, PromptRunes: 5000, NoNegativePrompt: true,
		Sizes:     Sizes{Default: "2K", Keywords: []string{"1K", "2K"}, MinPixels: 768 * 768, MaxPixels: 2048 * 2048, MaxRatio: 8},
		Inputs:    Inputs{Max: 9, MinSide: 240, MaxSide: 8000, MaxBytes: 20 << 20},
		MaxImages: 4, MaxGroup: 12, ServiceImages: 4, Prices: prices, TaskTime: 24 * time.Second,
		Options: []Option{{Name: "thinking_mode"}, {Name: "enable_sequential", Default: "false"}},
		Unknown: []string{
			"whether an edited image has the size that was asked for: a user's test says no",
			"the parameters color_palette and bbox_list: not offered",
		},
	}, javaSDK+"; "+copies, map[string]string{
		"NoNegativePrompt": javaSDK, "Inputs": copies, "Options": javaSDK, "MaxGroup": javaSDK, "TaskTime": reports,
		"ServiceImages": copies + ": 4, one says 1, which is why n is always sent",
		"Prices":        pricePage + "; a copy of September 2026 says 0.224826 in Singapore for wan2.7-image",
	}, map[string]string{"ServiceImages": "C", "TaskTime": "C", "NoNegativePrompt": "B"})
}

func wan27Pro() Model {
	m := wan27("wan2.7-image-pro", prices(500_000, 562_065))
	m.EditSizes = m.Sizes
	m.Sizes.Keywords, m.Sizes.MaxPixels = []string{"1K", "2K", "4K"}, 4096*4096
	m.Sources["EditSizes"], m.Confidence["EditSizes"] = m.Sources["Sizes"]+": 4K and more than 2048*2048 pixels only without reference images and not in a group", "B"
	return m
}

func wan25Edit() Model {
	return otherPathModel(Model{
		Name: "wan2.5-i2i-preview", Protocol: ProtocolImage2Image, PromptRunes: 2000, NegativePromptRunes: 500,
		Sizes:     Sizes{Default: "1280*1280", MinPixels: 768 * 768, MaxPixels: 1280 * 1280, MaxRatio: 4},
		Inputs:    Inputs{Min: 1, Max: 3, MinSide: 384, MaxSide: 5000, MaxBytes: 10 << 20},
		MaxImages: 4, ServiceImages: 4, PromptExtend: true, Prices: prices(200_000, 220_177),
	}, "wan2.5-i2i-preview API reference; "+copies, map[string]string{
		"NegativePromptRunes": copies, "PromptExtend": copies, "Inputs": copies,
	}, map[string]string{"Sizes": "C", "Inputs": "C", "ServiceImages": "C"})
}

func wanx21Edit() Model {
	strength := []Option{{Name: "strength", Default: "0.5", Max: 1}}
	scale := func(name string) Option { return Option{Name: name, Default: "1", Min: 1, Max: 2} }
	m := otherPathModel(Model{
		Name: "wanx2.1-imageedit", Protocol: ProtocolImage2Image, PromptRunes: 800, NoNegativePrompt: true,
		Inputs:    Inputs{Min: 1, Max: 1, MinSide: 512, MaxSide: 4096, MaxBytes: 10 << 20},
		MaxImages: 4, ServiceImages: 1, Prices: prices(140_000, 0), TaskTime: 10 * time.Second,
		Functions: []Function{
			{Name: "stylization_all", Options: strength},
			{Name: "stylization_local"},
			{Name: "description_edit", Options: strength},
			{Name: "description_edit_with_mask", Mask: true},
			{Name: "remove_watermark"},
			{Name: "expand", Options: []Option{scale("top_scale"), scale("bottom_scale"), scale("left_scale"), scale("right_scale")}},
			{Name: "super_resolution", Options: []Option{{Name: "upscale_factor", Default: "1", Min: 1, Max: 4, Whole: true}}},
			{Name: "colorization"},
			{Name: "doodle", Options: []Option{{Name: "is_sketch", Default: "false"}}},
			{Name: "control_cartoon_feature"},
		},
	}, referenceEdit, map[string]string{
		"NoNegativePrompt": referenceEdit, "Inputs": referenceEdit, "Functions": referenceEdit + "; the range of the scales: a user's program; those of strength and upscale_factor: " + ownChoice,
		"TaskTime": referenceEdit + ": 5 to 15 s",
	}, nil)
	m.SubmitsPerSecond, m.Concurrency = 2, 2
	delete(m.Sources, "Sizes")
	return m
}

// qwen3 returns the common fields of the two models of Qwen-Image 3.0.
func qwen3(name string, beijing int64, perMinute int) Model {
	m := otherPathModel(Model{
		Name: name, Protocol: ProtocolImageGeneration,
		Sizes:     Sizes{Default: "1024*1024", MinPixels: 512 * 512, MaxPixels: 2048 * 2048, MaxRatio: 8},
		Inputs:    Inputs{Max: 3},
		MaxImages: 6, ServiceImages: 1, PromptExtend: true, SubmitsPerMinute: perMinute, TaskTime: 65 * time.Second,
		Prices: prices(beijing, 0), InputPrices: prices(20_000, 0),
		Options: []Option{
			{Name: "prompt_extend_mode", Default: "direct", Values: []string{"direct", "agent"}, TextOnly: []string{"agent"}, With: "prompt_extend"},
			{Name: "enable_thinking", Default: "true", With: "prompt_extend"},
		},
		Unknown: []string{
			"its prices in Singapore, Frankfurt and Tokyo, where it is offered too",
			"how many of its tasks run at once: Danqing sends one after the other",
			"the longest prompt (about 4500 tokens) and negative prompt",
			"whether a failed task is free, as with the older models",
			"whether a reference image is charged once, or for each image: the dearer is reserved",
			"whether an edited image has the size that was asked for: a user's test says 2048*2048, whatever was asked",
		},
	}, referenceQwen3, map[string]string{
		"PromptExtend": referenceQwen3, "Options": referenceQwen3, "Inputs": referenceQwen3,
		"Sizes":  referenceQwen3 + "; without one it takes 2048*2048, which costs double with qwen-image-3.0-pro",
		"Name":   referenceQwen3,
		"Prices": reports, "InputPrices": reports,
		"SubmitsPerMinute": reports,
		"SubmitsPerSecond": ownChoice + ": only the limit per minute is known",
		"Concurrency":      ownChoice + ": not known",
		"TaskTime":         reports + ": 61 to 72 s with thinking, 17.6 s without",
	}, nil)
	delete(m.Sources, "PromptRunes")
	delete(m.Confidence, "PromptRunes")
	m.SubmitsPerSecond, m.Concurrency = 1, 1
	return m
}

func qwen3Pro() Model {
	m := qwen3("qwen-image-3.0-pro", 250_000, 5)
	m.LargePixels, m.LargePrices = 2_250_000, prices(500_000, 0)
	for _, fact := range []string{"LargePixels", "LargePrices"} {
		m.Sources[fact], m.Confidence[fact] = reports, "B"
	}
	return m
}
