package jobs

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits of the figures of a model, beyond which they are mistakes. The values are Danqing's choice.
const (
	maxModelYuan        = 1000
	maxModelImages      = 100
	maxModelConcurrency = 1000
	maxModelRate        = 1000
	maxModelSide        = 1 << 16
	maxModelRunes       = 1 << 20
)

// modelPattern matches the names of models: they are parts of Redis keys, queues and object keys.
// regionPattern matches regions, as in host names. keywordPattern matches sizes by name.
var (
	modelPattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	regionPattern  = regexp.MustCompile(`^[a-z]{2}-[a-z]+(-[0-9]{1,2})?$`)
	keywordPattern = regexp.MustCompile(`^[1-8]K$`)
)

// setPrices sets the prices of the overlay, in yuan, region by region. 0 removes a region.
func (in *overlayModel) setPrices() error {
	for _, field := range []struct {
		name  string
		given map[string]json.Number
		into  *map[string]int64
	}{
		{"prices", in.Prices, &in.Model.Prices}, {"large_prices", in.LargePrices, &in.Model.LargePrices}, {"input_prices", in.InputPrices, &in.Model.InputPrices},
	} {
		for _, region := range slices.Sorted(maps.Keys(field.given)) {
			at := field.name + "." + region
			if !regionPattern.MatchString(region) {
				return FieldError{Field: at, Value: "is not a region", Allowed: "a region as in host names", Remedy: "as in cn-beijing or ap-southeast-1"}
			}
			yuan, err := strconv.ParseFloat(field.given[region].String(), 64)
			micro := math.Round(yuan * 1e6)
			if err != nil || yuan < 0 || yuan > maxModelYuan || yuan != 0 && micro < 1 {
				return FieldError{Field: at, Value: showJSON(at, []byte(field.given[region])), Allowed: fmt.Sprintf("yuan for an image, above 0 and at most %d; 0 removes the region", maxModelYuan)}
			}
			if *field.into == nil {
				*field.into = map[string]int64{}
			}
			(*field.into)[region] = int64(micro)
		}
		maps.DeleteFunc(*field.into, func(_ string, micro int64) bool { return micro == 0 })
		if len(*field.into) == 0 {
			*field.into = nil
		}
	}
	return nil
}

// modelCheck collects the first thing that is wrong with a model.
type modelCheck struct{ err error }

// require notes a wrong field.
func (c *modelCheck) require(ok bool, field string, value any, allowed, remedy string) {
	if ok || c.err != nil {
		return
	}
	text := fmt.Sprint(value)
	if s, isText := value.(string); isText {
		text = show(s)
	}
	c.err = FieldError{Field: field, Value: text, Allowed: allowed, Remedy: remedy}
}

// between notes a number that is out of its range.
func (c *modelCheck) between(field string, value, least, most int) {
	c.require(value >= least && value <= most, field, value, fmt.Sprintf("%d to %d", least, most), "")
}

