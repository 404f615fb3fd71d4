package painter_test

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

func allStyles() []string {
	return []string{
		"<auto>", "<photography>", "<portrait>", "<3d cartoon>", "<anime>",
		"<oil painting>", "<watercolor>", "<sketch>", "<chinese painting>", "<flat illustration>",
	}
}

func paint(t *testing.T, p painter.Picture) image.Image {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(painter.Paint(p)))
	require.NoError(t, err)
	assert.Equal(t, image.Rect(0, 0, p.Width, p.Height), img.Bounds())
	return img
}

// distance returns the mean difference of two pictures in their upper half, which has
// no text of the request: 0 is equal, 1 is black against white.
func distance(a, b image.Image) float64 {
	var sum, n float64
	for y := a.Bounds().Dy() / 6; y < a.Bounds().Dy()/2; y += 3 {
		for x := 0; x < a.Bounds().Dx()*2/3; x += 3 {
			ar, ag, ab, _ := a.At(x, y).RGBA()
			br, bg, bb, _ := b.At(x, y).RGBA()
			for _, d := range []float64{float64(ar) - float64(br), float64(ag) - float64(bg), float64(ab) - float64(bb)} {
				sum += max(d, -d) / 0xffff
				n++
			}
		}
	}
	return sum / n
}

func TestPaintDiffersByWhatIsAsked(t *testing.T) {
	t.Parallel()
	base := painter.Picture{Model: "wanx-v1", Prompt: "一只狐狸", Style: painter.DefaultStyle, Width: 720, Height: 1280, Seed: 1, N: 1}
	first := painter.Paint(base)
	assert.True(t, bytes.Equal(first, painter.Paint(base)), "equal pictures give equal bytes")
	for name, change := range map[string]func(*painter.Picture){
		"prompt":   func(p *painter.Picture) { p.Prompt = "一只猫" },
		"negative": func(p *painter.Picture) { p.NegativePrompt = "红色" },
		"seed":     func(p *painter.Picture) { p.Seed++ },
		"style":    func(p *painter.Picture) { p.Style = "<sketch>" },
		"actual":   func(p *painter.Picture) { p.ActualPrompt = "一只狐狸，质感细腻" },
	} {
		other := base
		change(&other)
		assert.Greater(t, distance(paint(t, base), paint(t, other)), 0.01, name)
	}
}

func TestPaintAllStylesAndSizes(t *testing.T) {
	t.Parallel()
	for i, style := range allStyles() {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			for _, size := range []image.Point{{1024, 1024}, {720, 1280}, {768, 1152}, {1280, 720}, {401, 333}, {64, 64}, {1, 1}} {
				p := painter.Picture{
					Model: "wanx-v1", Prompt: strings.Repeat("狐狸 fox\n\U0001f98a ", 200), NegativePrompt: strings.Repeat("x", 500),
					Style: style, Width: size.X, Height: size.Y, Seed: int64(i), N: 4,
				}
				paint(t, p)
			}
		})
	}
}

// The label and the request are written on the picture.
func TestPaintShowsThePrompt(t *testing.T) {
	t.Parallel()
	p := painter.Picture{Model: "wanx-v1", Prompt: "狐", Width: 1024, Height: 1024, N: 1}
	img := paint(t, p)
	inks := map[color.Color]int{}
	for y := range 1024 {
		for x := range 1024 {
			inks[img.At(x, y)]++
		}
	}
	amber, gray := color.RGBA{255, 200, 64, 255}, color.RGBA{205, 212, 222, 255}
	assert.Greater(t, inks[amber], 2000, "SIMULATED 模拟")
	assert.Greater(t, inks[gray], 1000, "the caption")
}

// The watermark is at the bottom right; the scene stays the same.
func TestPaintWatermark(t *testing.T) {
	t.Parallel()
	for _, size := range []image.Point{{1024, 1024}, {1664, 928}} {
		p := painter.Picture{Model: "qwen-image", Prompt: "一只狐狸", Width: size.X, Height: size.Y, Seed: 5, N: 1}
		plain := paint(t, p)
		p.Watermark = "Qwen-Image"
		marked := paint(t, p)
		white := func(img image.Image) int {
			n := 0
			for y := size.Y - 80; y < size.Y; y++ {
				for x := size.X - 200; x < size.X; x++ {
					if r, g, b, _ := img.At(x, y).RGBA(); r&g&b == 0xffff {
						n++
					}
				}
			}
			return n
		}
		assert.Greater(t, white(marked), white(plain)+500)
		assert.Zero(t, distance(marked, plain))
	}
	larger := painter.Picture{Model: "wan2.2-t2i-flash", Prompt: "a", Width: 64, Height: 64, N: 1, Watermark: "AI生成"}
	assert.NotEmpty(t, painter.Paint(larger), "a watermark larger than its picture")
}

func TestPaintRepaintShowsTheReference(t *testing.T) {
	t.Parallel()
	ref := image.NewRGBA(image.Rect(0, 0, 512, 512))
	for i := range ref.Pix {
		ref.Pix[i] = uint8(i / 2048 / 64 * 30)
	}
	asked := painter.Picture{Model: "wanx-v1", Prompt: "a", Width: 1024, Height: 1024, N: 1, Ref: ref}
	whole := asked
	whole.RefStrength = 1
	last := 2.0
	for _, strength := range []float64{0, 0.5, 0.9} {
		p := asked
		p.RefStrength = strength
		d := distance(paint(t, p), paint(t, whole))
		assert.Less(t, d, last, "the stronger, the nearer to the reference")
		last = d
	}
}

func TestPaintRefOnlyTakesTheColors(t *testing.T) {
	t.Parallel()
	red := image.NewPaletted(image.Rect(0, 0, 300, 300), color.Palette{color.RGBA{R: 200, A: 255}})
	p := painter.Picture{Model: "wanx-v1", Prompt: "a", Style: "<photography>", Width: 768, Height: 1152, N: 1, Ref: red, RefMode: "refonly", RefStrength: 1}
	img := paint(t, p)
	r, g, b, _ := img.At(10, 500).RGBA()
	assert.Greater(t, r, 2*g)
	assert.Greater(t, r, 2*b)
}

func BenchmarkPaint(b *testing.B) {
	for _, style := range allStyles() {
		b.Run(strings.Trim(style, "<>"), func(b *testing.B) {
			p := painter.Picture{Model: "wanx-v1", Prompt: strings.Repeat("近景镜头,18岁的中国女孩,", 10), Style: style, Width: 1024, Height: 1024, N: 1}
			b.ReportAllocs()
			for b.Loop() {
				p.Seed++
				painter.Paint(p)
			}
		})
	}
	b.Run("reference", func(b *testing.B) {
		p := painter.Picture{
			Model: "wanx-v1", Prompt: "一只狐狸", Width: 1024, Height: 1024, N: 1, RefStrength: 0.5,
			Ref: image.NewRGBA(image.Rect(0, 0, 512, 512)),
		}
		for b.Loop() {
			p.Seed++
			painter.Paint(p)
		}
	})
}
