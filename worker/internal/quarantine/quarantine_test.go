package quarantine_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/worker/internal/quarantine"
)

// A task that Redis has lost meanwhile leaves no entry behind: one without a task's ID
// could never be processed.
func TestJobHeldForALostTask(t *testing.T) {
	t.Parallel()
	queue := embedded.Open()
	defer queue.Close() //nolint:errcheck // in memory
	list := &quarantine.List{Redis: queue.Client()}
	require.NoError(t, list.JobHeld(t.Context(), "default", "wanx-v1", "task"))
	n, err := list.Unstored(t.Context(), "default", "wanx-v1")
	require.NoError(t, err)
	assert.Zero(t, n)
}
