package loop

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisUnavailable is the log message for a command that failed and is repeated.
const RedisUnavailable = "redis unavailable"

// WarnRedis logs a command that failed and is repeated, with attributes in pairs.
func WarnRedis(log *slog.Logger, err error, attributes ...any) {
	log.With(attributes...).Warn(RedisUnavailable, "err", err)
}

// RetryRedis repeats do while it fails with an error that may be temporary, until stopping
// ends; then it fails with its cause. Any other error is returned at once. do gets ctx.
func RetryRedis(ctx, stopping context.Context, log *slog.Logger, do func(context.Context) error) error {
	for retry := (&Backoff{First: 100 * time.Millisecond, Most: 10 * time.Second}); ; {
		err := do(ctx)
		if err == nil || !IsTransient(err) {
			return err
		}
		wait := retry.Next()
		WarnRedis(log, err, "wait", wait)
		if err := Sleep(stopping, wait); err != nil {
			return err
		}
	}
}

// IsTransient reports whether a Redis or connection error may be temporary: Redis is full,
// loading, failing over or unreachable.
func IsTransient(err error) bool {
	if answer := redis.Error(nil); !errors.As(err, &answer) {
		return errors.As(err, new(net.Error)) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted)
	}
	for _, may := range []func(error) bool{
		redis.IsOOMError, redis.IsLoadingError, redis.IsReadOnlyError, redis.IsClusterDownError,
		redis.IsTryAgainError, redis.IsMasterDownError, redis.IsMaxClientsError, redis.IsNoReplicasError,
	} {
		if may(err) {
			return true
		}
	}
	return redis.HasErrorPrefix(err, "MISCONF") || redis.HasErrorPrefix(err, "BUSY")
}
