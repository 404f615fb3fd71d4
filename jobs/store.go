package jobs

import (
	"sync"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// Store is for workers: it reads and writes whole records, and queues their messages. It is
// safe for concurrent use. Producers use a [Client], operators an [Inspector].
type Store struct {
	redis redis.UniversalClient
	asynq *asynq.Client
	// registered are the queues that asynq's set has, as asynq's client remembers them.
	registered sync.Map
}

// NewStore returns a store on a Redis connection, which the caller closes. It sends nothing.
func NewStore(rdb redis.UniversalClient) *Store {
	return &Store{redis: rdb, asynq: asynq.NewClientFromRedisClient(rdb)}
}
