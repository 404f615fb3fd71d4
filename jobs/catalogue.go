package jobs

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// DefaultModel is the model of a request that names none.
const DefaultModel = "wanx-v1"

// maxSeed is the largest seed of every model (API references of wanx-v1 and of
// the V2 models).
const maxSeed = 2147483647

// RegionBeijing is the region behind dashscope.aliyuncs.com, spelt as in the
// service's host names.
const RegionBeijing = "cn-beijing"

// Model is one entry of the catalogue: what a model takes, what it costs and
// how fast it may be asked. It is data; Sources says where each fact is from.
type Model struct {
	// Name is the model as the service spells it.
	Name string
	// PromptRunes and NegativePromptRunes are the characters (runes) that the
	// most cautious page promises to read; the service cuts the rest off
	// silently. A longer text is warned about, never refused or cut.
	PromptRunes, NegativePromptRunes int
	// PromptRunesNewer is what a later page says instead; 0 if none does.
	PromptRunesNewer int
	// Styles are the values of style, the default first. Empty: the model has
	// no style.
	Styles []Style
	// Sizes says which sizes the model paints.
	Sizes Sizes
	// MaxImages is the largest n; the smallest is 1.
	MaxImages int
	// MaxSeed is the largest seed that any image of a request may have; the
	// smallest is 0. The n images of a request take seed, seed+1, … seed+n-1.
	MaxSeed int64
	// RefModes are the values of ref_mode, the default first. Empty: the model
	// takes no reference image.
	RefModes []string
	// Prices are in micro-yuan an image, by region. The model exists in these
	// regions and no other. Only images that were made are charged.
	Prices map[string]int64
	// SubmitsPerSecond is how many creates a second the service takes from one
	// main account.
	SubmitsPerSecond float64
	// Concurrency is how many tasks of one main account it works on at once;
	// the largest that a lane may be set to.
	Concurrency int
	// Sources names, by field, the page that the fact is from.
	Sources map[string]string
}

// Style is one value of style, as the service spells it, and the other names it
// goes by. Names are matched without regard to case, spaces and angle brackets.
type Style struct {
	Value string
	Names []string
}

// Sizes is the rule that a model's sizes follow: a list, or bounds. A zero
// bound does not bind.
type Sizes struct {
	// Default is the size of a request that names none, as in 1024*1024.
	Default string
	// List holds all sizes there are; if it is not empty, the bounds are unused.
	List []string
	// MinSide and MaxSide bound width and height, in pixels.
	MinSide, MaxSide int
	// MinPixels and MaxPixels bound width times height.
	MinPixels, MaxPixels int
	// MaxRatio bounds the longer side divided by the shorter.
	MaxRatio int
}

// Models returns the catalogue, in the order in which it should be shown. The
// caller may change what it gets.
func Models() []Model {
	const (
		seedPage  = "wanx-v1 help page (model table, key parameters)"
		reference = "wanx-v1 API reference, help.aliyun.com/zh/model-studio/text-to-image-api-reference"
	)
	return []Model{{
		Name:                "wanx-v1",
		PromptRunes:         500,
		PromptRunesNewer:    800,
		NegativePromptRunes: 500,
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
		Prices:           map[string]int64{RegionBeijing: 160_000},
		SubmitsPerSecond: 2,
		Concurrency:      1,
		Sources: map[string]string{
			"Name":                seedPage,
			"PromptRunes":         seedPage,
			"PromptRunesNewer":    reference,
			"NegativePromptRunes": seedPage + "; the API reference agrees",
			"Styles":              seedPage + ", with the Chinese names; 默认, 自动, 人像, 动漫, 水彩画 and 国画 are ours",
			"Sizes":               reference + "; the FAILED example of the same page leaves out 768*1152",
			"MaxImages":           reference,
			"MaxSeed":             reference,
			"RefModes":            seedPage,
			"Prices":              seedPage + "; help.aliyun.com/zh/model-studio/model-pricing lists Beijing only",
			"SubmitsPerSecond":    seedPage + "; help.aliyun.com/zh/model-studio/rate-limit agrees",
			"Concurrency":         seedPage + "; help.aliyun.com/zh/model-studio/rate-limit agrees",
		},
	}}
}

