package worker_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

var blocked = simulator.Failure{Code: "DataInspectionFailed", Message: "Output data may contain inappropriate content."}

// outcomes ends the n-th task with the n-th outcome; further tasks succeed.
func outcomes(list ...simulator.Outcome) func(dashscope.CreateRequest) simulator.Outcome {
	var made atomic.Int64
	return func(dashscope.CreateRequest) simulator.Outcome {
		if n := int(made.Add(1)); n <= len(list) {
			return list[n-1]
		}
		return simulator.Outcome{}
	}
}

// partial is a service whose first task makes images 1 and 3 of four.
func partial(then ...simulator.Outcome) *simulator.Simulator {
	first := simulator.Outcome{Images: map[int]simulator.Failure{1: blocked, 3: blocked}}
	return &simulator.Simulator{Outcome: outcomes(append([]simulator.Outcome{first}, then...)...)}
}

// madeInPart runs a job of four images of which only some succeed.
func (s *stack) madeInPart() *jobs.Record {
	s.t.Helper()
	s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 4})
	require.Equal(s.t, jobs.StateSucceeded, s.wait("job-1").State)
	s.requireStored("job-1", 2)
	return s.requireRecorded(2)
}

// requireRecorded checks the number of images in job-1's record and in its sidecar.
func (s *stack) requireRecorded(images int) *jobs.Record {
	s.t.Helper()
	const id = "job-1"
	rec, err := jobs.NewStore(s.redis).Get(s.t.Context(), id)
	require.NoError(s.t, err)
	sidecar, err := s.bucket.Sidecar(s.t.Context(), id)
	require.NoError(s.t, err)
	read, err := worker.RecordOf(sidecar)
	require.NoError(s.t, err)
	require.Equal(s.t, rec.Images, read.Images)
	require.Equal(s.t, rec.Missing(), read.Missing())
	require.Len(s.t, rec.Missing(), rec.Request.N-images)
	return rec
}

// retry retries job-1.
func (s *stack) retry() {
	s.t.Helper()
	_, err := jobs.NewInspector(s.redis).Retry(s.t.Context(), "job-1", jobs.Decider{})
	require.NoError(s.t, err)
}

// The retry of a partial job requests the missing images, gives them the missing numbers
// and does not change the existing images.
func TestRule13RetryBuysOnlyWhatIsMissing(t *testing.T) {
	sim := partial()
	bubble(t, sim, func(t *testing.T, s *stack) {
		before := s.madeInPart()
		seed := *before.Request.Seed
		first, err := s.bucket.Head(t.Context(), before.Images[0].Key)
		require.NoError(t, err)
		assert.Equal(t, []int{2, 4}, before.Missing())
		s.retry()
		s.retry() // repeatedly
		waiting := s.state("job-1", jobs.StateGenerating)
		assert.Equal(t, before.Images, waiting.Images, "they are in view")

		rec := s.wait("job-1")
		require.Equal(t, jobs.StateSucceeded, rec.State, rec.Message)
		require.Len(t, sim.Tasks(), 2)
		bought := sim.Tasks()[1].Request.Parameters
		assert.Equal(t, 2, *bought.N)
		assert.Equal(t, seed+4, *bought.Seed)

		sidecar := s.requireStored("job-1", 4)
		rec = s.requireRecorded(4)
		assert.Equal(t, before.Digest, rec.Digest)
		assert.Equal(t, before.Images[0], rec.Images[0])
		assert.Equal(t, before.Images[2], rec.Images[2])
		now, err := s.bucket.Head(t.Context(), before.Images[0].Key)
		require.NoError(t, err)
		assert.Equal(t, first, now)
		var seeds []int64
		for _, image := range sidecar.Images {
			seeds = append(seeds, image.Seed-seed)
		}
		assert.Equal(t, []int64{0, 4, 2, 5}, seeds, "the new ones have seeds that no image had")
		assert.EqualValues(t, 4*160_000, sidecar.CostMicroYuan)
		assert.Equal(t, sim.Stats().ChargedMicroYuan, sidecar.CostMicroYuan)
		require.Len(t, sidecar.Attempts, 2)
		for i, attempt := range sidecar.Attempts {
			assert.Equal(t, sim.Tasks()[i].ID, attempt.TaskID)
			assert.Equal(t, "succeeded", attempt.Outcome)
		}
		assert.Equal(t, 2, sidecar.Attempts[0].Images)

		_, err = jobs.NewInspector(s.redis).Retry(t.Context(), "job-1", jobs.Decider{})
		require.ErrorIs(t, err, jobs.ErrFinished)
		require.ErrorContains(t, err, "it has all its images")
	})
}

