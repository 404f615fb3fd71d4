package worker_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// loseFile removes or empties a file of the worker's data directory.
func (s *stack) loseFile(name string, empty bool) {
	s.t.Helper()
	path := filepath.Join(s.dir, "data", name)
	if empty {
		require.NoError(s.t, os.Truncate(path, 0))
		return
	}
	require.NoError(s.t, os.Remove(path))
}

// The journal is deleted or emptied between the intent and the stored image, and Redis has
// its data: the job is continued from its record, and bought once.
func TestJournalLostWithRedisIntact(t *testing.T) {
	for state, empty := range map[jobs.State]bool{jobs.StateSubmitting: false, jobs.StateGenerating: true, jobs.StateStoring: false} {
		t.Run(string(state), func(t *testing.T) {
			bubble(t, &simulator.Simulator{}, func(_ *testing.T, s *stack) {
				s.share()
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
				s.requireMadeOnce("first")
				if state == jobs.StateSubmitting {
					s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
				}
				s.enqueueMany(1)
				s.state("job-1", jobs.StateSubmitting)
				if state == jobs.StateStoring {
					s.state("job-1", jobs.StateGenerating)
					s.away.Store(true)
				}
				s.state("job-1", state)
				<-time.After(time.Second)
				s.leave()
				s.away.Store(false)
				s.loseFile("journal.jsonl", empty)
				s.comeBack("data")
				s.requireMadeOnce("job-1")
				s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
				s.requireMadeOnce("job-2")
				s.requireLedger()
			})
		})
	}
}

// The journal is lost, and the embedded queue's log has its data: nothing is held.
func TestJournalLostWithTheQueueIntact(t *testing.T) {
	t.Parallel()
	s := newStack(t, memoryDir(t), &simulator.Simulator{TaskTime: simulator.Between(100*time.Millisecond, 100*time.Millisecond)})
	s.queueInterval, s.leasesEnd = 10*time.Millisecond, true
	s.configure = func(cfg *worker.Config) { cfg.ExclusiveQueue = true }
	defer s.close()
	s.start()
	s.enqueueMany(2)
	s.state("job-1", jobs.StateGenerating)
	s.stop()
	s.loseFile("journal.jsonl", false)
	s.start()
	s.requireMadeOnce("job-1")
	s.requireMadeOnce("job-2")
}

// A run without Redis has lost its journal: for each of the account's tasks without an owner
// a job is held, over restarts, and its images are kept. Nothing is bought twice.
func TestJournalAndQueueLost(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.stop()
		s.loseFile("journal.jsonl", false)
		for range 2 {
			s.start()
			s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
			s.requireMadeOnce("first")
			s.enqueueMany(2)
			rec := s.wait("job-1")
			require.Equal(t, jobs.StateHeld, rec.State)
			assert.Equal(t, jobs.CodeOrphanedTask, rec.Code)
			assert.Equal(t, []string{s.sim.Tasks()[1].ID}, rec.Candidates)
			s.requireMadeOnce("job-2")
			<-time.After(time.Minute)
			s.requireKept(rec.Candidates[0])
			s.stop()
		}
		assert.Len(t, s.sim.Tasks(), 3)
	})
}

// A run without Redis has lost its journal, days after an image came into the spool: its job
// is held, not bought again.
func TestJournalLostWithAnImageInTheSpool(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.state("job-1", jobs.StateGenerating)
		s.away.Store(true)
		s.state("job-1", jobs.StateStoring)
		<-time.After(time.Minute)
		require.NotEmpty(t, s.spooled("data"))
		s.stop()
		s.away.Store(false)
		<-time.After(3 * 24 * time.Hour)
		s.loseFile("journal.jsonl", true)
		s.start()
		s.enqueueMany(2)
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		assert.Equal(t, jobs.CodeOrphanedTask, rec.Code)
		assert.Contains(t, rec.Message, "the journal was lost, and the spool in "+s.data.Path+" has an image that was made for this job")
		s.requireMadeOnce("job-2")
		assert.Len(t, s.sim.Tasks(), 2)
	})
}

// The spend log is lost, and the queue is in memory: the sidecars have what was spent, so that
// the daily budget holds.
func TestSpendLogLost(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		for _, empty := range []bool{true, false} {
			s.stop()
			s.loseFile("spend.jsonl", empty)
			s.start()
			spent, err := ledger.New(s.redis).Spending(t.Context(), time.Time{}, time.Time{})
			require.NoError(t, err)
			require.Len(t, spent, 1)
			assert.Equal(t, int64(simulator.MicroYuanPerImage), spent[0].SpentMicroYuan)
			assert.Equal(t, 1, spent[0].Images)
			assert.False(t, s.data.SpendLost())
		}
	})
}

// The api_key_id that the journal has is written to a Redis that has lost it.
func TestKeyIDIsReplayed(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.share()
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		want := s.redis.HGetAll(t.Context(), "danqing:keys").Val()
		require.Len(t, want, 1)
		require.NoError(t, s.redis.FlushAll(t.Context()).Err())
		<-time.After(10 * time.Second)
		assert.Equal(t, want, s.redis.HGetAll(t.Context(), "danqing:keys").Val())
	})
}
