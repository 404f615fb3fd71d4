package painter

import (
	"image"
	"unicode"

	"github.com/hajimehoshi/bitmapfont/v4"
	"golang.org/x/image/math/fixed"
)

// Glyphs of the font are 6 or 12 pixels wide and 16 high.
const (
	glyphHalf   = 6
	glyphHeight = 16
	maxLines    = 7 // of the prompt
)

// label is written on every picture.
const label = "SIMULATED 模拟"

// textWriter writes text on a picture.
type textWriter struct {
	img  *image.Paletted
	dark [256]uint8 // the darker color for the background of text
	ink  uint8      // white; then gray, then amber
}

// newTextWriter returns a writer for a picture, painted with a reference (ref) or
// without.
func newTextWriter(img *image.Paletted, ref bool) *textWriter {
	w := &textWriter{img: img, ink: textWhite}
	if !ref {
		for i := range sceneColors {
			w.dark[i] = uint8(sceneColors + i/darkStep)
		}
		return w
	}
	w.ink = textWhiteRef
	for i := range cubeColors {
		r, g, b := i/cubeSteps/cubeSteps, i/cubeSteps%cubeSteps, i%cubeSteps
		w.dark[i] = uint8((r/3*cubeSteps+g/3)*cubeSteps + b/3)
	}
	return w
}

// drawText writes the request on its picture: the label at the top, the prompts and the
// caption at the bottom.
func drawText(img *image.Paletted, p Picture) {
	w := newTextWriter(img, p.Ref != nil)
	size := max(min(p.Width, p.Height)/340, 1)
	small := max(size-1, min(size, 2))
	margin := 8 * size
	wide := p.Width - 4*margin

	badge := image.Rect(0, 0, (len("SIMULATED ")+4)*glyphHalf*(size+1)+2*margin, glyphHeight*(size+1)+margin)
	badge = badge.Add(image.Pt(2*margin, 2*margin))
	w.darken(badge)
	w.line(label, badge.Min.X+margin, badge.Min.Y+margin/2, size+1, w.ink+2)

	bottom := p.Height
	if p.Watermark != "" {
		bottom -= w.watermark(p, size, margin)
	}
	prompt := wrap(p.Prompt, wide/(glyphHalf*size), maxLines)
	var notes []string
	if p.ActualPrompt != "" {
		notes = wrap("→ "+p.ActualPrompt, wide/(glyphHalf*small), 3)
	}
	if p.NegativePrompt != "" {
		notes = append(notes, wrap("- "+p.NegativePrompt, wide/(glyphHalf*small), 2)...)
	}
	notes = append(notes, wrap(p.caption(), wide/(glyphHalf*small), 3)...)
	height := (len(prompt)*size+len(notes)*small)*(glyphHeight+2) + 3*margin
	top := bottom - margin - height
	w.darken(image.Rect(margin, top, p.Width-margin, bottom-margin))
	y := top + margin
	for _, text := range prompt {
		w.line(text, 2*margin, y, size, w.ink)
		y += (glyphHeight + 2) * size
	}
	y += margin
	for _, text := range notes {
		w.line(text, 2*margin, y, small, w.ink+1)
		y += (glyphHeight + 2) * small
	}
}

// watermark draws the watermark at the bottom right and returns the height of its box.
func (w *textWriter) watermark(p Picture, size, margin int) int {
	width := 0
	for _, r := range p.Watermark {
		width += cells(r) * glyphHalf * size
	}
	box := image.Rect(0, 0, width+2*margin, glyphHeight*size+margin)
	box = box.Add(image.Pt(p.Width-margin-box.Dx(), p.Height-margin-box.Dy()))
	w.darken(box)
	w.line(p.Watermark, box.Min.X+margin, box.Min.Y+margin/2, size, w.ink)
	return box.Dy() + margin
}

// darken darkens a part of the picture as a background for text.
func (w *textWriter) darken(r image.Rectangle) {
	r = r.Intersect(w.img.Rect)
	for y := r.Min.Y; y < r.Max.Y; y++ {
		run := w.img.Pix[w.img.PixOffset(r.Min.X, y) : w.img.PixOffset(r.Max.X-1, y)+1]
		for x, v := range run {
			run[x] = w.dark[v]
		}
	}
}

// line draws one line of text with its upper left corner at a point.
func (w *textWriter) line(text string, x, y, size int, ink uint8) {
	for _, r := range text {
		w.glyph(r, x, y, size, ink)
		x += cells(r) * glyphHalf * size
	}
}

// glyph draws a character, each of its pixels size by size.
func (w *textWriter) glyph(r rune, x, y, size int, ink uint8) {
	bounds, mask, at, _, ok := bitmapfont.FaceSC.Glyph(fixed.Point26_6{}, r)
	if !ok {
		return
	}
	for gy := range bounds.Dy() {
		for gx := range bounds.Dx() {
			if _, _, _, a := mask.At(at.X+gx, at.Y+gy).RGBA(); a == 0 {
				continue
			}
			dot := image.Rect(0, 0, size, size).Add(image.Pt(x+gx*size, y+gy*size)).Intersect(w.img.Rect)
			for py := dot.Min.Y; py < dot.Max.Y; py++ {
				fill(w.img.Pix[w.img.PixOffset(dot.Min.X, py):][:dot.Dx()], ink)
			}
		}
	}
}

// cells returns a character's width in half-width glyphs.
func cells(r rune) int {
	advance, _ := bitmapfont.FaceSC.GlyphAdvance(r)
	return advance.Round() / glyphHalf
}

// wrap breaks a text into at most lines lines of width cells, between words if
// possible. A text that is too long ends in an ellipsis.
func wrap(text string, width, lines int) []string {
	var out []string
	var line []rune
	used, space := 0, -1 // space: where the line can be broken
	for _, r := range printable(text) {
		for used+cells(r) > width && len(line) > 0 {
			rest := []rune(nil)
			if space > 0 && r != ' ' {
				rest = append(rest, line[space+1:]...)
				line = line[:space]
			}
			out = append(out, string(line))
			if len(out) == lines {
				return append(out[:lines-1], ellipsis(line, width))
			}
			line, used, space = rest, 0, -1
			for _, k := range rest {
				used += cells(k)
			}
		}
		if r == ' ' && len(line) == 0 {
			continue
		}
		if r == ' ' || cells(r) == 2 {
			space = -1
			if r == ' ' {
				space = len(line)
			}
		}
		line = append(line, r)
		used += cells(r)
	}
	return append(out, string(line))
}

// ellipsis shortens a line and ends it with an ellipsis.
func ellipsis(line []rune, width int) string {
	used := 0
	for i, r := range line {
		used += cells(r)
		if used > width-2 {
			return string(line[:i]) + "…"
		}
	}
	return string(line) + "…"
}

// printable replaces or drops the characters that the font lacks.
func printable(text string) string {
	out := make([]rune, 0, len(text))
	for _, r := range text {
		switch {
		case unicode.IsSpace(r):
			r = ' '
		case r >= 0x10000:
			r = '□'
		case !unicode.IsPrint(r):
			continue
		}
		out = append(out, r)
	}
	return string(out)
}
