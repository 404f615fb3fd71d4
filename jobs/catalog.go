package jobs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// DefaultModel is the model of a request without one.
const DefaultModel = "wanx-v1"

// maxSeed is the largest seed of every model (API references of wanx-v1 and of
// the V2 models).
const maxSeed = 2147483647

// Regions of the service, spelled as in its host names.
const (
	// RegionBeijing is behind dashscope.aliyuncs.com.
	RegionBeijing = "cn-beijing"
	// RegionSingapore is behind dashscope-intl.aliyuncs.com.
	RegionSingapore = "ap-southeast-1"
	// RegionVirginia is behind dashscope-us.aliyuncs.com.
	RegionVirginia = "us-east-1"
)

// Protocol is the shape of a model's requests and results at the service. Its values are those
// of dashscope.Protocol.
type Protocol string

// The protocols.
const (
	ProtocolText2Image      Protocol = "text2image"
	ProtocolImage2Image     Protocol = "image2image"
	ProtocolImageGeneration Protocol = "image-generation"
)

// Model is one entry of the catalog: the parameters, prices and limits of a model. Sources has
// the page of each fact. The names in JSON are those of an overlay, see [LoadCatalog].
type Model struct {
	// Name is the model's name at the service in Beijing. Requests, queues, records and
	// sidecars use it for all regions.
	Name string `json:"-"`
	// RegionalNames are other spellings, by region. See [Model.NameIn].
	RegionalNames map[string]string `json:"regional_names"`
	// Protocol is the shape of its requests and results.
	Protocol Protocol `json:"protocol"`
	// PromptRunes and NegativePromptRunes are how many characters (runes) the service reads
	// according to the most cautious page; it drops the rest silently. A longer text gets a
	// warning, and is sent whole. 0 means that no limit is known.
	PromptRunes         int `json:"prompt_runes"`
	NegativePromptRunes int `json:"negative_prompt_runes"`
	// NoNegativePrompt is set if the model has no negative_prompt.
	NoNegativePrompt bool `json:"no_negative_prompt"`
	// PromptRunesElsewhere is the figure of another page or revision; 0 for none.
	PromptRunesElsewhere int `json:"prompt_runes_elsewhere"`
	// Styles are the values of style, the default first. Empty: the model has
	// no style.
	Styles []Style `json:"styles"`
	// Sizes are the sizes that the model allows. EditSizes replace them for a request with
	// reference images or of a group, unless they are zero.
	Sizes     Sizes `json:"sizes"`
	EditSizes Sizes `json:"edit_sizes"`
	// MaxImages is the largest n; the smallest is 1. MaxGroup is that of a request with
	// enable_sequential; 0 if the model has no such groups.
	MaxImages int `json:"max_images"`
	MaxGroup  int `json:"max_group"`
	// ServiceImages is the n of the service for a request without one. Danqing always sends n.
	ServiceImages int `json:"service_images"`
	// MaxSeed is the largest seed that any image of a request may have; the
	// smallest is 0. The n images of a request take seed, seed+1, … seed+n-1.
	MaxSeed int64 `json:"max_seed"`
	// RefModes are the values of ref_mode, the default first. Empty: the model
	// takes no image as ref_img.
	RefModes []string `json:"ref_modes"`
	// Inputs are the reference images of a model that edits.
	Inputs Inputs `json:"inputs"`
	// Functions are the values of function. Empty: the model has no functions.
	Functions []Function `json:"functions"`
	// Options are the parameters that only some models have.
	Options []Option `json:"options"`
	// PromptExtend is whether the model has prompt_extend: a language model
	// rewrites the prompt first, which takes 3 to 4 s. Its default is true.
	PromptExtend bool `json:"prompt_extend"`
	// Watermark is whether the model has watermark, at the bottom right of the
	// image. Its default is false.
	Watermark bool `json:"watermark"`
	// Prices are in micro-yuan an image, by region. The model is offered in these
	// regions and no other. Only created images are charged.
	Prices map[string]int64 `json:"-"`
	// LargePrices are those of an image with more than LargePixels pixels, if that is not 0.
	LargePrices map[string]int64 `json:"-"`
	LargePixels int              `json:"large_pixels"`
	// InputPrices are in micro-yuan for each reference image, by region; nil if these are free.
	InputPrices map[string]int64 `json:"-"`
	// SubmitsPerSecond is how many creates per second the service accepts from one main
	// account.
	SubmitsPerSecond float64 `json:"submits_per_second"`
	// SubmitsPerMinute is how many it accepts per minute; 0 for no other limit.
	SubmitsPerMinute int `json:"submits_per_minute"`
	// Concurrency is how many tasks of one main account run at once, and the maximum
	// concurrency of a lane.
	Concurrency int `json:"concurrency"`
	// TaskTime is how long a task takes according to the documentation, to plan with until
	// there are measurements; 0 if no page says so.
	TaskTime time.Duration `json:"-"`
	// Sources are the pages of the facts, by field.
	Sources map[string]string `json:"-"`
	// Confidence is how well a fact is known, by field: "B" two reports agree, "C" one report, "–"
	// Danqing's choice, in whole or in part. A fact without an entry is from an official page or
	// SDK. None was tried.
	Confidence map[string]string `json:"-"`
	// Unknown are the questions that no page answers, for people.
	Unknown []string `json:"unknown"`
	// Overlaid is set if an overlay has added or corrected the model, see [LoadCatalog].
	Overlaid bool `json:"-"`
}

