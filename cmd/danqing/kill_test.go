package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// A batch is killed by kill -9 at each of its requests to DashScope or to the bucket, before
// or after the answer: the next run completes every line once, and no task is created twice.
// Every other batch makes its lines from a row of a table, with a template and variations.
func TestKilledBatchContinues(t *testing.T) {
	t.Parallel()
	requests := uninterruptedRun(t)
	require.Greater(t, len(requests), 20, "requests of an undisturbed run")
	var group errgroup.Group
	group.SetLimit(8) // the processes mostly wait
	for nth, route := range requests {
		for i, phase := range []string{"lost", "unanswered", "answered"} {
			if testing.Short() && i != nth%3 { // in the race detector's run
				continue
			}
			group.Go(func() error {
				w := newKillStack(t)
				defer w.close()
				w.killAt, w.phase = nth, phase
				if (nth/3+nth+i)%2 == 1 {
					w.args = []string{"batch", "two.csv", "--prompt", "prompt {{.letter}}", "--vary", "letter=a,b"}
				}
				if err := w.killedRun(i == nth%3); err != nil {
					return fmt.Errorf("killed at request %d (%s), %s: %w\n%s", nth, route, phase, err, w.log.String())
				}
				return nil
			})
		}
	}
	require.NoError(t, group.Wait())
}

// uninterruptedRun returns the requests of a run without a kill.
func uninterruptedRun(t *testing.T) []string {
	t.Helper()
	w := newKillStack(t)
	defer w.close()
	code, err := w.run(t.Context(), "batch", "two.jsonl")
	require.NoError(t, err)
	require.Zero(t, code, w.log.String())
	return w.requests
}

