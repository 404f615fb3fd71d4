package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// WorkerLifetime is how long a worker counts after its last announcement: jobs are accepted
// for it while it is down.
const WorkerLifetime = 7 * 24 * time.Hour

// WorkerStatus is what a worker announces for those who accept jobs.
type WorkerStatus struct {
	// Models are those of its lanes, by the catalog's names.
	Models []string `json:"models"`
	// Callbacks is set if it has a secret to sign callbacks.
	Callbacks bool `json:"callbacks,omitempty"`
	// CallbackAllow are addresses that it calls back although they are not public.
	CallbackAllow []netip.Prefix `json:"callback_allow,omitempty"`
	// At is when it was announced; [Store.AnnounceWorker] sets it.
	At time.Time `json:"at"`
}

// AnnounceWorker replaces what a worker has announced. It fails with Redis's own error.
func (s *Store) AnnounceWorker(ctx context.Context, id string, status WorkerStatus) error {
	status.At = time.Now().UTC()
	encoded, err := compactjson.Marshal(status)
	if err == nil {
		err = s.redis.HSet(ctx, rediskey.Workers, id, encoded).Err()
	}
	if err != nil {
		return fmt.Errorf("announce worker: %w", err)
	}
	return nil
}

// Workers returns the workers that run or have run within [WorkerLifetime]. It fails with
// Redis's own error.
func (i *Inspector) Workers(ctx context.Context) ([]WorkerStatus, error) {
	fields, err := i.store.redis.HGetAll(ctx, rediskey.Workers).Result()
	if err != nil {
		return nil, fmt.Errorf("read workers: %w", err)
	}
	var workers []WorkerStatus
	for id, encoded := range fields {
		var status WorkerStatus
		if json.Unmarshal([]byte(encoded), &status) == nil && time.Since(status.At) < WorkerLifetime {
			workers = append(workers, status)
			continue
		}
		if err := i.store.redis.HDel(ctx, rediskey.Workers, id).Err(); err != nil {
			return nil, fmt.Errorf("forget worker: %w", err)
		}
	}
	return workers, nil
}