// Inputs are the limits of reference images.
type Inputs struct {
	// Min and Max are how many a request has; a Max of 0 means that the model takes none.
	Min int `json:"min"`
	Max int `json:"max"`
	// MinSide and MaxSide are in pixels, MaxBytes limits the file.
	MinSide  int   `json:"min_side"`
	MaxSide  int   `json:"max_side"`
	MaxBytes int64 `json:"max_bytes"`
}

// Function is what a model does with its reference image.
type Function struct {
	// Name is the value of function.
	Name string `json:"name"`
	// Mask is whether it needs a mask. The other functions take none.
	Mask bool `json:"mask"`
	// Options are the parameters that only some functions have.
	Options []Option `json:"options"`
}

// Style is one value of style in the service's spelling, with its other names. Names match
// regardless of case, spaces and angle brackets.
type Style struct {
	Value string   `json:"value"`
	Names []string `json:"names"`
}

// LookupModel returns the model with exactly this name; "" is [DefaultModel]. The error is a
// [FieldError] that lists the models.
func LookupModel(name string) (Model, error) {
	m, err := lookupModel(name, catalog())
	return m.clone(), err
}

// clone returns a copy that shares nothing with m.
func (m Model) clone() Model {
	m.RegionalNames, m.Prices, m.Sources = maps.Clone(m.RegionalNames), maps.Clone(m.Prices), maps.Clone(m.Sources)
	m.Styles, m.RefModes, m.Sizes.List = slices.Clone(m.Styles), slices.Clone(m.RefModes), slices.Clone(m.Sizes.List)
	m.EditSizes.List, m.Sizes.Keywords, m.EditSizes.Keywords = slices.Clone(m.EditSizes.List), slices.Clone(m.Sizes.Keywords), slices.Clone(m.EditSizes.Keywords)
	m.LargePrices, m.InputPrices = maps.Clone(m.LargePrices), maps.Clone(m.InputPrices)
	m.Confidence, m.Unknown = maps.Clone(m.Confidence), slices.Clone(m.Unknown)
	for i, style := range m.Styles {
		m.Styles[i].Names = slices.Clone(style.Names)
	}
	m.Options, m.Functions = cloneOptions(m.Options), slices.Clone(m.Functions)
	for i, f := range m.Functions {
		m.Functions[i].Options = cloneOptions(f.Options)
	}
	return m
}

func cloneOptions(options []Option) []Option {
	options = slices.Clone(options)
	for i, o := range options {
		options[i].Values, options[i].TextOnly = slices.Clone(o.Values), slices.Clone(o.TextOnly)
	}
	return options
}

func lookupModel(name string, all []Model) (Model, error) {
	if name == "" {
		name = DefaultModel
	}
	if i := slices.IndexFunc(all, func(m Model) bool { return m.Name == name }); i >= 0 {
		return all[i], nil
	}
	names := make([]string, len(all))
	for i, m := range all {
		names[i] = m.Name
	}
	if e, synchronous := synchronousModel(name); synchronous {
		return Model{}, e
	}
	e := FieldError{Field: "model", Value: show(name), Allowed: strings.Join(names, ", ")}
	if own := modelName(name); own != name {
		e.Remedy = fmt.Sprintf("this is a region's spelling: write %q", own)
	} else if similar := closest(strings.ToLower(name), names); similar != "" {
		e.Remedy = fmt.Sprintf("did you mean %q?", similar)
	}
	return Model{}, e
}