// checkModel fails if something about a model is impossible, or contradicts itself or the other
// models. The error is a [FieldError].
func checkModel(m Model, others []Model) error {
	var c modelCheck
	c.require(modelPattern.MatchString(m.Name), "model", m.Name, "1 to 64 of A-Z a-z 0-9 . _ -", "")
	if e, synchronous := synchronousModel(m.Name); synchronous {
		return e
	}
	c.names(m, others)
	protocols := []Protocol{ProtocolText2Image, ProtocolImage2Image, ProtocolImageGeneration}
	c.require(slices.Contains(protocols, m.Protocol), "protocol", string(m.Protocol), "text2image, image2image, image-generation", "name the path of the model's asynchronous tasks, or a model that it is like")
	c.between("prompt_runes", m.PromptRunes, 0, maxModelRunes)
	c.between("negative_prompt_runes", m.NegativePromptRunes, 0, maxModelRunes)
	c.between("prompt_runes_elsewhere", m.PromptRunesElsewhere, 0, maxModelRunes)
	c.between("max_images", m.MaxImages, 1, maxModelImages)
	if m.MaxGroup != 0 {
		c.between("max_group", m.MaxGroup, 1, maxModelImages)
		c.require(m.hasOption("enable_sequential"), "max_group", m.MaxGroup, "only with the option enable_sequential", "add it to options, or leave max_group out")
	}
	c.between("service_images", m.ServiceImages, 1, max(m.MaxImages, 1))
	c.require(m.MaxSeed >= int64(m.ImagesAtMost()) && m.MaxSeed <= maxSeed, "max_seed", m.MaxSeed, fmt.Sprintf("%d to %d", m.ImagesAtMost(), maxSeed), "")
	c.sizes("sizes", m.Sizes)
	c.sizes("edit_sizes", m.EditSizes)
	c.require(!m.Sizes.none() || m.Inputs.Min > 0, "sizes.default", "", "a size, as the service's own default may cost more", "only a model that always edits an image has none")
	c.inputs(m)
	c.prices(m)
	c.require(m.SubmitsPerSecond > 0 && m.SubmitsPerSecond <= maxModelRate, "submits_per_second", m.SubmitsPerSecond, fmt.Sprintf("above 0 and at most %d", maxModelRate), "")
	c.between("submits_per_minute", m.SubmitsPerMinute, 0, 60*maxModelRate)
	c.between("concurrency", m.Concurrency, 1, maxModelConcurrency)
	c.styles(m)
	c.options("options", m.Options)
	for i, f := range m.Functions {
		at := fmt.Sprintf("functions[%d]", i)
		c.require(modelPattern.MatchString(f.Name), at+".name", f.Name, "1 to 64 of A-Z a-z 0-9 . _ -", "")
		c.require(!slices.ContainsFunc(m.Functions[:i], func(g Function) bool { return g.Name == f.Name }), at+".name", f.Name, "each name once", "")
		c.options(at+".options", f.Options)
	}
	return c.err
}

// names checks the model's regional names: none may be another model's.
func (c *modelCheck) names(m Model, others []Model) {
	for _, region := range slices.Sorted(maps.Keys(m.RegionalNames)) {
		name, at := m.RegionalNames[region], "regional_names."+region
		c.require(modelPattern.MatchString(name), at, name, "1 to 64 of A-Z a-z 0-9 . _ -", "")
		_, sold := m.Prices[region]
		c.require(sold, at, name, "a region with a price", "add prices."+region)
	}
	for _, other := range others {
		if other.Name == m.Name {
			continue
		}
		for region, name := range m.RegionalNames {
			known := slices.Collect(maps.Values(other.RegionalNames))
			c.require(name != other.Name && !slices.Contains(known, name), "regional_names."+region, name, "a name of this model alone", "it is one of "+other.Name)
		}
		for _, regional := range other.RegionalNames {
			c.require(regional != m.Name, "model", m.Name, "a name of this model alone", "it is a region's name of "+other.Name)
		}
	}
}

// sizes checks that the sizes can be met, and that the default is one.
func (c *modelCheck) sizes(field string, s Sizes) {
	for i, size := range s.List {
		_, _, ok := parseSize(size)
		c.require(ok && s.canonical(size) == size, fmt.Sprintf("%s.list[%d]", field, i), size, "width*height", "as in 1024*1024")
	}
	for i, name := range s.Keywords {
		c.require(keywordPattern.MatchString(name), fmt.Sprintf("%s.keywords[%d]", field, i), name, "1K to 8K", "")
	}
	for _, limits := range []struct {
		name        string
		least, most int
		limit       int
	}{{"side", s.MinSide, s.MaxSide, maxModelSide}, {"pixels", s.MinPixels, s.MaxPixels, maxModelSide * maxModelSide}} {
		c.between(field+".max_"+limits.name, limits.most, 0, limits.limit)
		c.between(field+".min_"+limits.name, limits.least, 0, limits.most)
	}
	c.between(field+".max_ratio", s.MaxRatio, 0, 100)
	if s.none() {
		empty := len(s.List) == 0 && len(s.Keywords) == 0 && s.MaxSide == 0 && s.MaxPixels == 0
		c.require(empty, field+".default", "", "one of the sizes", "")
		return
	}
	bounded := len(s.List) > 0 || s.MaxSide > 0 || s.MaxPixels > 0 || len(s.Keywords) > 0
	c.require(bounded, field, s.Default, "with list, keywords, max_side or max_pixels", "")
	c.require(s.Allows(s.Default), field+".default", s.Default, "one of the sizes", "")
}

