package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/journal"
)

// shop is a folder in which programs run one after the other, without Redis.
type shop struct {
	t    *testing.T
	dir  string
	file string
}

const shopLines = `{"id":"茶杯","prompt":"一只白瓷茶杯"}
{"id":"cat","prompt":"a cat"}
`

func newShop(t *testing.T) *shop {
	t.Helper()
	dir := t.TempDir()
	s := &shop{t: t, dir: dir, file: filepath.Join(dir, "shop.jsonl")}
	require.NoError(t, os.WriteFile(s.file, []byte(shopLines), 0o600))
	return s
}

// run runs a program and returns its exit code and what it printed.
func (s *shop) run(args ...string) (code int, printed string) {
	s.t.Helper()
	var out bytes.Buffer
	p := &program{args: args, environ: []string{"DANQING_DATA_DIR=" + filepath.Join(s.dir, "data")}, stdin: strings.NewReader(""), stdout: &out, stderr: &out}
	code = p.run(s.t.Context())
	return code, out.String()
}

func (s *shop) prints(code int, args ...string) string {
	s.t.Helper()
	got, printed := s.run(args...)
	require.Equal(s.t, code, got, "%s\n%s", args, printed)
	return printed
}

// hold records in the journal that the job of the cat is held, as after a create without a reply.
func (s *shop) hold() {
	s.t.Helper()
	data, err := journal.OpenDataDir(filepath.Join(s.dir, "data", "simulated"))
	require.NoError(s.t, err)
	req, _, err := jobs.Request{ID: "shop.cat", Prompt: "a cat", Batch: "shop", LineID: "cat"}.Normalize()
	require.NoError(s.t, err)
	rec := jobs.NewRecord(req, nil)
	seeded := req.WithSeed(rec.ID)
	rec.Request, rec.Simulated, rec.Attempt, rec.Term, rec.Account = &seeded, true, 1, 1, "default"
	rec.State, rec.Code, rec.Message = jobs.StateHeld, jobs.CodeSubmitAmbiguous, "the reply was lost"
	rec.SubmittedAt, rec.ServiceAt = time.Now().UTC(), time.Now().UTC()
	require.NoError(s.t, data.Journal.Append(journal.KindHeld, rec))
	require.NoError(s.t, data.Close())
}

// task creates a task of the cat, as the create without a reply did.
func (s *shop) task() string {
	s.t.Helper()
	sim := &simulator.Simulator{
		StateDir: filepath.Join(s.dir, "data", "simulated", "dashscope"), TaskTime: simulator.Between(time.Millisecond, time.Millisecond),
		Keys: map[string]simulator.Key{"sk-simulated-default": {Account: "default"}},
	}
	require.NoError(s.t, sim.Load())
	client, err := dashscope.New(dashscope.Config{BaseURL: simulatedBase, APIKey: "sk-simulated-default", DialContext: sim.DialContext})
	require.NoError(s.t, err)
	task, err := client.Create(s.t.Context(), dashscope.CreateRequest{Model: "wanx-v1", Input: dashscope.Input{Prompt: "a cat"}, Parameters: dashscope.Parameters{N: new(1)}})
	require.NoError(s.t, err)
	client.CloseIdleConnections()
	require.NoError(s.t, sim.Close())
	return task.TaskID
}

// created returns how many tasks of the cat the service has.
func (s *shop) created() int {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "data", "simulated", "dashscope", "dashscope.jsonl"))
	require.NoError(s.t, err)
	n := 0
	seen := map[string]bool{}
	for line := range strings.SplitSeq(string(text), "\n") {
		if _, id, ok := strings.Cut(line, `"task_id":"`); ok && strings.Contains(line, "a cat") && !seen[id[:36]] {
			seen[id[:36]] = true
			n++
		}
	}
	return n
}

