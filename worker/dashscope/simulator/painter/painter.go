// Package painter draws the images of the simulator: a scene in the requested style,
// different for each prompt and seed, with the request as text and the label "SIMULATED
// 模拟" in the upper left corner.
package painter

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"math/rand/v2"
	"strings"
)

// Reference modes of wanx-v1.
const (
	RefRepaint = "repaint"
	RefOnly    = "refonly"
)

// Picture describes an image.
type Picture struct {
	// Model, Prompt and NegativePrompt are the request's; the prompts are truncated as
	// by the service.
	Model, Prompt, NegativePrompt string
	// Style is one of wanx-v1's styles. The other models have none: if it is empty, the
	// prompt determines the style.
	Style string
	// ActualPrompt is the rewritten prompt, empty if not rewritten.
	ActualPrompt string
	// Watermark is the text at the bottom right, empty for none.
	Watermark string
	// Width and Height are in pixels.
	Width, Height int
	// Seed is the seed of this image.
	Seed int64
	// Index counts from 0 within the N images of the task.
	Index, N int
	// Ref is the reference image, from [Shrink] or [Placeholder]; nil means none.
	Ref image.Image
	// RefMode is RefRepaint (also if empty) or RefOnly; RefStrength is in [0, 1].
	RefMode     string
	RefStrength float64
}

// Paint renders a picture as a PNG. With a reference image, RefRepaint blends in its
// content and RefOnly uses its colors, weighted by RefStrength. Equal pictures give
// equal bytes.
func Paint(p Picture) []byte {
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestSpeed}
	_ = encoder.Encode(&out, paint(p)) // only a wrong size can fail
	return out.Bytes()
}

// paint renders a picture.
func paint(p Picture) *image.Paletted {
	style := p.style()
	c := newCanvas(max((p.Width+1)/2, minCanvasSide), max((p.Height+1)/2, minCanvasSide))
	words := []string{p.Model, p.Prompt, p.NegativePrompt, style.name, fmt.Sprint(p.Seed)}
	if p.ActualPrompt != "" {
		words = append(words, p.ActualPrompt)
	}
	rng := newRand(words...)
	scheme := style.colorScheme(rng)
	if p.Ref != nil && p.RefMode == RefOnly {
		scheme.mixIn(p.Ref, p.RefStrength)
	}
	style.draw(c, rng)
	img := &image.Paletted{Palette: scheme.palette()}
	if p.Ref != nil {
		img.Palette = cubePalette()
		c.blend(scheme, p)
	}
	img.Stride, img.Rect = p.Width, image.Rect(0, 0, p.Width, p.Height)
	img.Pix = c.upscale(p.Width, p.Height)
	drawText(img, p)
	return img
}

// Placeholder returns the image that replaces a reference of which only the URL is
// available: a scene drawn from the URL, without text.
func Placeholder(url string) image.Image {
	rng := newRand("reference", url)
	all := styles()
	style := all[rng.IntN(len(all))]
	scheme := style.colorScheme(rng)
	c := newCanvas(maxReferenceSide/2, maxReferenceSide/2)
	style.draw(c, rng)
	out := image.NewRGBA(image.Rect(0, 0, c.w, c.h))
	draw.Draw(out, out.Rect, &image.Paletted{Pix: c.pix, Stride: c.w, Rect: out.Rect, Palette: scheme.palette()}, image.Point{}, draw.Src)
	return out
}

// newRand returns the random source of a scene; equal parts give equal scenes.
func newRand(parts ...string) *rand.Rand {
	sum := digest(parts...)
	return rand.New(rand.NewPCG(binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:]))) //nolint:gosec // pictures, repeatable by their request
}

// digest is a SHA-256 over parts, each preceded by its length.
func digest(parts ...string) [sha256.Size]byte {
	h := sha256.New()
	for _, p := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(p), p) // never fails
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// style returns the requested style, or one determined by the prompt.
func (p Picture) style() style {
	all := styles()
	if p.Style == "" {
		sum := digest("simulator", "style", p.Prompt)
		return all[int(sum[0])%len(all)]
	}
	for _, s := range all {
		if s.name == p.Style {
			return s
		}
	}
	return all[0]
}

// caption returns the line below the prompts: the parameters of the request.
func (p Picture) caption() string {
	words := []string{p.Model}
	if p.Style != "" {
		style := p.style()
		words = append(words, style.name+style.chinese)
	}
	words = append(words, fmt.Sprintf("seed %d", p.Seed), fmt.Sprintf("%d*%d", p.Width, p.Height))
	if p.N > 1 {
		words = append(words, fmt.Sprintf("%d/%d", p.Index+1, p.N))
	}
	if p.Ref != nil {
		mode := p.RefMode
		if mode == "" {
			mode = RefRepaint
		}
		words = append(words, fmt.Sprintf("ref %s %.2f", mode, p.RefStrength))
	}
	return strings.Join(words, "  ")
}
