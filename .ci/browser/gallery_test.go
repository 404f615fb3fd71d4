package browser

import (
	"context"
	"fmt"
	"image"
	"image/png"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	downloads "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/cmd/danqing/gallery"
)

// writeGallery writes a page of 250 lines with 4 images each, but for some that failed, and
// returns its URL.
func writeGallery(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	g := gallery.Gallery{Title: "春季主图 </title><script>alert(1)</script>", Key: "spring", File: "春季主图", Time: time.Now(), CostYuan: 150.4}
	prompts := []string{"一只白瓷茶杯,商业摄影,柔和的晨光", `a "house" like this </script><script>alert(1)</script>`, "春茶海报,大字标题“一叶知春”", "短"}
	for i := range 12 {
		picture := image.NewRGBA(image.Rect(0, 0, 320, 320+i%3*80))
		for at := range picture.Pix {
			x, y := at/4%320, at/4/320
			picture.Pix[at] = [4]uint8{uint8(60 + 12*i), uint8(x / 2), uint8(80 + y/4), 255}[at%4]
		}
		file, err := os.Create(filepath.Join(dir, fmt.Sprintf("茶 #%d.png", i)))
		require.NoError(t, err)
		require.NoError(t, png.Encode(file, picture))
		require.NoError(t, file.Close())
	}
	for i := range 250 {
		line := gallery.Line{
			JobID: fmt.Sprint("春季主图.A-", i), ID: fmt.Sprint("A-", i), Prompt: prompts[i%4], State: "succeeded", CostYuan: 0.64,
			Raw:  fmt.Sprintf(`{"id":"A-%d","prompt":"p","style":"摄影","货号":12345678901234567890,"n":4}`, i),
			Redo: fmt.Sprintf(`{"id":"A-%d-redo","prompt":"p","n":4}`, i),
		}
		for n := 1; n <= 4; n++ {
			source := url.PathEscape(fmt.Sprintf("茶 #%d.png", (i+n)%12))
			line.Images = append(line.Images, gallery.Image{N: n, Sources: []string{"missing/" + source, source}, Width: 1024, Height: 1024, Seed: int64(n)})
		}
		if i%25 == 7 {
			line.State, line.Reason, line.CostYuan, line.Images = "failed", "DataInspectionFailed: refused by moderation", 0, nil
		}
		g.Lines = append(g.Lines, line)
	}
	file, err := os.Create(filepath.Join(dir, "gallery.html"))
	require.NoError(t, err)
	require.NoError(t, g.Write(file))
	require.NoError(t, file.Close())
	return "file://" + file.Name()
}

// value is the value of an expression in the page.
func value[T any](ctx context.Context, t *testing.T, expression string) T {
	t.Helper()
	got, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	require.NoError(t, err, expression)
	return got
}

// script runs a script in the page.
func script(text string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := chromedp.Evaluate[any](text+"; null")(ctx, target)
		return err
	})
}

// waitLoaded waits until the pictures in the window are there.
var waitLoaded = chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
	_, err := chromedp.Poll[bool](`[...document.images].every((i) => {
		const r = i.getBoundingClientRect();
		return r.bottom < 0 || r.top > innerHeight || i.complete && i.naturalWidth > 0;
	})`)(ctx, target)
	return err
})

// press presses keys, one after the other.
func press(keys ...string) chromedp.Action[chromedp.Void] {
	var steps []chromedp.Action[chromedp.Void]
	for _, key := range keys {
		steps = append(steps, chromedp.KeyEvent(key))
	}
	return chromedp.Steps(steps...)
}