// inputs checks what the model takes beside a prompt, by its protocol.
func (c *modelCheck) inputs(m Model) {
	in, old := m.Inputs, m.Protocol == ProtocolText2Image
	c.between("inputs.max", in.Max, 0, maxModelImages)
	c.between("inputs.min", in.Min, 0, in.Max)
	c.between("inputs.max_side", in.MaxSide, 0, maxModelSide)
	c.between("inputs.min_side", in.MinSide, 0, maxModelSide)
	c.require(in.MaxBytes >= 0, "inputs.max_bytes", in.MaxBytes, "0 or more", "")
	c.require(in.Max == 0 || !old, "inputs.max", in.Max, "0 with the protocol text2image", "it takes ref_modes")
	c.require(len(m.RefModes) == 0 || old, "ref_modes", strings.Join(m.RefModes, ", "), "only with the protocol text2image", "use inputs")
	for i, mode := range m.RefModes {
		c.require(modelPattern.MatchString(mode), fmt.Sprintf("ref_modes[%d]", i), mode, "a name", "")
	}
	c.require(len(m.Functions) == 0 || m.Protocol == ProtocolImage2Image && in.Max > 0, "functions", len(m.Functions), "only with the protocol image2image and inputs", "")
}

// prices checks that the model is sold somewhere, and that its prices belong together.
func (c *modelCheck) prices(m Model) {
	c.require(len(m.Prices) > 0, "prices", "", "the price of an image in a region", `as in {"cn-beijing": 0.2}`)
	c.between("large_pixels", m.LargePixels, 0, maxModelSide*maxModelSide)
	c.require((m.LargePixels > 0) == (len(m.LargePrices) > 0), "large_pixels", m.LargePixels, "with large_prices, and they with it", "")
	for _, region := range slices.Sorted(maps.Keys(m.LargePrices)) {
		c.require(m.Prices[region] > 0 && m.LargePrices[region] >= m.Prices[region], "large_prices."+region, float64(m.LargePrices[region])/1e6, "at least the price there of an image", "")
	}
	for _, region := range slices.Sorted(maps.Keys(m.InputPrices)) {
		c.require(m.Prices[region] > 0 && m.Inputs.Max > 0, "input_prices."+region, float64(m.InputPrices[region])/1e6, "for a model with inputs that is sold there", "")
	}
}

// styles checks that no two styles of a model have a name in common.
func (c *modelCheck) styles(m Model) {
	owner := map[string]int{}
	for i, s := range m.Styles {
		at := fmt.Sprintf("styles[%d]", i)
		for _, name := range append([]string{s.Value}, s.Names...) {
			key := styleKey(name)
			other, taken := owner[key]
			c.require(key != "" && len(name) <= 64, at, name, "a name", "")
			c.require(!taken || other == i, at, name, "a name of one style alone", "")
			owner[key] = i
		}
	}
}

// options checks parameters: what is not a field of a request cannot be sent.
func (c *modelCheck) options(field string, options []Option) {
	for i, o := range options {
		at := fmt.Sprintf("%s[%d].", field, i)
		known := slices.IndexFunc(optionFields(), func(f optionField) bool { return f.name == o.Name })
		var names []string
		for _, f := range optionFields() {
			names = append(names, f.name)
		}
		c.require(known >= 0, at+"name", o.Name, strings.Join(names, ", "), "")
		c.require(o.With == "" || o.With == "prompt_extend", at+"with", o.With, "prompt_extend, or none", "")
		if known < 0 || c.err != nil {
			return
		}
		switch f := optionFields()[known]; {
		case f.text != nil:
			c.require(len(o.Values) > 0, at+"values", o.Name, "the allowed texts", "")
			c.require(o.Default == "" || slices.Contains(o.Values, o.Default), at+"default", o.Default, strings.Join(o.Values, ", "), "")
			for _, text := range o.TextOnly {
				c.require(slices.Contains(o.Values, text), at+"text_only", text, strings.Join(o.Values, ", "), "")
			}
		case f.number != nil:
			c.require(o.Max > 0 && o.Min >= 0 && o.Min <= o.Max && o.Max <= maxModelRunes, at+"max", o.Max, "above 0, and at least min", "")
			n, err := strconv.ParseFloat(o.Default, 64)
			c.require(o.Default == "" || err == nil && n >= o.Min && n <= o.Max, at+"default", o.Default, o.Allowed(), "")
		default:
			c.require(slices.Contains([]string{"", "true", "false"}, o.Default), at+"default", o.Default, "true, false", "")
		}
	}
}
