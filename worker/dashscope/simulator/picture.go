package simulator

import (
	"bytes"
	"image"
	"image/png"

	_ "image/gif"

	_ "image/jpeg"

	"golang.org/x/image/draw"
)

// Reference modes of wanx-v1.
const (
	refRepaint = "repaint"
	refOnly    = "refonly"
)

const refSide = 512

// Picture is what a result shows.
type Picture struct {
	Model, Prompt, NegativePrompt, Style string
	Width, Height                        int
	Seed                                 int64
	// Index counts from 0 within the N images of the task.
	Index, N    int
	Ref         image.Image
	RefMode     string
	RefStrength float64
}

// Paint renders a picture.
func Paint(p Picture) []byte {
	var b bytes.Buffer
	_ = png.Encode(&b, image.NewGray(image.Rect(0, 0, p.Width, p.Height)))
	return b.Bytes()
}

func styleOf(s string) (int, bool) { return 0, s == "" || s == "<auto>" || s == "<watercolor>" }

func standIn(string) image.Image { return image.NewGray(image.Rect(0, 0, refSide, refSide)) }

func shrink(img image.Image) *image.RGBA {
	b := img.Bounds()
	out := image.NewRGBA(image.Rect(0, 0, b.Dx(), b.Dy()))
	draw.Draw(out, out.Bounds(), img, b.Min, draw.Src)
	return out
}
