package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/storage"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/journal"
)

// knownDurations is how many durations of earlier tasks the worker finds in Redis, as after
// the first dozens of tasks of a model.
const knownDurations = 24

// danqing is the worker of "danqing up": with a durable queue and a bucket of its own.
type danqing struct {
	worker  *worker.Worker
	closers []io.Closer
}

// newDanqing opens a worker and fills its queues.
func newDanqing(ctx context.Context, at *stage, s *service, log *slog.Logger) (*danqing, error) {
	d := &danqing{}
	if err := d.open(ctx, at, s, log); err != nil {
		return nil, errors.Join(fmt.Errorf("danqing: %w", err), d.close())
	}
	return d, nil
}

func (d *danqing) open(ctx context.Context, at *stage, s *service, log *slog.Logger) error {
	dir, err := journal.OpenDataDir(filepath.Join(at.dir, "data"))
	if err != nil {
		return err
	}
	d.closers = append(d.closers, dir)
	files, err := bucket.Open(bucket.Config{Dir: dir.BucketPath(), Logger: log})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, files)
	id, secret := files.Credentials()
	images, err := storage.New(storage.Config{
		Bucket: bucket.DefaultBucket, Endpoint: "http://bucket.embedded", AccessKeyID: id, SecretAccessKey: secret, HTTPClient: files.HTTPClient(),
	})
	if err != nil {
		return err
	}
	spool, err := storage.OpenSpool(dir.SpoolPath(), storage.SpoolConfig{Sources: []string{serviceURL}, DialContext: s.dial, Logger: log})
	if err != nil {
		return err
	}
	durable, err := queue.OpenDir(queue.Config{Dir: filepath.Join(at.dir, "queue"), Logger: log})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, durable)
	cfg := worker.Config{Redis: durable.Client(), Bucket: images, Spool: spool, DataDir: dir, ExclusiveQueue: true, LocalBucket: true, Logger: log}
	for _, name := range at.accounts {
		client, err := dashscope.New(dashscope.Config{BaseURL: serviceURL, APIKey: keyOf(name), DialContext: s.dial, Logger: log})
		if err != nil {
			return err
		}
		account := worker.Account{Name: name, DashScope: client}
		for _, lane := range at.lanes {
			account.Lanes = append(account.Lanes, worker.Lane{Model: lane.model, Concurrency: lane.slots})
		}
		cfg.Accounts = append(cfg.Accounts, account)
	}
	if d.worker, err = worker.New(cfg); err != nil {
		return err
	}
	if err := d.worker.Prepare(ctx); err != nil { // the queue is the worker's from then on
		return err
	}
	return d.fill(ctx, at, jobs.NewStore(durable.Client()), jobs.NewClient(durable.Client()), s.roundTrip)
}

// fill enqueues more jobs than there is time for, and records how long earlier tasks took.
func (d *danqing) fill(ctx context.Context, at *stage, store *jobs.Store, client *jobs.Client, roundTrip time.Duration) error {
	var reqs []jobs.Request
	sources := at.sources()
	for i, lane := range at.lanes {
		model, err := jobs.LookupModel(lane.model)
		if err != nil {
			return err
		}
		kind := jobs.TaskKind{Model: lane.model, Size: model.Sizes.Default, N: 1}
		earlier := newDurations(at.earlier, ^uint64(i))
		for range knownDurations {
			if err := store.RecordDuration(ctx, kind, max(earlier.next()-roundTrip, time.Millisecond)); err != nil {
				return err
			}
		}
		for n := range at.tasks(lane) {
			reqs = append(reqs, jobs.Request{ID: fmt.Sprintf("%s.%d", lane.model, n), Model: lane.model, Prompt: promptOf(sources[lane.model].next())})
		}
	}
	_, err := client.EnqueueAll(ctx, reqs)
	return err
}

// run works until the context ends.
func (d *danqing) run(ctx context.Context) error {
	err := d.worker.Run(ctx)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it was ended
	}
	return err
}

func (d *danqing) close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i].Close())
	}
	return errors.Join(errs...)
}