// exported clicks a button and returns the file that it saves.
func exported(ctx context.Context, t *testing.T, dir, button, name string) string {
	t.Helper()
	require.NoError(t, chromedp.Do(ctx, chromedp.Click(chromedp.CSS(button))))
	path := filepath.Join(dir, name)
	require.Eventually(t, func() bool { _, err := os.Stat(path); return err == nil }, 30*time.Second, 20*time.Millisecond)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// A person looks through a batch on a computer and on a phone, filters and marks its images
// and exports the marks. No request leaves the machine.
func TestGalleryInChromium(t *testing.T) {
	t.Parallel()
	page := writeGallery(t)
	ctx, v := browser(t, chromium(t))
	saved := t.TempDir()
	_, err := chromedp.CallBrowser(ctx, downloads.SetDownloadBehavior, downloads.SetDownloadBehaviorParams{Behavior: downloads.SetDownloadBehaviorBehaviorAllow, DownloadPath: saved})
	require.NoError(t, err)

	began := time.Now()
	require.NoError(t, chromedp.Do(ctx, chromedp.EmulateViewport(1280, 900), chromedp.Navigate(page), waitText("970 shown"), waitLoaded, screenshot(t, "gallery-1280")))
	t.Logf("1,000 images: opened in %s", time.Since(began))
	assert.LessOrEqual(t, value[int](ctx, t, `document.querySelectorAll(".card").length`), 480, "cards are made as one scrolls")

	require.NoError(t, chromedp.Do(ctx, chromedp.SendKeys(chromedp.CSS("#search"), "白瓷 A-24"), waitText("16 of 970 shown")))
	choose := func(field, text string) chromedp.Action[chromedp.Void] {
		return script(fmt.Sprintf(`{const f = document.querySelector(%q); f.value = %q; f.dispatchEvent(new Event("input")); f.dispatchEvent(new Event("change"))}`, field, text))
	}
	require.NoError(t, chromedp.Do(ctx, choose("#search", ""), waitText("970 shown")))
	require.NoError(t, chromedp.Do(ctx, choose("#state", "failed"), waitText("10 of 970 shown"), waitText("refused by moderation"), screenshot(t, "gallery-failed")))
	require.NoError(t, chromedp.Do(ctx, choose("#state", ""), waitText("970 shown"), script(`document.activeElement.blur()`)))

	// Keys: keep the first, reject the second, make the next two again.
	require.NoError(t, chromedp.Do(ctx, press(kb.ArrowRight, "k", kb.ArrowRight, "x", kb.ArrowRight, "r", kb.ArrowRight, "r", kb.ArrowRight, "r", "u"), screenshot(t, "gallery-marks")))
	assert.Equal(t, "{\"id\":\"A-0\",\"prompt\":\"p\",\"style\":\"摄影\",\"货号\":12345678901234567890,\"n\":4}\n", exported(ctx, t, saved, "#export-keep", "春季主图.keep.jsonl"))
	assert.Equal(t, "{\"id\":\"A-0-redo\",\"prompt\":\"p\",\"n\":2}\n", exported(ctx, t, saved, "#export-redo", "春季主图.redo.jsonl"))

	// The page remembers marks and language.
	require.NoError(t, chromedp.Do(ctx, chromedp.Click(chromedp.CSS("#language")), waitText("共 970 项"), chromedp.Navigate(page), waitText("共 970 项"), waitText("导出重做 (2)")))
	require.NoError(t, chromedp.Do(ctx, chromedp.Click(chromedp.CSS(".card:nth-child(6) .thumb")), chromedp.WaitVisible(chromedp.CSS("#viewer")), waitLoaded, press("k", kb.ArrowRight), screenshot(t, "gallery-viewer")))
	assert.Contains(t, value[string](ctx, t, `document.querySelector("#details").textContent`), "A-1")
	require.NoError(t, chromedp.Do(ctx, press(kb.Escape), chromedp.WaitNotVisible(chromedp.CSS("#viewer")), waitText("导出保留 (2)")))

	// A phone.
	require.NoError(t, chromedp.Do(ctx, chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile), chromedp.Navigate(page), waitText("共 970 项"), waitLoaded, screenshot(t, "gallery-390")))
	assert.LessOrEqual(t, value[int](ctx, t, `document.documentElement.scrollWidth`), 390, "nothing is wider than the window")
	require.NoError(t, chromedp.Do(ctx, chromedp.Click(chromedp.CSS(".card:nth-child(6) .thumb")), chromedp.WaitVisible(chromedp.CSS("#viewer")), waitLoaded, screenshot(t, "gallery-390-viewer")))

	v.mu.Lock()
	defer v.mu.Unlock()
	for _, request := range v.requests {
		assert.True(t, strings.HasPrefix(request, "file://") || strings.HasPrefix(request, "blob:null/"), "a request left: %s", request)
	}
	for _, complaint := range v.complaints {
		assert.Contains(t, complaint, "/missing/", "a complaint of the browser")
	}
}
