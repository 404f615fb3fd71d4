package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
)

// simulatedNotice is printed by commands on a simulated queue.
const simulatedNotice = "simulated: nothing here is charged, and no image is real"

// bucketModeTimeout limits how long a command waits for the bucket's mode: the user waits.
const bucketModeTimeout = 5 * time.Second

// errBucketMode means that the bucket's mode cannot be read.
var errBucketMode = errors.New("bucket")

// modeOf returns the mode of a queue, or else that of its bucket, which may be nil. It fails
// with a [*worker.ModeError] if one is real and the other is simulated, and with
// errBucketMode beside the queue's mode if only the bucket does not answer.
func modeOf(ctx context.Context, operator *jobs.Inspector, bucket *storage.Bucket) (jobs.Mode, error) {
	mode, err := operator.Mode(ctx)
	if err != nil || bucket == nil {
		return mode, err
	}
	asking, cancel := context.WithTimeout(ctx, bucketModeTimeout)
	defer cancel()
	stored, err := bucket.Mode(asking)
	if err != nil {
		return mode, fmt.Errorf("%w: %w", errBucketMode, err)
	}
	if wrong := worker.CompareModes(worker.PlaceBucket, jobs.Mode(stored), worker.PlaceRedis, mode); wrong != nil {
		return mode, wrong
	}
	if mode == "" {
		mode = jobs.Mode(stored)
	}
	return mode, nil
}

// checkQueueMode opens the configured bucket, and says if the queue is simulated. It fails
// with a [*worker.ModeError] as modeOf does, and if a real queue is used as a simulated one.
// A bucket that does not answer is checked before it is used.
func (p *program) checkQueueMode(ctx context.Context, q *jobQueue) (err error) {
	if q.cfg.Bucket != "" {
		if q.configured, err = storage.New(q.cfg.Storage()); err != nil {
			return err
		}
	}
	mode, err := modeOf(ctx, q.operator, q.configured)
	q.bucketAgrees.Store(err == nil)
	q.simulated = q.simulate || mode == jobs.ModeSimulated
	switch {
	case err != nil && !errors.Is(err, errBucketMode):
		return err
	case mode == jobs.ModeReal && q.simulate:
		return usageErrorf("leave --simulate out", "the queue of the danqing that runs here is real, and --simulate was given")
	case mode == jobs.ModeSimulated && !q.simulate:
		p.stderrf(simulatedNotice)
	}
	return nil
}
