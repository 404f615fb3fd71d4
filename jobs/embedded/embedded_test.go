package embedded_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
)

func open(tb testing.TB, cfg embedded.Config) *embedded.Queue {
	tb.Helper()
	q, err := embedded.OpenDir(cfg)
	require.NoError(tb, err)
	return q
}

// overTCP returns a client over TCP, like another process's.
func overTCP(tb testing.TB, q *embedded.Queue) *redis.Client {
	tb.Helper()
	options, err := redis.ParseURL(q.URL())
	require.NoError(tb, err)
	client := redis.NewClient(options)
	tb.Cleanup(func() { _ = client.Close() }) // again, in case the test fails
	return client
}

func request(id string) jobs.Request {
	return jobs.Request{ID: id, Model: "wanx-v1", Prompt: "一只猫 " + id}
}

// dump returns all data, with types, order and TTLs in milliseconds.
func dump(tb testing.TB, rdb redis.UniversalClient) map[string]any {
	tb.Helper()
	ctx := context.Background()
	all := map[string]any{}
	keys, err := rdb.Keys(ctx, "*").Result()
	require.NoError(tb, err)
	for _, key := range keys {
		var value any
		kind := rdb.Type(ctx, key).Val()
		switch kind {
		case "string":
			value, err = rdb.Get(ctx, key).Result()
		case "list":
			value, err = rdb.LRange(ctx, key, 0, -1).Result()
		case "set":
			value, err = rdb.SMembers(ctx, key).Result()
		case "hash":
			value, err = rdb.HGetAll(ctx, key).Result()
		case "zset":
			value, err = rdb.ZRangeWithScores(ctx, key, 0, -1).Result()
		case "stream":
			value, err = rdb.XRange(ctx, key, "-", "+").Result()
		default:
			err = fmt.Errorf("%s is a %s", key, kind)
		}
		require.NoError(tb, err)
		all[kind+" "+key] = value
	}
	return all
}

func TestReopen(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "queue")
	q := open(t, embedded.Config{Dir: dir, Listen: "127.0.0.1:0"})
	for i, rdb := range []redis.UniversalClient{q.Client(), overTCP(t, q)} {
		_, err := jobs.NewClient(rdb).Enqueue(t.Context(), request(fmt.Sprint("job", i)))
		require.NoError(t, err)
	}
	before := dump(t, q.Client())
	require.NoError(t, q.Close())
	require.Contains(t, before, "hash danqing:job:job1")

	q = open(t, embedded.Config{Dir: dir})
	assert.Equal(t, before, dump(t, q.Client()))
	assert.Empty(t, q.URL())
	require.NoError(t, q.Close())

	for path, want := range map[string]os.FileMode{"": 0o700, "queue.log": 0o600, "lock": 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		require.NoError(t, err)
		assert.Equal(t, want, info.Mode().Perm(), path)
	}
}

func TestPassword(t *testing.T) {
	t.Parallel()
	q := open(t, embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	at, err := url.Parse(q.URL())
	require.NoError(t, err)
	for password, want := range map[string]string{"": "NOAUTH", "wrong": "WRONGPASS"} {
		client := redis.NewClient(&redis.Options{Addr: at.Host, Password: password, Protocol: 2})
		require.ErrorContains(t, client.Set(t.Context(), "k", "v", 0).Err(), want)
		require.NoError(t, client.Close())
	}
	require.NoError(t, q.Client().Set(t.Context(), "k", "v", 0).Err())
	require.NoError(t, q.Close())
}
