package jobs

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Sizes are the sizes that a model allows: a list, or limits. A limit of zero means none.
type Sizes struct {
	// Default is the size of a request without one, as in 1024*1024.
	Default string `json:"default"`
	// List has all sizes; if it is not empty, the limits are not used.
	List []string `json:"list"`
	// MinSide and MaxSide limit width and height, in pixels.
	MinSide int `json:"min_side"`
	MaxSide int `json:"max_side"`
	// MinPixels and MaxPixels limit width times height.
	MinPixels int `json:"min_pixels"`
	MaxPixels int `json:"max_pixels"`
	// MaxRatio limits the longer side divided by the shorter.
	MaxRatio int `json:"max_ratio"`
	// Keywords are sizes by name, as in 2K, which are allowed beside the others.
	Keywords []string `json:"keywords"`
}

// none reports whether the model has no size.
func (s Sizes) none() bool { return s.Default == "" }

// sizePattern matches 1024*1024 and its common spellings.
var sizePattern = regexp.MustCompile(`^\s*([0-9]{1,6})\s*[*xX×＊ｘ✕]\s*([0-9]{1,6})\s*$`)

// parseSize parses a size; ok is false if s is not one.
func parseSize(s string) (width, height int, ok bool) {
	match := sizePattern.FindStringSubmatch(s)
	if match == nil {
		return 0, 0, false
	}
	width, _ = strconv.Atoi(match[1]) // the pattern bounds it
	height, _ = strconv.Atoi(match[2])
	return width, height, true
}

// canonical returns a size in the service's spelling, and any other text unchanged.
func (s Sizes) canonical(size string) string {
	width, height, ok := parseSize(size)
	if !ok {
		if i := slices.IndexFunc(s.Keywords, func(k string) bool { return strings.EqualFold(k, size) }); i >= 0 {
			return s.Keywords[i]
		}
		return size
	}
	return strconv.Itoa(width) + "*" + strconv.Itoa(height)
}

// Allows reports whether a size, spelled as in 1024*1024, is allowed.
func (s Sizes) Allows(size string) bool {
	if s.none() {
		return size == ""
	}
	if slices.Contains(s.Keywords, size) {
		return true
	}
	if len(s.List) > 0 {
		return slices.Contains(s.List, size)
	}
	w, h, ok := parseSize(size)
	return ok && w > 0 && h > 0 && s.exceeded(w, h) == ""
}

// exceeded describes the first limit that a size exceeds, or is "".
func (s Sizes) exceeded(w, h int) string {
	switch pixels := w * h; {
	case min(w, h) < s.MinSide:
		return fmt.Sprintf("the shorter side has %d, less than %d", min(w, h), s.MinSide)
	case s.MaxSide > 0 && max(w, h) > s.MaxSide:
		return fmt.Sprintf("the longer side has %d, more than %d", max(w, h), s.MaxSide)
	case s.MaxRatio > 0 && max(w, h) > s.MaxRatio*min(w, h):
		return fmt.Sprintf("the sides are more than %d:1 apart", s.MaxRatio)
	case pixels < s.MinPixels:
		return fmt.Sprintf("%d pixels are fewer than %d", pixels, s.MinPixels)
	case s.MaxPixels > 0 && pixels > s.MaxPixels:
		return fmt.Sprintf("%d pixels are more than %d", pixels, s.MaxPixels)
	}
	return ""
}

// remedy describes the limit that a size exceeds and an allowed size; "" if there is a list
// of sizes.
func (s Sizes) remedy(size string) string {
	w, h, ok := parseSize(size)
	switch {
	case len(s.List) > 0, s.none():
		return ""
	case !ok:
		return "write it as " + s.Default
	case w == 0 || h == 0:
		return "ask for " + s.Default
	}
	text := s.exceeded(w, h)
	if size := s.closest(w, h); size != "" {
		text += "; ask for " + size
	}
	return text
}

// closest returns an allowed size with about the same ratio and number of pixels, or "" if
// there is none.
func (s Sizes) closest(w, h int) string {
	ratio := float64(w) / float64(h)
	if s.MaxRatio > 0 {
		ratio = min(max(ratio, 1/float64(s.MaxRatio)), float64(s.MaxRatio))
	}
	pixels := float64(w) * float64(h)
	if s.MaxPixels > 0 {
		pixels = min(pixels, float64(s.MaxPixels))
	}
	pixels = max(pixels, float64(s.MinPixels))
	wide := math.Sqrt(pixels * ratio)
	scale := 1.0
	if s.MaxSide > 0 {
		scale = min(scale, float64(s.MaxSide)/max(wide, wide/ratio))
	}
	scale = max(scale, float64(s.MinSide)/min(wide, wide/ratio))
	wide *= scale
	tall := wide / ratio
	// Rounding may exceed a limit.
	for _, round := range []func(float64) float64{math.Round, math.Floor, math.Ceil} {
		size := fmt.Sprintf("%.0f*%.0f", round(wide), round(tall))
		if s.Allows(size) {
			return size
		}
	}
	return ""
}

// String describes the allowed sizes, for people.
func (s Sizes) String() string {
	if len(s.List) > 0 {
		return strings.Join(s.List, ", ")
	}
	if s.none() {
		return "none"
	}
	rules := append(slices.Clone(s.Keywords), "width*height")
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
