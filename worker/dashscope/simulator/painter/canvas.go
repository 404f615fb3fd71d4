package painter

import (
	"math"
	"math/rand/v2"
)

// minCanvasSide is the smallest canvas side that every style can draw on. A smaller
// picture shows its upper left part.
const minCanvasSide = 64

// canvas is a scene of palette indices, at half the size of the picture.
type canvas struct {
	w, h int
	pix  []uint8
}

func newCanvas(w, h int) *canvas { return &canvas{w: w, h: h, pix: make([]uint8, w*h)} }

// row returns the pixels of one line.
func (c *canvas) row(y int) []uint8 { return c.pix[y*c.w : (y+1)*c.w] }

// upscale doubles the canvas to the pixels of a picture.
func (c *canvas) upscale(width, height int) []uint8 {
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

// side returns the shorter side of the canvas.
func (c *canvas) side() int { return min(c.w, c.h) }

// fill sets a run of pixels.
func fill(run []uint8, v uint8) {
	for i := range run {
		run[i] = v
	}
}

// tone returns the palette index of a shade in a ramp, clamped to the ramp.
func tone(ramp, shade int) uint8 {
	return uint8(ramp*shades + min(max(shade, 0), shades-1)) //nolint:gosec // below sceneColors
}

// darker returns a color further down its ramp, at most its end.
func darker(v uint8, by int) uint8 {
	return tone(int(v)/shades, int(v)%shades-by)
}

// span fills the part of a line that is on the canvas.
func (c *canvas) span(y, from, to int, v uint8) {
	from, to = max(from, 0), min(to, c.w)
	if y >= 0 && y < c.h && from < to {
		fill(c.row(y)[from:to], v)
	}
}

// gradient fills the canvas with a dithered gradient between two shades of the
// background.
func (c *canvas) gradient(top, bottom int) {
	for y := range c.h {
		exact := float64(top) + float64(bottom-top)*float64(y)/float64(c.h)
		row := c.row(y)
		for x := range min(4, c.w) {
			row[x] = tone(0, int(exact+bayer(x, y)))
		}
		for done := 4; done < c.w; done *= 2 {
			copy(row[done:], row[:done])
		}
	}
}

// bayer returns the threshold in [0, 1) of a 4 by 4 Bayer matrix, for dithering.
func bayer(x, y int) float64 {
	const order = "\x00\x08\x02\x0a\x0c\x04\x0e\x06\x03\x0b\x01\x09\x0f\x07\x0d\x05"
	return float64(order[y&3<<2|x&3]) / 16
}

// radial fills the canvas with a ramp, lightest at a point.
func (c *canvas) radial(cx, cy int, reach float64, ramp int) {
	scale := (shades - 1) / (reach * reach)
	for y := range c.h {
		row := c.row(y)
		dy := float64((y - cy) * (y - cy))
		for x := range row {
			d := (float64((x-cx)*(x-cx)) + dy) * scale
			row[x] = tone(ramp, shades-1-int(d+bayer(x, y)))
		}
	}
}

// disk fills a circle with one color.
func (c *canvas) disk(cx, cy, r, ramp, shade int) {
	for dy := -r; dy <= r; dy++ {
		half := int(math.Sqrt(float64(r*r - dy*dy)))
		c.span(cy+dy, cx-half, cx+half+1, tone(ramp, shade))
	}
}

// ring draws a circle.
func (c *canvas) ring(cx, cy, r, ramp, shade int) {
	for i := range 7 * r {
		sin, cos := math.Sincos(float64(i) / float64(r))
		c.span(cy+int(float64(r)*sin), cx+int(float64(r)*cos), cx+int(float64(r)*cos)+2, tone(ramp, shade))
	}
}

// ellipse fills an ellipse, lit from its upper left between two shades.
func (c *canvas) ellipse(cx, cy int, rx, ry float64, ramp, dark, light int) {
	for y := max(cy-int(ry), 0); y <= min(cy+int(ry), c.h-1); y++ {
		v := float64(y-cy) / ry
		half := int(rx * math.Sqrt(max(1-v*v, 0)))
		row := c.row(y)
		for x := max(cx-half, 0); x <= min(cx+half, c.w-1); x++ {
			u := float64(x-cx) / rx
			lit := max(0, 1-((u+0.35)*(u+0.35)+(v+0.4)*(v+0.4))/2.4)
			row[x] = tone(ramp, dark+int(lit*float64(light-dark)+bayer(x, y)))
		}
	}
}

// ball fills a circle shaded like a ball.
func (c *canvas) ball(cx, cy, r, ramp int) {
	c.ellipse(cx, cy, float64(r), float64(r), ramp, 4, shades-1)
}

// glow lightens a circle of the background.
func (c *canvas) glow(cx, cy, r, by int) {
	for y := max(cy-r, 0); y <= min(cy+r, c.h-1); y++ {
		half := int(math.Sqrt(float64(r*r - (y-cy)*(y-cy))))
		row := c.row(y)
		for x := max(cx-half, 0); x <= min(cx+half, c.w-1); x++ {
			if row[x] < shades {
				row[x] = tone(0, int(row[x])+by)
			}
		}
	}
}

// rays brightens every second sector around a point.
func (c *canvas) rays(cx, cy, sectors int, phase float64) {
	for y := range c.h {
		row := c.row(y)
		for x := range row {
			angle := turn(float64(y-cy), float64(x-cx)) + phase
			if int(angle*2*float64(sectors))&1 == 0 {
				row[x] = tone(0, int(row[x])+9)
			}
		}
	}
}

// turn returns the angle of a direction as a fraction of a full turn, in [0, 1). It is
// approximate: it follows a square instead of a circle.
func turn(dy, dx float64) float64 {
	if dx == 0 && dy == 0 {
		return 0
	}
	p := dx / (math.Abs(dx) + math.Abs(dy)) / 4
	if dy < 0 {
		return 0.75 + p
	}
	return 0.25 - p
}

// hills returns the height of every column of a line of hills: around base and with
// this swing (fractions of the canvas height), with about this many summits.
func (c *canvas) hills(rng *rand.Rand, base, swing, summits float64) []int {
	var phase [4]float64
	for i := range phase {
		phase[i] = rng.Float64() * 2 * math.Pi
	}
	out := make([]int, c.w)
	for x := range out {
		u := float64(x) / float64(c.w) * 2 * math.Pi * summits / 2
		v := math.Sin(u+phase[0]) + 0.5*math.Sin(2.3*u+phase[1]) + 0.22*math.Sin(5.1*u+phase[2]) + 0.1*math.Sin(11.7*u+phase[3])
		out[x] = int((base + swing*v/1.6) * float64(c.h))
	}
	return out
}

// ridge fills the area below a line, from one shade at the line to another at a depth
// below it.
func (c *canvas) ridge(line []int, ramp, top, bottom, depth int) {
	tones := make([]uint8, depth)
	for d := range tones {
		tones[d] = tone(ramp, top+(bottom-top)*d/depth)
	}
	deepest := tone(ramp, bottom)
	for y := range c.h {
		row := c.row(y)
		for x := range row {
			switch d := y - line[x]; {
			case d < 0:
			case d < depth:
				row[x] = tones[d]
			default:
				row[x] = deepest
			}
		}
	}
}

// contour draws a line.
func (c *canvas) contour(line []int, ramp, shade int) {
	for x, y := range line {
		for dy := range 2 {
			c.span(y+dy, x, x+2, tone(ramp, shade))
		}
	}
}

// hatch draws slanting lines below a line, or everywhere if line is nil.
func (c *canvas) hatch(line []int, gap, slope, ramp, shade int) {
	for y := range c.h {
		row := c.row(y)
		offset := y * slope
		for x := (gap - offset%gap) % gap; x < c.w; x += gap {
			if line == nil || y > line[x] && (y-line[x])%23 < 20 {
				row[x] = tone(ramp, shade)
			}
		}
	}
}

// stroke draws a thick line from a point.
func (c *canvas) stroke(x, y int, angle float64, length, width int, v uint8) {
	sin, cos := math.Sincos(angle)
	for i := range length {
		px, py := x+int(float64(i)*cos), y+int(float64(i)*sin)
		for dy := range width {
			c.span(py+dy, px, px+width, v)
		}
	}
}

// blot draws a stain with a rim. It is darker where it covers another stain of its
// ramp.
func (c *canvas) blot(rng *rand.Rand, cx, cy int, r float64, ramp int) {
	wobble := func() []float64 {
		a, b := rng.Float64()*6, rng.Float64()*6
		out := make([]float64, int(r)*3+2)
		for i := range out {
			out[i] = r * (0.13*math.Sin(float64(i)/r*4+a) + 0.07*math.Sin(float64(i)/r*11+b))
		}
		return out
	}
	wx, wy := wobble(), wobble()
	reach := len(wx)/2 - 1
	base := ramp * shades
	for y := max(cy-reach, 0); y <= min(cy+reach, c.h-1); y++ {
		row := c.row(y)
		for x := max(cx-reach, 0); x <= min(cx+reach, c.w-1); x++ {
			dx, dy := float64(x-cx)+wx[y-cy+reach], float64(y-cy)+wy[x-cx+reach]
			d := (dx*dx + dy*dy) / (r * r)
			if d >= 1 {
				continue
			}
			shade := 28 + int(18*(1-d)+bayer(x, y))
			if d > 0.93 {
				shade = 22
			}
			if under := int(row[x]) - base; under >= 0 && under < shades {
				shade = max(min(shade, under)-12, 0)
			}
			row[x] = tone(ramp, shade)
		}
	}
}

// tree draws a tree of two triangles with its foot at a point.
func (c *canvas) tree(x, y, size, ramp, shade int) {
	for dy := range size / 4 {
		c.span(y-dy, x-size/14, x+size/14+1, tone(2, 0))
	}
	for tier := range 2 {
		foot := y - size/5 - tier*size/3
		for dy := range size * 2 / 3 {
			half := (size*2/3 - dy) * (3 - tier) / 6
			c.span(foot-dy, x-half, x+half+1, tone(ramp, shade))
		}
	}
}
