package main

import (
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A local picture and a sentence become an edited picture in the bucket, by flags and by a table. The
// simulator's edits show the picture that they were made from.
func TestEdits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plainPicture(t, filepath.Join(dir, "red.png"), color.RGBA{R: 255, A: 255})
	plainPicture(t, filepath.Join(dir, "blue.png"), color.RGBA{B: 255, A: 255})
	run := func(want int, args ...string) string {
		t.Helper()
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Args, cmd.Dir = append([]string{"danqing"}, args...), dir
		cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), noExitSleep}
		out, _ := cmd.CombinedOutput() // the exit code tells
		require.Equal(t, want, cmd.ProcessState.ExitCode(), string(out))
		return string(out)
	}
	run(exitDone, "generate", "in autumn", "--simulate", "--model", "wan2.7-image", "--size", "768*768", "--option", "thinking-mode=true",
		"--ref-img", "red.png", "--ref-img", "blue.png", "-o", "autumn.png")
	assert.Equal(t, "red", colorOf(t, filepath.Join(dir, "autumn.png")))

	table := "编号,提示词,模型,参考图,编辑方式,蒙版,strength\n" +
		"book,a picture book,wanx2.1-imageedit,blue.png,stylization_all,,70%\n" +
		"roof,a red roof,wanx2.1-imageedit,red.png,description_edit_with_mask,blue.png,\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "edits.csv"), []byte(table), 0o600))
	run(exitDone, "batch", "edits.csv", "--simulate")
	bucket := filepath.Join(dir, "danqing-data", "simulated", "bucket", "danqing")
	assert.Equal(t, "blue", colorOf(t, filepath.Join(bucket, "edits", "book-1.png")))
	assert.Equal(t, "red", colorOf(t, filepath.Join(bucket, "edits", "roof-1.png")))

	// What is no image for the model is named before anything is spent.
	plainPictureOf(t, filepath.Join(dir, "small.png"), 300, color.RGBA{R: 255, A: 255})
	assert.Contains(t, run(exitUsage, "generate", "x", "--simulate", "--model", "wanx2.1-imageedit", "--function", "colorization", "--ref-img", "small.png"), "is 300×300, allowed are 512×512 to 4096×4096")
	run(exitDone, "generate", "x", "--simulate", "--model", "wan2.7-image", "--ref-img", "small.png", "--dry-run")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "small.csv"), []byte("提示词,模型,参考图,编辑方式\nx,wanx2.1-imageedit,small.png,colorization\n"), 0o600))
	assert.Contains(t, run(exitUsage, "batch", "small.csv", "--simulate"), "is 300×300, allowed are 512×512 to 4096×4096")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "two.jsonl"), []byte(`{"prompt":"a","model":"wan2.7-image","ref_img":"red.png|blue.png"}`), 0o600))
	assert.Contains(t, run(exitUsage, "batch", "two.jsonl", "--dry-run"), "; several images go into ref_images")

	for text, args := range map[string][]string{
		`--option strenth=1: there is no parameter "strenth"`:   {"--option", "strenth=1"},
		`--option strength: it is not NAME=VALUE`:               {"--option", "strength"},
		`--option names strength twice`:                         {"--option", "strength=1", "--option", "strength=0"},
		`strength: "much"; allowed: a number`:                   {"--option", "strength=much"},
		`is_sketch: "perhaps"; allowed: true, false`:            {"--option", "is_sketch=perhaps"},
		`strength: 0.5; allowed: none: wanx-v1 has no strength`: {"--option", "strength=0.5"},
		`ref_images: 2 images; allowed: `:                       {"--ref-img", "red.png", "--ref-img", "blue.png"},
		`mask_image_url: "blue.png"; allowed: none: `:           {"--ref-img", "red.png", "--mask", "blue.png"},
	} {
		assert.Contains(t, run(exitUsage, append([]string{"generate", "x", "--simulate"}, args...)...), text)
	}
}

func plainPicture(t *testing.T, path string, c color.Color) {
	t.Helper()
	plainPictureOf(t, path, 640, c)
}

func plainPictureOf(t *testing.T, path string, side int, c color.Color) {
	t.Helper()
	picture := image.NewRGBA(image.Rect(0, 0, side, side))
	draw.Draw(picture, picture.Bounds(), image.NewUniform(c), image.Point{}, draw.Src)
	file, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, png.Encode(file, picture))
	require.NoError(t, file.Close())
}

// colorOf returns which of red and blue a picture is at its left edge.
func colorOf(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close() //nolint:errcheck // read only
	picture, err := png.Decode(file)
	require.NoError(t, err)
	red, _, blue, _ := picture.At(20, picture.Bounds().Dy()/2).RGBA()
	switch {
	case red > 2*blue:
		return "red"
	case blue > 2*red:
		return "blue"
	}
	return "neither"
}
