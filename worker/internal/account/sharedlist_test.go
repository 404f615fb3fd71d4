package account

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// One page of the list tells each task's status to its poller. A list that shows a task running
// long after it has ended is not read again.
func TestSharedList(t *testing.T) {
	t.Parallel()
	listed := 0
	date := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		listed++
		w.Header().Set("Date", date.Format(http.TimeFormat))
		_, _ = w.Write([]byte(`{"total":3,"data":[{"task_id":"a","status":"RUNNING"},{"task_id":"b","status":"SUCCEEDED"},{"task_id":"x","status":"RUNNING"}]}`))
	}))
	t.Cleanup(srv.Close)
	client, err := dashscope.New(dashscope.Config{BaseURL: srv.URL + "/api/v1", APIKey: "k"})
	require.NoError(t, err)
	var list SharedList
	var pollers []*Poller
	for _, task := range []string{"a", "b", "c", "d"} {
		pollers = append(pollers, list.Register(task))
	}
	assert.False(t, pollers[0].Refresh(t.Context(), client), "few tasks are queried one by one")
	last := list.Register("e")
	require.True(t, pollers[0].Refresh(t.Context(), client))
	for i, want := range []string{dashscope.StatusRunning, dashscope.StatusSucceeded, "", ""} {
		assert.Equal(t, want, <-pollers[i].Status)
	}
	require.True(t, pollers[1].Refresh(t.Context(), client))
	require.True(t, pollers[1].Refresh(t.Context(), client), "what nobody has received is replaced")
	assert.Equal(t, dashscope.StatusRunning, <-pollers[0].Status)
	assert.Equal(t, 3, listed)

	pollers[0].Ended(date.Add(-time.Second))
	require.True(t, pollers[0].Refresh(t.Context(), client))
	pollers[0].Ended(date.Add(-5 * time.Second))
	assert.False(t, pollers[0].Refresh(t.Context(), client), "the list lags")
	last.Done()
	assert.Equal(t, 4, listed)
}

// Without an answer each task is queried.
func TestSharedListUnavailable(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	client, err := dashscope.New(dashscope.Config{BaseURL: srv.URL + "/api/v1", APIKey: "k"})
	require.NoError(t, err)
	var list SharedList
	var p *Poller
	for _, task := range []string{"a", "b", "c", "d", "e"} {
		p = list.Register(task)
	}
	require.True(t, p.Refresh(t.Context(), client))
	assert.Empty(t, <-p.Status)
}
