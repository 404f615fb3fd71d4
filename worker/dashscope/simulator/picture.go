package simulator

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"math/rand/v2"
	"strings"
)

// Reference modes of wanx-v1.
const (
	refRepaint = "repaint"
	refOnly    = "refonly"
)

// Picture is what a result shows.
type Picture struct {
	// Model, Prompt, NegativePrompt and Style are the request's; the prompts
	// are cut where the service cuts them. An empty Style is "<auto>" for
	// wanx-v1; the other models have none, and the scene has some style or other.
	Model, Prompt, NegativePrompt, Style string
	// ActualPrompt is the prompt as it was rewritten, empty if it was not.
	ActualPrompt string
	// Watermark is what stands at the bottom right, empty for none.
	Watermark string
	// Width and Height are in pixels.
	Width, Height int
	// Seed is the seed of this image.
	Seed int64
	// Index counts from 0 within the N images of the task.
	Index, N int
	// Ref is the reference image, at most 512 pixels a side, or a stand-in for
	// a URL; nil if there is none.
	Ref image.Image
	// RefMode is "repaint" (also if empty) or "refonly"; RefStrength is in
	// [0, 1].
	RefMode     string
	RefStrength float64
}

// Paint renders a picture as a PNG: a scene in the manner of its style that
// differs by prompts and seed, and the request in words upon it. With a
// reference, "repaint" lets its content show through and "refonly" takes its
// colours, as strongly as RefStrength says. Equal pictures give equal bytes.
func Paint(p Picture) []byte {
	style := p.style()
	c := newCanvas(max((p.Width+1)/2, minSide), max((p.Height+1)/2, minSide))
	words := []string{p.Model, p.Prompt, p.NegativePrompt, style.name, fmt.Sprint(p.Seed)}
	if p.ActualPrompt != "" {
		words = append(words, p.ActualPrompt)
	}
	rng := sceneSource(words...)
	scene := style.colours(rng)
	if p.Ref != nil && p.RefMode == refOnly {
		scene.take(p.Ref, p.RefStrength)
	}
	style.draw(c, rng)
	img := &image.Paletted{Palette: scene.palette()}
	if p.Ref != nil {
		img.Palette = cubePalette()
		c.blend(scene, p)
	}
	img.Stride, img.Rect = p.Width, image.Rect(0, 0, p.Width, p.Height)
	img.Pix = c.enlarge(p.Width, p.Height)
	letter(img, p)
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestSpeed}
	_ = encoder.Encode(&out, img) // only a wrong size can fail
	return out.Bytes()
}

// standIn is what stands for a reference image that lies behind a URL: a scene
// drawn from the URL alone.
func standIn(url string) *image.RGBA {
	rng := sceneSource("reference", url)
	all := styles()
	style := all[rng.IntN(len(all))]
	scene := style.colours(rng)
	c := newCanvas(refSide/2, refSide/2)
	style.draw(c, rng)
	out := image.NewRGBA(image.Rect(0, 0, c.w, c.h))
	draw.Draw(out, out.Rect, &image.Paletted{Pix: c.pix, Stride: c.w, Rect: out.Rect, Palette: scene.palette()}, image.Point{}, draw.Src)
	return out
}

// sceneSource is the source of a scene's randomness.
func sceneSource(parts ...string) *rand.Rand {
	sum := hash(parts...)
	return rand.New(rand.NewPCG(binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:]))) //nolint:gosec // pictures, repeatable by their request
}

// minSide is the smallest canvas that every style can draw on. A smaller
// picture shows its upper left corner.
const minSide = 64

// canvas is a scene of palette indices, at half the size of the picture.
type canvas struct {
	w, h int
	pix  []uint8
}

func newCanvas(w, h int) *canvas { return &canvas{w: w, h: h, pix: make([]uint8, w*h)} }

// row is the pixels of one line.
func (c *canvas) row(y int) []uint8 { return c.pix[y*c.w : (y+1)*c.w] }

// enlarge doubles the canvas to the pixels of a picture.
func (c *canvas) enlarge(width, height int) []uint8 {
	out := make([]uint8, width*height+1)
	for y := 0; y < height; y += 2 {
		row := out[y*width : (y+1)*width+1]
		for x, v := range c.row(y / 2) {
			row[min(2*x, width)] = v
			row[min(2*x+1, width)] = v
		}
		if y+1 < height {
			copy(out[(y+1)*width:(y+2)*width], row)
		}
	}
	return out[:width*height]
}