// A redo is killed at its requests: the same command again finishes it, and buys no second one.
// Once it has ended, the next one is made.
func TestKilledRedoContinues(t *testing.T) {
	t.Parallel()
	undisturbed := newKillStack(t)
	defer undisturbed.close()
	require.NoError(t, undisturbed.killedRedo(-1, ""))
	first := slices.Index(undisturbed.requests, "redo")
	requests := undisturbed.requests[first+1:]
	requests = requests[:slices.Index(requests, "redo")]
	require.Greater(t, len(requests), 10, "requests of an undisturbed redo")
	var group errgroup.Group
	group.SetLimit(8)
	for nth, route := range requests {
		if nth%3 > 0 && !strings.Contains(route, "POST") { // each takes four processes
			continue
		}
		phase := []string{"lost", "unanswered", "answered"}[nth/3%3]
		group.Go(func() error {
			w := newKillStack(t)
			defer w.close()
			if err := w.killedRedo(nth, phase); err != nil {
				return fmt.Errorf("killed at request %d (%s), %s: %w\n%s", nth, route, phase, err, w.log.String())
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

// killedRedo makes a batch, and a line of it again, which is killed at its nth request, again
// until it has ended, and once more after that.
func (w *killStack) killedRedo(nth int, phase string) error {
	if code, err := w.run(context.Background(), "batch", "two.jsonl"); err != nil || code != exitDone {
		return fmt.Errorf("batch: exit code %d, %w", code, err)
	}
	for redo := 1; redo <= 2; redo++ {
		w.mu.Lock()
		w.requests = append(w.requests, "redo")
		if w.killAt = -1; redo == 1 && nth >= 0 {
			w.killAt, w.phase = len(w.requests)+nth, phase
		}
		w.mu.Unlock()
		killed, err := w.run(context.Background(), "redo", "two.jsonl", "a")
		w.mu.Lock()
		w.killAt = -1
		w.mu.Unlock()
		for code := killed; code != exitDone || err != nil; {
			if code > 0 || err != nil {
				return fmt.Errorf("redo %d: exit code %d, %w", redo, code, err)
			}
			code, err = w.run(context.Background(), "redo", "two.jsonl", "a")
		}
		if tasks := w.tasksOf("prompt a"); tasks != 1+redo {
			return fmt.Errorf("redo %d: %d tasks", redo, tasks)
		}
		for _, name := range []string{"a-1.png", fmt.Sprintf("a-redo-%d-1.png", redo)} {
			if _, err := os.Stat(w.files.Path("two/" + name)); err != nil {
				return err
			}
		}
		text, err := os.ReadFile(filepath.Join(w.dir, "two.redo.results.jsonl"))
		if err != nil {
			return err
		}
		if n := strings.Count(string(text), `"state":"succeeded"`); n != redo || strings.Count(string(text), "\n") != redo {
			return fmt.Errorf("redo %d: the file has\n%s", redo, text)
		}
	}
	return nil
}

// tasksOf counts the tasks of a prompt.
func (w *killStack) tasksOf(prompt string) int {
	tasks := 0
	for _, task := range w.sim.Tasks() {
		if task.Request.Input.Prompt == prompt {
			tasks++
		}
	}
	return tasks
}

// killStack is a DashScope and a bucket that outlive killed batches.
type killStack struct {
	dir    string
	args   []string // of the batch command
	sim    *simulator.Simulator
	files  *bucket.Server
	server *httptest.Server // DashScope under /api, the bucket under the rest

	mu       sync.Mutex
	requests []string
	killAt   int // index of the request at which to kill; -1 for none
	phase    string
	process  *os.Process
	log      bytes.Buffer
}

func newKillStack(t *testing.T) *killStack {
	t.Helper()
	files, err := bucket.Open(bucket.Config{Dir: filepath.Join(t.TempDir(), "s3"), AccessKeyID: "AKIATEST", SecretAccessKey: "secret"})
	require.NoError(t, err)
	w := &killStack{dir: t.TempDir(), args: []string{"batch", "two.jsonl"}, files: files, killAt: -1}
	w.sim = &simulator.Simulator{
		TaskTime: simulator.Between(30*time.Millisecond, 60*time.Millisecond),
		Render: func(p painter.Picture) []byte {
			p.Width, p.Height = 8, 8
			if p.Prompt == "prompt b" {
				return painter.PaintJPEG(p)
			}
			return painter.Paint(p)
		},
	}
	w.server = httptest.NewServer(w)
	lines := `{"id":"a","prompt":"prompt a"}` + "\n" + `{"prompt":"prompt b"}` + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(w.dir, "two.jsonl"), []byte(lines), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(w.dir, "two.csv"), []byte("编号,备注\nA-17,a row\n"), 0o600))
	return w
}

func (w *killStack) close() {
	w.server.Close()
	_ = w.sim.Close()
	_ = w.files.Close()
}

// ServeHTTP answers like DashScope or the bucket, and kills the process at the chosen
// request.
func (w *killStack) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	var handler http.Handler = w.files
	if !strings.HasPrefix(r.URL.Path, "/"+bucket.DefaultBucket+"/") {
		handler = w.sim
	}
	w.mu.Lock()
	nth := len(w.requests)
	w.requests = append(w.requests, r.Method+" "+r.URL.Path)
	due, phase, process := nth == w.killAt, w.phase, w.process
	w.mu.Unlock()
	if due && phase == "lost" {
		_ = process.Kill()
		panic(http.ErrAbortHandler)
	}
	if due && phase == "unanswered" {
		_ = process.Kill()
		handler.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithoutCancel(r.Context())))
		panic(http.ErrAbortHandler)
	}
	handler.ServeHTTP(rw, r)
	if due {
		_ = http.NewResponseController(rw).Flush()
		_ = process.Kill()
	}
}

