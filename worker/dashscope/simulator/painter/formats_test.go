package painter_test

import (
	"bytes"
	"image"
	"image/jpeg"
	"image/png"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/image/webp"

	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// The same picture comes in three formats, the lossless ones with the same pixels.
func TestFormats(t *testing.T) {
	t.Parallel()
	p := painter.Picture{Model: "wanx-v1", Prompt: "a cat", Width: 65, Height: 33, N: 1}
	want, err := png.Decode(bytes.NewReader(painter.Paint(p)))
	require.NoError(t, err)
	got, err := webp.Decode(bytes.NewReader(painter.PaintWebP(p)))
	require.NoError(t, err)
	require.Equal(t, image.Rect(0, 0, 65, 33), got.Bounds())
	for x := range 65 {
		for y := range 33 {
			r, g, b, a := want.At(x, y).RGBA()
			r2, g2, b2, a2 := got.At(x, y).RGBA()
			require.Equal(t, []uint32{r, g, b, a}, []uint32{r2, g2, b2, a2}, "%d, %d", x, y)
		}
	}
	photo, err := jpeg.Decode(bytes.NewReader(painter.PaintJPEG(p)))
	require.NoError(t, err)
	assert.Equal(t, image.Rect(0, 0, 65, 33), photo.Bounds())
}
