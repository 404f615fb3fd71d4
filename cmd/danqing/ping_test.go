package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/jobs"
)

// Only temporary errors are transient.
func TestIsTransient(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { assert.NoError(t, client.Close()) })
	replied := func(reply string) error {
		server.SetError(reply)
		return client.Get(t.Context(), "cat").Err()
	}
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for _, err := range []error{refused, io.EOF, io.ErrUnexpectedEOF, replied("LOADING Redis is loading the dataset in memory")} {
		assert.True(t, isTransient(fmt.Errorf("read record of cat: %w", err)), "%v", err)
	}
	for _, err := range []error{jobs.ErrNotFound, context.Canceled, errInterrupted, replied("WRONGPASS invalid username-password pair"), replied("WRONGTYPE Operation against a key")} {
		assert.False(t, isTransient(fmt.Errorf("read record of cat: %w", err)), "%v", err)
	}
}
