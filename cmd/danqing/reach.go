package main

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/redis/go-redis/v9"
)

// unreached is a Redis that does not answer.
type unreached struct {
	// text says so in a sentence, and hint what to do, as doctor does.
	text, hint string
	why        error
}

func (e *unreached) Error() string { return "redis: " + e.text }
func (e *unreached) Unwrap() error { return e.why }

// reach fails with an [*unreached] if a Redis does not answer.
func reach(ctx context.Context, rdb *redis.Client) error {
	err := rdb.Ping(ctx).Err()
	if err == nil {
		return nil
	}
	text, hint := redisTrouble(rdb.Options().Addr, err)
	return &unreached{text: text, hint: hint, why: err}
}

// passes reports whether an error is of a server that is away for now: Redis or the
// bucket restarts, or the network between is cut. Whoever only waits waits on.
func passes(err error) bool {
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		redis.IsLoadingError(err)
}
