package painter

import (
	"math"
	"math/rand/v2"
	"slices"
)

// DefaultStyle is the style of wanx-v1 if the request has none.
const DefaultStyle = "<auto>"

// HasStyle reports whether wanx-v1 has a style of this name.
func HasStyle(name string) bool {
	return slices.ContainsFunc(styles(), func(s style) bool { return s.name == name })
}

// style is a style of wanx-v1.
type style struct {
	name, chinese string
	// stops are the colors of the ramps as hue, saturation and lightness; vary is the
	// maximum rotation of the hues by a seed, in degrees.
	stops [ramps][3][3]float64
	vary  float64
	draw  func(*canvas, *rand.Rand)
}

// colorScheme returns the style's ramps with their hues rotated at random.
func (s style) colorScheme(rng *rand.Rand) *colorScheme {
	turn := (rng.Float64()*2 - 1) * s.vary
	out := &colorScheme{}
	for i, ramp := range s.stops {
		for j, stop := range ramp {
			out[i][j] = hsl(stop[0]+turn+720, stop[1], stop[2])
		}
	}
	return out
}

// styles returns the styles of wanx-v1 (text-to-image reference). The first ramp of
// each is its background.
func styles() []style {
	return []style{
		{DefaultStyle, " 自动", [4][3][3]float64{
			{{255, .55, .16}, {290, .5, .38}, {345, .75, .68}},
			{{265, .5, .2}, {300, .5, .45}, {340, .8, .8}},
			{{200, .6, .3}, {190, .6, .5}, {170, .6, .8}},
			{{20, .9, .5}, {35, .95, .65}, {50, 1, .85}}}, 75, drawAuto},
		{"<photography>", " 摄影", [4][3][3]float64{
			{{215, .55, .35}, {205, .6, .66}, {32, .85, .82}},
			{{215, .3, .62}, {215, .32, .42}, {215, .4, .24}},
			{{205, .45, .2}, {190, .35, .14}, {180, .3, .08}},
			{{28, .95, .62}, {40, 1, .78}, {50, 1, .95}}}, 25, drawPhotography},
		{"<portrait>", " 人像写真", [4][3][3]float64{
			{{18, .3, .12}, {18, .28, .34}, {28, .38, .66}},
			{{20, .35, .06}, {20, .35, .14}, {22, .35, .3}},
			{{16, .45, .42}, {22, .55, .66}, {28, .7, .84}},
			{{345, .45, .2}, {350, .5, .38}, {355, .55, .58}}}, 25, drawPortrait},
		{"<3d cartoon>", " 3D卡通", [4][3][3]float64{
			{{195, .6, .55}, {190, .65, .75}, {185, .7, .9}},
			{{340, .75, .3}, {345, .85, .6}, {350, 1, .93}},
			{{45, .85, .35}, {45, .95, .58}, {52, 1, .93}},
			{{150, .55, .25}, {155, .6, .5}, {165, .8, .9}}}, 180, drawCartoon},
		{"<anime>", " 动画", [4][3][3]float64{
			{{205, .85, .48}, {200, .85, .68}, {190, .8, .88}},
			{{215, .3, .82}, {210, .3, .92}, {210, .3, 1}},
			{{330, .75, .6}, {335, .85, .76}, {340, .9, .9}},
			{{50, .9, .6}, {52, .95, .78}, {55, 1, .95}}}, 60, drawAnime},
		{"<oil painting>", " 油画", [4][3][3]float64{
			{{225, .65, .18}, {215, .6, .42}, {195, .5, .68}},
			{{230, .6, .14}, {210, .65, .38}, {45, .8, .68}},
			{{95, .4, .16}, {75, .5, .34}, {55, .65, .56}},
			{{28, .85, .42}, {42, .95, .6}, {52, 1, .82}}}, 40, drawOil},
		{"<watercolor>", " 水彩", [4][3][3]float64{
			{{42, .4, .9}, {44, .45, .94}, {46, .5, .97}},
			{{205, .5, .5}, {200, .55, .72}, {195, .6, .86}},
			{{335, .5, .58}, {340, .6, .76}, {345, .65, .88}},
			{{130, .3, .48}, {115, .38, .68}, {95, .42, .84}}}, 180, drawWatercolor},
		{"<sketch>", " 素描", [4][3][3]float64{
			{{40, .12, .84}, {40, .14, .9}, {40, .16, .94}},
			{{30, .04, .2}, {30, .04, .36}, {30, .05, .6}},
			{{30, .04, .3}, {30, .04, .5}, {30, .05, .74}},
			{{30, .04, .1}, {30, .04, .2}, {30, .05, .3}}}, 25, drawSketch},
		{"<chinese painting>", " 中国画", [4][3][3]float64{
			{{40, .35, .78}, {41, .4, .85}, {42, .42, .9}},
			{{200, .12, .16}, {190, .1, .46}, {42, .3, .84}},
			{{195, .16, .1}, {190, .12, .36}, {42, .3, .82}},
			{{8, .75, .38}, {10, .75, .5}, {14, .7, .62}}}, 12, drawChinese},
		{"<flat illustration>", " 扁平插画", [4][3][3]float64{
			{{185, .45, .72}, {180, .45, .8}, {45, .65, .88}},
			{{170, .4, .56}, {172, .42, .44}, {175, .45, .3}},
			{{12, .75, .55}, {20, .8, .64}, {30, .85, .72}},
			{{45, .9, .62}, {47, .95, .72}, {50, 1, .9}}}, 45, drawFlat},
	}
}

