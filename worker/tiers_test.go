package worker_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// The dearest possible is reserved: of an edit, large images, and its references for each image. What
// the task's usage says is booked: the references once.
func TestTiersAreReservedAndSettled(t *testing.T) {
	withModel(t, &simulator.Simulator{}, "qwen-image-3.0-pro", func(t *testing.T, s *stack) {
		urls := []string{"https://example.com/a.png", "https://example.com/b.png"}
		s.enqueue(jobs.Request{ID: "edit", Prompt: "prompt of edit", N: 2, Size: "1024*1024", RefImages: urls})
		s.state("edit", jobs.StateGenerating)
		today, err := ledger.New(s.redis).Spending(t.Context(), time.Now(), time.Now())
		require.NoError(t, err)
		require.Len(t, today, 1)
		assert.EqualValues(t, 1_080_000, today[0].ReservedMicroYuan)
		require.Equal(t, jobs.StateSucceeded, s.wait("edit").State)
		assert.EqualValues(t, 1_040_000, s.get("edit").CostMicroYuan)

		s.enqueue(jobs.Request{ID: "small", Prompt: "prompt of small", Size: "1024*1024"})
		s.requireMadeOnce("small")
		assert.EqualValues(t, 250_000, s.get("small").CostMicroYuan)
		assert.EqualValues(t, 1_290_000, s.sim.Stats().ChargedMicroYuan)
		s.requireLedger()
	})
}
