package painter_test

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// goldenPictures returns pictures of every style, in several sizes, with each kind of
// reference, and of a model without styles.
func goldenPictures() map[string]painter.Picture {
	ref := image.NewRGBA(image.Rect(0, 0, 300, 200))
	for y := range 200 {
		for x := range 300 {
			ref.SetRGBA(x, y, color.RGBA{R: uint8(x * 255 / 300), G: uint8(y * 255 / 200), B: uint8((x ^ y) & 0xff), A: 255})
		}
	}
	all := map[string]painter.Picture{}
	for i, style := range allStyles() {
		for _, size := range []image.Point{{720, 1280}, {1024, 1024}, {401, 333}, {1, 1}} {
			if testing.Short() && size.X > 401 {
				continue
			}
			p := painter.Picture{
				Model: "wanx-v1", Prompt: strings.Repeat("近景镜头, an 18岁 girl\n\U0001f98a ", 12), NegativePrompt: "低分辨率",
				Style: style, Width: size.X, Height: size.Y, Seed: int64(i), Index: i % 4, N: 4,
			}
			name := fmt.Sprintf("%s %d*%d", style, size.X, size.Y)
			all[name] = p
			p.Ref, p.RefMode, p.RefStrength = ref, painter.RefRepaint, float64(i)/10
			all[name+" repaint"] = p
			p.Ref, p.RefMode = painter.Placeholder("https://example.com/"+style), painter.RefOnly
			all[name+" refonly"] = p
		}
	}
	for _, prompt := range []string{"一只狐狸", "a fox", "水墨画：秋天"} {
		all["qwen-image "+prompt] = painter.Picture{
			Model: "qwen-image", Prompt: prompt, ActualPrompt: prompt + ", 晨光斜照", Watermark: "Qwen-Image",
			Width: 928, Height: 1664, Seed: 7, N: 1,
		}
	}
	return all
}

// The pictures do not change, pixel by pixel. Their PNG encoding may differ between
// versions of Go.
func TestGoldenPictures(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skip("the hashes hold for GOARCH=amd64: other architectures may fuse a multiplication and an addition")
	}
	const file = "testdata/pictures.golden"
	pictures := goldenPictures()
	var got []string
	for _, name := range slices.Sorted(maps.Keys(pictures)) {
		img, err := png.Decode(bytes.NewReader(painter.Paint(pictures[name])))
		require.NoError(t, err)
		pixels := image.NewRGBA(img.Bounds())
		draw.Draw(pixels, pixels.Rect, img, image.Point{}, draw.Src)
		got = append(got, fmt.Sprintf("%x  %s\n", sha256.Sum256(pixels.Pix), name))
	}
	if *update && !testing.Short() {
		require.NoError(t, os.WriteFile(file, []byte(strings.Join(got, "")), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Subset(t, slices.Collect(strings.Lines(string(want))), got)
	if !testing.Short() {
		assert.Equal(t, string(want), strings.Join(got, ""))
	}
}
