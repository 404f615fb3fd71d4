package jobs_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
)

// put writes a record without changes.
func put(t *testing.T, client *testClient, rec jobs.Record) *jobs.Record {
	t.Helper()
	require.NoError(t, client.Store.Update(t.Context(), nil, &rec))
	return &rec
}

// move changes a record as a worker would.
func move(t *testing.T, client *testClient, rec *jobs.Record, change func(*jobs.Record)) *jobs.Record {
	t.Helper()
	next := *rec
	change(&next)
	require.NoError(t, client.Store.Update(t.Context(), rec, &next))
	return &next
}

func ids(records []*jobs.Job) []string {
	var list []string
	for _, rec := range records {
		list = append(list, rec.ID)
	}
	return list
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, _ redis.UniversalClient) {
		t.Helper()
		for _, rec := range []jobs.Record{
			{Job: jobs.Job{ID: "a", State: jobs.StateQueued, Model: "wanx-v1", Labels: map[string]string{"sku": "1"}, Batch: "shop"}},
			{Job: jobs.Job{ID: "b", State: jobs.StateGenerating, Model: "wanx-v1", Account: "main", Request: &jobs.Request{Labels: map[string]string{"sku": "1"}, Batch: "shop"}}},
			{Job: jobs.Job{ID: "c", State: jobs.StateFailed, Model: "qwen-image", Account: "main"}},
			{Job: jobs.Job{ID: "d", State: jobs.StateQueued, Model: "qwen-image", Labels: map[string]string{"sku": "2", "": "x"}}},
		} {
			put(t, client, rec)
		}
		for _, c := range []struct {
			name   string
			filter jobs.ListFilter
			want   []string
		}{
			{"all", jobs.ListFilter{}, []string{"a", "b", "c", "d"}},
			{"one state", jobs.ListFilter{States: []jobs.State{jobs.StateQueued}}, []string{"a", "d"}},
			{"two states", jobs.ListFilter{States: []jobs.State{jobs.StateQueued, jobs.StateFailed}}, []string{"a", "c", "d"}},
			{"model", jobs.ListFilter{Model: "qwen-image"}, []string{"c", "d"}},
			{"account", jobs.ListFilter{Account: "main"}, []string{"b", "c"}},
			{"batch", jobs.ListFilter{Batch: "shop"}, []string{"a", "b"}},
			{"label", jobs.ListFilter{Labels: map[string]string{"sku": "1"}}, []string{"a", "b"}},
			{"two labels", jobs.ListFilter{Labels: map[string]string{"sku": "2", "": "x"}}, []string{"d"}},
			{"a label of no job", jobs.ListFilter{Labels: map[string]string{"no": ""}}, nil},
			{"all at once", jobs.ListFilter{States: []jobs.State{jobs.StateQueued}, Model: "wanx-v1", Batch: "shop"}, []string{"a"}},
		} {
			got, cursor, err := client.List(t.Context(), c.filter)
			require.NoError(t, err, c.name)
			assert.ElementsMatch(t, c.want, ids(got), c.name)
			assert.Empty(t, cursor, c.name)
		}
		counts, err := client.Counts(t.Context())
		require.NoError(t, err)
		assert.Equal(t, map[jobs.State]int64{
			jobs.StateScheduled: 0, jobs.StateQueued: 2, jobs.StatePrepared: 0, jobs.StateSubmitting: 0, jobs.StateGenerating: 1, jobs.StateStoring: 0,
			jobs.StateRetrying: 0, jobs.StateHeld: 0, jobs.StateSucceeded: 0, jobs.StateFailed: 1, jobs.StateCanceled: 0,
		}, counts)
		_, _, err = client.List(t.Context(), jobs.ListFilter{Cursor: "x"})
		require.ErrorContains(t, err, `cursor: "x"`)
	})
}

