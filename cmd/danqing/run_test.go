package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/cmd/danqing/input"
	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// simulatedRun returns a run of a batch file with some lines, in a simulated runtime whose
// worker is prepared and does not run.
func simulatedRun(t *testing.T, lines string) *batchRun {
	t.Helper()
	env := map[string]string{"DANQING_DATA_DIR": t.TempDir()}
	cfg, err := config.Load(func(name string) string { return env[name] }, nil)
	require.NoError(t, err)
	rt, err := openRuntime(cfg, true, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rt.Close()) })
	require.NoError(t, rt.worker.Prepare(t.Context()))
	p := &program{stdin: strings.NewReader(lines), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	refs := references{}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(p.tempDir)) })
	options, err := input.Flags{}.Parse()
	require.NoError(t, err)
	s, err := p.readBatch(t.Context(), batchReader{command: "batch", options: options, cfg: cfg, localImages: true, refs: refs}, "-", "many")
	require.NoError(t, err)
	s.results = filepath.Join(t.TempDir(), "many.results.jsonl")
	r := &batchRun{program: p, runtime: rt, progress: newProgress(p.stderr), refs: refs, files: []*batchFile{s}, byID: map[string]*line{}}
	for _, l := range s.lines {
		r.byID[l.id] = l
	}
	r.count.total = len(s.lines)
	return r
}

// manyLines are n lines with the ids 1 to n.
func manyLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"id\":\"%d\",\"prompt\":\"picture %d\"}\n", i+1, i+1)
	}
	return b.String()
}

func (r *batchRun) enqueueEverything(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, lines := range groups(r.files[0].lines) {
		require.NoError(t, r.enqueue(ctx, lines, false))
	}
}

// The request of a line is parsed again when it is enqueued: it is the same as when the file
// was checked, also for equal lines without an id, and if a local image has changed since.
func TestRequestsAreParsedAgain(t *testing.T) {
	t.Parallel()
	house := filepath.Join(t.TempDir(), "house.png")
	image, err := os.ReadFile("examples/house.png")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(house, image, 0o600))
	text := "\ufeff{\"prompt\":\"a cat\"}\r\n\n" +
		"{\"prompt\":\"a cat\", \"n\": 2}\n{\"prompt\":\"a cat\"}\n" +
		"{\"id\":\"茶\",\"prompt\":\"a cup\",\"model\":\"qwen-image\",\"deadline\":\"2126-01-02T03:04:05Z\",\"labels\":{\"a\":\"b\"}}\n" +
		"{\"prompt\":\"a house\",\"ref_img\":\"" + house + "\"}\n"
	r := simulatedRun(t, text)
	var want []jobs.Request
	options := r.files[0].options
	options.Each = func(l jobs.Line) { want = append(want, l.Request) }
	_, err = jobs.ReadBatch(strings.NewReader(text), options)
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(house, []byte("no image"), 0o600))
	lines := r.files[0].lines
	got, err := requests(lines)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	for i, l := range lines { // and in other groups
		got, err := requests(lines[i : i+1])
		require.NoError(t, err)
		assert.Equal(t, want[i], got[0])
		assert.Equal(t, l.digest, got[0].Digest())
	}
}

// A line whose ID belongs to another request, in the bucket or in Redis, is reported with all
// others before any job is queued, wherever it is in a large file.
func TestConflictsInALargeFileAreReportedFirst(t *testing.T) {
	t.Parallel()
	r := simulatedRun(t, manyLines(groupSize+20))
	client := jobs.NewClient(r.runtime.redis)
	_, err := client.Enqueue(t.Context(), jobs.Request{ID: "many.515", Prompt: "another picture"})
	require.NoError(t, err)
	_, err = client.Enqueue(t.Context(), jobs.Request{ID: "many.517", Prompt: "picture 517", Batch: "many", LineID: "517"})
	require.NoError(t, err)
	err = r.work(t.Context())
	var wrong *jobs.BatchError
	require.ErrorAs(t, err, &wrong)
	require.Len(t, wrong.Lines, 1)
	assert.Equal(t, 515, wrong.Lines[0].Number)
	require.ErrorIs(t, wrong.Lines[0], jobs.ErrDigestConflict)
	assert.False(t, r.prepared)
	counts, err := client.Counts(t.Context())
	require.NoError(t, err)
	assert.Equal(t, int64(2), counts[jobs.StateQueued], "nothing but what was queued before")
}

// Jobs that Redis has lost are queued again: all at the first recheck that finds one missing,
// although a recheck of many jobs reads only some of them.
func TestLostJobsOfALargeBatch(t *testing.T) {
	t.Parallel()
	r := simulatedRun(t, manyLines(recheckSize+groupSize))
	ctx := t.Context()
	for _, l := range r.files[0].lines {
		l.enqueued = true
	}
	lines := r.files[0].lines
	require.NoError(t, r.enqueue(ctx, lines[recheckSize:], false))
	r.rechecked = recheckSize + 1 // the next are there, the one before is not
	client := jobs.NewClient(r.runtime.redis)
	require.NoError(t, r.recheck(ctx))
	counts, err := client.Counts(ctx)
	require.NoError(t, err)
	assert.Equal(t, int64(recheckSize+groupSize), counts[jobs.StateQueued])
	for _, l := range lines {
		require.False(t, l.settled)
	}
}