// drawAuto draws a dusk with out-of-focus lights.
func drawAuto(c *canvas, rng *rand.Rand) {
	c.gradient(0, shades-1)
	c.ridge(c.hills(rng, 0.62, 0.10, 2), 0, 10, 24, c.h/3)
	for range 26 {
		r := c.side() / 40 * (1 + rng.IntN(5))
		c.glow(rng.IntN(c.w), rng.IntN(c.h*4/5), r, 5+rng.IntN(7))
	}
	c.ball(c.w/5+rng.IntN(c.w*3/5), c.h/5+rng.IntN(c.h/4), c.side()/9, 3)
	c.ridge(c.hills(rng, 0.72, 0.08, 3), 1, 14, 2, c.h/3)
	c.ridge(c.hills(rng, 0.84, 0.06, 4), 1, 6, 0, c.h/4)
}

// drawPhotography draws mountains behind a lake.
func drawPhotography(c *canvas, rng *rand.Rand) {
	c.gradient(0, shades-1)
	c.disk(c.w/5+rng.IntN(c.w*3/5), c.h*3/10+rng.IntN(c.h/6), c.side()/14, 3, shades-4)
	horizon := 0.40
	for i := range 5 {
		hills := c.hills(rng, horizon, 0.13-0.018*float64(i), 2+float64(i))
		c.ridge(hills, 1, min(i*11, shades-1), min(i*11+8, shades-1), c.h/5)
		horizon += 0.07
	}
	lake := c.h * 3 / 4
	for y := lake; y < c.h; y++ {
		// The lake reflects the lines above it, darker and with ripples.
		source := c.row(max(2*lake-y-1, 0))
		shift := int(2 * math.Sin(float64(y*y)/float64(c.h)*0.5))
		row := c.row(y)
		for x := range row {
			v := source[min(max(x+shift, 0), c.w-1)]
			if (y+x/40)%5 == 0 {
				v = darker(v, 6)
			}
			row[x] = darker(v, 3)
		}
	}
	c.ridge(c.hills(rng, 0.93, 0.03, 6), 2, 14, shades-1, c.h/10)
}

