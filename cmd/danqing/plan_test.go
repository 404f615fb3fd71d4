package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// The plan counts what is not decided yet, and its time is that of the slowest model.
func TestPlan(t *testing.T) {
	t.Parallel()
	lines := []*line{
		{model: "a", images: 2}, {model: "a", images: 1}, {model: "a", images: 1}, {model: "b", images: 4},
		{model: "a", images: 4, settled: true}, {model: "a", images: 4, started: true}, {model: "b", images: 4, queued: true},
	}
	price := func(model string, images int) int64 {
		return int64(images) * map[string]int64{"a": 100_000, "b": 200_000}[model]
	}
	at := map[string]pace{"a": {taskTime: 10 * time.Second, slots: 2}, "b": {taskTime: time.Minute, slots: 1, ahead: 2, measured: true}}
	paceOf := func(model string) (pace, error) { return at[model], nil }
	c := counts{total: 7, finishedBefore: 1, held: 1, left: 6}
	pl, err := planOf([]*batchFile{{lines: lines}}, c, 0, price, paceOf)
	require.NoError(t, err)
	assert.Equal(t, "7 jobs: 1 finished already (1 held), 1 being made, 1 queued already, 4 to make, 1.20 yuan at most, about 3 min", pl.head())
	assert.Equal(t, "about 20 s: 10 s a task (documented), 2 at a time", pl.models[0].pace.text(pl.models[0].jobs))
	assert.Equal(t, "about 3 min: 60 s a task (measured), 1 at a time, after 2 other jobs", pl.models[1].pace.text(pl.models[1].jobs))

	at["b"] = pace{slots: 1}
	pl, err = planOf([]*batchFile{{lines: lines}}, c, 500_000, price, paceOf)
	require.NoError(t, err)
	assert.Equal(t, int64(500_000), pl.atMost, "a budget is the limit")
	assert.Zero(t, pl.took, "the time of one model is not known")
	pl.simulated = true
	assert.Contains(t, pl.head(), "4 to make; simulated: nothing is charged (a real run: 0.50 yuan at most)")
}

func TestDurationText(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0 s", 1340 * time.Millisecond: "1.3 s", 27 * time.Second: "27 s", 81 * time.Second: "81 s", 216 * time.Second: "4 min",
		81000 * time.Second: "22 h 30 min", 119*time.Minute + time.Second: "2 h 0 min", 50 * time.Hour: "2 days 2 h",
	} {
		assert.Equal(t, want, durationText(d))
	}
}

// The time of a task is that of the last ones of its model in the embedded bucket.
func TestMeasuredTimes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	folder := filepath.Join(dir, "bucket", "danqing", "_jobs")
	require.NoError(t, os.MkdirAll(folder, 0o750))
	now := time.Now()
	for id, took := range map[string]time.Duration{"a": 10 * time.Second, "b": 20 * time.Second, "old": time.Hour} {
		for n := range measuredTasks / 2 {
			name := id + string(rune('A'+n))
			side := storage.Sidecar{JobID: name, Model: "wanx-v1", Attempts: []storage.SidecarAttempt{{Attempt: 1, TaskID: "t", SubmittedAt: now, EndedAt: now.Add(took)}}}
			text, err := json.Marshal(side)
			require.NoError(t, err)
			path := filepath.Join(folder, name+".json")
			require.NoError(t, os.WriteFile(path, text, 0o600))
			if id == "old" {
				require.NoError(t, os.Chtimes(path, now, now.Add(-time.Hour)))
			}
		}
	}
	measured, err := measuredTimes(t.Context(), openLocalBucket(dir))
	require.NoError(t, err)
	assert.Equal(t, map[string]time.Duration{"wanx-v1": 15 * time.Second}, measured)

	cfg := &config.Config{Accounts: []config.Account{{Name: "one", Lanes: []config.Lane{{Model: "wanx-v1", Concurrency: 1}}}}}
	from := &paces{cfg: cfg, own: true, measured: measured, lanes: []jobs.LaneStatus{
		{Account: "one", Model: "wanx-v1", Concurrency: 1, Held: true}, {Account: "two", Model: "wanx-v1", Concurrency: 2, Held: true}, {Account: "three", Model: "wanx-v1", Concurrency: 4},
	}}
	got, err := from.of(context.Background(), "wanx-v1")
	require.NoError(t, err)
	assert.Equal(t, pace{taskTime: 15 * time.Second, measured: true, slots: 3}, got, "lanes of other workers help")
	from.simulated = true
	got, err = from.of(context.Background(), "wanx-v1")
	require.NoError(t, err)
	assert.Equal(t, 27*time.Second, got.taskTime, "a simulated run tells of a real one")
}
