package lease

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/semaphore"

	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// DatasetInterval is how often a worker calls [Dataset.Sync].
	DatasetInterval = 5 * time.Second
	// durabilityInterval is how often a worker checks how durably Redis stores writes.
	durabilityInterval = time.Minute
)

// Dataset is what Redis holds. Its ID changes when Redis may have lost some data, after a
// restart or a failover, or all of it.
type Dataset struct {
	redis redis.UniversalClient
	data  *journal.DataDir
	log   *slog.Logger
	// exclusive is set when no other worker uses this Redis. It may start empty.
	exclusive bool
	replay    func(context.Context) error
	replaying *semaphore.Weighted // one replay at a time

	mu sync.Mutex
	// known is the ID of the dataset that this worker's journal was last replayed into.
	known string
	// lossSeen is set once the ID has differed from an earlier one.
	lossSeen bool
	// durability is how durably Redis stores writes, as found at checked.
	durability redishealth.Durability
	checked    time.Time
}

// NewDataset returns the dataset of a Redis. replay writes the worker's data directory to
// Redis; it is called whenever Redis may have lost data.
func NewDataset(rdb redis.UniversalClient, data *journal.DataDir, log *slog.Logger, exclusive bool, replay func(context.Context) error) *Dataset {
	return &Dataset{redis: rdb, data: data, log: log, exclusive: exclusive, replay: replay, replaying: semaphore.NewWeighted(1)}
}

// ID returns the ID of the dataset. A random part of it is written by the first worker and
// is lost together with the data.
func (d *Dataset) ID(ctx context.Context) (string, error) {
	run, err := redishealth.DatasetID(ctx, d.redis)
	if err != nil {
		return "", err
	}
	var dataset *redis.StringCmd
	_, err = d.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.SetNX(ctx, rediskey.Dataset, rand.Text(), 0)
		dataset = p.Get(ctx, rediskey.Dataset)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("read or write %s: %w", rediskey.Dataset, err)
	}
	return dataset.Val() + "/" + cmp.Or(run, "embedded"), nil
}

// Sync returns the current dataset ID. If it has changed, it first replays to Redis. It also
// checks now and then how durably Redis stores writes.
func (d *Dataset) Sync(ctx context.Context) (string, error) {
	if err := d.replaying.Acquire(ctx, 1); err != nil {
		return "", err
	}
	defer d.replaying.Release(1)
	now, err := d.ID(ctx)
	if err != nil {
		return now, err
	}
	if now != d.Known() {
		return now, d.replayInto(ctx, now)
	}
	return now, d.checkDurability(ctx)
}

// Known returns the ID of the dataset that this worker last replayed into.
func (d *Dataset) Known() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known
}

// LossSeen reports whether the dataset has changed while this worker ran, or since its last
// run.
func (d *Dataset) LossSeen() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lossSeen
}

// replayInto replays to a Redis that may have lost data.
func (d *Dataset) replayInto(ctx context.Context, now string) error {
	before := cmp.Or(d.Known(), d.data.Dataset())
	if before != "" && before != now && !d.exclusive {
		d.log.Warn("redis dataset changed: replaying the journal")
		d.mu.Lock()
		d.lossSeen = true
		d.mu.Unlock()
	}
	d.mu.Lock()
	d.checked = time.Time{} // it may be another server
	d.mu.Unlock()
	if err := d.replay(ctx); err != nil {
		return err
	}
	if err := d.checkDurability(ctx); err != nil {
		return err
	}
	if !d.exclusive {
		if err := d.data.SetDataset(now); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = now
	return nil
}

// checkDurability records how durably Redis stores writes, once a minute: a replica may
// have been added or removed.
func (d *Dataset) checkDurability(ctx context.Context) error {
	d.mu.Lock()
	checked := d.checked
	d.mu.Unlock()
	if !checked.IsZero() && time.Since(checked) < durabilityInterval {
		return nil
	}
	durability, err := redishealth.Probe(ctx, d.redis)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durability, d.checked = durability, time.Now()
	return nil
}

// WaitDurable waits for the strongest acknowledgement that Redis offers for what was
// written. On a timeout it logs and continues; the journal is durable.
func (d *Dataset) WaitDurable(ctx context.Context, jobID string) {
	d.mu.Lock()
	durability := d.durability
	d.mu.Unlock()
	if err := redishealth.WaitDurable(ctx, d.redis, durability); err != nil {
		d.log.Warn("intent not acknowledged as durable", "job_id", jobID, "err", err)
	}
}