// drawPortrait draws a figure before a lit wall.
func drawPortrait(c *canvas, rng *rand.Rand) {
	cx, u := c.w/2+rng.IntN(c.w/8)-c.w/16, float64(c.side())
	cy := c.h * 2 / 5
	c.radial(cx+c.w/6, cy-c.h/8, float64(max(c.w, c.h))*0.75, 0)
	for range 7 {
		c.glow(rng.IntN(c.w), rng.IntN(c.h), int(u*0.04)+rng.IntN(int(u*0.05)+1), 4)
	}
	head, hair := u*0.135, u*(0.165+0.03*rng.Float64())
	c.ellipse(cx, cy+int(u*0.10), hair, hair*1.7, 1, 8, 30)
	c.ellipse(cx, cy+int(u*0.62), u*0.34, u*0.36, 3, 6, 40)
	c.ellipse(cx, cy+int(u*0.20), head*0.42, head*1.1, 2, 0, 14)
	c.ellipse(cx, cy+int(u*0.30), u*0.10, u*0.06, 2, 6, 18)
	c.ellipse(cx, cy, head, head*1.28, 2, 14, shades-1)
	fringe := cy - int(head*1.0)
	c.ellipse(cx-int(head*0.45), fringe, head*0.75, head*0.55, 1, 10, 34)
	c.ellipse(cx+int(head*0.55), fringe+int(head*0.1), head*0.62, head*0.6, 1, 6, 26)
	for _, side := range []int{-1, 1} {
		c.ellipse(cx+side*int(head*0.40), cy+int(head*0.12), head*0.15, head*0.07, 1, 0, 6)
	}
	c.ellipse(cx, cy+int(head*0.74), head*0.2, head*0.07, 3, 30, shades-1)
}

// drawCartoon draws shiny balls on a floor.
func drawCartoon(c *canvas, rng *rand.Rand) {
	c.gradient(8, shades-1)
	floor := c.h * 9 / 20
	for y := floor; y < c.h; y++ {
		fill(c.row(y), tone(0, 12+(y-floor)*30/(c.h-floor)))
	}
	for i := range 9 {
		r := c.side()/18 + rng.IntN(c.side()/10)
		x, y := (i*4%9)*c.w/9+rng.IntN(c.w/8), floor-r/2+i*(c.h-floor)/14
		c.ellipse(x+r/3, y+r, float64(r), float64(r)/4, 0, 2, 8)
		c.ball(x, y, r, 1+rng.IntN(3))
	}
}

// drawAnime draws sun rays over summer clouds.
func drawAnime(c *canvas, rng *rand.Rand) {
	c.gradient(0, shades-1)
	x, y := c.w/4+rng.IntN(c.w/2), c.h/4+rng.IntN(c.h/6)
	c.rays(x, y, 9+rng.IntN(6), rng.Float64())
	c.disk(x, y, c.side()/9, 3, 30)
	c.disk(x, y, c.side()/12, 3, shades-1)
	for layer := range 3 {
		base := c.h * (11 + 2*layer) / 18
		for cx := -20; cx < c.w+20; cx += c.side() / 9 {
			r := c.side()/14 + rng.IntN(c.side()/10)
			c.ball(cx+rng.IntN(12), base+rng.IntN(c.side()/14), r, 1)
		}
		for yy := base + c.side()/14; yy < c.h; yy++ {
			fill(c.row(yy), tone(1, 22-6*layer))
		}
	}
	for range 60 {
		px, py := rng.IntN(c.w), rng.IntN(c.h)
		c.ellipse(px, py, 2+3*rng.Float64(), 1.5+rng.Float64(), 2, 20, shades-1)
	}
}

// drawOil draws brush strokes: a swirling sky over fields.
func drawOil(c *canvas, rng *rand.Rand) {
	c.gradient(6, 30)
	fx, fy, phase := 2+3*rng.Float64(), 2+2*rng.Float64(), rng.Float64()*6
	sx, sy := c.w/5+rng.IntN(c.w*3/5), c.h/4
	length, width := c.side()/18, max(c.side()/110, 2)
	for range c.w * c.h / (length * width) {
		x, y := rng.IntN(c.w), rng.IntN(c.h)
		u, v := float64(x)/float64(c.w), float64(y)/float64(c.h)
		angle := math.Sin(u*fx*2+phase) + math.Cos(v*fy*2-phase)
		ramp, shade := 0, 8+rng.IntN(30)
		dx, dy := x-sx, y-sy
		switch d := dx*dx + dy*dy; {
		case d < c.side()*c.side()/140:
			ramp, shade = 3, 30+rng.IntN(18)
		case d < c.side()*c.side()/22:
			ramp, shade = 1, 26+rng.IntN(22)
			angle = math.Atan2(float64(dy), float64(dx)) + math.Pi/2
		case v > 0.66+0.05*math.Sin(u*9+phase):
			ramp, shade = 2, int(v*30)+rng.IntN(18)
			angle = 0.3 * math.Sin(u*5+phase)
			if rng.IntN(14) == 0 {
				ramp = 3
			}
		}
		c.stroke(x, y, angle, length/2+rng.IntN(length), width, tone(ramp, shade))
	}
}

