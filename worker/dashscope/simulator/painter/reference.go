package painter

import (
	"cmp"
	"image"
	"image/color"
	"slices"

	"golang.org/x/image/draw"
)

// maxReferenceSide is sufficient for a picture that is painted at half its size.
const maxReferenceSide = 512

// Sides of the color cube that pictures with a reference use.
const (
	cubeSteps  = 6
	cubeColors = cubeSteps * cubeSteps * cubeSteps
)

// Shrink returns a copy of a reference image, scaled down to at most 512 pixels a side,
// as [Paint] needs it.
func Shrink(img image.Image) *image.RGBA {
	b := img.Bounds()
	w, h := b.Dx(), b.Dy()
	if longest := max(w, h); longest > maxReferenceSide {
		w, h = max(w*maxReferenceSide/longest, 1), max(h*maxReferenceSide/longest, 1)
	}
	return scale(img, b, w, h)
}

// scale returns a part of a picture in another size.
func scale(img image.Image, part image.Rectangle, w, h int) *image.RGBA {
	out := image.NewRGBA(image.Rect(0, 0, w, h))
	draw.ApproxBiLinear.Scale(out, out.Rect, img, part, draw.Src, nil)
	return out
}

// cover returns the largest centered part of a picture with the proportions w to h.
func cover(b image.Rectangle, w, h int) image.Rectangle {
	if b.Dx()*h > b.Dy()*w {
		cut := (b.Dx() - b.Dy()*w/h) / 2
		return image.Rect(b.Min.X+cut, b.Min.Y, b.Max.X-cut, b.Max.Y)
	}
	cut := (b.Dy() - b.Dx()*h/w) / 2
	return image.Rect(b.Min.X, b.Min.Y+cut, b.Max.X, b.Max.Y-cut)
}

// mixIn mixes the colors of a reference into the ramps, in proportion to strength.
func (s *colorScheme) mixIn(ref image.Image, strength float64) {
	const side = 24
	small := scale(ref, ref.Bounds(), side, side)
	seen := make([]rgb, 0, side*side)
	for i := 0; i < len(small.Pix); i += 4 {
		seen = append(seen, rgb{float64(small.Pix[i]) / 255, float64(small.Pix[i+1]) / 255, float64(small.Pix[i+2]) / 255})
	}
	light := func(c rgb) float64 { return 0.3*c[0] + 0.6*c[1] + 0.1*c[2] }
	slices.SortFunc(seen, func(a, b rgb) int { return cmp.Compare(light(a), light(b)) })
	weight := 0.35 + 0.65*strength
	for i := range s {
		for j := range s[i] {
			// A stop becomes the reference's color of its rank in lightness,
			// from a place that differs by ramp.
			rank := light(s[i][j])*0.9 + 0.02*float64(i)
			pick := seen[min(int(rank*float64(len(seen))), len(seen)-1)]
			s[i][j] = s[i][j].mix(pick, weight)
		}
	}
}

// blend blends the reference into the scene, adds a small copy of it in a corner, and
// converts the canvas to the colors of [cubePalette].
func (c *canvas) blend(scheme *colorScheme, p Picture) {
	weight := 0.0
	if p.RefMode != RefOnly {
		weight = 0.12 + 0.83*p.RefStrength
	}
	through := scale(p.Ref, cover(p.Ref.Bounds(), c.w, c.h), c.w, c.h)
	var own [sceneColors][3]int32 // the scene's colors in 256ths of a cube step
	for i := range own {
		for k, v := range scheme.at(i) {
			own[i][k] = int32(v * (1 - weight) * (cubeSteps - 1) * 256)
		}
	}
	var ref256 [256]int32
	for i := range ref256 {
		ref256[i] = int32(float64(i) / 255 * weight * (cubeSteps - 1) * 256)
	}
	for y := range c.h {
		row, ref := c.row(y), through.Pix[y*through.Stride:]
		for x := range row {
			row[x] = cube(own[row[x]], [3]int32{ref256[ref[4*x]], ref256[ref[4*x+1]], ref256[ref[4*x+2]]}, int32(bayer(x, y)*256))
		}
	}
	c.inset(p.Ref)
}

// inset draws a small framed copy of a picture in the upper right corner.
func (c *canvas) inset(ref image.Image) {
	b := ref.Bounds()
	side := c.side() / 4
	w, h := side, max(side*b.Dy()/b.Dx(), 1)
	if h > side {
		w, h = max(side*b.Dx()/b.Dy(), 1), side
	}
	small := scale(ref, b, w, h)
	left, top := c.w-w-c.side()/24, c.side()/24
	for y := -2; y < h+2; y++ {
		c.span(top+y, left-2, left+w+2, cubeColors-1)
	}
	for y := range h {
		row := c.row(top + y)[left:]
		for x := range w {
			at := small.Pix[small.PixOffset(x, y):]
			var v [3]int32
			for k := range v {
				v[k] = int32(at[k]) * (cubeSteps - 1) * 256 / 255
			}
			row[x] = cube(v, [3]int32{}, int32(bayer(x, y)*256))
		}
	}
}

// cube returns the color of the cube nearest to the sum of two colors, which are in
// 256ths of a step; a threshold in [0, 256) dithers.
func cube(a, b [3]int32, threshold int32) uint8 {
	out := int32(0)
	for k := range a {
		out = out*cubeSteps + min((a[k]+b[k]+threshold)>>8, cubeSteps-1)
	}
	return uint8(out)
}

// cubePalette returns the colors of a picture with a reference: a cube, and the text
// colors at textWhiteRef.
func cubePalette() color.Palette {
	p := make(color.Palette, 0, 256)
	for i := range cubeColors {
		level := func(v int) uint8 { return uint8(v % cubeSteps * 255 / (cubeSteps - 1)) } //nolint:gosec // at most 255
		p = append(p, color.NRGBA{R: level(i / cubeSteps / cubeSteps), G: level(i / cubeSteps), B: level(i), A: 255})
	}
	for len(p) < textWhiteRef {
		p = append(p, color.NRGBA{A: 255})
	}
	return append(p, textColors()...)
}