// The palette of a scene: four ramps of shades, then the same darker for what
// lies under the lettering, then the letters' own colours.
const (
	shades      = 48
	ramps       = 4
	darkStep    = 4 // shades that share one dark colour
	darkBase    = ramps * shades
	letterBase  = darkBase + darkBase/darkStep
	darkness    = 0.30
	inkWhite    = letterBase
	inkGrey     = letterBase + 1
	inkAmber    = letterBase + 2
	inkWhiteRef = 252 // the same in the palette of pictures with a reference
)

// rgb is a colour with components in [0, 1].
type rgb [3]float64

func (a rgb) mix(b rgb, t float64) rgb {
	for i := range a {
		a[i] += (b[i] - a[i]) * t
	}
	return a
}

func (a rgb) nrgba() color.NRGBA {
	return color.NRGBA{R: uint8(a[0]*255 + 0.5), G: uint8(a[1]*255 + 0.5), B: uint8(a[2]*255 + 0.5), A: 255}
}

// colours are a scene's ramps, each through three stops.
type colours [ramps][3]rgb

// at is the colour of a palette index below darkBase.
func (s *colours) at(index int) rgb {
	stops := &s[index/shades]
	t := float64(index%shades) / (shades - 1) * 2
	if t <= 1 {
		return stops[0].mix(stops[1], t)
	}
	return stops[1].mix(stops[2], t-1)
}

// palette lists the colours of a picture without a reference.
func (s *colours) palette() color.Palette {
	p := make(color.Palette, 0, 256)
	for i := range darkBase {
		p = append(p, s.at(i).nrgba())
	}
	for i := darkStep / 2; i < darkBase; i += darkStep {
		p = append(p, rgb{}.mix(s.at(i), darkness).nrgba())
	}
	return append(p, letterColours()...)
}

// letterColours are white, grey and amber.
func letterColours() []color.Color {
	return []color.Color{
		color.NRGBA{R: 255, G: 255, B: 255, A: 255},
		color.NRGBA{R: 205, G: 212, B: 222, A: 255},
		color.NRGBA{R: 255, G: 200, B: 64, A: 255},
	}
}

// hsl is a colour by hue in degrees, saturation and lightness in [0, 1].
func hsl(h, s, l float64) rgb {
	var out rgb
	a := s * min(l, 1-l)
	for i, n := range [3]float64{0, 8, 4} {
		k := n + h/30
		k -= 12 * float64(int(k/12))
		if k < 0 {
			k += 12
		}
		out[i] = l - a*max(-1, min(k-3, 9-k, 1))
	}
	return out
}

// styleOf finds a style by its name; the empty name is "<auto>".
func styleOf(name string) (style, bool) {
	if name == "" {
		name = "<auto>"
	}
	for _, s := range styles() {
		if s.name == name {
			return s, true
		}
	}
	return styles()[0], false
}

// style is the manner that the picture is painted in: the one asked for, or, of a
// model without styles, one that follows from the prompt.
func (p Picture) style() style {
	if p.Model != modelV1 && p.Style == "" {
		all := styles()
		sum := hash("simulator", "style", p.Prompt)
		return all[int(sum[0])%len(all)]
	}
	style, _ := styleOf(p.Style)
	return style
}

// caption is the second line of words on a picture.
func (p Picture) caption() string {
	words := []string{p.Model}
	if style, _ := styleOf(p.Style); p.Model == modelV1 {
		words = append(words, style.name+style.chinese)
	}
	words = append(words, fmt.Sprintf("seed %d", p.Seed), fmt.Sprintf("%d*%d", p.Width, p.Height))
	if p.N > 1 {
		words = append(words, fmt.Sprintf("%d/%d", p.Index+1, p.N))
	}
	if p.Ref != nil {
		mode := p.RefMode
		if mode == "" {
			mode = refRepaint
		}
		words = append(words, fmt.Sprintf("ref %s %.2f", mode, p.RefStrength))
	}
	return strings.Join(words, "  ")
}
