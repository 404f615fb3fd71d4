package jobs_test

import (
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// partialJob returns a job of two images that has succeeded without the second.
func partialJob(t *testing.T, client *testClient, rdb redis.UniversalClient) *jobs.Record {
	t.Helper()
	rec, err := client.Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat", N: 2})
	require.NoError(t, err)
	rec = submitted(t, client, rec, jobs.StateSucceeded)
	require.NoError(t, asynq.NewInspectorFromRedisClient(rdb).DeleteTask(testQueue, "cat"))
	return move(t, client, rec, func(next *jobs.Record) {
		next.TaskID, next.FinishedAt = testTask, time.Now().UTC()
		next.Images = []jobs.Image{{N: 1, Key: "k"}, {N: 2, Code: "DataInspectionFailed", Message: "no"}}
	})
}

func TestRetryOfAPartialJob(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		rec := partialJob(t, client, rdb)
		for range 2 { // it may be repeated while the job waits
			got, err := client.Retry(t.Context(), "cat")
			require.NoError(t, err)
			assert.Equal(t, jobs.StateQueued, got.State)
			assert.Equal(t, rec.Images, got.Images)
			assert.Equal(t, []int{2}, got.Missing())
			assert.Equal(t, rec.Digest, got.Request.Digest())
			require.Len(t, got.PastAttempts, 1)
			assert.Equal(t, 1, got.PastAttempts[0].Images)
			assert.Equal(t, testTask, got.PastAttempts[0].TaskID)
			assert.True(t, got.RetriedAt.After(rec.FinishedAt))
			assert.Equal(t, map[string]asynq.TaskState{"cat": asynq.TaskStatePending}, messages(t, rdb, testQueue))
		}
		got, err := client.Cancel(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateSucceeded, got.State)
		assert.Equal(t, rec.Images, got.Images, "with the reason for the missing one")
		assert.Equal(t, testTask, got.TaskID)
		assert.Equal(t, rec.Request.Seed, got.Request.Seed)
		assert.Empty(t, messages(t, rdb, testQueue))
		assert.Positive(t, rdb.TTL(t.Context(), "danqing:job:cat").Val())

		require.NoError(t, rdb.Del(t.Context(), "danqing:job:cat").Err())
		got, err = client.RetryRecord(t.Context(), rec)
		require.NoError(t, err)
		assert.Equal(t, jobs.StateQueued, got.State)
		assert.Equal(t, rec.Images, got.Images)
	})
}

func TestMissingImages(t *testing.T) {
	t.Parallel()
	four := &jobs.Request{N: 4}
	for name, c := range map[string]struct {
		rec  jobs.Record
		want []int
	}{
		"nothing is known":     {jobs.Record{}, []int{1}},
		"no image":             {jobs.Record{Job: jobs.Job{Request: four}}, []int{1, 2, 3, 4}},
		"in part":              {jobs.Record{Job: jobs.Job{Request: four, Images: []jobs.Image{{N: 3, Key: "k"}, {N: 1, Code: "c"}}}}, []int{1, 2, 4}},
		"whole":                {jobs.Record{Job: jobs.Job{Request: &jobs.Request{N: 1}, Images: []jobs.Image{{N: 1, Key: "k"}, {N: 2}}}}, nil},
		"without its request":  {jobs.Record{Job: jobs.Job{Images: []jobs.Image{{N: 1, Key: "k"}, {N: 2}}}}, []int{2}},
		"n of 0 stands for 1":  {jobs.Record{Job: jobs.Job{Request: &jobs.Request{}}}, []int{1}},
		"a group":              {jobs.Record{Job: jobs.Job{Request: &jobs.Request{N: 4, EnableSequential: new(true)}, Images: []jobs.Image{{N: 1, Key: "k"}, {N: 2}, {N: 3, Key: "k"}}}}, []int{2}},
		"a group without any":  {jobs.Record{Job: jobs.Job{Request: &jobs.Request{N: 2, EnableSequential: new(true)}, Images: []jobs.Image{{N: 1}}}}, []int{1, 2}},
		"twice the same image": {jobs.Record{Job: jobs.Job{Request: &jobs.Request{N: 2}, Images: []jobs.Image{{N: 1, Key: "k"}, {N: 1, Key: "k"}}}}, []int{2}},
	} {
		assert.Equal(t, c.want, c.rec.Missing(), name)
	}
}

// A job ends in the given state, unless earlier attempts have stored images.
func TestEndKeepsImages(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC()
	rec := jobs.Record{Job: jobs.Job{ID: "cat", State: jobs.StateGenerating, Attempt: 2, Images: []jobs.Image{{N: 1, Key: "k"}}, Request: &jobs.Request{N: 3}}}
	failed := rec
	failed.End(jobs.StateFailed, "Code", "message", now)
	assert.Equal(t, jobs.StateFailed, failed.State)
	assert.Equal(t, "Code", failed.Code)
	assert.Equal(t, now, failed.FinishedAt)

	rec.PastAttempts = []jobs.Attempt{{Attempt: 1, TaskID: "one", Images: 1}}
	kept := rec
	kept.End(jobs.StateFailed, "Code", "message", now)
	assert.Equal(t, jobs.StateSucceeded, kept.State)
	assert.Empty(t, kept.Code+kept.Message)
	assert.Equal(t, []jobs.Image{{N: 1, Key: "k"}, {N: 2, Code: "Code", Message: "message"}, {N: 3, Code: "Code", Message: "message"}}, kept.Images)
	require.Len(t, kept.PastAttempts, 2)
	assert.Equal(t, "Code", kept.PastAttempts[1].Code)
	assert.Zero(t, kept.PastAttempts[1].Images)
	assert.Equal(t, "one", kept.TaskID)
	assert.Len(t, rec.PastAttempts, 1, "the copied record is unchanged")
	assert.Len(t, rec.Images, 1)
}

func TestImageSeed(t *testing.T) {
	t.Parallel()
	seed, own := int64(7), int64(9)
	rec := jobs.Record{Job: jobs.Job{Request: &jobs.Request{Seed: &seed}}}
	assert.EqualValues(t, 9, rec.ImageSeed(jobs.Image{N: 3}))
	assert.EqualValues(t, 9, rec.ImageSeed(jobs.Image{N: 4, Seed: &own}))
	assert.Zero(t, (&jobs.Record{}).ImageSeed(jobs.Image{N: 4}))
}

// A job that is retried for its missing images keeps its images if an operator archives its
// message.
func TestArchivedRetryOfAPartialJob(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, client *testClient, rdb redis.UniversalClient) {
		t.Helper()
		rec := partialJob(t, client, rdb)
		_, err := client.Retry(t.Context(), "cat")
		require.NoError(t, err)
		require.NoError(t, asynq.NewInspectorFromRedisClient(rdb).ArchiveTask(testQueue, "cat"))
		got, err := client.RequeueOrphan(t.Context(), "cat")
		require.NoError(t, err)
		assert.Equal(t, jobs.StateSucceeded, got.State)
		assert.Equal(t, rec.Images, got.Images)
		assert.Empty(t, messages(t, rdb, testQueue))
		assert.Len(t, messages(t, rdb, jobs.QueueStore), 1, "a worker writes the sidecar")
	})
}
