package bench

import (
	"flag"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	simulated = flag.Duration("simulated", 0, "measure all clients for this time, simulated, and print the table")
	plotFile  = flag.String("plot", "", "with -simulated: file for the plot")
)

// memoryDir is a folder in memory where the system has one.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "danqing-bench-") //nolint:usetesting // t.TempDir has no directory argument
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// measureStage runs the clients of a stage at once in simulated time, as on a machine of
// infinite speed: nothing but the service, the round trips and the clients' own waits takes
// time. Without all, only Danqing and the oracle run.
func measureStage(t *testing.T, at *stage, all bool) (rows []Row) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		runs, err := openRuns(t.Context(), Config{RoundTrip: DefaultRoundTrip, Logger: slog.New(slog.DiscardHandler)}, at)
		require.NoError(t, err)
		working := runs
		if !all {
			working = nil
			for _, r := range runs {
				if r.client == clientDanqing || r.client == clientOracle {
					working = append(working, r)
				}
			}
		}
		rows, err = measureAll(t.Context(), at.duration, working)
		require.NoError(t, err)
		for _, r := range runs {
			require.NoError(t, r.close())
		}
	})
	return rows
}

// The real worker keeps its slot busy nearly all the time, at few queries. The oracle idles for
// the round trip alone. With -simulated 20m all clients are measured with all kinds of tasks, as
// docs/speed.md shows it.
func TestSlotsAreBusy(t *testing.T) {
	t.Parallel()
	report := &Report{RoundTripMS: milliseconds(DefaultRoundTrip), Simulated: true}
	if *simulated == 0 {
		at := newStage(workloads(1)[0], 1, 10*time.Minute, memoryDir(t), 0)
		at.accounts = at.accounts[:1]
		report.Rows = measureStage(t, at, false)
	} else {
		report.Seconds = simulated.Seconds()
		for _, lanes := range []int{1, mostSlots} {
			for i, w := range workloads(lanes) {
				at := newStage(w, lanes, *simulated, memoryDir(t), uint64(i))
				report.Rows = append(report.Rows, measureStage(t, at, true)...)
			}
		}
	}
	require.NoError(t, report.Print(t.Output()))
	if *plotFile != "" {
		require.NoError(t, os.WriteFile(*plotFile, report.Plot(), 0o600))
	}
	for _, row := range report.Rows {
		switch {
		case row.Client == clientOracle:
			assert.InDelta(t, 30, row.IdleMS, 2, row.Tasks)
		case row.Client == clientDanqing && row.Tasks == workloads(1)[0].Name && row.Lanes == 1:
			assert.Greater(t, row.Busy, 0.979)
			assert.Less(t, row.Queries, 25.0)
		}
	}
}

// All tasks suddenly take twice or half as long: after five of them the real worker keeps its slot as
// busy, within half a percent, as one that has known only such tasks. A short run is less exact.
func TestLearnsAChangeOfLevel(t *testing.T) {
	t.Parallel()
	usual := workloads(1)[0]
	for name, factor := range map[string]float64{"twice": 2, "half": 0.5} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			level := Workload{Name: name + " as long", takes: func(rng *rand.Rand) float64 { return factor * usual.takes(rng) }}
			tasks, accounts, exact := 16.0, 1, 0.02
			if *simulated > 0 {
				tasks, accounts, exact = 26, accountsOfFew, 0.005
			}
			busy := map[string]float64{}
			for _, earlier := range []Workload{level, usual} {
				at := newStage(level, 1, time.Duration(tasks*factor*8*float64(time.Second)), memoryDir(t), 0)
				at.accounts, at.earlier, at.skip = at.accounts[:accounts], earlier, 5
				for _, row := range measureStage(t, at, false) {
					if row.Client == clientDanqing {
						busy[earlier.Name] = row.Busy
						t.Logf("%s, after %s: %.2f %% busy, %d tasks, %.0f queries each", level.Name, earlier.Name, 100*row.Busy, row.Cycles, row.Queries)
					}
				}
			}
			assert.Greater(t, busy[usual.Name], busy[level.Name]-exact)
		})
	}
}
