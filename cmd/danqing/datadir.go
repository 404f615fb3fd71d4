package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/journal"
)

// dataDirView is what a data directory and its bucket tell of jobs, without a worker and
// without a lock: nothing is written.
type dataDirView struct {
	cfg  *config.Config
	path string
	// mode is "" if no worker has used the directory.
	mode    jobs.Mode
	journal *journal.Journal
	// bucket is the configured one, or else local, nil if there is none yet.
	bucket sidecarBucket
	local  *localBucket
}

// openView opens the data directory of real or simulated runs.
func openView(cfg *config.Config, simulate bool) (*dataDirView, error) {
	v := &dataDirView{cfg: cfg, path: cfg.DataDir}
	if simulate {
		v.path = simulatedDir(cfg.DataDir)
		if err := cfg.CheckSimulate(); err != nil {
			return nil, err
		}
	}
	var err error
	if v.mode, err = journal.ReadMode(v.path); err != nil {
		return nil, err
	}
	if v.journal, err = journal.ReadJournal(v.path); err != nil {
		return nil, err
	}
	if cfg.Bucket != "" {
		v.bucket, err = storage.New(cfg.Storage())
		return v, err
	}
	if v.local = openLocalBucket(v.path); v.local != nil {
		v.bucket = v.local
	}
	return v, nil
}

// dryRunSource tells what a run would find, as far as that can be told without one.
type dryRunSource struct {
	*dataDirView
	// redis is the configured Redis, nil if there is none.
	redis     *jobs.Client
	redisMode jobs.Mode
	// listed are the jobs with a sidecar in a bucket elsewhere: they are not read one by one.
	listed map[string]bool
	// unchecked says what could not be told.
	unchecked []string
}

func (s *dryRunSource) SidecarIDs(ctx context.Context, prefix string, visit func(string, time.Time)) error {
	if s.bucket == nil {
		return nil
	}
	err := s.bucket.SidecarIDs(ctx, prefix, func(id string, modified time.Time) {
		if s.local == nil {
			s.listed[id] = true
		}
		visit(id, modified)
	})
	return s.skip("what is finished already", err)
}

// skip notes that something could not be checked, and continues without it.
func (s *dryRunSource) skip(what string, err error) error {
	if err == nil || errors.As(err, new(*worker.ModeError)) {
		return err
	}
	s.unchecked = append(s.unchecked, fmt.Sprintf("%s: %v", what, err))
	return nil
}

func (s *dryRunSource) Finished(ctx context.Context, jobID, digest string) (*jobs.Record, error) {
	if s.bucket == nil {
		return nil, nil //nolint:nilnil // as in worker.Worker
	}
	if s.listed[jobID] {
		return &jobs.Record{Job: jobs.Job{ID: jobID, Digest: digest, State: jobs.StateSucceeded}}, nil
	}
	sidecar, err := s.bucket.Sidecar(ctx, jobID)
	switch {
	case errors.Is(err, storage.ErrNotExist):
		return nil, nil //nolint:nilnil // as in worker.Worker
	case errors.Is(err, storage.ErrUnreadable):
		return nil, err
	case err != nil:
		return nil, s.skip("job "+jobID, err)
	case sidecar.Digest != digest:
		return nil, fmt.Errorf("job %s: %w", jobID, jobs.ErrDigestConflict)
	}
	return worker.RecordOf(sidecar)
}

func (s *dryRunSource) GetAll(ctx context.Context, ids []string) ([]*jobs.Job, error) {
	list := make([]*jobs.Job, len(ids))
	if s.redis != nil {
		found, err := s.redis.GetAll(ctx, ids)
		if err != nil {
			s.redis = nil
			return list, s.skip("jobs in Redis", err)
		}
		return found, nil
	}
	for i, id := range ids {
		if e, ok := s.journal.OpenJob(id); ok {
			list[i] = &e.Record.Job
		}
	}
	return list, nil
}
