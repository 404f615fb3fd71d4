package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
)

// A command on many jobs that is interrupted and run again acts on each job once; jobs that fail
// do not stop the others.
func TestBulkIsInterruptedAndRunAgain(t *testing.T) {
	t.Parallel()
	server := queue.Open()
	defer server.Close() //nolint:errcheck // in memory
	q := &jobQueue{cfg: &config.Config{}, jobs: jobs.NewClient(server.Client()), operator: jobs.NewInspector(server.Client())}
	const all = 2 * selectPage
	var reqs []jobs.Request
	for i := range all + 1 {
		reqs = append(reqs, jobs.Request{ID: fmt.Sprintf("job-%d", i), Prompt: "a cat", N: 2, Batch: "many"})
	}
	_, err := q.jobs.EnqueueAll(t.Context(), reqs)
	require.NoError(t, err)
	var stdout, stderr bytes.Buffer
	p := &program{stdout: &stdout, stderr: &stderr}
	b := &bulkFlags{jobFilter: jobFilter{ListFilter: jobs.ListFilter{Batch: "many", States: waitingStates()}}}
	action := bulkAction{verb: "cancel", doneLately: decidedLately(jobs.ActionCancel)}

	ctx, interrupt := context.WithCancelCause(t.Context())
	calls := map[string]*atomic.Int64{}
	for _, req := range reqs {
		calls[req.ID] = &atomic.Int64{}
	}
	broken := errors.New("it is broken")
	var acted atomic.Int64
	act := func(ctx context.Context, id string) (*jobs.Job, error) {
		calls[id].Add(1)
		if acted.Add(1) == 40 {
			interrupt(errInterrupted)
		}
		if id == "job-3" {
			return nil, broken
		}
		return q.jobs.Cancel(ctx, id, jobs.Decider{By: "li"})
	}
	c, err := b.choose(t.Context(), q, action)
	require.NoError(t, err)
	require.Len(t, c.ids, all+1)
	require.ErrorIs(t, p.actOn(ctx, c.ids, bulkConcurrency, "cancel", false, act), errInterrupted)
	done := int(acted.Load())
	assert.Less(t, done, 40+bulkConcurrency)
	assert.Contains(t, stderr.String(), fmt.Sprintf("interrupted: %d jobs not reached", all+1-done))

	again, err := b.choose(t.Context(), q, action)
	require.NoError(t, err)
	stdout.Reset()
	err = p.actOn(t.Context(), again.ids, bulkConcurrency, "cancel", true, act)
	require.ErrorContains(t, err, "1 job could not be canceled", errorLines(stdout.String()))
	assert.Equal(t, len(again.ids), strings.Count(stdout.String(), "\n"))
	assert.Contains(t, stdout.String(), `{"id":"job-3","error":"it is broken"}`)
	for id, n := range calls {
		if id != "job-3" {
			assert.EqualValues(t, 1, n.Load(), id)
		}
	}
	left, err := b.choose(t.Context(), q, action)
	require.NoError(t, err)
	assert.Equal(t, []string{"job-3"}, left.ids)
}

// errorLines returns those of JSON lines that report an error.
func errorLines(text string) string {
	var found strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, `"error":`) {
			found.WriteString(line)
		}
	}
	return found.String()
}

// Before a question is answered somebody else may decide: a decision about many jobs is not made about
// a later hold, which may have images that were paid for. What was retried since can be canceled again.
func TestBulkBesideOtherDecisions(t *testing.T) {
	t.Parallel()
	server := queue.Open()
	defer server.Close() //nolint:errcheck // in memory
	q := &jobQueue{cfg: &config.Config{Operator: "li"}, jobs: jobs.NewClient(server.Client()), operator: jobs.NewInspector(server.Client())}
	store := jobs.NewStore(server.Client())
	hold := func(code string) {
		rec, err := store.Get(t.Context(), "cat")
		require.NoError(t, err)
		next := *rec
		next.State, next.Code, next.Message = jobs.StateHeld, code, "decide"
		require.NoError(t, store.Update(t.Context(), rec, &next))
	}
	_, err := q.jobs.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat"})
	require.NoError(t, err)
	cancel := bulkAction{verb: "cancel", doneLately: decidedLately(jobs.ActionCancel)}
	b := &bulkFlags{jobFilter: jobFilter{ListFilter: jobs.ListFilter{States: jobs.States()}, states: []string{"any"}}, yes: true}
	_, err = q.jobs.Cancel(t.Context(), "cat", jobs.Decider{By: "li"})
	require.NoError(t, err)
	c, err := b.choose(t.Context(), q, cancel)
	require.NoError(t, err)
	assert.Empty(t, c.ids)
	_, err = q.operator.Retry(t.Context(), "cat", jobs.Decider{By: "wang"})
	require.NoError(t, err)
	c, err = b.choose(t.Context(), q, cancel)
	require.NoError(t, err)
	assert.Equal(t, []string{"cat"}, c.ids)

	hold(jobs.CodeSubmitAmbiguous)
	action := resolveAction(jobs.Resolution{GiveUp: true})
	resolve := action.act
	action.act = func(ctx context.Context, q *jobQueue, id string, by jobs.Decider) (*jobs.Job, error) {
		_, err := q.operator.Resolve(ctx, id, jobs.Resolution{BuyAgain: true}, jobs.Decider{By: "wang"})
		require.NoError(t, err)
		hold(jobs.CodeImageUnverified)
		return resolve(ctx, q, id, by)
	}
	var stdout, stderr bytes.Buffer
	p := &program{stdout: &stdout, stderr: &stderr}
	require.ErrorContains(t, p.bulkOn(t.Context(), q, &jobsFlags{}, b, action, nil), "1 job could not be resolved")
	assert.Contains(t, stdout.String(), "it has changed at")
	job, err := q.jobs.Get(t.Context(), "cat")
	require.NoError(t, err)
	assert.Equal(t, jobs.StateHeld, job.State)
}
