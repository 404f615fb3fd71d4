package jobs

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// Changes delivers the IDs of jobs whose records were written. Some are missed while the
// connection is down or the reader is too slow; then it delivers "". A reader that must
// not miss any also reads the jobs periodically.
type Changes struct {
	sub *redis.PubSub
	ids chan string
}

// changesBuffer is how many changes a slow reader may be behind before it misses some.
// The value is our choice.
const changesBuffer = 1000

func (c *Changes) forward(received <-chan any) {
	defer close(c.ids)
	missed := false
	for r := range received {
		// A second subscription means that the connection was lost.
		message, ok := r.(*redis.Message)
		if ok && strings.Contains(message.Payload, ":") {
			continue // a queue, for workers
		}
		missed = missed || !ok
		if missed {
			missed = !c.offer("")
		}
		if ok && !c.offer(message.Payload) {
			missed = true
		}
	}
}

// offer delivers an ID unless the reader is behind. It must not block: the embedded Redis
// writes to all subscribers before it answers any client.
func (c *Changes) offer(id string) bool {
	select {
	case c.ids <- id:
		return true
	default:
		return false
	}
}

// IDs delivers the IDs of the jobs that changed, and "" after some were missed. Close
// closes it.
func (c *Changes) IDs() <-chan string { return c.ids }

// Close ends the subscription.
func (c *Changes) Close() error {
	err := c.sub.Close()
	for range c.ids { // until forward has ended
	}
	return err
}

// announceMessage wakes the workers that wait for a message of a queue. Without it they find the
// message a second later.
func (s *Store) announceMessage(ctx context.Context, queue string) {
	_ = s.redis.Publish(ctx, rediskey.Events, asynqPending(queue)).Err()
}
