package worker_test

import (
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/journal"
)

// spooled returns the files in a data directory's spool.
func (s *stack) spooled(dir string) []string {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, dir, "spool", "*", "job-*"))
	require.NoError(s.t, err)
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	return files
}

// leave stops the worker and keeps the queue.
func (s *stack) leave() {
	s.t.Helper()
	s.worker.Stop()
	require.NoError(s.t, <-s.ended)
	require.NoError(s.t, s.data.Close())
}

// comeBack starts a worker on a data directory after the last one was stopped.
func (s *stack) comeBack(dir string) {
	s.t.Helper()
	s.worker, s.data = s.newWorker(dir)
	s.run()
}

// slowly restarts with a worker that polls the queue rarely: simulated days pass.
func (s *stack) slowly() {
	s.t.Helper()
	s.stop()
	s.queueInterval = time.Minute
	s.start()
}

// spooledAway makes a job of two images while the bucket is unavailable, and stops the
// worker once they are in the spool.
func (s *stack) spooledAway() *jobs.Record {
	s.t.Helper()
	s.slowly()
	s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
	s.state("job-1", jobs.StateGenerating)
	s.away.Store(true)
	s.state("job-1", jobs.StateStoring)
	<-time.After(2 * time.Minute)
	s.leave()
	rec, err := jobs.NewStore(s.redis).Get(s.t.Context(), "job-1")
	require.NoError(s.t, err)
	require.Len(s.t, s.spooled("data"), 2)
	return rec
}

// unreachable makes the image host unreachable while down is set.
func unreachable(down *atomic.Bool) simulator.Fault {
	return simulator.Fault{
		Route: simulator.RouteResult, Reset: simulator.ResetBefore, Times: -1,
		Match: func(*http.Request) bool { return down.Load() },
	}
}

// Every image of a finished task is in the spool before the first request to the bucket:
// the image host and the bucket need not be available at the same time.
func TestRule11SpoolDelivers(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.slowly()
		var down atomic.Bool
		sim.Script(unreachable(&down))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
		s.state("job-1", jobs.StateGenerating)
		s.away.Store(true)
		s.state("job-1", jobs.StateStoring)
		<-time.After(2 * time.Minute)
		require.Len(t, s.spooled("data"), 2)
		down.Store(true)
		<-time.After(unlessRaced(10*time.Hour, time.Hour))
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		<-time.After(10 * time.Minute)
		assert.Len(t, sim.Tasks(), 1, "nothing is submitted while the bucket is away")
		assert.Contains(t, s.get("job-1").Message, "the bucket is away", "why it is not stored")
		s.away.Store(false)
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateSucceeded, rec.State)
		assert.Empty(t, rec.Message)
		s.requireStored("job-1", 2)
		down.Store(false)
		s.requireMadeOnce("job-2")
		s.requireChargedOnce()
		assert.Empty(t, s.spooled("data"), "the bucket has them")
	})
}

// The bucket is unavailable until after the links' expiry and a restart of the worker:
// the images are stored from the spool.
func TestRule11SpoolOutlivesTheLinks(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.spooledAway()
		<-time.After(25 * time.Hour)
		s.comeBack("data")
		<-time.After(30 * time.Minute)
		s.state("job-1", jobs.StateStoring)
		s.away.Store(false)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.requireStored("job-1", 2)
		s.requireChargedOnce()
	})
}

// The record names the worker whose spool has the images. After the links have expired,
// another worker leaves the images to it, for days, and publishes the reason.
func TestRule11OnlyTheSpoolOwnerGivesUp(t *testing.T) {
	sim := &simulator.Simulator{ResultLifetime: time.Hour}
	bubble(t, sim, func(t *testing.T, s *stack) {
		rec := s.spooledAway()
		holder, err := journal.WorkerIDAt(filepath.Join(s.dir, "data"))
		require.NoError(t, err)
		assert.Equal(t, holder, rec.SpoolOwner)
		host, err := os.Hostname()
		require.NoError(t, err)
		assert.Equal(t, host+":"+filepath.Join(s.dir, "data"), rec.SpoolLocation)

		<-time.After(2 * time.Hour)
		s.away.Store(false)
		s.comeBack("data-2")
		<-time.After(2 * time.Hour)
		rec, err = jobs.NewStore(s.redis).Get(t.Context(), "job-1")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateStoring, rec.State)
		assert.Equal(t, "SpoolUnavailable", rec.Code)
		assert.Contains(t, rec.Message, rec.SpoolLocation)
		s.leave()

		s.comeBack("data")
		rec = s.wait("job-1")
		assert.Equal(t, jobs.StateSucceeded, rec.State)
		assert.Empty(t, rec.Code+rec.Message+rec.SpoolOwner+rec.SpoolLocation)
		s.requireStored("job-1", 2)
		s.requireChargedOnce()
	})
}

