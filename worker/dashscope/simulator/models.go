package simulator

import (
	"cmp"
	"fmt"
	"math"
	randv2 "math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// MicroYuanPerImage is the price of one image of wanx-v1, 0.16 yuan
// (model-pricing page), in millionths of a yuan.
const MicroYuanPerImage = 160_000

// model describes one model in one region.
type model struct {
	name string
	// promptRunes is the length at which the prompt is truncated (API references; for
	// the models 2.1 and 2.2 the current revision).
	promptRunes int
	sizes       sizes
	// maxImages is the largest n; an absent n means the same.
	maxImages int
	// honors reports whether a parameter has an effect: the service ignores the others.
	honors func(parameter string) bool
	// watermark is the watermark's text.
	watermark string
	// microYuan is the price of an image (model-pricing page).
	microYuan int64
	// submits per second and concurrent tasks are the limits per account (rate-limit
	// page).
	submits, concurrency int
	// seconds is the median time of a task without prompt_extend.
	seconds float64
	// catalog has the facts of a model that catalogModels returns; nil for the others.
	catalog *jobs.Model
	region  string // of catalog
}

// protocol is the shape of the model's creates and answers.
func (m model) protocol() dashscope.Protocol {
	if m.catalog == nil {
		return dashscope.ProtocolText2Image
	}
	return dashscope.Protocol(m.catalog.Protocol)
}

// defaultImages is the n of a create without one.
func (m model) defaultImages() int {
	if m.catalog == nil {
		return m.maxImages
	}
	return m.catalog.ServiceImages
}

// catalogModels returns the models of a region's other paths, and those of an overlay, as the catalog
// has them.
func catalogModels(region string) []model {
	var list []model
	for _, m := range jobs.Models() {
		name, sold := m.NameIn(cmp.Or(region, jobs.RegionBeijing))
		if !sold || m.Protocol == jobs.ProtocolText2Image && !m.Overlaid {
			continue
		}
		price, _ := m.CostIn(cmp.Or(region, jobs.RegionBeijing), 1)
		s := sizes{
			fallback: cmp.Or(m.Sizes.Default, "1024*1024"), list: m.Sizes.List, keywords: m.Sizes.Keywords, minSide: m.Sizes.MinSide, maxSide: m.Sizes.MaxSide,
			minPixels: m.Sizes.MinPixels, maxPixels: m.Sizes.MaxPixels, ratio: m.Sizes.MaxRatio,
		}
		list = append(list, model{
			name: name, promptRunes: cmp.Or(m.PromptRunes, math.MaxInt32), sizes: s, maxImages: m.ImagesAtMost(), watermark: "AI生成", microYuan: price,
			submits: max(int(m.SubmitsPerSecond), 1), concurrency: m.Concurrency, seconds: cmp.Or(m.TaskTime, 20*time.Second).Seconds(), catalog: &m, region: cmp.Or(region, jobs.RegionBeijing),
		})
	}
	return list
}

// sizes is a list of sizes, or bounds if the list is empty.
type sizes struct {
	fallback                                      string
	list, keywords                                []string
	minSide, maxSide, minPixels, maxPixels, ratio int
}

// parse parses a size; "" means the default. It reports whether the model supports the
// size.
func (s sizes) parse(text string) (width, height int, ok bool) {
	if text == "" {
		text = s.fallback
	}
	if slices.Contains(s.keywords, text) {
		side := int(text[0]-'0') * 1024 // 1K, 2K or 4K
		return side, side, true
	}
	w, h, _ := strings.Cut(text, "*")
	width, err := strconv.Atoi(w)
	height, err2 := strconv.Atoi(h)
	switch {
	case err != nil || err2 != nil || width < 1 || height < 1 || width > 1<<16 || height > 1<<16:
		return 0, 0, false
	case len(s.list) > 0:
		return width, height, slices.Contains(s.list, text)
	}
	ok = min(width, height) >= s.minSide && (s.maxSide == 0 || max(width, height) <= s.maxSide) &&
		width*height >= s.minPixels && (s.maxPixels == 0 || width*height <= s.maxPixels) &&
		(s.ratio == 0 || max(width, height) <= s.ratio*min(width, height))
	return width, height, ok
}

// message returns the message of a task with a wrong size. That of a list is quoted
// from the text-to-image reference; the others are assumed.
func (s sizes) message() string {
	switch {
	case len(s.list) > 0:
		return "The size is not match the allowed size ['" + strings.Join(s.list, "', '") + "']"
	case s.maxSide > 0:
		return fmt.Sprintf("The size is not match, width and height must be in the range [%d, %d].", s.minSide, s.maxSide)
	default:
		return fmt.Sprintf("The size is not match, total pixels must be in the range [%d, %d] and the aspect ratio between 1:%d and %d:1.", s.minPixels, s.maxPixels, s.ratio, s.ratio)
	}
}

// lookupModel finds a model of the simulator's region by its spelling there.
func (s *Simulator) lookupModel(name string) (model, bool) {
	for _, m := range s.regionModels() {
		if m.name == name {
			m.honors = honors(s.Region, name)
			return m, true
		}
	}
	return model{}, false
}

// regionModels are all models of the simulator's region.
func (s *Simulator) regionModels() []model {
	ofCatalog := catalogModels(s.Region)
	own := slices.DeleteFunc(models(s.Region), func(m model) bool {
		return slices.ContainsFunc(ofCatalog, func(o model) bool { return o.name == m.name })
	})
	return append(own, ofCatalog...)
}

// honors returns the rule of the catalog for a model, by its spelling in the region.
func honors(region, name string) func(parameter string) bool {
	for _, m := range jobs.Models() {
		if spelling, _ := m.NameIn(cmp.Or(region, jobs.RegionBeijing)); spelling == name {
			return m.Honors
		}
	}
	return func(string) bool { return false }
}

// models lists the region's models at text2image/image-synthesis.
func models(region string) []model {
	const turbo, plus, preview = 5.7, 7.7, 23.9 // 9.2, 11.2 and 27.4 s with prompt_extend
	square := sizes{fallback: "1024*1024", minSide: 512, maxSide: 1440}
	pixels := sizes{fallback: "1280*1280", minPixels: 1280 * 1280, maxPixels: 1440 * 1440, ratio: 4}
	qwen := sizes{fallback: "1664*928", list: []string{"1664*928", "1472*1104", "1328*1328", "1104*1472", "928*1664"}}
	const ai, qwenMark = "AI生成", "Qwen-Image"
	switch region {
	case "", dashscope.RegionBeijing:
		v1 := sizes{fallback: "1024*1024", list: []string{"1024*1024", "720*1280", "768*1152", "1280*720"}}
		return []model{
			{"wanx-v1", 800, v1, 4, nil, "", MicroYuanPerImage, 2, 1, 26.8, nil, ""},
			{"wanx2.0-t2i-turbo", 800, square, 4, nil, ai, 40_000, 2, 2, turbo, nil, ""},
			{"wanx2.1-t2i-turbo", 500, square, 4, nil, ai, 140_000, 2, 2, turbo, nil, ""},
			{"wanx2.1-t2i-plus", 500, square, 4, nil, ai, 200_000, 2, 2, plus, nil, ""},
			{"wan2.2-t2i-flash", 500, square, 4, nil, ai, 140_000, 2, 2, turbo, nil, ""},
			{"wan2.2-t2i-plus", 500, square, 4, nil, ai, 200_000, 2, 2, plus, nil, ""},
			{"wan2.5-t2i-preview", 2000, pixels, 4, nil, ai, 200_000, 5, 5, preview, nil, ""},
			{"qwen-image", 800, qwen, 1, nil, qwenMark, 250_000, 2, 2, plus, nil, ""},
			{"qwen-image-plus", 800, qwen, 1, nil, qwenMark, 200_000, 2, 2, plus, nil, ""},
		}
	case dashscope.RegionSingapore:
		return []model{
			{"wan2.1-t2i-turbo", 500, square, 4, nil, ai, 183_481, 2, 2, turbo, nil, ""},
			{"wan2.1-t2i-plus", 500, square, 4, nil, ai, 366_962, 2, 2, plus, nil, ""},
			{"wan2.2-t2i-flash", 500, square, 4, nil, ai, 183_481, 2, 2, turbo, nil, ""},
			{"wan2.2-t2i-plus", 500, square, 4, nil, ai, 366_962, 2, 2, plus, nil, ""},
			{"wan2.5-t2i-preview", 2000, pixels, 4, nil, ai, 220_177, 5, 5, preview, nil, ""},
			{"qwen-image", 800, qwen, 1, nil, qwenMark, 256_873, 2, 2, plus, nil, ""},
			{"qwen-image-plus", 800, qwen, 1, nil, qwenMark, 220_177, 2, 2, plus, nil, ""},
		}
	default:
		return nil
	}
}

// unknownModel returns the error for a model that is at another endpoint, or does not
// exist (error-code page).
func unknownModel(name string) *apiError {
	otherEndpoints := []string{"wan2.6", "wan2.7", "wan3.0", "qwen-image-max", "qwen-image-2.0", "qwen-image-edit", "z-image"}
	if slices.ContainsFunc(otherEndpoints, func(family string) bool { return strings.HasPrefix(name, family) }) {
		return wrongPath()
	}
	return &apiError{http.StatusBadRequest, "InvalidParameter", "Model not exist."}
}

// Retire makes the service refuse creates and uploads of a model, by its spelling in the region,
// from a time on. Its tasks are finished. Before that the list of models announces it.
func (s *Simulator) Retire(model string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retired == nil {
		s.retired = map[string]time.Time{}
	}
	s.retired[model] = at
}

// retiresAt returns when a model is retired, zero if that is not announced.
func (s *Simulator) retiresAt(model string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.retired[model]
}

// isRetired reports whether a model is retired.
func (s *Simulator) isRetired(model string) bool {
	at := s.retiresAt(model)
	return !at.IsZero() && !wallClock().Before(at)
}

// retiredModel returns the error for a model that is retired (rate-limit page: 403 access_denied
// or 404).
func retiredModel() *apiError {
	return &apiError{http.StatusNotFound, "ModelNotFound", "Model not exist."}
}

// wrongPath returns the error of a create at another model's path (error-code page).
func wrongPath() *apiError {
	return &apiError{http.StatusBadRequest, "InvalidParameter", "url error, please check url!"}
}

// defaultTaskTime is log-normal around the model's median; the spread is assumed. With
// prompt_extend it takes 3 to 4 s more (text-to-image V2 reference).
//
// The medians: 26.6 s and 27.0 s for wanx-v1 (its reference); with prompt_extend 10.8 s
// and 11.7 s for wanx2.1 (V2 reference), 9.2 s for wanx2.1-t2i-turbo
// (manage-asynchronous-tasks). The others are assumed to be like those, and wan2.5 like
// the 27.4 s of wan2.6.
func defaultTaskTime(rng *randv2.Rand, m model, req dashscope.CreateRequest) time.Duration {
	const sigma = 0.12
	seconds := m.seconds * math.Exp(sigma*rng.NormFloat64())
	if m.rewritesPrompt(req) {
		seconds += 3 + rng.Float64()
	}
	return time.Duration(seconds * float64(time.Second))
}

// rewritesPrompt reports whether the prompt is rewritten: the model supports it and the
// request does not disable it.
func (m model) rewritesPrompt(req dashscope.CreateRequest) bool {
	p := req.Parameters.PromptExtend
	return m.honors("prompt_extend") && (p == nil || *p)
}

// hasWatermark reports whether the image has a watermark.
func (m model) hasWatermark(req dashscope.CreateRequest) bool {
	p := req.Parameters.Watermark
	return m.honors("watermark") && p != nil && *p
}

// rewritePrompt returns the prompt as a language model would rewrite it,
// deterministically.
func rewritePrompt(prompt string) string {
	chinese := []string{"晨光斜照，空气中有细微的尘粒", "层次分明的远景，柔和的景深", "质感细腻，光影过渡自然", "构图均衡，留白得当，色调统一"}
	english := []string{"low morning light with dust in the air", "a layered background with soft depth of field", "fine texture and gentle gradations of light", "balanced composition in one restrained palette"}
	details, comma, stop := english, ", ", "."
	for _, r := range prompt {
		if r >= 0x2e80 {
			details, comma, stop = chinese, "，", "。"
			break
		}
	}
	sum := hash("simulator", "extend", prompt)
	first := int(sum[0]) % len(details)
	second := (first + 1 + int(sum[1])%(len(details)-1)) % len(details)
	return strings.TrimRight(prompt, " \n\t。.,\uff0c") + comma + details[first] + comma + details[second] + stop
}
