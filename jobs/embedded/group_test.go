package embedded

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
)

// The writes of many clients share one sync, and none is acknowledged before it. After a crash
// within such a group, or within the jobs of one command, all acknowledged jobs exist, and no
// job exists in part.
func TestCrashWithinAGroup(t *testing.T) {
	t.Parallel()
	const clients, batch = 50, 30
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := &limitedDisk{left: -1}
		q, err := OpenDir(Config{Dir: dir, create: disk.create})
		require.NoError(t, err)
		client := jobs.NewClient(q.Client())
		var acked atomic.Int64
		var producers errgroup.Group
		enqueue := func(id string) {
			producers.Go(func() error {
				_, err := client.Enqueue(t.Context(), jobs.Request{ID: id, Prompt: "一只猫"})
				acked.Add(1)
				return err
			})
		}
		enqueue("before")
		require.NoError(t, producers.Wait())
		synced := disk.syncs
		disk.syncGate = make(chan struct{})
		enqueue("alone") // its sync keeps the others waiting
		synctest.Wait()
		for i := range clients {
			enqueue(fmt.Sprintf("client-%02d", i))
		}
		producers.Go(func() error {
			reqs := make([]jobs.Request, batch)
			for i := range reqs {
				reqs[i] = jobs.Request{ID: fmt.Sprintf("batch-%02d", i), Prompt: "一只猫"}
			}
			_, err := client.EnqueueAll(t.Context(), reqs)
			acked.Add(batch)
			return err
		})
		synctest.Wait()
		require.Equal(t, int64(1), acked.Load())
		disk.syncGate <- struct{}{}
		synctest.Wait()
		require.Equal(t, int64(2), acked.Load(), "those of the second sync wait")
		require.Equal(t, synced+2, disk.syncs)
		data, err := os.ReadFile(q.log.path)
		require.NoError(t, err)
		start := int(q.log.size) // of the frame that is not synced
		require.Greater(t, len(data)-start, clients*500)

		disk.syncGate <- struct{}{}
		require.NoError(t, producers.Wait())
		assert.Equal(t, int64(2+clients+batch), acked.Load())
		assert.Equal(t, synced+2, disk.syncs, "one sync for all of them")
		require.NoError(t, q.Close())
		for _, size := range []int{start, start + 1, start + frameHeader, (start + len(data)) / 2, len(data) - 1} {
			assert.Equal(t, []string{"alone", "before"}, jobsOf(t, data[:size]), "%d of %d bytes", size, len(data))
		}
		assert.Len(t, jobsOf(t, data), 2+clients+batch)
	})
}

// jobsOf returns the IDs of the jobs in a log that a crash has left, each of which has its
// record, its message and its places in the queue and in the index.
func jobsOf(t *testing.T, log []byte) []string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "queue.log"), log, 0o600))
	q, err := OpenDir(Config{Dir: dir})
	require.NoError(t, err)
	queue := "asynq:{" + jobs.Queue(jobs.DefaultModel, jobs.PriorityDefault) + "}:"
	ids := q.Client().ZRange(t.Context(), "danqing:jobs:queued", 0, -1).Val()
	assert.ElementsMatch(t, ids, q.Client().LRange(t.Context(), queue+"pending", 0, -1).Val())
	for _, prefix := range []string{"danqing:job:", queue + "t:"} {
		keys := q.Client().Keys(t.Context(), prefix+"*").Val()
		assert.Len(t, keys, len(ids))
	}
	require.NoError(t, q.Close())
	return ids
}