// If the spool's owner does not return within a week after the links' expiry, the job is
// held, and its message names the spool. The owner stores the images when it returns.
func TestRule11SpoolOwnerDoesNotReturn(t *testing.T) {
	sim := &simulator.Simulator{ResultLifetime: time.Hour}
	bubble(t, sim, func(t *testing.T, s *stack) {
		place := s.spooledAway().SpoolLocation
		<-time.After(7 * 24 * time.Hour)
		s.away.Store(false)
		s.comeBack("data-2")
		<-time.After(30 * time.Minute)
		rec, err := jobs.NewStore(s.redis).Get(t.Context(), "job-1")
		require.NoError(t, err)
		require.Equal(t, jobs.StateStoring, rec.State, "not before the week is over")
		rec = s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		assert.Equal(t, "SpoolUnavailable", rec.Code)
		assert.Contains(t, rec.Message, "image 1 is paid for")
		assert.Contains(t, rec.Message, place)
		assert.Contains(t, rec.Message, "danqing jobs resolve job-1 --adopt "+rec.TaskID)
		assert.NotContains(t, rec.Message, "Signature")

		// An operator adopts too early: the job waits for the spool's owner again.
		_, err = jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", jobs.Resolution{Adopt: rec.TaskID}, jobs.Decider{})
		require.NoError(t, err)
		<-time.After(time.Hour)
		rec, err = jobs.NewStore(s.redis).Get(t.Context(), "job-1")
		require.NoError(t, err)
		require.Equal(t, jobs.StateStoring, rec.State)
		s.leave()

		s.comeBack("data")
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.requireStored("job-1", 2)
		s.requireChargedOnce()
	})
}

// While the links are valid, another worker may download the images: it becomes the
// spool's owner, and the first one empties its spool when it returns.
func TestRule11AnotherWorkerMayFetch(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		first := s.spooledAway().SpoolOwner
		s.comeBack("data-2")
		<-time.After(15 * time.Minute)
		rec, err := jobs.NewStore(s.redis).Get(t.Context(), "job-1")
		require.NoError(t, err)
		assert.NotEqual(t, first, rec.SpoolOwner)
		assert.Len(t, s.spooled("data-2"), 2)
		s.away.Store(false)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.requireStored("job-1", 2)
		<-time.After(time.Minute)
		assert.Empty(t, s.spooled("data-2"))
		s.leave()

		assert.Len(t, s.spooled("data"), 2)
		s.comeBack("data")
		<-time.After(10 * time.Minute)
		assert.Empty(t, s.spooled("data"))
	})
}

// An image in no spool, with no other worker recorded as the owner, is given up after a
// fresh query of its task.
func TestRule11ImageInNoSpool(t *testing.T) {
	sim := &simulator.Simulator{ResultLifetime: time.Hour}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.slowly()
		var down atomic.Bool
		down.Store(true)
		sim.Script(unreachable(&down))
		s.enqueueMany(1)
		s.state("job-1", jobs.StateStoring)
		<-time.After(2 * time.Hour)
		s.state("job-1", jobs.StateStoring)
		down.Store(false)
		rec := s.wait("job-1")
		assert.Equal(t, jobs.StateFailed, rec.State)
		assert.Equal(t, "ResultExpired", rec.Code)
		sidecar, err := s.bucket.Sidecar(t.Context(), "job-1")
		require.NoError(t, err)
		assert.Equal(t, "ResultExpired", sidecar.Images[0].Code)
		assert.EqualValues(t, 160_000, sidecar.CostMicroYuan, "it was charged")
	})
}

// A failing disk stops new submits and loses no image: images are copied to the bucket
// through memory; if the bucket is unavailable too, they are downloaded when the disk
// has room.
func TestRule11FailingDisk(t *testing.T) {
	for name, away := range map[string]bool{"the bucket is there": false, "the bucket is away too": true} {
		t.Run(name, func(t *testing.T) {
			sim := &simulator.Simulator{}
			bubble(t, sim, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 3})
				s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
				s.state("job-1", jobs.StateGenerating)
				spool := filepath.Join(s.dir, "data", "spool")
				require.NoError(t, os.Rename(spool, spool+"-away"))
				s.away.Store(away)
				<-time.After(20 * time.Minute)
				assert.Len(t, sim.Tasks(), 1, "nothing is submitted without room for its images")
				if !away {
					require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
				}
				require.NoError(t, os.Rename(spool+"-away", spool))
				s.away.Store(false)
				require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
				s.requireStored("job-1", 3)
				s.requireMadeOnce("job-2")
				s.requireChargedOnce()
			})
		})
	}
}
