package jobs_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// onBoth runs a test on the embedded Redis and on a real one.
func onBoth(t *testing.T, test func(t *testing.T, client *jobs.Client, rdb redis.UniversalClient)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		client, rdb := newClient(t)
		test(t, client, rdb)
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		rdb := redisServer(t)
		test(t, jobs.NewClient(rdb), rdb)
	})
}

// redisServer starts a redis-server of its own on a socket in a temporary folder.
func redisServer(t *testing.T) redis.UniversalClient {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not installed: apt-get install redis-server")
		}
		t.Skip("redis-server is not installed: apt-get install redis-server would run this")
	}
	dir, err := os.MkdirTemp("", "redis-*") //nolint:usetesting // a socket's path may have 107 bytes
	require.NoError(t, err)
	socket := filepath.Join(dir, "socket")
	server := exec.CommandContext(context.WithoutCancel(t.Context()), binary, "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "")
	require.NoError(t, server.Start())
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: socket})
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		require.NoError(t, server.Process.Kill())
		_ = server.Wait()
		require.NoError(t, os.RemoveAll(dir))
	})
	require.Eventually(t, func() bool { return client.Ping(t.Context()).Err() == nil }, 30*time.Second, 10*time.Millisecond)
	return client
}

// errLost is a reply that did not come back.
var errLost = errors.New("the reply was lost")

// loser loses the reply of the nth command from now on: it is done, and the
// caller gets an error.
type loser struct{ left atomic.Int64 }

var _ redis.Hook = (*loser)(nil)

func (l *loser) loseNth(n int) { l.left.Store(int64(n)) }

func (l *loser) lose(err error) error {
	if l.left.Add(-1) == 0 {
		return errLost
	}
	return err
}

func (l *loser) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l *loser) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := l.lose(next(ctx, cmd))
		if errors.Is(err, errLost) {
			cmd.SetErr(err)
		}
		return err
	}
}

func (l *loser) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := l.lose(next(ctx, cmds))
		if errors.Is(err, errLost) {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
		}
		return err
	}
}

// interloper does something else once, right before the nth command.
type interloper struct {
	left atomic.Int64
	do   func()
}

var _ redis.Hook = (*interloper)(nil)

func (i *interloper) DialHook(next redis.DialHook) redis.DialHook { return next }

func (i *interloper) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if i.left.Add(-1) == 0 {
			i.do()
		}
		return next(ctx, cmd)
	}
}

func (i *interloper) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// dying does what it is asked for a number of commands, and then nothing any more.
type dying struct{ left atomic.Int64 }

var _ redis.Hook = (*dying)(nil)

func (d *dying) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d *dying) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if d.left.Add(-1) <= 0 {
			cmd.SetErr(errLost)
			return errLost
		}
		return next(ctx, cmd)
	}
}

func (d *dying) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
