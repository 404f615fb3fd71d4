package painter

import "image/color"

// The palette of a scene: four ramps of shades, the same ramps darkened for the
// background of text, and the colors of text.
const (
	shades       = 48
	ramps        = 4
	darkStep     = 4 // shades that share one dark color
	sceneColors  = ramps * shades
	textBase     = sceneColors + sceneColors/darkStep
	darkness     = 0.30
	textWhite    = textBase
	textWhiteRef = 252 // the same in the palette of pictures with a reference
)

// rgb is a color with components in [0, 1].
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

// colorScheme holds a scene's ramps, each a gradient through three stops.
type colorScheme [ramps][3]rgb

// at returns the color of a palette index below sceneColors.
func (s *colorScheme) at(index int) rgb {
	stops := &s[index/shades]
	t := float64(index%shades) / (shades - 1) * 2
	if t <= 1 {
		return stops[0].mix(stops[1], t)
	}
	return stops[1].mix(stops[2], t-1)
}

// palette returns the colors of a picture without a reference.
func (s *colorScheme) palette() color.Palette {
	p := make(color.Palette, 0, 256)
	for i := range sceneColors {
		p = append(p, s.at(i).nrgba())
	}
	for i := darkStep / 2; i < sceneColors; i += darkStep {
		p = append(p, rgb{}.mix(s.at(i), darkness).nrgba())
	}
	return append(p, textColors()...)
}

// textColors are white, gray and amber.
func textColors() []color.Color {
	return []color.Color{
		color.NRGBA{R: 255, G: 255, B: 255, A: 255},
		color.NRGBA{R: 205, G: 212, B: 222, A: 255},
		color.NRGBA{R: 255, G: 200, B: 64, A: 255},
	}
}

// hsl returns a color by hue in degrees, and saturation and lightness in [0, 1].
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
