package simulator_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// Any state file is either rejected, or read to the same tasks each time, each of which
// can be queried.
func FuzzState(f *testing.F) {
	const task = `{"task":{"task_id":"t1","request_id":"r1","account":"main","api_key_id":"1","request":{"model":"wanx-v1","input":{"prompt":"fox"},"parameters":{"n":2}},"seed":7,"created_at":"2026-01-02T03:04:05Z","duration":1000000000,"outcome":{}}}` + "\n"
	for _, text := range []string{
		"", task, task + task[:40],
		task + `{"cancel":{"task_id":"t1","at":"2026-01-02T03:04:06Z"}}` + "\n" + task,
		`{"cancel":{"task_id":"t1"}}` + "\n",
		`{"task":{"task_id":"t1","request":{"model":"none"}}}` + "\n",
		`{"task":{"task_id":"t1","request":{"model":"wanx-v1","parameters":{"n":2000000000}}}}` + "\n",
		`{"task":{"task_id":"t1","request":{"model":"qwen-image"},"outcome":{"images":{"0":{"code":"E"},"-1":{"code":"E"}}}}}` + "\n",
		`{"upload":{"key":"../k","failure":{"code":"E"}}}` + "\n" + `{"upload":{"key":"k"}}` + "\n",
		"null\n{}\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "dashscope.jsonl"), text, 0o600))
		open := func() (*simulator.Simulator, error) {
			sim := &simulator.Simulator{StateDir: dir}
			return sim, sim.Load()
		}
		sim, err := open()
		if err != nil {
			require.NoError(t, sim.Close())
			return
		}
		tasks := sim.Tasks()
		for _, task := range tasks {
			require.Len(t, task.Seeds, task.N)
			require.LessOrEqual(t, task.Images, task.N)
			require.GreaterOrEqual(t, task.ChargedMicroYuan, int64(0))
		}
		list := record(sim, http.MethodGet, dashscope.PathTasks, "", nil)
		require.Equal(t, http.StatusOK, list.status)
		require.True(t, json.Valid(list.body))
		_ = sim.Stats()
		require.NoError(t, sim.Close())
		again, err := open()
		require.NoError(t, err)
		require.Len(t, again.Tasks(), len(tasks))
		for i, task := range again.Tasks() {
			require.Equal(t, tasks[i].ID, task.ID)
			require.Equal(t, tasks[i].Request, task.Request)
		}
		require.NoError(t, again.Close())
	})
}
