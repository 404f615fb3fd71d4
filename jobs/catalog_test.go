package jobs

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every fact of the catalog has a source.
func TestModelFactsHaveSources(t *testing.T) {
	t.Parallel()
	for _, m := range Models() {
		v := reflect.ValueOf(m)
		facts := map[string]bool{}
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; !slices.Contains([]string{"Sources", "Confidence", "Unknown"}, name) && !v.Field(i).IsZero() {
				facts[name] = true
				assert.NotEmpty(t, m.Sources[name], "%s: %s has no source", m.Name, name)
			}
		}
		for name, source := range m.Sources {
			assert.True(t, facts[name], "%s: a source for %q, which is no fact", m.Name, name)
			assert.Equal(t, strings.Contains(source, ownChoice), m.Confidence[name] == "–", "%s: %s", m.Name, name)
		}
		for name, confidence := range m.Confidence {
			assert.True(t, facts[name], "%s: a confidence of %q, which is no fact", m.Name, name)
			assert.Contains(t, []string{"B", "C", "–"}, confidence, "%s: %s", m.Name, name)
		}
	}
}

// The defaults that Normalize sets are allowed.
func TestModelDefaultsAreAllowed(t *testing.T) {
	t.Parallel()
	for _, m := range Models() {
		in := Request{Model: m.Name, Prompt: "a"}
		for range m.Inputs.Min {
			in.RefImages = append(in.RefImages, "https://example.com/a.png")
		}
		if len(m.Functions) > 0 {
			in.Function = m.Functions[0].Name
		}
		r, warnings, err := in.Normalize()
		require.NoError(t, err)
		assert.Empty(t, warnings)
		assert.True(t, m.Sizes.Allows(r.Size))
		assert.Positive(t, m.Cost(1), "%s has no price in Beijing", m.Name)
	}
}

func TestStyleNamesAreUnambiguous(t *testing.T) {
	t.Parallel()
	for _, m := range Models() {
		owner := map[string]string{}
		for _, s := range m.Styles {
			for _, name := range append([]string{s.Value}, s.Names...) {
				key := styleKey(name)
				assert.Empty(t, owner[key], "%s: %q", m.Name, name)
				owner[key] = s.Value
			}
		}
	}
}

const modelsAllowed = "wanx-v1, wanx2.0-t2i-turbo, wanx2.1-t2i-turbo, wanx2.1-t2i-plus, wan2.2-t2i-flash, wan2.2-t2i-plus, wan2.5-t2i-preview, qwen-image, qwen-image-plus, wan2.6-t2i, wan2.6-image, wan2.7-image, wan2.7-image-pro, wan2.5-i2i-preview, wanx2.1-imageedit, qwen-image-3.0, qwen-image-3.0-pro"

func TestLookupModel(t *testing.T) {
	t.Parallel()
	m, err := LookupModel("")
	require.NoError(t, err)
	assert.Equal(t, DefaultModel, m.Name)
	assert.EqualValues(t, 640_000, m.Cost(4), "0.16 yuan an image")

	_, err = LookupModel("Wanx-v2")
	assert.EqualError(t, err, `model: "Wanx-v2"; allowed: `+modelsAllowed+`; did you mean "wanx-v1"?`)
	_, err = LookupModel("stable-diffusion-xl")
	assert.EqualError(t, err, `model: "stable-diffusion-xl"; allowed: `+modelsAllowed)
	_, err = LookupModel("qwen-image-pluss")
	assert.ErrorContains(t, err, `did you mean "qwen-image-plus"?`)
	_, err = LookupModel("wan2.1-t2i-plus")
	assert.EqualError(t, err, `model: "wan2.1-t2i-plus"; allowed: `+modelsAllowed+`; this is a region's spelling: write "wanx2.1-t2i-plus"`)
}

// Callers may change the catalog that they get.
func TestModelsAreCopies(t *testing.T) {
	t.Parallel()
	whole := Models()
	for i, m := range Models() {
		copied, err := LookupModel(m.Name)
		require.NoError(t, err)
		assert.Equal(t, m, copied)
		for _, change := range []Model{m, copied} {
			clear(change.Sources)
			clear(change.Prices)
			clear(change.RegionalNames)
			for i := range change.Styles {
				change.Styles[i].Names[0], change.Styles[i] = "broken", Style{}
			}
			clear(change.RefModes)
			clear(change.Sizes.List)
		}
		again, err := LookupModel(m.Name)
		require.NoError(t, err)
		assert.Equal(t, whole[i], again)
	}
}

// The rules of the text-to-image V2 and qwen-image API references.
func TestSizes(t *testing.T) {
	t.Parallel()
	sides := Sizes{Default: "1024*1024", MinSide: 512, MaxSide: 1440}
	pixels := Sizes{Default: "1280*1280", MinPixels: 1280 * 1280, MaxPixels: 1440 * 1440, MaxRatio: 4}
	list := Sizes{Default: "1664*928", List: []string{"1664*928", "1328*1328"}}
	for _, c := range []struct {
		rule Sizes
		size string
		want bool
	}{
		{sides, "512*1440", true},
		{sides, "511*1440", false},
		{sides, "512*1441", false},
		{sides, "0*0", false},
		{sides, "wide", false},
		{sides, "", false},
		{pixels, "1280*1280", true},
		{pixels, "768*2700", true},
		{pixels, "1279*1280", false},
		{pixels, "1440*1441", false},
		{pixels, "650*2600", true},
		{pixels, "650*2601", false},
		{pixels, "999999*999999", false},
		{list, "1664*928", true},
		{list, "928*1664", false},
	} {
		assert.Equal(t, c.want, c.rule.Allows(c.size), "%s under %s", c.size, c.rule)
	}
	assert.Equal(t, "width*height, each side 512 to 1440", sides.String())
	assert.Equal(t, "width*height, 1638400 to 2073600 pixels in all, at most 4:1 either way", pixels.String())
	assert.Equal(t, "1664*928, 1328*1328", list.String())
}