// Pages have no gaps or repetitions, the newest job first, even if hundreds of jobs changed in
// the same millisecond.
func TestListPages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, _ := newClient(t)
		var want []string
		for i := range 450 {
			if i == 430 {
				<-time.After(time.Hour)
			}
			state := []jobs.State{jobs.StateQueued, jobs.StateGenerating, jobs.StateSucceeded}[i%3]
			put(t, client, jobs.Record{Job: jobs.Job{ID: fmt.Sprintf("job-%03d", i), State: state}})
			want = append(want, fmt.Sprintf("job-%03d", i))
		}
		slices.Reverse(want)
		for _, limit := range []int{60, 200, 450, 1000} {
			var got []string
			filter := jobs.ListFilter{Limit: limit}
			for {
				page, cursor, err := client.List(t.Context(), filter)
				require.NoError(t, err)
				assert.LessOrEqual(t, len(page), limit)
				got = append(got, ids(page)...)
				if filter.Cursor = cursor; cursor == "" {
					break
				}
			}
			assert.Equal(t, want, got, "pages of %d", limit)
		}
		old, _, err := client.List(t.Context(), jobs.ListFilter{States: []jobs.State{jobs.StateQueued}, UpdatedBefore: time.Now(), Limit: 1000})
		require.NoError(t, err)
		assert.Len(t, old, 144, "those of an hour ago")
		assert.Equal(t, "job-429", old[0].ID)
		since := old[100].UpdatedAt
		late, _, err := client.List(t.Context(), jobs.ListFilter{States: []jobs.State{jobs.StateQueued}, UpdatedAfter: since, Limit: 1000})
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(late), 101, "those of its own millisecond, too")
		assert.GreaterOrEqual(t, late[len(late)-1].UpdatedAt.UnixMilli(), since.UnixMilli())
	})
}

// Many jobs are read at once, in the order of their IDs; one that is missing is nil, and one
// that cannot be read is an error.
func TestGetAll(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		var want []string
		for i := range 501 { // one more than one command reads
			want = append(want, fmt.Sprintf("job-%03d", i))
		}
		put(t, client, jobs.Record{Job: jobs.Job{ID: "job-000", State: jobs.StateQueued}})
		put(t, client, jobs.Record{Job: jobs.Job{ID: "job-500", State: jobs.StateHeld}})
		got, err := client.GetAll(t.Context(), want)
		require.NoError(t, err)
		require.Len(t, got, 501)
		assert.Equal(t, jobs.StateQueued, got[0].State)
		assert.Equal(t, jobs.StateHeld, got[500].State)
		assert.Equal(t, "job-500", got[500].ID)
		assert.Nil(t, got[1])
		none, err := client.GetAll(t.Context(), nil)
		require.NoError(t, err)
		assert.Empty(t, none)

		require.NoError(t, rdb.Set(t.Context(), "danqing:job:job-001", "x", 0).Err())
		_, err = client.GetAll(t.Context(), want)
		require.ErrorIs(t, err, jobs.ErrCorrupt)
	})
}

// Ended jobs leave the index with their records.
func TestListOmitsExpired(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, rdb := newClient(t)
		put(t, client, jobs.Record{Job: jobs.Job{ID: "old", State: jobs.StateFailed}})
		put(t, client, jobs.Record{Job: jobs.Job{ID: "waiting", State: jobs.StateQueued}})
		<-time.After(jobs.RecordLifetime + time.Second)
		counts, err := client.Counts(t.Context())
		require.NoError(t, err)
		assert.Zero(t, counts[jobs.StateFailed])
		assert.EqualValues(t, 1, counts[jobs.StateQueued], "a job that waits is never forgotten")
		listed, _, err := client.List(t.Context(), jobs.ListFilter{})
		require.NoError(t, err)
		assert.Equal(t, []string{"waiting"}, ids(listed))
		put(t, client, jobs.Record{Job: jobs.Job{ID: "new", State: jobs.StateFailed}})
		assert.Equal(t, []string{"new"}, rdb.ZRange(t.Context(), "danqing:jobs:failed", 0, -1).Val())
	})
}

// List repairs index entries of jobs that are gone or in another state.
func TestListRepairsTheIndex(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		put(t, client, jobs.Record{Job: jobs.Job{ID: "gone", State: jobs.StateQueued}})
		put(t, client, jobs.Record{Job: jobs.Job{ID: "here", State: jobs.StateQueued}})
		require.NoError(t, rdb.Del(t.Context(), "danqing:job:gone").Err())
		require.NoError(t, rdb.ZAdd(t.Context(), "danqing:jobs:held", redis.Z{Score: 1, Member: "here"}).Err())
		listed, _, err := client.List(t.Context(), jobs.ListFilter{})
		require.NoError(t, err)
		assert.Equal(t, []string{"here"}, ids(listed))
		assert.Equal(t, []string{"here"}, rdb.ZRange(t.Context(), "danqing:jobs:queued", 0, -1).Val())
		assert.Empty(t, rdb.ZRange(t.Context(), "danqing:jobs:held", 0, -1).Val())
	})
}