// run runs a command and returns its exit code; -1 if it was killed.
func (w *killStack) run(ctx context.Context, args ...string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Args = append([]string{"danqing"}, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.dir, &w.log, &w.log
	cmd.Env = []string{
		"HOME=" + w.dir, "PATH=" + os.Getenv("PATH"), noExitSleep,
		"DASHSCOPE_API_KEY=sk-kill", "DASHSCOPE_HTTP_BASE_URL=" + w.server.URL + "/api/v1",
		"AWS_ACCESS_KEY_ID=AKIATEST", "AWS_SECRET_ACCESS_KEY=secret", "AWS_REGION=us-east-1",
		"AWS_ENDPOINT_URL_S3=" + w.server.URL, "DANQING_S3_BUCKET=" + bucket.DefaultBucket,
		"DANQING_SUBMIT_LIMIT=20s", // the simulator lists tasks at once; a busy machine needs two seconds for the next one
	}
	// The first request waits for process: a child is faster than this line.
	w.mu.Lock()
	err = cmd.Start()
	w.process = cmd.Process
	w.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// killedRun checks the run after a killed one, and once more if again is set.
func (w *killStack) killedRun(again bool) error {
	if code, err := w.run(context.Background(), w.args...); err != nil || code > 0 {
		return fmt.Errorf("first run: exit code %d, %w", code, err)
	}
	if err := w.checkGrown(); err != nil {
		return fmt.Errorf("after the kill: %w", err)
	}
	w.mu.Lock()
	w.killAt = -1 // on a busy machine a run polls less often, and may end before the kill
	w.mu.Unlock()
	var before int
	runs := []string{"second run", "third run"}
	if !again {
		runs = runs[:1]
	}
	for _, run := range runs {
		code, err := w.run(context.Background(), w.args...)
		if err != nil {
			return err
		}
		if err := w.check(); err != nil {
			return fmt.Errorf("%s: %w", run, err)
		}
		if code != exitDone {
			return fmt.Errorf("%s: exit code %d", run, code)
		}
		if run == "third run" && len(w.sim.Tasks()) != before {
			return errors.New("the third run made a task")
		}
		before = len(w.sim.Tasks())
	}
	return nil
}

// checkGrown checks that the results have each line once that was reported as done.
func (w *killStack) checkGrown() error {
	text, err := os.ReadFile(filepath.Join(w.dir, "two.results.jsonl"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	succeeded := map[string]int{}
	for line := range strings.Lines(string(text)) {
		var got struct {
			Prompt  string `json:"prompt"`
			Danqing result `json:"danqing"`
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil || !strings.HasSuffix(line, "\n") {
			return fmt.Errorf("results line %q: %w", line, err)
		}
		if succeeded[got.Prompt]++; got.Danqing.State == jobs.StateSucceeded && len(got.Danqing.Images) != 1 {
			return fmt.Errorf("results line %q", line)
		}
	}
	for i, prompt := range []string{"prompt a", "prompt b"} {
		done := strings.Count(w.log.String(), fmt.Sprintf("done line %d,", i+1)) + strings.Count(w.log.String(), "done row 2, two.A-17-"+prompt[len("prompt "):])
		if succeeded[prompt] > 1 || succeeded[prompt] < done {
			return fmt.Errorf("%s: %d times in the results, reported %d times", prompt, succeeded[prompt], done)
		}
	}
	return nil
}

// check checks that each line is in the results once, its image is in the bucket, and its
// task was created once.
func (w *killStack) check() error {
	text, err := os.ReadFile(filepath.Join(w.dir, "two.results.jsonl"))
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != 2 {
		return fmt.Errorf("%d result lines", len(lines))
	}
	for i, line := range lines {
		var got struct {
			Prompt  string `json:"prompt"`
			Danqing result `json:"danqing"`
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			return err
		}
		if want := []string{"prompt a", "prompt b"}[i]; got.Prompt != want {
			return fmt.Errorf("line %d is of %q", i+1, got.Prompt)
		}
		tasks := w.tasksOf(got.Prompt)
		if got.Danqing.State != jobs.StateSucceeded || tasks != 1 {
			return fmt.Errorf("%s: %s with %d tasks: %s", got.Prompt, got.Danqing.State, tasks, got.Danqing.Message)
		}
		ext := []string{".png", ".jpg"}[i]
		base, isFormat := strings.CutSuffix(w.files.Path(got.Danqing.Images[0].Key), ext)
		stored, err := filepath.Glob(base + ".*")
		if !isFormat || err != nil || len(stored) != 1 {
			return fmt.Errorf("%s is stored as %q, %w", got.Danqing.Images[0].Key, stored, err)
		}
	}
	return nil
}
