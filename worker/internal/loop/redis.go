package loop

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisRetry is when a message is delivered again after an internal error, which cost
// nothing.
const RedisRetry = 5 * time.Second

// RedisUnavailable is the log message for a command that failed and is repeated.
const RedisUnavailable = "redis unavailable"

// WarnRedis logs a command that failed and is repeated, with attributes in pairs.
func WarnRedis(log *slog.Logger, err error, attributes ...any) {
	log.With(attributes...).Warn(RedisUnavailable, "err", err)
}

// WarnFailed logs with a message that periodic work failed, unless ctx has ended; an error of
// Redis that may be temporary has the line of [WarnRedis].
func WarnFailed(ctx context.Context, log *slog.Logger, err error, message string) {
	switch {
	case err == nil || ctx.Err() != nil:
	case IsTransient(err):
		WarnRedis(log, err)
	default:
		log.Warn(message, "err", err) //nolint:sloglint // every caller has a constant message
	}
}

// RetryRedis repeats do while it fails with an error that may be temporary, or because Redis
// denies the user the command, until stopping ends; then it fails with its cause. Any other
// error is returned at once. do gets ctx.
func RetryRedis(ctx, stopping context.Context, log *slog.Logger, do func(context.Context) error) error {
	for retry := (&Backoff{First: 100 * time.Millisecond, Most: 10 * time.Second}); ; {
		err := do(ctx)
		if err == nil || !IsTransient(err) && !isDenied(err) {
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
	// Before 7.0 Redis answers with "ERR Error running script (…): @user_script: 1: -OOM …"; go-redis
	// knows that of READONLY alone.
	return redis.HasErrorPrefix(err, "MISCONF") || redis.HasErrorPrefix(err, "BUSY") || isScriptError(err, ": -OOM ", ": -MISCONF ")
}

// IsRefused reports whether Redis refuses a command for what is in it or under its keys: a key
// has another type, or a value is too large. Repeated, it fails again; another command may
// succeed.
func IsRefused(err error) bool {
	answer := redis.Error(nil)
	return errors.As(err, &answer) && !errors.Is(err, redis.Nil) && !IsTransient(err) && !isDenied(err)
}

// isDenied reports whether Redis denies the user a command, in a script too. That may pass: an
// operator corrects the user's rights or the password.
func isDenied(err error) bool {
	for _, prefix := range []string{"NOPERM", "NOAUTH", "WRONGPASS"} {
		if redis.HasErrorPrefix(err, prefix) {
			return true
		}
	}
	return isScriptError(err, "ACL failure in script", "The user executing the script can't ") // from 7.2 on, and before
}

// isScriptError reports whether Redis answers that a script failed, with one of the texts.
func isScriptError(err error, texts ...string) bool {
	answer := redis.Error(nil)
	return errors.As(err, &answer) && strings.HasPrefix(answer.Error(), "ERR ") &&
		slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(answer.Error(), text) })
}