// After concurrent writes to the same jobs, each job is in the index of its state only.
func TestIndexFollowsEveryWrite(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		const writers, writes, total = 4, 150, 10
		var group errgroup.Group
		for writer := range writers {
			dice := rand.New(rand.NewPCG(uint64(writer), 1))
			group.Go(func() error {
				for range writes {
					id := fmt.Sprintf("job-%d", dice.IntN(total))
					old, err := client.Store.Get(t.Context(), id)
					if err != nil {
						old = nil
					}
					next := jobs.Record{Job: jobs.Job{ID: id, State: jobs.States()[dice.IntN(len(jobs.States()))], Attempt: dice.IntN(3)}}
					name := fmt.Sprintf("write-%d", dice.IntN(writes))
					_ = client.Store.UpdateOnce(t.Context(), name, old, &next) // a conflict, or done under this name
				}
				return nil
			})
		}
		require.NoError(t, group.Wait())
		want := map[string]jobs.State{}
		for i := range total {
			rec, err := client.Store.Get(t.Context(), fmt.Sprintf("job-%d", i))
			require.NoError(t, err)
			want[rec.ID] = rec.State
		}
		got := map[string]jobs.State{}
		for _, state := range jobs.States() {
			for _, id := range rdb.ZRange(t.Context(), "danqing:jobs:"+string(state), 0, -1).Val() {
				assert.NotContains(t, got, id, "in two indexes")
				got[id] = state
			}
		}
		assert.Equal(t, want, got)
		assert.Len(t, slices.Collect(maps.Keys(got)), total)
	})
}

// A write whose reply was lost is recognized by its ID, even after a cancel request, and is in
// the index once.
func TestUpdateOnceIsWrittenOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		rec := put(t, client, jobs.Record{Job: jobs.Job{ID: "cat", State: jobs.StateSubmitting, Attempt: 1, Term: 2}})
		lost := &replyLoser{}
		rdb.AddHook(lost)
		next := *rec
		next.State, next.TaskID = jobs.StateGenerating, "task"
		lost.loseNth(1)
		require.ErrorIs(t, client.Store.UpdateOnce(t.Context(), "created", rec, &next), errLost)
		canceled, err := client.Cancel(t.Context(), "cat")
		require.NoError(t, err)
		assert.False(t, canceled.CancelRequestedAt.IsZero())
		require.NoError(t, client.Store.UpdateOnce(t.Context(), "created", rec, &next))
		require.ErrorIs(t, client.Store.UpdateOnce(t.Context(), "another", rec, &next), jobs.ErrConflict)
		got, err := client.Store.Get(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateGenerating, got.State)
		assert.Equal(t, canceled.CancelRequestedAt, got.CancelRequestedAt)
		assert.Equal(t, []string{"cat"}, rdb.ZRange(t.Context(), "danqing:jobs:generating", 0, -1).Val())
		assert.Empty(t, rdb.ZRange(t.Context(), "danqing:jobs:submitting", 0, -1).Val())
	})
}

// A record is one JSON object, from which a Job can be read too.
func TestRecordIsOneObject(t *testing.T) {
	t.Parallel()
	rec := jobs.Record{Job: jobs.Job{ID: "cat", State: jobs.StateStoring, Attempt: 1}, KeyFingerprint: "f", Results: []jobs.Result{{N: 1, URL: "https://example.com/1.png"}}}
	encoded, err := json.Marshal(rec)
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(encoded, &fields))
	assert.Equal(t, "cat", fields["id"])
	assert.Equal(t, "f", fields["key_fingerprint"])
	var job jobs.Job
	require.NoError(t, json.Unmarshal(encoded, &job))
	assert.Equal(t, rec.Job, job)
	shown, err := json.Marshal(job)
	require.NoError(t, err)
	assert.NotContains(t, string(shown), "example.com", "the links of results are the worker's")
}
