package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// listedJobs are finished jobs whose sidecars were written at a time. It counts those that are
// read.
type listedJobs struct {
	ids      []string
	modified time.Time
	read     atomic.Int64
	// current are jobs in Redis.
	current map[string]*jobs.Job
}

func (s *listedJobs) SidecarIDs(_ context.Context, _ string, visit func(string, time.Time)) error {
	for _, id := range s.ids {
		visit(id, s.modified)
	}
	return nil
}

func (s *listedJobs) Finished(_ context.Context, id, digest string) (*jobs.Record, error) {
	s.read.Add(1)
	return &jobs.Record{Job: jobs.Job{ID: id, Digest: digest, State: jobs.StateFailed}}, nil
}

func (s *listedJobs) GetAll(_ context.Context, ids []string) ([]*jobs.Job, error) {
	list := make([]*jobs.Job, len(ids))
	for i, id := range ids {
		list[i] = s.current[id]
	}
	return list, nil
}

// A finished batch that is run again is decided by the list of its sidecars and its results:
// only those jobs are read that may have changed since, or of which the results do not tell.
func TestFinishedBatchIsDecidedByAList(t *testing.T) {
	t.Parallel()
	ended := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		change   func(line string) string
		modified time.Duration // after the jobs' end
		read     int
	}{
		"same":              {func(line string) string { return line }, time.Minute, 0},
		"written since":     {func(line string) string { return line }, time.Hour, 20},
		"no results":        {func(string) string { return "" }, time.Minute, 20},
		"torn":              {func(line string) string { return line[:len(line)/2] }, time.Minute, 20},
		"another request":   {func(line string) string { return strings.Replace(line, `"digest":"`, `"digest":"0`, 1) }, time.Minute, 20},
		"simulated":         {func(line string) string { return strings.Replace(line, `"simulated":true`, `"simulated":false`, 1) }, time.Minute, 20},
		"not finished then": {func(line string) string { return strings.Replace(line, `"succeeded"`, `"generating"`, 1) }, time.Minute, 20},
		"failed, retried":   {func(line string) string { return strings.Replace(line, `"succeeded"`, `"failed"`, 1) }, time.Minute, 20},
		"in part, retried": {func(line string) string {
			return strings.Replace(line, `"cost_yuan"`, `"images":[{"n":1,"key":"a.png"},{"n":2,"code":"x"}],"cost_yuan"`, 1)
		}, time.Minute, 20},
		"other jobs' results": {func(line string) string { return strings.ReplaceAll(line, "many.", "few.") }, time.Minute, 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := simulatedRun(t, manyLines(20))
			s := r.files[0]
			s.results = filepath.Join(t.TempDir(), "many.results.jsonl")
			from := &listedJobs{modified: ended.Add(c.modified)}
			var results strings.Builder
			for _, l := range s.lines {
				l.result = resultOf(&jobs.Job{ID: l.id, Digest: l.digest, State: jobs.StateSucceeded, Simulated: true, FinishedAt: ended})
				text, err := r.resultLine(t.Context(), l)
				require.NoError(t, err)
				fmt.Fprintln(&results, c.change(string(text)))
				from.ids, l.result = append(from.ids, l.id), nil
			}
			require.NoError(t, os.WriteFile(s.results, []byte(results.String()), 0o600))
			require.NoError(t, r.lookUp(t.Context(), from, true))
			assert.EqualValues(t, c.read, from.read.Load())
			assert.Equal(t, 20, r.counts().finishedBefore)
			if c.read == 0 {
				assert.Equal(t, 20, r.counts().done)
				assert.Equal(t, jobs.StateSucceeded, s.lines[19].result.State)
			}
		})
	}
}

// A failed job that was retried, and waits or runs, is not taken as failed by its sidecar.
func TestRetriedJobIsNotFinished(t *testing.T) {
	t.Parallel()
	r := simulatedRun(t, manyLines(3))
	lines := r.files[0].lines
	retried := func(l *line, state jobs.State, at time.Time) *jobs.Job {
		return &jobs.Job{ID: l.id, Digest: l.digest, State: state, RetriedAt: at}
	}
	from := &listedJobs{current: map[string]*jobs.Job{
		lines[0].id: retried(lines[0], jobs.StateQueued, time.Now()),
		lines[1].id: retried(lines[1], jobs.StateFailed, time.Now()),
		lines[2].id: retried(lines[2], jobs.StateStoring, time.Time{}), // its end is not recorded yet
	}}
	require.NoError(t, r.lookUp(t.Context(), from, true))
	assert.False(t, lines[0].settled)
	assert.True(t, lines[0].queued)
	assert.True(t, lines[1].settled)
	assert.True(t, lines[2].settled)
	assert.Equal(t, 1, r.counts().left)
}
