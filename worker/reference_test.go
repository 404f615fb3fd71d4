package worker_test

import (
	"encoding/json"
	"image"
	"image/png"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// stage puts a reference image into the bucket and returns its name.
func (s *stack) stage() string {
	s.t.Helper()
	file, err := os.Create(filepath.Join(s.dir, "reference.png"))
	require.NoError(s.t, err)
	require.NoError(s.t, png.Encode(file, image.NewGray(image.Rect(0, 0, 256, 256))))
	require.NoError(s.t, file.Close())
	ref, err := storage.ReferenceLimits{}.Inspect(file.Name())
	require.NoError(s.t, err)
	require.NoError(s.t, s.bucket.StageReference(s.t.Context(), ref))
	return jobs.StagedPrefix + ref.SHA256
}

// backdate sets back the time of a record's last write.
func (s *stack) backdate(id string, by time.Duration) {
	s.t.Helper()
	rec, err := jobs.NewStore(s.redis).Get(s.t.Context(), id)
	require.NoError(s.t, err)
	rec.UpdatedAt = rec.UpdatedAt.Add(-by)
	encoded, err := json.Marshal(rec)
	require.NoError(s.t, err)
	require.NoError(s.t, s.redis.HSet(s.t.Context(), "danqing:job:"+id, "record", encoded).Err())
}

// refusing is a store that refuses reference images while it is on.
func refusing(refuses *atomic.Bool) simulator.Fault {
	return simulator.Fault{
		Route: simulator.RouteUpload, Status: http.StatusForbidden, Code: "AccessDenied", Message: "no", Times: -1,
		Match: func(*http.Request) bool { return refuses.Load() },
	}
}

// A reference image that the service's store refuses, for a reason that may be
// temporary, blocks the lane for an hour; then other jobs continue, and the job is made
// once its image is accepted.
func TestRefusedReferenceDoesNotBlockOthers(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.slowly()
		var refuses atomic.Bool
		refuses.Store(true)
		sim.Script(refusing(&refuses))
		begin := time.Now()
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", RefImg: s.stage()})
		<-time.After(time.Minute)
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		s.requireMadeOnce("job-2")
		assert.Greater(t, time.Since(begin), time.Hour, "it may have been an outage")
		assert.Less(t, time.Since(begin), 90*time.Minute)
		rec := s.state("job-1", jobs.StateRetrying)
		assert.Equal(t, "ReferenceRejected", rec.Code)
		assert.Contains(t, rec.Message, "AccessDenied")
		assert.Zero(t, rec.Attempt)

		refuses.Store(false)
		s.requireMadeOnce("job-1")
	})
}

// A reference image that is refused for a day fails its job with the reason; the job can
// be retried.
func TestReferenceThatIsNeverAccepted(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.slowly()
		var refuses atomic.Bool
		refuses.Store(true)
		sim.Script(refusing(&refuses))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", RefImg: s.stage()})
		s.state("job-1", jobs.StateRetrying)
		s.backdate("job-1", 24*time.Hour) // a simulated day would make the test slow
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateFailed, rec.State)
		assert.Equal(t, "ReferenceRejected", rec.Code)
		assert.Contains(t, rec.Message, "AccessDenied")
		assert.Contains(t, rec.Message, "nothing was bought")
		assert.Empty(t, sim.Tasks())
		sidecar, err := s.bucket.Sidecar(t.Context(), "job-1")
		require.NoError(t, err)
		assert.Equal(t, "ReferenceRejected", sidecar.Code)

		refuses.Store(false)
		<-time.After(time.Minute)
		s.retry()
		s.requireMadeOnce("job-1")
	})
}
