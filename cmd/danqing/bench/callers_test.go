package bench

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const testTrip = 40 * time.Millisecond

// ages returns how old a task is, in seconds, when each of the first queries is sent, without
// the round trips.
func ages(c caller, queries int) []float64 {
	var ages []float64
	age := time.Duration(0)
	for query := range queries {
		age += c.before(query, time.Minute, 0)
		ages = append(ages, age.Seconds())
	}
	return ages
}

func callerNamed(t *testing.T, name string) caller {
	t.Helper()
	for _, c := range callers() {
		if c.name == name {
			return c
		}
	}
	require.Fail(t, "no caller", name)
	return caller{}
}

// The references query when the programs that they stand for do.
func TestPublishedSchedules(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]float64{
		clientSDK:    {0, 1, 2, 4, 6, 8, 12, 16, 20, 25, 30},
		clientOneAPI: {0, 2, 4, 6, 8},
		clientFixed:  {0.5, 1, 1.5, 2},
		clientOracle: {60, 60.001},
	} {
		assert.Equal(t, want, ages(callerNamed(t, name), len(want)), name)
	}
}

// laneStage is a stage of one lane whose tasks all take the same time.
func laneStage(t *testing.T, takes time.Duration) *stage {
	t.Helper()
	at := newStage(Workload{Name: "fixed", takes: uniform(takes.Seconds(), 0)}, 1, time.Minute, t.TempDir(), 0)
	at.dir, at.accounts = t.TempDir(), at.accounts[:1]
	return at
}

// measureCaller runs a reference in simulated time.
func measureCaller(t *testing.T, name string, takes, duration time.Duration) (row Row) {
	t.Helper()
	at := laneStage(t, takes)
	synctest.Test(t, func(t *testing.T) {
		s := newService(testTrip, at.workload)
		h := newHTTPCaller(callerNamed(t, name), s, at.dir)
		r := &run{client: name, at: at, service: s, givenUp: func() int { return int(h.givenUp.Load()) }}
		r.work = func(ctx context.Context) error { h.run(ctx, at); return nil }
		rows, err := measureAll(t.Context(), duration, []*run{r})
		require.NoError(t, err)
		row = rows[0]
		h.close()
		require.NoError(t, s.close())
	})
	return row
}

// A reference idles from the end of a task until its next query, and until the picture is
// stored. The oracle idles for the round trip alone.
func TestReferencesIdle(t *testing.T) {
	t.Parallel()
	const took = 10 * time.Second
	for name, want := range map[string]struct{ queries, noticeMS float64 }{
		// The create's answer takes half a round trip, and each query and answer one.
		clientOracle: {1, 20},
		clientSDK:    {7, 2000 + 7.5*40}, // at 12 s
		clientOneAPI: {6, 0 + 6.5*40},    // at 10 s
	} {
		row := measureCaller(t, name, took, 5*time.Minute)
		assert.InDelta(t, want.queries, row.Queries, 0.01, name)
		assert.InDelta(t, want.noticeMS, row.NoticeMS, 1, name)
		assert.Zero(t, row.GivenUp, name)
		assert.InDelta(t, 10_000/(10_000+row.IdleMS), row.Busy, 1e-6, name)
		assert.InDelta(t, 3600/(10+row.IdleMS/1000), row.PicturesPerHour, 0.01, name)
	}
	row := measureCaller(t, clientOracle, took, 5*time.Minute)
	assert.InDelta(t, 40, row.IdleMS, 1)
	assert.InDelta(t, 0, row.CreateMS, 1)
}

// One-api gives a task up after 20 queries, some 38 s; its picture is paid for and lost.
func TestOneAPIGivesUp(t *testing.T) {
	t.Parallel()
	row := measureCaller(t, clientOneAPI, 50*time.Second, 10*time.Minute)
	assert.Positive(t, row.GivenUp)
	assert.Less(t, row.PicturesPerHour, 3600/50.0*0.2)
}