// ModelNamed returns the model with this name or regional name; "" is [DefaultModel].
func ModelNamed(name string) (m Model, known bool) {
	m, err := LookupModel(modelName(name))
	return m, err == nil
}

// modelName returns the catalog's name for a regional name of a model, and any other name
// unchanged.
func modelName(name string) string {
	if own, ok := catalogInUse().regional[name]; ok {
		return own
	}
	return name
}

// NameIn is the model's name in requests and lists of a region. sold is false if the region
// does not have the model.
func (m Model) NameIn(region string) (name string, sold bool) {
	if _, sold = m.Prices[region]; !sold {
		return "", false
	}
	if regional := m.RegionalNames[region]; regional != "" {
		return regional, true
	}
	return m.Name, true
}

// CheckRegion fails unless the region has the model. The error is a [FieldError] that lists
// the models of that region, and the regions of this one.
func (m Model) CheckRegion(region string) error {
	if _, sold := m.Prices[region]; sold {
		return nil
	}
	var there []string
	for _, other := range catalog() {
		if _, sold := other.Prices[region]; sold {
			there = append(there, other.Name)
		}
	}
	e := FieldError{
		Field: "model", Value: show(m.Name),
		Allowed: fmt.Sprintf("in %s only %s", region, strings.Join(there, ", ")),
		Remedy:  fmt.Sprintf("%s is offered in %s: set DASHSCOPE_HTTP_BASE_URL to a host there", m.Name, strings.Join(slices.Sorted(maps.Keys(m.Prices)), ", ")),
	}
	if len(there) == 0 {
		e.Allowed = "none: no model is known to be offered in " + region
	}
	return e
}

// Honors reports whether a name in input or parameters of DashScope's body has an effect on
// the model's images. The service ignores every other name.
func (m Model) Honors(name string) bool {
	switch name {
	case "negative_prompt":
		return !m.NoNegativePrompt
	case "size":
		return !m.Sizes.none()
	case "style":
		return len(m.Styles) > 0
	case "ref_img", "ref_image", "ref_images", "images":
		return len(m.RefModes) > 0 || m.Inputs.Max > 0
	case "base_image_url":
		return m.Inputs.Max > 0
	case "function":
		return len(m.Functions) > 0
	case "mask_image_url":
		return slices.ContainsFunc(m.Functions, func(f Function) bool { return f.Mask })
	case "sketch_image_url", "ref_strength", "ref_mode":
		return len(m.RefModes) > 0
	case "prompt_extend":
		return m.PromptExtend
	case "watermark":
		return m.Watermark
	}
	if isOption(name) {
		return m.hasOption(name)
	}
	return slices.Contains(shapingNames(), name)
}

// ImagesAtMost is the largest n of any request.
func (m Model) ImagesAtMost() int { return max(m.MaxImages, m.MaxGroup) }

// sizesOf returns the sizes that the model allows for a request.
func (m Model) sizesOf(r Request) Sizes {
	if edits := len(r.RefImages) > 0 || r.IsGroup(); edits && !m.EditSizes.none() {
		return m.EditSizes
	}
	return m.Sizes
}

// imagesOf returns the largest n of a request.
func (m Model) imagesOf(r Request) int {
	if r.IsGroup() {
		return m.MaxGroup
	}
	return m.MaxImages
}

// function returns the function of a request; ok is false if the model has none of this name.
func (m Model) function(name string) (f Function, ok bool) {
	i := slices.IndexFunc(m.Functions, func(f Function) bool { return f.Name == name })
	if i < 0 {
		return Function{}, false
	}
	return m.Functions[i], true
}

// style returns the service's spelling of a style. For an unknown style it returns s and
// false. "" is the default.
func (m Model) style(given string) (string, bool) {
	if len(m.Styles) == 0 {
		return given, given == ""
	}
	if given == "" {
		return m.Styles[0].Value, true
	}
	if slices.ContainsFunc(m.Styles, func(s Style) bool { return s.Value == given }) {
		return given, true
	}
	if value, ok := catalogInUse().styles[m.Name][styleKey(given)]; ok {
		return value, true
	}
	return given, false
}

// styleKey is a style's name without case, spaces, hyphens and angle brackets, which a Chinese
// keyboard types wide.
func styleKey(name string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("<>＜＞《》〈〉_- \t\u3000", r) {
			return -1
		}
		return r
	}, strings.ToLower(name))
}

// styles lists the styles for people, with the first Chinese name of each.
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