// A job that ends while its group is still being queued is found by the next look, although
// an earlier look had left it out.
func TestJobThatEndsWhileItIsQueued(t *testing.T) {
	t.Parallel()
	r := simulatedRun(t, manyLines(2))
	r.json = true
	ctx := t.Context()
	r.lookedUntil = time.Now()
	r.enqueueEverything(ctx, t)
	_, err := jobs.NewClient(r.runtime.redis).Cancel(ctx, "many.2", jobs.Decider{})
	require.NoError(t, err)
	r.files[0].lines[1].enqueued = false // as before its group was done
	require.NoError(t, r.look(ctx))
	assert.Equal(t, 2, r.counts().left)

	r.lookedUntil = time.Now().Add(time.Hour) // long after
	require.NoError(t, r.enqueue(ctx, r.files[0].lines[:1], false))
	r.files[0].lines[1].enqueued = true
	require.NoError(t, r.look(ctx))
	assert.Equal(t, 1, r.counts().left)
	assert.Equal(t, 1, r.counts().failed)
	require.NoError(t, r.look(ctx))
	assert.Equal(t, 1, strings.Count(r.stdout.(*bytes.Buffer).String(), "\n"), "printed once")
}

// The embedded queue gets only some of the lines of a model ahead; those of other models do
// not wait for them, and the next ones come as lines are settled.
func TestEmbeddedQueueIsFilledByAndBy(t *testing.T) {
	t.Parallel()
	r := simulatedRun(t, manyLines(groupSize+20)+`{"prompt":"another model","model":"qwen-image"}`)
	r.progressed = make(chan struct{}, 1)
	kinds := r.kinds()
	require.Len(t, kinds, 2)
	kinds[0].open = queueAhead - groupSize // as if there were more lines before
	done := make(chan error, 1)
	go func() { done <- r.enqueueAll(t.Context(), kinds) }()
	lines := r.files[0].lines
	queued := func(l *line) func() bool {
		return func() bool { r.mu.Lock(); defer r.mu.Unlock(); return l.enqueued }
	}
	require.Eventually(t, queued(lines[len(lines)-1]), time.Minute, time.Millisecond)
	require.Eventually(t, queued(lines[groupSize-1]), time.Minute, time.Millisecond)
	assert.False(t, queued(lines[groupSize])())
	for _, l := range lines[:20] {
		select {
		case err := <-done:
			require.NoError(t, err)
			t.Fatal("all were enqueued")
		default:
		}
		require.True(t, r.settle(l, &jobs.Job{ID: l.id, State: jobs.StateFailed}, false))
	}
	require.NoError(t, <-done)
	assert.True(t, queued(lines[groupSize+19])())
}

// A Redis gets a few lines for each slot, so that batches take turns and a service's job waits
// for a few at most; one more comes for each that is settled.
func TestSharedQueueGetsFewLines(t *testing.T) {
	t.Parallel()
	r := simulatedRun(t, manyLines(100))
	r.progressed = make(chan struct{}, 1)
	r.runtime.remote = &redis.Client{} // another one would be slower, not different
	require.NoError(t, r.countSlots(t.Context()))
	assert.Equal(t, map[string]int{"wanx-v1": 1}, r.slots)
	require.NoError(t, jobs.NewStore(r.runtime.redis).SetLane(t.Context(), jobs.LaneStatus{Account: "other", Model: "wanx-v1", Concurrency: 3}))
	require.NoError(t, r.countSlots(t.Context()))
	assert.Equal(t, 1, r.slots["wanx-v1"], "nobody holds the other lane")
	require.NoError(t, r.runtime.redis.Set(t.Context(), rediskey.Lane("other", "wanx-v1", rediskey.LaneLease), "1", 0).Err())
	require.NoError(t, r.countSlots(t.Context()))
	assert.Equal(t, 4, r.slots["wanx-v1"])

	const few = sharedAhead + 4*sharedPerSlot
	lines := r.files[0].lines
	enqueued := func() int { return len(r.linesThat(func(l *line) bool { return l.enqueued })) }
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.enqueueAll(ctx, r.kinds()) }()
	require.Eventually(t, func() bool { return enqueued() == few }, time.Minute, time.Millisecond)
	for i, l := range lines[:10] {
		require.True(t, r.settle(l, &jobs.Job{ID: l.id, State: jobs.StateFailed}, false))
		require.Eventually(t, func() bool { return enqueued() == few+i+1 }, time.Minute, time.Millisecond)
	}
	stop()
	require.NoError(t, <-done)
	assert.Equal(t, few+10, enqueued())
	job, err := jobs.NewClient(r.runtime.redis).Get(t.Context(), lines[0].id)
	require.NoError(t, err)
	assert.Equal(t, jobs.PriorityBulk, job.Priority)
}