// What a batch without Redis holds is listed, shown and decided between two runs; the next run
// acts on it, and buys nothing twice.
func TestHoldsAreDecidedBetweenRuns(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		decide  func(s *shop) []string
		code    int    // of the next run
		summary string // and what it says
		created int
	}{
		"adopt":     {func(s *shop) []string { return []string{"--adopt", s.task()} }, exitDone, "2 done", 1},
		"buy again": {func(*shop) []string { return []string{"--buy-again"} }, exitDone, "2 done", 1},
		"give up":   {func(*shop) []string { return []string{"--give-up"} }, exitPartFailed, "1 done, 1 failed", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			require.NoError(t, os.WriteFile(s.file, []byte(strings.SplitAfter(shopLines, "\n")[0]), 0o600))
			s.prints(exitDone, "batch", s.file, "--simulate")
			require.NoError(t, os.WriteFile(s.file, []byte(shopLines), 0o600))
			s.hold()

			list := s.prints(exitDone, "jobs", "list", "--simulate")
			assert.Regexp(t, `shop\.cat +held \(simulated\) +wanx-v1 +default .*SubmitAmbiguous: the reply was lost\n`, list)
			assert.Regexp(t, `shop\.茶杯 +succeeded \(simulated\) .*1 image\n`, list)
			assert.Contains(t, list, "1 finished, 1 held\n")
			assert.NotContains(t, s.prints(exitDone, "jobs", "list", "--simulate", "--state", "held"), "茶杯")
			assert.NotContains(t, s.prints(exitDone, "jobs", "list", "--simulate", "--batch", "other"), "shop.")
			assert.Contains(t, s.prints(exitDone, "jobs", "show", "shop.cat", "--simulate"), "to decide: danqing jobs resolve shop.cat --help")
			assert.Contains(t, s.prints(exitDone, "jobs", "show", "shop.茶杯", "--simulate"), "bucket/danqing/")

			code, printed := s.run("batch", s.file, "--simulate")
			assert.Equal(t, exitPartFailed, code)
			assert.Contains(t, printed, "1 held")

			decision := append([]string{"jobs", "resolve", "shop.cat", "--simulate"}, c.decide(s)...)
			printed = s.prints(exitDone, decision...)
			if name != "give up" {
				assert.Contains(t, printed, "it takes effect with: danqing batch "+s.file+" --simulate")
			}
			assert.NotContains(t, s.prints(exitDone, "jobs", "show", "shop.cat", "--simulate"), "to decide")

			ctx, kill := context.WithCancel(t.Context()) // a run that is killed while it prepares
			kill()
			p := &program{args: []string{"batch", s.file, "--simulate"}, environ: []string{"DANQING_DATA_DIR=" + filepath.Join(s.dir, "data")}, stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
			p.run(ctx)

			assert.Contains(t, s.prints(c.code, "batch", s.file, "--simulate"), c.summary)
			assert.Equal(t, c.created, s.created())
			assert.Contains(t, s.prints(c.code, "batch", s.file, "--simulate"), "nothing was made again")
			assert.Equal(t, c.created, s.created())
			assert.Contains(t, s.prints(exitDone, "jobs", "list", "--simulate"), "2 finished\n")
			code, printed = s.run(decision...)
			assert.Equal(t, exitFailed, code, printed)
		})
	}
}

// Jobs that a killed batch has not begun with are listed from its results, with the command that
// goes on.
func TestListOfAnInterruptedBatch(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.prints(exitDone, "batch", s.file, "--simulate")
	results := filepath.Join(s.dir, "shop.simulated.results.jsonl")
	text, err := os.ReadFile(results)
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(s.dir, "data", "simulated", "bucket", "danqing", "_jobs", "shop.cat.json")))
	text = append(text, fmt.Appendf(nil, "%s\n", `{"prompt":"a dog","danqing":{"job_id":"shop.dog","state":"queued","cost_yuan":0}}`)...)
	require.NoError(t, os.WriteFile(results, text, 0o600))
	list := s.prints(exitDone, "jobs", "list", "--simulate", "--state", "queued")
	assert.Regexp(t, `shop\.dog +queued +wanx-v1 .* not submitted yet\n1 finished, 1 queued\n`, list)
	assert.Contains(t, list, "batch shop: 1 of 2 finished; to go on: danqing batch "+s.file+" --simulate\n")
	assert.Contains(t, s.prints(exitDone, "jobs", "show", "shop.dog", "--simulate"), "to go on: danqing batch")

	// A redo has a command of its own, which would make the next one for the batch's jobs.
	s.prints(exitDone, "redo", s.file, "茶杯", "--simulate")
	assert.Contains(t, s.prints(exitDone, "jobs", "show", "shop.dog", "--simulate"), "to go on: danqing batch")
	redos := filepath.Join(s.dir, "shop.redo.simulated.results.jsonl")
	text, err = os.ReadFile(redos)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(redos, []byte(strings.NewReplacer("redo-1", "redo-2", "succeeded", "queued").Replace(string(text))), 0o600))
	list = s.prints(exitDone, "jobs", "list", "--simulate", "--batch", "shop")
	assert.Contains(t, list, "batch shop: 1 of 2 finished; to go on: danqing batch "+s.file+" --simulate\n")
	assert.Contains(t, list, "job shop.茶杯-redo-2: to go on: danqing redo "+s.file+" 茶杯 --simulate\n")
	assert.Contains(t, s.prints(exitFailed, "jobs", "show", "shop.hen", "--simulate"), "no such job")
	assert.Contains(t, s.prints(exitUsage, "jobs", "list"), "REDIS_URL is not set")
	assert.Equal(t, `cd '/a b' && danqing batch 'it'\''s.jsonl' --name 春季`, startedBatch{Command: []string{"batch", "it's.jsonl", "--name", "春季"}, Dir: "/a b"}.goOn())
}