// drawWatercolor draws wet blots on paper.
func drawWatercolor(c *canvas, rng *rand.Rand) {
	c.gradient(10, shades-1)
	for i := range 13 {
		r := float64(c.side()) * (0.07 + 0.15*rng.Float64())
		c.blot(rng, rng.IntN(c.w), rng.IntN(c.h), r, 1+i%3)
	}
	for range 50 {
		c.ellipse(rng.IntN(c.w), rng.IntN(c.h), 1+3*rng.Float64(), 1+3*rng.Float64(), 1+rng.IntN(3), 8, 30)
	}
}

// drawSketch draws hills in pencil.
func drawSketch(c *canvas, rng *rand.Rand) {
	c.gradient(shades-1, 18)
	c.hatch(nil, 5, 1, 0, 30)
	x, y, r := c.w/4+rng.IntN(c.w/2), c.h/4, c.side()/9
	c.disk(x, y, r, 0, shades-1)
	c.ring(x, y, r, 3, 20)
	c.ring(x+1, y, r+2, 2, 10)
	for i := range 4 {
		hills := c.hills(rng, 0.42+0.13*float64(i), 0.11, 2.5+float64(i))
		c.ridge(hills, 0, shades-1, 30, c.h/3)
		c.hatch(hills, 8-i, 1+i%2, 2, max(24-7*i, 0))
		c.contour(hills, 3, 8)
	}
}

// drawChinese draws ink mountains in mist, a red sun and birds.
func drawChinese(c *canvas, rng *rand.Rand) {
	c.gradient(shades-1, 10)
	c.disk(c.w/5+rng.IntN(c.w*3/5), c.h/6+rng.IntN(c.h/8), c.side()/13, 3, 24)
	for i := range 4 {
		hills := c.hills(rng, 0.36+0.12*float64(i), 0.19-0.03*float64(i), 2+1.5*float64(i))
		c.ridge(hills, 1+i/2, 30-9*i, shades-1, c.h/4)
	}
	for range 5 {
		x, y, r := rng.IntN(c.w), c.h/10+rng.IntN(c.h/5), 4+rng.IntN(5)
		c.stroke(x, y, 0.5, r, 1, tone(1, 0))
		c.stroke(x+r, y, -0.5, r, 1, tone(1, 0))
	}
	seal := c.side() / 16
	for y := c.h / 2; y < c.h/2+seal; y++ {
		fill(c.row(y)[c.w-2*seal:c.w-seal], tone(3, 8))
	}
	for range 5 {
		x, y := c.w-2*seal+1+rng.IntN(seal/2), c.h/2+1+rng.IntN(seal/2)
		c.stroke(x, y, float64(rng.IntN(2))*math.Pi/2, seal/2-1, 1, tone(0, shades-1))
	}
}

// drawFlat draws paper hills and trees.
func drawFlat(c *canvas, rng *rand.Rand) {
	c.gradient(0, shades-1)
	x, y := c.w/4+rng.IntN(c.w/2), c.h*3/10
	for i := range 4 {
		c.disk(x, y, c.side()/6-i*c.side()/36, 3, shades-1-i*14)
	}
	for range 4 {
		cx, cy, r := rng.IntN(c.w), c.h/12+rng.IntN(c.h/4), c.side()/30
		for i, k := range []int{2, 3, 4, 2} {
			c.disk(cx+i*r*5/4, cy-k*r/4, r*k/3, 0, shades-1)
		}
	}
	for i := range 4 {
		hills := c.hills(rng, 0.52+0.12*float64(i), 0.07, 1.5+float64(i)*0.7)
		shade := 4 + i*13
		c.ridge(hills, 1, shade, shade, 1)
		for range 4 - i/2 {
			tx, size := rng.IntN(c.w), c.side()/22*(2+i)/2
			c.tree(tx, hills[tx]+size/6, size, 1+rng.IntN(2), min(shade+6, shades-1))
		}
	}
}
