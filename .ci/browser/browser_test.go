// Package browser uses the web UI in a headless Chromium. It is a module of its
// own, so that nobody who imports Danqing gets the driver of the browser.
package browser

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
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
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const queue = "danqing:wanx-v1:default"

// program is a running `danqing up`.
type program struct {
	binary, dir string
	flags       []string // of all commands
	env         []string
	url         string // of its HTTP server
}

// startProgram builds Danqing, starts it in a folder of its own and waits until it serves. With
// no environment it is simulated.
func startProgram(t *testing.T, env ...string) *program {
	t.Helper()
	p := &program{dir: t.TempDir(), env: env}
	if env == nil {
		p.flags = []string{"--simulate"}
	}
	p.binary = filepath.Join(p.dir, "danqing")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", p.binary, "./cmd/danqing")
	build.Dir = "../.."
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	up := p.command(t, append([]string{"up", "--listen", "127.0.0.1:0"}, p.flags...)...)
	stderr, err := up.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, up.Start())
	served, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			t.Log(lines.Text())
			if _, at, ok := strings.Cut(lines.Text(), "web UI:"); ok {
				served <- strings.TrimSuffix(strings.TrimSpace(at), "/")
			}
		}
	}()
	t.Cleanup(func() {
		assert.NoError(t, up.Process.Signal(os.Interrupt))
		<-ended
		assert.NoError(t, up.Wait())
	})
	select {
	case p.url = <-served:
	case <-ended:
		t.Fatal("danqing up ended")
	case <-time.After(time.Minute):
		t.Fatal("danqing up serves no web UI")
	}
	return p
}

func (p *program) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), p.binary, args...)
	cmd.Dir, cmd.Env = p.dir, []string{"HOME=" + p.dir, "PATH=" + os.Getenv("PATH"), "DANQING_S3_KEY_TEMPLATE=秋天/{job_id}-{n}{ext}", "DANQING_MODELS=wanx-v1"}
	cmd.Env = append(cmd.Env, p.env...)
	return cmd
}

// run runs a command of Danqing's on the queue of the running one and returns
// what it prints.
func (p *program) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := p.command(t, append(args, p.flags...)...)
	out, err := cmd.Output()
	require.NoError(t, err, "danqing %s: %s", strings.Join(args, " "), out)
	return string(out)
}

// job is what `danqing jobs show --json` prints of one.
type job struct {
	State      string   `json:"state"`
	TaskID     string   `json:"task_id"`
	Candidates []string `json:"candidates"`
	Decisions  []struct {
		Action, By, Why string
	} `json:"decisions"`
}

func (p *program) job(t *testing.T, id string) (j job) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(p.run(t, "jobs", "show", "--json", id)), &j))
	return j
}

func (p *program) enqueue(t *testing.T, id string) {
	t.Helper()
	p.run(t, "enqueue", "--id", id, "--prompt", "水墨画："+id+"　红色")
}

// get asks the UI's API and decodes the answer.
func (p *program) get(t *testing.T, path string, answer any) (status int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/ui/api"+path, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		require.NoError(t, json.NewDecoder(resp.Body).Decode(answer))
	}
	return resp.StatusCode
}

func (p *program) paused(t *testing.T) bool {
	t.Helper()
	var answer struct{ Current struct{ Paused bool } }
	require.Equal(t, http.StatusOK, p.get(t, "/queues/"+queue, &answer))
	return answer.Current.Paused
}

// browserLog records a browser's requests and errors.
type browserLog struct {
	mu         sync.Mutex
	requests   []string
	complaints []string
}

// chromium finds the browser, or skips the test; in CI it fails instead.
func chromium(t *testing.T) string {
	t.Helper()
	binary, err := exec.LookPath("chromium")
	if err == nil {
		return binary
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("chromium is not installed: apt-get install chromium")
	}
	t.Skip("chromium is not installed: apt-get install chromium would run this")
	return ""
}

// browser starts a headless Chromium of its own that makes no requests by itself.
func browser(t *testing.T, binary string) (context.Context, *browserLog) {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(binary), chromedp.UserDataDir(t.TempDir()),
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

// requireLocal checks that no request left for another server and that the
// browser complained of nothing.
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

// screenshot saves a picture of the page in the folder DANQING_SCREENSHOTS, for a
// person to look at.
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

// clickRow moves the mouse to the last cell of a table's row, where the UI then
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

// A user pauses a queue, views waiting jobs and a finished one, cancels a job and
// resumes the queue. No request leaves the machine, and the page works with its
// Content-Security-Policy.
func TestUIInChromium(t *testing.T) {
	t.Parallel()
	binary := chromium(t)
	p := startProgram(t)
	ctx, v := browser(t, binary)
	p.enqueue(t, "autumn-1")
	p.run(t, "jobs", "wait", "autumn-1")
	finished := p.job(t, "autumn-1")
	require.Equal(t, "succeeded", finished.State)
	require.NotEmpty(t, finished.TaskID)

	require.NoError(t, chromedp.Do(ctx,
		chromedp.Navigate(p.url+"/ui"), waitText(queue), screenshot(t, "queues"),
		clickRow(queue), chromedp.WaitVisible(`//span[.="paused"]`), screenshot(t, "paused"),
	))
	require.True(t, p.paused(t))
	p.enqueue(t, "autumn-2")
	p.enqueue(t, "autumn-3")
	require.NoError(t, chromedp.Do(ctx,
		chromedp.Navigate(p.url+"/ui"), waitText(queue),
		chromedp.Click(`//a[.='`+queue+`']`, chromedp.NodeVisible), chromedp.Click(`//span[contains(., 'Pending')]`, chromedp.NodeVisible),
		waitText("autumn-2"), waitText("autumn-3"), waitText(`"水墨画：autumn-2　红色"`), screenshot(t, "pending"),
		chromedp.Navigate(p.url+"/ui/queues/"+queue+"/tasks/autumn-1"),
		waitText("completed"), waitText(`"水墨画：autumn-1　红色"`), waitText(`"秋天/autumn-1-1.png"`), waitText(finished.TaskID), screenshot(t, "task"),
		chromedp.Navigate(p.url+"/ui/queues/"+queue+"?status=pending"), clickRow("autumn-3"),
		chromedp.WaitNotPresent(`//th[contains(., "autumn-3")]`),
	))
	assert.Equal(t, "canceled", p.job(t, "autumn-3").State)
	assert.Equal(t, http.StatusNotFound, p.get(t, "/queues/"+queue+"/tasks/autumn-3", nil))
	assert.Equal(t, "queued", p.job(t, "autumn-2").State)

	require.NoError(t, chromedp.Do(ctx, chromedp.Navigate(p.url+"/ui/"), waitText(queue), clickRow(queue), chromedp.WaitVisible(`//span[.="run"]`)))
	require.False(t, p.paused(t))
	p.run(t, "jobs", "wait", "autumn-2")
	assert.Equal(t, "succeeded", p.job(t, "autumn-2").State)
	v.requireLocal(t, p.url)
}
