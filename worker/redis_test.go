package worker_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// Three workers share a lane on a real Redis: one works at a time, whichever is stopped,
// and every job is made once.
func TestWorkersOnARealRedis(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t, "--appendonly", "yes").Client(t)
	s := newStack(t, memoryDir(t), &simulator.Simulator{TaskTime: simulator.Between(20*time.Millisecond, 60*time.Millisecond)})
	s.queueInterval = 0
	s.redis = rdb
	client := jobs.NewClient(rdb)
	const total = 12
	for i := range total {
		_, err := client.Enqueue(t.Context(), jobs.Request{ID: fmt.Sprintf("job-%d", i), Prompt: fmt.Sprintf("prompt %d", i)})
		require.NoError(t, err)
	}
	changes, err := client.Subscribe(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, changes.Close()) })
	for round := range 3 {
		w, data := s.newWorker(fmt.Sprintf("data-%d", round))
		ended := make(chan error, 1)
		go func() { ended <- w.Run(context.Background()) }()
		for finished := 0; finished < total/3; {
			rec, err := client.Get(t.Context(), <-changes.IDs())
			require.NoError(t, err)
			if rec.State.Final() {
				finished++
			}
		}
		if round < 2 {
			w.Stop()
			require.NoError(t, <-ended)
			require.NoError(t, data.Close())
			continue
		}
		for i := range total {
			rec, err := client.Wait(t.Context(), fmt.Sprintf("job-%d", i))
			require.NoError(t, err)
			assert.Equal(t, jobs.StateSucceeded, rec.State)
		}
		w.Stop()
		require.NoError(t, <-ended)
		require.NoError(t, data.Close())
	}
	assert.Len(t, s.sim.Tasks(), total)
	assert.Equal(t, 1, s.sim.Stats().Lanes[0].MaxOpen)
	assert.Zero(t, s.sim.Stats().Throttled)
	s.requireChargedOnce()
	require.NoError(t, s.sim.Close())
	require.NoError(t, s.files.Close())
}
