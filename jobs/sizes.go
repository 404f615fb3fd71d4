package jobs

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

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

// Allows reports whether a size, spelled as in 1024*1024, follows the rule.
func (s Sizes) Allows(size string) bool {
	if len(s.List) > 0 {
		return slices.Contains(s.List, size)
	}
	w, h, ok := parseSize(size)
	return ok && w > 0 && h > 0 && s.broken(w, h) == ""
}

// broken names the bound that a size breaks first, with the figures, or "".
func (s Sizes) broken(w, h int) string {
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

// remedy says which bound a size breaks and what to ask for instead; "" where
// the list of sizes says it all.
func (s Sizes) remedy(size string) string {
	w, h, ok := parseSize(size)
	switch {
	case len(s.List) > 0:
		return ""
	case !ok:
		return "write it as " + s.Default
	case w == 0 || h == 0:
		return "ask for " + s.Default
	}
	broken := s.broken(w, h)
	if near := s.nearest(w, h); near != "" {
		broken += "; ask for " + near
	}
	return broken
}

// nearest is the allowed size with about the sides' ratio that is closest in
// pixels, or "" if no such size is allowed.
func (s Sizes) nearest(w, h int) string {
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
	// Rounding either way may step over a bound.
	for _, round := range []func(float64) float64{math.Round, math.Floor, math.Ceil} {
		near := fmt.Sprintf("%.0f*%.0f", round(wide), round(tall))
		if s.Allows(near) {
			return near
		}
	}
	return ""
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
