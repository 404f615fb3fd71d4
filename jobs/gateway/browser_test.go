package gateway_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// browserLog records a browser's requests and errors.
type browserLog struct {
	mu         sync.Mutex
	requests   []string
	complaints []string
}

// browser starts a headless Chromium of its own that makes no requests by itself.
func browser(t *testing.T) (context.Context, *browserLog) {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], //nolint:gocritic // a new slice: the defaults are an array
		chromedp.ExecPath(requireProgram(t, "chromium", "chromium")), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1600, 1400),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
	)
	ctx, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	v := &browserLog{}
	ctx, stop = chromedp.NewContext(ctx, chromedp.WithListener(v.record))
	t.Cleanup(stop)
	require.NoError(t, chromedp.Do(ctx, chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, log.Enable, cdp.Empty{})
		return err
	})))
	ctx, stop = context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(stop)
	return ctx, v
}

func (v *browserLog) record(event any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		v.requests = append(v.requests, e.Request.URL)
	case *log.EventEntryAdded: // includes violations of the Content-Security-Policy
		v.complaints = append(v.complaints, fmt.Sprintf("%s: %s (%s)", e.Entry.Level, e.Entry.Text, e.Entry.URL))
	case *runtime.EventExceptionThrown:
		v.complaints = append(v.complaints, e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError {
			v.complaints = append(v.complaints, fmt.Sprintf("console.error: %s", e.Args[0].Value))
		}
	}
}

// screenshot saves the page as an image into the folder DANQING_SCREENSHOTS, if set.
func screenshot(t *testing.T, name string) chromedp.Action[chromedp.Void] {
	t.Helper()
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		dir := os.Getenv("DANQING_SCREENSHOTS")
		if dir == "" {
			return nil
		}
		picture, err := chromedp.CaptureScreenshot()(ctx, target)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o600)
	})
}

// waitText waits until the page shows a text.
func waitText(text string) chromedp.Action[chromedp.Void] {
	return chromedp.WaitVisible(fmt.Sprintf(`//*[not(self::script) and contains(text(), '%s')]`, text))
}

// clickRow moves the mouse to the last cell of a table row, where the UI then
// shows two buttons, and clicks the first: pause or resume a queue, delete a job.
func clickRow(row string) chromedp.Action[chromedp.Void] {
	cell := fmt.Sprintf(`//tr[contains(., '%s')]/td[last()]`, row)
	return chromedp.Steps(
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			box, err := chromedp.Dimensions(cell, chromedp.NodeVisible)(ctx, target)
			if err != nil {
				return err
			}
			x, y := (box.Content[0]+box.Content[4])/2, (box.Content[1]+box.Content[5])/2
			_, err = chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, x, y)(ctx, target)
			return err
		}),
		chromedp.Click(cell+`//button[following-sibling::button]`, chromedp.NodeVisible),
	)
}

// A user views the queues, a waiting job and a finished one, pauses the queue, resumes it
// and cancels a job. No request leaves the machine, and the page works with its
// Content-Security-Policy.
func TestUIInChromium(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	w.enqueue(t, "autumn-1")
	w.processAll(t, func(ctx context.Context, message *asynq.Task) error {
		rec, err := w.jobs.Get(ctx, message.ResultWriter().TaskID())
		require.NoError(t, err)
		rec.State, rec.TaskID, rec.Images = jobs.StateSucceeded, "86ecf553-d340-4e21-af6e-a0c6a421c010", []jobs.Image{{N: 1, Key: "秋天/autumn-1.png"}}
		return w.jobs.ShowResult(ctx, rec)
	})
	w.enqueue(t, "autumn-2", "autumn-3")
	ctx, v := browser(t)

	require.NoError(t, chromedp.Do(ctx,
		chromedp.Navigate(w.server.URL+"/ui"),
		waitText(queue), screenshot(t, "queues"),
		chromedp.Click(`//a[.='`+queue+`']`, chromedp.NodeVisible), chromedp.Click(`//span[contains(., 'Pending')]`, chromedp.NodeVisible),
		waitText("autumn-2"), waitText("autumn-3"), waitText(`"水墨画：autumn-2　红色"`), screenshot(t, "pending"),
		chromedp.Navigate(w.server.URL+"/ui/queues/"+queue+"/tasks/autumn-1"),
		waitText("completed"), waitText(`"水墨画：autumn-1　红色"`), waitText(`"秋天/autumn-1.png"`), waitText("86ecf553"), screenshot(t, "task"),
	))
	require.NoError(t, chromedp.Do(ctx, chromedp.Navigate(w.server.URL+"/ui/"), waitText(queue), clickRow(queue), chromedp.WaitVisible(`//span[.="paused"]`), screenshot(t, "paused")))
	require.True(t, w.paused(t))
	require.NoError(t, chromedp.Do(ctx, clickRow(queue), chromedp.WaitVisible(`//span[.="run"]`)))
	require.False(t, w.paused(t))
	require.NoError(t, chromedp.Do(ctx,
		chromedp.Navigate(w.server.URL+"/ui/queues/"+queue+"?status=pending"), clickRow("autumn-3"),
		chromedp.WaitNotPresent(`//th[contains(., "autumn-3")]`),
	))
	w.requireCanceled(t, "autumn-3")
	v.requireLocal(t, w.server.URL)
}

func (w *testGateway) paused(t *testing.T) bool {
	t.Helper()
	info, err := w.inspector.GetQueueInfo(queue)
	require.NoError(t, err)
	return info.Paused
}

func (v *browserLog) requireLocal(t *testing.T, server string) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	own, err := url.Parse(server)
	require.NoError(t, err)
	require.Greater(t, len(v.requests), 20)
	for _, request := range v.requests {
		to, err := url.Parse(request)
		require.NoError(t, err)
		assert.True(t, to.Host == own.Host || to.Scheme == "data", "a request left for %s", request)
	}
	assert.Empty(t, strings.Join(v.complaints, "\n"), "complaints of the browser")
}
