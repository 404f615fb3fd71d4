package delivery

import (
	"encoding/json"
	"testing"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
)

// An invalid store message is archived at once. One for an unknown job changes nothing.
func FuzzStoreMessage(f *testing.F) {
	for _, text := range []string{`{"job_id":"a","attempt":1}`, `{"job_id":"..","attempt":-1}`, `{"job_id":"a/b"}`, `{"job_id":1}`, "{}", "null", ""} {
		f.Add([]byte(text))
	}
	q := queue.Open()
	f.Cleanup(func() { require.NoError(f, q.Close()) })
	s := New(Config{Recorder: &recorder.Recorder{Store: jobs.NewStore(q.Client())}})
	f.Fuzz(func(t *testing.T, payload []byte) {
		err := s.handle(t.Context(), asynq.NewTask(jobs.TypeStore, payload))
		require.Error(t, err)
		var m jobs.StoreMessage
		if json.Unmarshal(payload, &m) == nil && jobs.ValidID(m.JobID) == nil {
			require.ErrorIs(t, err, jobs.ErrNotFound)
		} else {
			require.ErrorIs(t, err, asynq.SkipRetry)
		}
		left, err := q.Client().DBSize(t.Context()).Result()
		require.NoError(t, err)
		require.Zero(t, left)
	})
}
