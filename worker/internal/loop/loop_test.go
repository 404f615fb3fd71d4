package loop_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/internal/loop"
)

// An error that may pass is repeated until the command succeeds or the worker stops. Any
// other error is returned at once.
func TestRetryRedis(t *testing.T) {
	t.Parallel()
	down := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	refused := errors.New("WRONGTYPE Operation against a key holding the wrong kind of value")
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		stopping, stop := context.WithCancelCause(t.Context())
		calls := 0
		begin := time.Now()
		require.NoError(t, loop.RetryRedis(t.Context(), stopping, log, func(context.Context) error {
			if calls++; calls < 4 {
				return []error{down, io.EOF, context.DeadlineExceeded}[calls-1]
			}
			return nil
		}))
		assert.Equal(t, 700*time.Millisecond, time.Since(begin), "100 + 200 + 400 ms")

		calls = 0
		assert.ErrorIs(t, loop.RetryRedis(t.Context(), stopping, log, func(context.Context) error { calls++; return refused }), refused)
		assert.Equal(t, 1, calls)

		time.AfterFunc(time.Minute, func() { stop(loop.ErrStopped) })
		assert.ErrorIs(t, loop.RetryRedis(t.Context(), stopping, log, func(context.Context) error { return down }), loop.ErrStopped)
	})
}

// answer is an error that Redis answers.
type answer string

func (a answer) Error() string { return string(a) }
func (answer) RedisError()     {}

// What may pass is not refused for good, in a script neither, whatever the version of Redis.
func TestIsRefused(t *testing.T) {
	t.Parallel()
	const before7 = "ERR Error running script (call to f_1a): @user_script:1: @user_script: 1: "
	for err, want := range map[answer]bool{
		before7 + "-OOM command not allowed when used memory > 'maxmemory'.":                                          false,
		before7 + "-MISCONF Redis is configured to save RDB snapshots, but is currently not able to persist on disk.": false,
		before7 + "-READONLY You can't write against a read only replica.":                                            false,
		before7 + "The user executing the script can't run this command or subcommand":                                false,
		"ERR The user executing the script can't run this command or subcommand script: 1a, on @user_script:1.":       false,
		"ERR ACL failure in script: User u has no permissions to run the 'hset' command script: 1a":                   false,
		before7 + "WRONGTYPE Operation against a key holding the wrong kind of value":                                 true,
		"WRONGTYPE Operation against a key holding the wrong kind of value script: 1a, on @user_script:1.":            true,
	} {
		assert.Equal(t, want, loop.IsRefused(fmt.Errorf("write record: %w", err)), err)
	}
}

// A background activity runs at once and then at its interval. Its stop waits for the call
// in progress.
func TestEvery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls, ended := 0, false
		stop := loop.Every(t.Context(), time.Minute, func(ctx context.Context) {
			if calls++; calls == 3 {
				<-ctx.Done()
				<-time.After(time.Second)
				ended = true
			}
		})
		<-time.After(2*time.Minute + time.Second)
		stop()
		assert.Equal(t, 3, calls)
		assert.True(t, ended)
	})
}