// An answer that does not say which image failed does not lead to the purchase of the one that was made.
func TestRule13RetryBuysAnotherPicture(t *testing.T) {
	sim := &simulator.Simulator{Outcome: outcomes(simulator.Outcome{Images: map[int]simulator.Failure{1: blocked}})}
	withModel(t, sim, "wan2.7-image", func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
		require.Equal(t, []int{2}, s.wait("job-1").Missing())
		s.retry()
		s.state("job-1", jobs.StateGenerating)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		first := sim.Tasks()[0].Request.Parameters
		assert.Equal(t, *first.Seed+2, *sim.Tasks()[1].Request.Parameters.Seed)
		assert.Equal(t, *first.Seed+2, s.requireStored("job-1", 2).Images[1].Seed)
		s.requireLedger()
	})
}

// A retry that makes no image does not change the result: the job has partly succeeded
// and can be retried again.
func TestRule13RetryThatFails(t *testing.T) {
	refused := simulator.Outcome{Code: "DataInspectionFailed", Message: "Input data may contain inappropriate content."}
	again := simulator.Outcome{Images: map[int]simulator.Failure{1: blocked}}
	sim := partial(refused, again)
	bubble(t, sim, func(t *testing.T, s *stack) {
		before := s.madeInPart()
		s.retry()
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		rec := s.requireRecorded(2)
		assert.Equal(t, before.Images[0], rec.Images[0])
		assert.Equal(t, before.TaskID, rec.TaskID)
		assert.Contains(t, rec.Images[1].Message, "Input data")
		sidecar := s.requireStored("job-1", 2)
		require.Len(t, sidecar.Attempts, 2)
		assert.Equal(t, "succeeded", sidecar.Attempts[0].Outcome)
		assert.Equal(t, "failed", sidecar.Attempts[1].Outcome)
		assert.Equal(t, before.CostMicroYuan, rec.CostMicroYuan)

		for images := 3; images <= 4; images++ {
			s.retry()
			require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
			s.requireRecorded(images)
		}
		sidecar = s.requireStored("job-1", 4)
		assert.Len(t, sidecar.Attempts, 4)
		assert.EqualValues(t, 4*160_000, sidecar.CostMicroYuan)
		assert.Equal(t, 1, *sim.Tasks()[3].Request.Parameters.N)
		assert.Equal(t, *before.Request.Seed+3*4, *sim.Tasks()[3].Request.Parameters.Seed)
	})
}

// A retry that is canceled, before or after its create, or abandoned, loses no existing
// image.
func TestRule13RetryThatIsCanceled(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *stack){
		"while it waits": func(t *testing.T, s *stack) {
			t.Helper()
			require.NoError(t, jobs.NewInspector(s.redis).PauseAccount(t.Context(), "default", jobs.Decider{}))
			s.retry()
			_, err := jobs.NewClient(s.redis).Cancel(t.Context(), "job-1", jobs.Decider{})
			require.NoError(t, err)
		},
		"after a refusal": func(t *testing.T, s *stack) {
			t.Helper()
			s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Status: http.StatusTooManyRequests, Code: "Throttling", Delay: time.Second})
			s.retry()
			s.state("job-1", jobs.StateSubmitting)
			_, err := jobs.NewClient(s.redis).Cancel(t.Context(), "job-1", jobs.Decider{})
			require.NoError(t, err)
		},
		"while it is held": func(t *testing.T, s *stack) {
			t.Helper()
			s.sim.Script(simulator.Fault{Route: simulator.RouteQuery, Times: -1, Body: `{"request_id":"r","output":{"task_status":"SUCCEEDED","results":[]},"usage":{"image_count":1}}`})
			s.retry()
			require.Equal(t, jobs.StateHeld, s.wait("job-1").State)
			for range 2 {
				rec, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", jobs.Resolution{GiveUp: true}, jobs.Decider{})
				require.NoError(t, err)
				assert.Contains(t, rec.Images[1].Message, "given up on request; it was held: NoImages")
			}
			<-time.After(time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, partial(), func(t *testing.T, s *stack) {
				before := s.madeInPart()
				end(t, s)
				require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
				<-time.After(time.Minute)
				rec := s.requireRecorded(2)
				assert.Equal(t, before.Images[0], rec.Images[0])
				s.requireStored("job-1", 2)
			})
		})
	}
}

// The worker and the queue crash at any point of a retry: nothing is overwritten or
// bought twice.
func TestRule13CrashDuringARetry(t *testing.T) {
	for _, at := range []jobs.State{jobs.StateGenerating, jobs.StateStoring} {
		t.Run(string(at), func(t *testing.T) {
			sim := partial()
			bubble(t, sim, func(t *testing.T, s *stack) {
				before := s.madeInPart()
				s.retry()
				s.state("job-1", jobs.StateGenerating)
				if at == jobs.StateStoring {
					s.away.Store(true)
					s.state("job-1", at)
				}
				s.stop()
				s.away.Store(false)
				s.start()
				require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
				assert.Equal(t, before.Images[0], s.requireRecorded(4).Images[0])
				s.requireStored("job-1", 4)
				assert.Len(t, sim.Tasks(), 2)
				assert.EqualValues(t, 4*160_000, sim.Stats().ChargedMicroYuan)
			})
		})
	}
}

