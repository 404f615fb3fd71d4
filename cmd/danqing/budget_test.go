package main

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
)

// A Redis that lost a line of a batch has lost the batch's budget too.
func TestBudgetOfLostBatch(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DANQING_DATA_DIR": t.TempDir()}
	cfg, err := config.Load(func(name string) string { return env[name] }, nil)
	require.NoError(t, err)
	e, err := openRuntime(cfg, true, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, e.worker.Prepare(t.Context()))
	req, _, err := jobs.Request{ID: "shop.cat", Batch: "shop", Prompt: "a cat"}.Normalize()
	require.NoError(t, err)
	shop := singleJob(1, req)
	shop.name = "shop"

	r := &batchRun{runtime: e, files: []*batchFile{shop}, budget: 400_000}
	require.NoError(t, r.requeueLost(t.Context(), shop.lines))
	rec, err := jobs.NewClient(e.redis).Get(t.Context(), "shop.cat")
	require.NoError(t, err)
	assert.Equal(t, jobs.StateQueued, rec.State)
	bound, err := e.redis.HGet(t.Context(), "danqing:budget:shop", "cap").Result()
	require.NoError(t, err)
	assert.Equal(t, "400000", bound)
	require.NoError(t, e.Close())
}
