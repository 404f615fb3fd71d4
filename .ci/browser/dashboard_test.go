package browser

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// badDay is a simulated DashScope on which the reply to each create with "lost" in its prompt is
// lost, while another program that uses the same key creates the same.
func badDay(t *testing.T) string {
	t.Helper()
	sim := &simulator.Simulator{TaskTime: simulator.Between(100*time.Millisecond, 400*time.Millisecond), SubmitsPerSecond: -1}
	t.Cleanup(func() { assert.NoError(t, sim.Close()) })
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if r.Method != http.MethodPost || !bytes.Contains(body, []byte("lost")) {
			r.Body = io.NopCloser(bytes.NewReader(body))
			sim.ServeHTTP(w, r)
			return
		}
		other := bytes.ReplaceAll(body, []byte(`"seed":`), []byte(`"seed":1`)) // so that it looks different
		for _, create := range [][]byte{body, other} {
			again := r.Clone(context.WithoutCancel(r.Context()))
			again.Body, again.ContentLength = io.NopCloser(bytes.NewReader(create)), int64(len(create))
			sim.ServeHTTP(httptest.NewRecorder(), again)
		}
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(server.Close)
	return server.URL + "/api/v1"
}

// loaded waits until the pictures that match a selector are there, at least one.
func loaded(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := chromedp.Poll[bool](`(() => {
			const all = [...document.querySelectorAll("`+selector+`")];
			for (const i of all) i.loading = "eager";
			return all.length > 0 && all.every((i) => i.complete && i.naturalWidth > 0);
		})()`)(ctx, target)
		return err
	})
}

func click(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible)
}

// An operator logs in, finds a held job, compares the pictures of its candidates, adopts one, and
// sees the job and its lane go on; pauses and resumes a model, and follows an image; on a computer
// and on a phone, in both languages. No request leaves the page.
func TestDashboardInChromium(t *testing.T) {
	t.Parallel()
	binary := chromium(t)
	p := startProgram(t, "DASHSCOPE_HTTP_BASE_URL="+badDay(t), "DASHSCOPE_API_KEY=sk-any", "DANQING_SUBMIT_LIMIT=2s", "DANQING_DAILY_BUDGET=4",
		"DANQING_OPERATOR_TOKENS=ann:ann-0123456789abcdef", "DANQING_UI_WRITE=true")
	ctx, v := browser(t, binary)
	do := func(steps ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		require.NoError(t, chromedp.Do(ctx, steps...))
	}
	p.enqueue(t, "first")
	p.run(t, "jobs", "wait", "first")
	p.run(t, "enqueue", "--id", "lost-1", "--prompt", "lost: 江南小院，细雨 <script>alert(1)</script>", "--label", "sku=B-3")

	// The login page leads back to where one came from.
	do(chromedp.EmulateViewport(1280, 900), chromedp.Navigate(p.url+"/jobs?state=succeeded"), chromedp.WaitVisible(chromedp.CSS(".login")), screenshot(t, "login-1280"),
		chromedp.SendKeys(chromedp.CSS("input[name=token]"), "ann-wrong-0123456789"), click("button.primary"), waitText("This is not a token"),
		chromedp.SendKeys(chromedp.CSS("input[name=token]"), "ann-0123456789abcdef"), click("button.primary"), waitText("first"), screenshot(t, "jobs-1280"))

	// The page shows the held job as soon as it is held, and its pictures as soon as they are kept.
	do(chromedp.Navigate(p.url+"/"), waitText("Waiting for your decision"), chromedp.WaitVisible(chromedp.CSS("figure:nth-child(2) img")), loaded(".candidates img"), screenshot(t, "overview-1280"))
	held := p.job(t, "lost-1")
	require.Equal(t, "held", held.State)
	require.Len(t, held.Candidates, 2)
	require.Equal(t, 0, value[int](ctx, t, `document.querySelectorAll("main script").length`))

	// Adopting asks once, and the job goes on while one looks.
	do(click("figure:nth-child(2) .primary"), waitText("Adopt this task?"), loaded(".shots img"), screenshot(t, "adopt-1280"),
		chromedp.SendKeys(chromedp.CSS("input[name=why]"), "it has the courtyard"), click("button.primary"), waitText("Adopted."),
		chromedp.WaitVisible(chromedp.CSS(".title .pill.good")), loaded(".pictures img"), waitText("it has the courtyard"), screenshot(t, "job-1280"))
	adopted := p.job(t, "lost-1")
	assert.Equal(t, "succeeded", adopted.State)
	assert.Equal(t, held.Candidates[1], adopted.TaskID)
	require.Len(t, adopted.Decisions, 1)
	assert.Equal(t, "adopt ann it has the courtyard", strings.Join([]string{adopted.Decisions[0].Action, adopted.Decisions[0].By, adopted.Decisions[0].Why}, " "))

	// A paused model starts nothing; resumed, its lane goes on.
	do(chromedp.Navigate(p.url+"/"), click("#lanes summary"), chromedp.SendKeys(chromedp.CSS("#lanes input[name=why]"), "lunch"), click("#lanes form:first-of-type button"), waitText("paused by ann"), screenshot(t, "paused-1280"))
	p.enqueue(t, "second")
	do(waitText("1 waiting"))
	assert.Equal(t, "queued", p.job(t, "second").State)
	do(click("#lanes summary"), click("#lanes form button"), chromedp.WaitNotPresent(`//*[contains(text(), "paused by ann")]`),
		chromedp.WaitVisible(chromedp.CSS(`#newest a[href="/jobs/second"]`)), loaded("#newest img"),
		click(`#newest a[href="/jobs/second"]`), waitText("Story"), loaded(".pictures img"))

	// A phone, in Chinese.
	do(chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile))
	narrow := func(name, path, text, pictures string) {
		do(chromedp.Navigate(p.url+path), waitText(text))
		if pictures != "" {
			do(loaded(pictures))
		}
		do(screenshot(t, name))
		assert.LessOrEqual(t, value[int](ctx, t, `document.documentElement.scrollWidth`), 390, "%s: nothing is wider than the window", path)
	}
	p.run(t, "enqueue", "--id", "lost-2", "--prompt", "lost: 秋山红叶，远处有雁")
	narrow("job-390", "/jobs/second?lang=zh", "经过", ".pictures img")
	do(chromedp.Navigate(p.url+"/"), chromedp.WaitVisible(chromedp.CSS("figure:nth-child(2) img")))
	narrow("overview-390", "/", "等待您的决定", ".candidates img")
	narrow("jobs-390", "/jobs?q=sku%3DB-3", "lost-1", "")
	narrow("buy-390", "/jobs/lost-2/decide?action=buy-again", "重新购买？", "")
	do(click("button.primary"), waitText("已重新购买"))
	require.Len(t, p.job(t, "lost-2").Decisions, 1)
	do(click("form[action='/logout'] button"), chromedp.WaitVisible(chromedp.CSS(".login")), screenshot(t, "login-390"),
		chromedp.Navigate(p.url+"/"), chromedp.WaitVisible(chromedp.CSS(".login")))
	v.mu.Lock()
	assert.Contains(t, strings.Join(v.complaints, "\n"), "401", "the wrong token")
	v.complaints = nil
	v.mu.Unlock()
	v.requireLocal(t, p.url)
}