// Redis loses the job after it was retried and before anything was bought: its state is
// that of its sidecar, and it can be retried.
func TestRule13RetryFromTheSidecar(t *testing.T) {
	sim := partial()
	bubble(t, sim, func(t *testing.T, s *stack) {
		before := s.madeInPart()
		require.NoError(t, jobs.NewInspector(s.redis).PauseAccount(t.Context(), "default", jobs.Decider{}))
		s.retry()
		s.stop()
		s.start()
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 4})
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.requireRecorded(2)
		require.Len(t, sim.Tasks(), 1)
		s.stop()

		s.start()
		sidecar, err := s.bucket.Sidecar(t.Context(), "job-1")
		require.NoError(t, err)
		read, err := worker.RecordOf(sidecar)
		require.NoError(t, err)
		_, err = jobs.NewInspector(s.redis).RetryJob(t.Context(), &read.Job, jobs.Decider{})
		require.NoError(t, err)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		assert.Equal(t, before.Images[0], s.requireRecorded(4).Images[0])
		assert.Len(t, s.requireStored("job-1", 4).Attempts, 2)
		assert.Len(t, sim.Tasks(), 2)
	})
}

// One of several images cannot be verified: the others are stored, and the job is held
// for that one. Once it can be verified, it is stored too.
func TestRule12OtherImagesAreStored(t *testing.T) {
	var good atomic.Bool
	sim := &simulator.Simulator{Render: func(p painter.Picture) []byte {
		if p.Index == 1 && !good.Load() {
			return []byte("<html>no picture</html>")
		}
		return tinyPNG(p)
	}}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 3})
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		assert.Equal(t, []int{2}, rec.Missing())
		for _, key := range []string{rec.Images[0].Key, rec.Images[2].Key, s.bucket.HeldKey(rec.TaskID, "job-1.1-2")} {
			_, err := s.bucket.Head(t.Context(), key)
			require.NoError(t, err, key)
		}
		good.Store(true)
		_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", jobs.Resolution{Adopt: rec.TaskID}, jobs.Decider{})
		require.NoError(t, err)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		s.requireStored("job-1", 3)
		assert.Len(t, sim.Tasks(), 1)
		_, err = s.bucket.Head(t.Context(), s.bucket.HeldKey(rec.TaskID, "job-1.1-2"))
		require.NoError(t, err, "what is held stays")
		assert.Empty(t, s.spooled("data"))
	})
}

// Images on hosts outside the allowed list are quarantined while their links are valid,
// or named in the message if they cannot be requested.
func TestRule12UnknownHosts(t *testing.T) {
	var down atomic.Bool
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.sim.Script(unreachable(&down))
		s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 3})
		s.state("job-1", jobs.StateGenerating)
		down.Store(true)
		rec := s.state("job-1", jobs.StateStoring)
		<-time.After(time.Minute)
		next := *rec
		next.Results[1].URL = strings.Replace(next.Results[1].URL, "dashscope.simulated", "pictures.example", 1)
		next.Results[2].URL = strings.Replace(next.Results[2].URL, "dashscope.simulated", "pictures.example:8443", 1)
		require.NoError(t, jobs.NewStore(s.redis).Update(t.Context(), rec, &next))
		down.Store(false)

		rec = s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		assert.NotEmpty(t, rec.Images[0].Key)
		assert.Contains(t, rec.Images[1].Message, "pictures.example")
		key := s.bucket.HeldKey(rec.TaskID, "job-1.1-2")
		assert.Contains(t, rec.Images[1].Message, "its bytes are kept under "+key)
		info, err := s.bucket.Head(t.Context(), key)
		require.NoError(t, err)
		assert.Equal(t, "image/png", info.ContentType)
		assert.Contains(t, rec.Images[2].Message, "http://pictures.example:8443/")
		for _, image := range rec.Images {
			assert.NotContains(t, image.Message, "Signature")
		}
		assert.Len(t, rec.Results, 3, "so that the task can be adopted")
	})
}

// An image that cannot be verified outlives its link, also while the bucket is
// unavailable.
func TestRule12UnverifiedImageOutlivesItsLink(t *testing.T) {
	sim := &simulator.Simulator{ResultLifetime: time.Hour, Render: func(painter.Picture) []byte { return []byte("GIF89a") }}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.spooledAway()
		<-time.After(2 * time.Hour)
		s.away.Store(false)
		s.comeBack("data")
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		assert.Equal(t, "ImageUnverified", rec.Code)
		for _, name := range []string{"job-1.1-1", "job-1.1-2"} {
			info, err := s.bucket.Head(t.Context(), s.bucket.HeldKey(rec.TaskID, name))
			require.NoError(t, err)
			assert.EqualValues(t, 6, info.Bytes)
		}
		// The link has expired, so that an adoption finds no image; the job stays held.
		_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", jobs.Resolution{Adopt: rec.TaskID}, jobs.Decider{})
		require.NoError(t, err)
		<-time.After(time.Minute)
		assert.Equal(t, jobs.StateHeld, s.wait("job-1").State)
		_, err = s.bucket.Sidecar(t.Context(), "job-1")
		require.ErrorIs(t, err, storage.ErrNotExist)
	})
}
