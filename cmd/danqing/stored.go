package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/journal"
)

// careConcurrency is how many jobs' images are read or deleted at once.
const careConcurrency = 8

// storedFlags select finished jobs in the bucket.
type storedFlags struct {
	simulate bool
	batch    string
}

func (f *storedFlags) add(cmd *cobra.Command, verb string) {
	cmd.Flags().StringVar(&f.batch, "batch", "", verb+" the images of this batch only")
	cmd.Flags().BoolVar(&f.simulate, "simulate", false, verb+" the images of runs with --simulate")
}

// openStored opens the configured bucket, or the embedded one of the data directory, which no
// other process may use then.
func (p *program) openStored(simulate bool) (bucket *storage.Bucket, closer io.Closer, err error) {
	cfg, err := p.config()
	if err != nil {
		return nil, nil, err
	}
	rt := &runtime{cfg: cfg, log: slog.New(slog.DiscardHandler), metrics: newMetrics()}
	defer func() {
		if err != nil {
			err = errors.Join(err, rt.Close())
		}
	}()
	if !simulate && cfg.Bucket != "" {
		bucket, err = storage.New(cfg.Storage())
		return bucket, rt, err
	}
	path := cfg.DataDir
	if simulate {
		if err := cfg.CheckSimulate(); err != nil {
			return nil, nil, err
		}
		path = simulatedDir(path)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, nil, usageErrorf("run it in the folder of the batch, or set DANQING_DATA_DIR or DANQING_S3_BUCKET; for runs with --simulate give it too", "there are no images here: %w", err)
	}
	dir, err := journal.OpenDataDir(path)
	if err != nil {
		return nil, nil, err
	}
	rt.closers = append(rt.closers, dir)
	err = rt.openBucket(dir, simulate)
	return rt.bucket, rt, err
}

// eachStored calls do with the sidecar of every selected job, several at a time, and damaged
// with the ID of every job whose sidecar cannot be read, of whatever batch it is.
func (f storedFlags) eachStored(ctx context.Context, bucket *storage.Bucket, do func(context.Context, *storage.Sidecar) error, damaged func(jobID string, err error) error) error {
	var ids []string
	if err := bucket.SidecarIDs(ctx, "", func(id string, _ time.Time) { ids = append(ids, id) }); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(careConcurrency)
	for _, id := range ids {
		group.Go(func() error {
			sidecar, err := bucket.Sidecar(ctx, id)
			switch {
			case errors.Is(err, storage.ErrNotExist), err == nil && f.batch != "" && sidecar.Batch != f.batch:
				return nil
			case errors.Is(err, storage.ErrUnreadable):
				return damaged(id, err)
			case err != nil:
				return err
			}
			return do(ctx, sidecar)
		})
	}
	return group.Wait()
}
