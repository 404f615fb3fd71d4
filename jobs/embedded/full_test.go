package embedded

import (
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A write that cannot be logged fails, and so do all later ones, while reads work. Once
// there is space, writes work again, and no acknowledged write was lost.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*limitedDisk){
		"full":         func(r *limitedDisk) { r.left = 7 },
		"sync refused": func(r *limitedDisk) { r.syncErr = errNoSpace },
		"/dev/full":    func(r *limitedDisk) { r.full = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				disk := &limitedDisk{left: -1}
				q, err := OpenDir(Config{Dir: dir, create: disk.create})
				require.NoError(t, err)
				ctx, rdb := t.Context(), q.Client()
				reader := redis.NewScript("return redis.call('GET', KEYS[1])")
				writer := redis.NewScript("return redis.call('SET', KEYS[1], 'v')")
				require.NoError(t, rdb.Set(ctx, "before", "v", 0).Err())

				fail(disk)
				require.ErrorContains(t, rdb.Set(ctx, "first", "v", 0).Err(), "MISCONF the embedded queue cannot write its log")
				require.ErrorContains(t, rdb.Set(ctx, "second", "v", 0).Err(), "no space left on device")
				require.ErrorContains(t, writer.Run(ctx, rdb, []string{"second"}).Err(), "MISCONF")
				_, err = rdb.TxPipelined(ctx, func(pipe redis.Pipeliner) error { return pipe.Set(ctx, "second", "v", 0).Err() })
				require.ErrorContains(t, err, "MISCONF")
				assert.Equal(t, "v", rdb.Get(ctx, "before").Val())
				read, err := reader.Run(ctx, rdb, []string{"before"}).Result()
				require.NoError(t, err)
				assert.Equal(t, "v", read)
				assert.Zero(t, rdb.Exists(ctx, "second").Val(), "nothing is changed that cannot be logged")
				<-time.After(time.Minute) // the queue retries by itself

				*disk = limitedDisk{left: -1}
				require.Eventually(t, func() bool { return rdb.Set(ctx, "after", "v", 0).Err() == nil }, 2*logRetryInterval, time.Second)
				inMemory, err := rdb.Keys(ctx, "*").Result()
				require.NoError(t, err)
				assert.Subset(t, inMemory, []string{"before", "after"})
				require.NoError(t, q.Close())
				require.NoFileExists(t, q.log.path+".new")

				q, err = OpenDir(Config{Dir: dir})
				require.NoError(t, err)
				replayed, err := q.Client().Keys(ctx, "*").Result()
				require.NoError(t, err)
				assert.Equal(t, inMemory, replayed)
				require.NoError(t, q.Close())
			})
		})
	}
}

// A kill while the disk is full loses no acknowledged write.
func TestKillOnFullDisk(t *testing.T) {
	t.Parallel()
	dir, disk := t.TempDir(), &limitedDisk{left: -1}
	q, err := OpenDir(Config{Dir: dir, create: disk.create})
	require.NoError(t, err)
	require.NoError(t, q.Client().Set(t.Context(), "before", "v", 0).Err())
	disk.left = 7
	require.Error(t, q.Client().Set(t.Context(), "unacknowledged", "v", 0).Err())
	crashed := t.TempDir()
	require.NoError(t, os.CopyFS(crashed, os.DirFS(dir)))
	require.NoError(t, q.Close())
	q, err = OpenDir(Config{Dir: crashed})
	require.NoError(t, err)
	assert.Equal(t, []string{"before"}, q.Client().Keys(t.Context(), "*").Val())
	require.NoError(t, q.Close())
}

// No reply is sent before the sync: neither to a read of the new value, nor to a command
// that changes nothing because of it. Waiting commands share a sync.
func TestNoReplyBeforeSync(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := &limitedDisk{left: -1}
		q, err := OpenDir(Config{Dir: dir, create: disk.create})
		require.NoError(t, err)
		ctx, rdb := t.Context(), q.Client()
		disk.syncGate, disk.syncs = make(chan struct{}), 0
		var replies atomic.Int32
		ask := func(call func() error) {
			go func() {
				assert.NoError(t, call())
				replies.Add(1)
			}()
			synctest.Wait()
		}
		ask(func() error { return rdb.Set(ctx, "k", "v", 0).Err() })
		ask(func() error { return rdb.Get(ctx, "k").Err() })
		ask(func() error { return rdb.Do(ctx, "SETNX", "k", "other").Err() })
		for i := range 5 { // together at most as many as the pool has connections
			ask(func() error { return rdb.Set(ctx, strconv.Itoa(i), "v", 0).Err() })
		}
		require.Zero(t, replies.Load())
		disk.syncGate <- struct{}{}
		synctest.Wait()
		require.EqualValues(t, 3, replies.Load())
		disk.syncGate <- struct{}{}
		synctest.Wait()
		require.EqualValues(t, 8, replies.Load())
		assert.Equal(t, 2, disk.syncs)
		require.NoError(t, q.Close())
	})
}

// A command whose sync takes long is not sent again: it would be carried out twice.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := &limitedDisk{left: -1}
		q, err := OpenDir(Config{Dir: dir, create: disk.create})
		require.NoError(t, err)
		disk.syncGate = make(chan struct{})
		go func() {
			<-time.After(70 * time.Second)
			close(disk.syncGate)
		}()
		require.ErrorIs(t, q.Client().Incr(t.Context(), "n").Err(), os.ErrDeadlineExceeded)
		<-time.After(time.Minute)
		n, err := q.Client().Get(t.Context(), "n").Int()
		require.NoError(t, err)
		assert.Equal(t, 1, n)
		require.NoError(t, q.Close())
	})
}
