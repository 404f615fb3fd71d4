// Package embedded is the Redis in the process that serves when none is
// configured: miniredis, reached over in-process pipes, without a port.
//
// It keeps everything in memory: what must survive the process lies in the
// worker's journal and in the bucket. It runs no expiry by itself, so nothing
// may rely on a TTL here. A few ten thousand waiting jobs are its limit (a list
// push costs 0.9 ms at 100,000, measured); beyond that use a real Redis.
package embedded

import (
	"context"
	"net"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Queue is an embedded Redis with one client.
type Queue struct {
	server *miniredis.Miniredis
	client *redis.Client
}

// Open starts an empty queue. The caller must Close it.
func Open() *Queue {
	server := miniredis.NewMiniRedis()
	client := redis.NewClient(&redis.Options{
		Addr: "embedded",
		// There is nothing to be notified of, and asking resolves the address.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			return server.Dial()
		},
	})
	return &Queue{server: server, client: client}
}

// Client returns the client that all parts of the process share. Close closes it.
func (q *Queue) Client() redis.UniversalClient { return q.client }

// Close ends the queue; what it held is gone.
func (q *Queue) Close() error {
	err := q.client.Close()
	q.server.Close()
	return err
}
