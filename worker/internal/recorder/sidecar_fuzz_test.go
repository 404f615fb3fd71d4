package recorder

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// Any sidecar is converted to its job's record or refused as unreadable, and the record
// has the same cost and images.
func FuzzRecordOf(f *testing.F) {
	for _, text := range []string{
		`{"job_id":"a","digest":"d","state":"succeeded","account":"default","model":"wanx-v1","request":{"prompt":"<水彩>","n":2,"seed":7},"attempts":[{"attempt":1,"term":1,"task_id":"t1","outcome":"failed","code":"E"},{"attempt":2,"term":1,"task_id":"t2","verdict":"succeeded"}],"images":[{"n":1,"state":"stored","key":"k","bytes":9,"sha256":"s"},{"n":2,"state":"failed","code":"E"}],"cost_micro_yuan":160000}`,
		`{"job_id":"a","state":"failed","code":"E","attempts":[{"attempt":3,"task_id":"t","outcome":"failed","code":"E"}]}`,
		`{"job_id":"a","state":"canceled"}`, `{"job_id":"a","request":7}`, `{"job_id":"a","request":null}`, `{"job_id":"a","request":{"n":"x"}}`, `{"attempts":[{},{}],"images":[{},{}]}`, `{}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var side storage.Sidecar
		if json.Unmarshal(text, &side) != nil {
			return
		}
		rec, err := RecordOf(&side)
		if err != nil {
			require.ErrorIs(t, err, storage.ErrUnreadable)
			return
		}
		require.Equal(t, side.JobID, rec.ID)
		require.Equal(t, side.Digest, rec.Digest)
		require.Equal(t, side.CostMicroYuan, rec.CostMicroYuan)
		require.Equal(t, side.TaskID() != "", hasTask(rec))
		require.Len(t, rec.Images, len(side.Images))
		for i, image := range side.Images {
			require.Equal(t, image.Key, rec.Images[i].Key)
			require.Equal(t, image.SHA256, rec.Images[i].SHA256)
		}
		_, err = json.Marshal(rec)
		require.NoError(t, err)
	})
}

// hasTask reports whether any attempt of a job made a task.
func hasTask(rec *jobs.Record) bool {
	made := func(a jobs.Attempt) bool { return a.TaskID != "" }
	return rec.TaskID != "" || slices.ContainsFunc(rec.PastAttempts, made)
}