// LookupModel returns the catalogue's entry of that exact name; "" is
// [DefaultModel]. The error is a [FieldError] that lists the models there are.
func LookupModel(name string) (Model, error) {
	if name == "" {
		name = DefaultModel
	}
	var names []string
	for _, m := range Models() {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	e := FieldError{Field: "model", Value: show(name), Allowed: strings.Join(names, ", ")}
	if near := nearest(strings.ToLower(name), names); near != "" {
		e.Remedy = fmt.Sprintf("did you mean %q?", near)
	}
	return Model{}, e
}

// Cost is the price of so many images in micro-yuan (1 yuan is 1,000,000), in
// Beijing, without regard to a free quota.
func (m Model) Cost(images int) int64 {
	return int64(images) * m.Prices[RegionBeijing]
}

// style returns the service's spelling of a style; as given, and false, if the
// model has no such style. An empty one is the default.
func (m Model) style(given string) (string, bool) {
	if len(m.Styles) == 0 {
		return given, given == ""
	}
	if given == "" {
		return m.Styles[0].Value, true
	}
	key := styleKey(given)
	for _, s := range m.Styles {
		if styleKey(s.Value) == key {
			return s.Value, true
		}
		if slices.ContainsFunc(s.Names, func(name string) bool { return styleKey(name) == key }) {
			return s.Value, true
		}
	}
	return given, false
}

// styleKey is a style's name without what people write differently: case,
// spaces, hyphens, and angle brackets, which a Chinese keyboard types wide.
func styleKey(name string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("<>＜＞《》〈〉_- \t\u3000", r) {
			return -1
		}
		return r
	}, strings.ToLower(name))
}

// styles lists the styles for a reader, with the first Chinese name of each.
func (m Model) styles() string {
	var b strings.Builder
	for i, s := range m.Styles {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(s.Value)
		if len(s.Names) > 0 {
			fmt.Fprintf(&b, " (%s)", s.Names[0])
		}
	}
	return b.String()
}

// sizePattern reads 1024*1024 and the ways in which people write it.
var sizePattern = regexp.MustCompile(`^\s*([0-9]{1,6})\s*[*xX×＊ｘ✕]\s*([0-9]{1,6})\s*$`)

// parseSize reads a size; ok is false if it is none.
func parseSize(s string) (width, height int, ok bool) {
	match := sizePattern.FindStringSubmatch(s)
	if match == nil {
		return 0, 0, false
	}
	width, _ = strconv.Atoi(match[1]) // the pattern bounds it
	height, _ = strconv.Atoi(match[2])
	return width, height, true
}

// canonicalSize spells a size as the service does; what is none stays as it is.
func canonicalSize(s string) string {
	width, height, ok := parseSize(s)
	if !ok {
		return s
	}
	return fmt.Sprintf("%d*%d", width, height)
}

// Allows reports whether a size, spelt as in 1024*1024, follows the rule.
func (s Sizes) Allows(size string) bool {
	if len(s.List) > 0 {
		return slices.Contains(s.List, size)
	}
	w, h, ok := parseSize(size)
	if !ok || w == 0 || h == 0 {
		return false
	}
	within := func(v, low, high int) bool { return v >= low && (high == 0 || v <= high) }
	return within(w, s.MinSide, s.MaxSide) && within(h, s.MinSide, s.MaxSide) &&
		within(w*h, s.MinPixels, s.MaxPixels) &&
		(s.MaxRatio == 0 || max(w, h) <= s.MaxRatio*min(w, h))
}

// String says what is allowed, for a person.
func (s Sizes) String() string {
	if len(s.List) > 0 {
		return strings.Join(s.List, ", ")
	}
	rules := []string{"width*height"}
	if s.MaxSide > 0 {
		rules = append(rules, fmt.Sprintf("each side %d to %d", s.MinSide, s.MaxSide))
	}
	if s.MaxPixels > 0 {
		rules = append(rules, fmt.Sprintf("%d to %d pixels in all", s.MinPixels, s.MaxPixels))
	}
	if s.MaxRatio > 0 {
		rules = append(rules, fmt.Sprintf("at most %d:1 either way", s.MaxRatio))
	}
	return strings.Join(rules, ", ")
}
