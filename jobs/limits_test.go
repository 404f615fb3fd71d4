package jobs_test

import (
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

func enqueueWithin(t *testing.T, client *testClient, id, producer string, limits jobs.Limits) (*jobs.Record, error) {
	t.Helper()
	return client.EnqueueWithin(t.Context(), jobs.Request{ID: id, Prompt: "a cat", Producer: producer}, limits)
}

func requireLimit(t *testing.T, err error, kind string, most int64) {
	t.Helper()
	var limit *jobs.LimitError
	require.ErrorAs(t, err, &limit)
	assert.Equal(t, jobs.LimitError{Kind: kind, Most: most}, *limit)
}

// Many concurrent producers enqueue exactly as many jobs as the limit allows. A refused job
// leaves nothing in Redis.
func TestLimitDepth(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		limits := jobs.Limits{Depth: 7}
		var group sync.WaitGroup
		errs := make([]error, 20)
		for i := range errs {
			group.Go(func() {
				_, errs[i] = client.EnqueueWithin(t.Context(), jobs.Request{Prompt: "a cat"}, limits)
			})
		}
		group.Wait()
		refused := 0
		for _, err := range errs {
			if err != nil {
				requireLimit(t, err, jobs.LimitDepth, 7)
				refused++
			}
		}
		assert.Equal(t, 13, refused)
		assert.Len(t, messages(t, rdb, testQueue), 7)
		records, _, err := client.List(t.Context(), jobs.ListFilter{})
		require.NoError(t, err)
		assert.Len(t, records, 7)

		// An existing job is not a new one, and a finished job makes room.
		_, err = client.EnqueueWithin(t.Context(), jobs.Request{ID: records[0].ID, Prompt: "a cat"}, limits)
		require.NoError(t, err)
		submitted(t, client, &jobs.Record{Job: *records[0]}, jobs.StateSubmitting)
		_, err = client.EnqueueWithin(t.Context(), jobs.Request{Prompt: "a cat"}, limits)
		require.NoError(t, err)
	})
}

// Only the producer's own jobs count.
func TestLimitWaiting(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, _ redis.UniversalClient) {
		t.Helper()
		limits := jobs.Limits{Waiting: 2}
		for _, c := range []struct{ id, producer string }{{"s1", "shop"}, {"b1", "blog"}, {"s2", "shop"}, {"n1", ""}} {
			_, err := enqueueWithin(t, client, c.id, c.producer, limits)
			require.NoError(t, err)
		}
		_, err := enqueueWithin(t, client, "s3", "shop", limits)
		requireLimit(t, err, jobs.LimitWaiting, 2)
		_, err = client.Store.Get(t.Context(), "s3")
		require.ErrorIs(t, err, jobs.ErrNotFound)
		_, err = enqueueWithin(t, client, "b2", "blog", limits)
		require.NoError(t, err)

		_, err = client.Cancel(t.Context(), "s1")
		require.NoError(t, err)
		_, err = enqueueWithin(t, client, "s3", "shop", limits)
		require.NoError(t, err)
		// A retried job counts again.
		_, err = client.Retry(t.Context(), "s1")
		require.NoError(t, err)
		_, err = client.Cancel(t.Context(), "s2")
		require.NoError(t, err)
		_, err = enqueueWithin(t, client, "s4", "shop", limits)
		requireLimit(t, err, jobs.LimitWaiting, 2)
	})
}

// A job counts with its price until it has ended, and then with its cost.
func TestLimitDay(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, _ redis.UniversalClient) {
		t.Helper()
		limits := jobs.Limits{DayMicroYuan: 1_000_000, PriceMicroYuan: 400_000}
		made, err := enqueueWithin(t, client, "made", "shop", limits)
		require.NoError(t, err)
		failed, err := enqueueWithin(t, client, "failed", "shop", limits)
		require.NoError(t, err)
		refused := func() {
			t.Helper()
			_, err := enqueueWithin(t, client, "more", "shop", limits)
			requireLimit(t, err, jobs.LimitDay, 1_000_000)
		}
		refused()
		_, err = enqueueWithin(t, client, "other", "blog", limits)
		require.NoError(t, err)

		made = submitted(t, client, made, jobs.StateSubmitting)
		refused()
		// It has cost more than its price: two of three tenths are left.
		move(t, client, made, func(next *jobs.Record) {
			next.State, next.CostMicroYuan, next.FinishedAt = jobs.StateSucceeded, 500_000, time.Now().UTC()
		})
		refused()
		failed = submitted(t, client, failed, jobs.StateSubmitting)
		move(t, client, failed, func(next *jobs.Record) { next.End(jobs.StateFailed, "Bad", "bad", time.Now().UTC()) })
		_, err = enqueueWithin(t, client, "more", "shop", limits)
		require.NoError(t, err)
		// A retry of a failed job counts again.
		_, err = client.Retry(t.Context(), "failed")
		require.NoError(t, err)
		_, err = enqueueWithin(t, client, "last", "shop", jobs.Limits{DayMicroYuan: 1_300_000, PriceMicroYuan: 1})
		requireLimit(t, err, jobs.LimitDay, 1_300_000)
		_, err = enqueueWithin(t, client, "last", "shop", jobs.Limits{DayMicroYuan: 1_300_001, PriceMicroYuan: 1})
		require.NoError(t, err)
	})
}

// A write that is repeated after a lost reply counts once.
func TestRepeatedWriteCountsOnce(t *testing.T) {
	t.Parallel()
	client, _ := newClient(t)
	rec := jobs.NewRecord(jobs.Request{ID: "cat", Prompt: "a cat", Model: "wanx-v1", Priority: "default", Producer: "shop"}, nil)
	rec.PriceMicroYuan = 400_000
	for range 2 {
		require.NoError(t, client.Store.UpdateOnce(t.Context(), "the write", nil, rec))
	}
	_, err := enqueueWithin(t, client, "dog", "shop", jobs.Limits{DayMicroYuan: 800_000, PriceMicroYuan: 400_000})
	require.NoError(t, err)
}
