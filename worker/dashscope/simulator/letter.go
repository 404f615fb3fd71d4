package simulator

import (
	"image"
	"unicode"

	"github.com/hajimehoshi/bitmapfont/v4"
	"golang.org/x/image/math/fixed"
)

// Glyphs of the font: 6 or 12 pixels wide, 16 high.
const (
	glyphHalf   = 6
	glyphHeight = 16
	maxLines    = 7 // of the prompt
)

// sign is what every picture says of itself.
const sign = "SIMULATED 模拟"

// letters writes on a picture.
type letters struct {
	img  *image.Paletted
	dark [256]uint8 // what a colour becomes under lettering
	ink  uint8      // white; then grey, then amber
}

// letter writes the request on its picture: the sign at the top, the prompts
// and the caption at the bottom.
func letter(img *image.Paletted, p Picture) {
	l := &letters{img: img, ink: inkWhite}
	if p.Ref == nil {
		for i := range darkBase {
			l.dark[i] = uint8(darkBase + i/darkStep)
		}
	} else {
		l.ink = inkWhiteRef
		for i := range cubeColour {
			r, g, b := i/cubeSteps/cubeSteps, i/cubeSteps%cubeSteps, i%cubeSteps
			l.dark[i] = uint8((r/3*cubeSteps+g/3)*cubeSteps + b/3)
		}
	}
	size := max(min(p.Width, p.Height)/340, 1)
	small := max(size-1, min(size, 2))
	margin := 8 * size
	wide := p.Width - 4*margin

	badge := image.Rect(0, 0, (len("SIMULATED ")+4)*glyphHalf*(size+1)+2*margin, glyphHeight*(size+1)+margin)
	badge = badge.Add(image.Pt(2*margin, 2*margin))
	l.shade(badge)
	l.line(sign, badge.Min.X+margin, badge.Min.Y+margin/2, size+1, l.ink+2)

	bottom := p.Height
	if p.Watermark != "" {
		bottom -= l.watermark(p, size, margin)
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
	l.shade(image.Rect(margin, top, p.Width-margin, bottom-margin))
	y := top + margin
	for _, text := range prompt {
		l.line(text, 2*margin, y, size, l.ink)
		y += (glyphHeight + 2) * size
	}
	y += margin
	for _, text := range notes {
		l.line(text, 2*margin, y, small, l.ink+1)
		y += (glyphHeight + 2) * small
	}
}

// watermark puts the service's mark at the bottom right and returns the height
// that it takes up there.
func (l *letters) watermark(p Picture, size, margin int) int {
	width := 0
	for _, r := range p.Watermark {
		width += cells(r) * glyphHalf * size
	}
	box := image.Rect(0, 0, width+2*margin, glyphHeight*size+margin)
	box = box.Add(image.Pt(p.Width-margin-box.Dx(), p.Height-margin-box.Dy()))
	l.shade(box)
	l.line(p.Watermark, box.Min.X+margin, box.Min.Y+margin/2, size, l.ink)
	return box.Dy() + margin
}

// shade darkens a part of the picture.
func (l *letters) shade(r image.Rectangle) {
	r = r.Intersect(l.img.Rect)
	for y := r.Min.Y; y < r.Max.Y; y++ {
		run := l.img.Pix[l.img.PixOffset(r.Min.X, y) : l.img.PixOffset(r.Max.X-1, y)+1]
		for x, v := range run {
			run[x] = l.dark[v]
		}
	}
}

// line writes one line with its upper left corner at a point.
func (l *letters) line(text string, x, y, size int, ink uint8) {
	for _, r := range text {
		l.glyph(r, x, y, size, ink)
		x += cells(r) * glyphHalf * size
	}
}

// glyph draws a character, each of its pixels size by size.
func (l *letters) glyph(r rune, x, y, size int, ink uint8) {
	bounds, mask, at, _, ok := bitmapfont.FaceSC.Glyph(fixed.Point26_6{}, r)
	if !ok {
		return
	}
	for gy := range bounds.Dy() {
		for gx := range bounds.Dx() {
			if _, _, _, a := mask.At(at.X+gx, at.Y+gy).RGBA(); a == 0 {
				continue
			}
			dot := image.Rect(0, 0, size, size).Add(image.Pt(x+gx*size, y+gy*size)).Intersect(l.img.Rect)
			for py := dot.Min.Y; py < dot.Max.Y; py++ {
				fill(l.img.Pix[l.img.PixOffset(dot.Min.X, py):][:dot.Dx()], ink)
			}
		}
	}
}

// cells is a character's width in half glyphs.
func cells(r rune) int {
	advance, _ := bitmapfont.FaceSC.GlyphAdvance(r)
	return advance.Round() / glyphHalf
}

// wrap breaks a text into lines of so many cells, between words where it can.
// What does not fit into the lines ends in an ellipsis.
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

// ellipsis ends a line that is cut.
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

// printable replaces what the font cannot show.
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
