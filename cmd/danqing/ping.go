package main

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/redishealth"
)

// unreachableError means that Redis does not respond, or is none that can hold the jobs.
type unreachableError struct {
	// text is the cause in one sentence, and hint what to do, both as in doctor.
	text, hint string
	err        error
}

func (e *unreachableError) Error() string { return "redis: " + e.text }
func (e *unreachableError) Unwrap() error { return e.err }

// ping fails with an [*unreachableError] if Redis does not respond, or is none that can hold
// the jobs. address is its name in messages.
func ping(ctx context.Context, rdb *redis.Client, address string) error {
	err := redishealth.Check(ctx, rdb)
	if err == nil {
		return nil
	}
	text, hint := explainRedisError(address, err)
	return &unreachableError{text: text, hint: hint, err: err}
}

// isTransient reports whether an error is temporary: Redis or the bucket restarts, or the
// network is interrupted. A command that only waits continues to wait then.
func isTransient(err error) bool {
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		redis.IsLoadingError(err)
}
