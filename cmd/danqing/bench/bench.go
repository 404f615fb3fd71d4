// Package bench measures how busy clients keep DashScope's slots: Danqing's worker beside the
// loops of other programs, as their authors have published them, and beside an oracle that
// knows how long each task takes. All run at the same time, in real time, each against a
// simulated DashScope of its own at the same distance, with the same durations of tasks.
package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// Config configures a run. The zero value measures for two minutes.
type Config struct {
	// Lanes are the numbers of slots of an account to measure with, 1 to 20 each; nil is 1
	// and 20.
	Lanes []int
	// RoundTrip is the time from a request to its answer. 0 means none.
	RoundTrip time.Duration
	// Duration is how long is measured; 0 means 2 minutes, or 4 seconds with Quick.
	Duration time.Duration
	// Quick selects tasks of less than a second.
	Quick bool
	// Dir is the folder for temporary files, some 200 MB; "" means the system's.
	Dir string
	// Logger receives the worker's log. nil discards it.
	Logger *slog.Logger
}

const (
	defaultDuration, quickDuration = 2 * time.Minute, 4 * time.Second
	// A run is extended until each client has a row: by ten times its duration, or five minutes
	// if that is longer, at most.
	mostRounds    = 10
	mostExtension = 5 * time.Minute
	// DefaultRoundTrip is about that to DashScope from within China.
	DefaultRoundTrip = 30 * time.Millisecond
)

// LanesError means that a number of lanes is out of range.
type LanesError struct{ Lanes int }

func (e *LanesError) Error() string {
	return fmt.Sprintf("%d lanes: allowed: 1 to %d, which is what the models of one account run at once", e.Lanes, mostSlots)
}

// Report is the result of a run.
type Report struct {
	RoundTripMS float64 `json:"round_trip_ms"`
	Seconds     float64 `json:"seconds"`
	// Simulated is set if time was simulated, in which only waiting takes time.
	Simulated bool  `json:"simulated_time"`
	Rows      []Row `json:"rows"`
}

// Time returns how long a run measures.
func (c Config) Time() time.Duration {
	switch {
	case c.Duration > 0:
		return c.Duration
	case c.Quick:
		return quickDuration
	default:
		return defaultDuration
	}
}

// Run measures. It fails with a [*LanesError], and if a client cannot work.
func Run(ctx context.Context, cfg Config) (report *Report, err error) {
	if cfg.Lanes == nil {
		cfg.Lanes = []int{1, mostSlots}
	}
	for _, lanes := range cfg.Lanes {
		if lanes < 1 || lanes > mostSlots {
			return nil, &LanesError{lanes}
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	dir, err := os.MkdirTemp(cfg.Dir, "danqing-bench-")
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var runs []*run
	defer func() {
		for _, r := range runs {
			err = errors.Join(err, r.close())
		}
	}()
	for _, lanes := range cfg.Lanes {
		kinds := workloads(lanes)
		if cfg.Quick {
			kinds = quickWorkloads()
		}
		for _, w := range kinds {
			at := newStage(w, lanes, cfg.Time(), dir, uint64(len(runs)))
			opened, err := openRuns(ctx, cfg, at)
			runs = append(runs, opened...)
			if err != nil {
				return nil, err
			}
		}
	}
	start := time.Now()
	rows, err := measureAll(ctx, cfg.Time(), runs)
	return &Report{RoundTripMS: milliseconds(cfg.RoundTrip), Seconds: time.Since(start).Round(time.Second).Seconds(), Rows: rows}, err
}

// run is a client at work on a stage.
type run struct {
	client  string
	at      *stage
	service *service
	work    func(context.Context) error
	givenUp func() int
	stop    func() error // nil if it was not opened
}

// openRuns prepares all clients of a stage.
func openRuns(ctx context.Context, cfg Config, at *stage) (runs []*run, err error) {
	if err := os.MkdirAll(at.dir, 0o700); err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	next := func(client string) *run {
		r := &run{client: client, at: at, service: newService(cfg.RoundTrip, at.workload), givenUp: func() int { return 0 }}
		runs = append(runs, r)
		return r
	}
	r := next(clientDanqing)
	d, err := newDanqing(ctx, at, r.service, cfg.Logger)
	if err != nil {
		return runs, err
	}
	r.work, r.stop = d.run, d.close
	r = next(clientAsynq)
	a, err := newPlainAsynq(at, r.service)
	if err != nil {
		return runs, err
	}
	r.work, r.stop = func(ctx context.Context) error { return a.run(ctx, at) }, a.close
	for _, c := range callers() {
		r := next(c.name)
		h := newHTTPCaller(c, r.service, at.dir)
		r.work = func(ctx context.Context) error { h.run(ctx, at); return nil }
		r.stop = func() error { h.close(); return nil }
		r.givenUp = func() int { return int(h.givenUp.Load()) }
	}
	return runs, nil
}

func (r *run) close() error {
	var err error
	if r.stop != nil {
		err = r.stop()
	}
	return errors.Join(err, r.service.close())
}

// measureAll lets all clients work at the same time and returns a row for each. On a slow
// machine it takes longer than duration, until all clients have rows that say something.
func measureAll(ctx context.Context, duration time.Duration, runs []*run) ([]Row, error) {
	working, stop := context.WithCancelCause(ctx)
	var group sync.WaitGroup
	for _, r := range runs {
		group.Go(func() {
			if err := r.work(working); err != nil {
				stop(fmt.Errorf("%s: %w", r.client, err))
			}
		})
	}
	complete := wait(working, duration)
	rows := measureRows(runs)
	most := max(mostRounds*duration, mostExtension)
	for extra := time.Duration(0); complete && extra < most && slices.ContainsFunc(rows, func(r Row) bool { return r.Cycles == 0 }); extra += duration {
		complete = wait(working, duration)
		rows = measureRows(runs)
	}
	cause := context.Cause(working)
	stop(nil)
	group.Wait()
	if !complete {
		return nil, cause
	}
	return rows, nil
}

func measureRows(runs []*run) []Row {
	rows := make([]Row, len(runs))
	for i, r := range runs {
		rows[i] = r.service.measure(r.at).row(r.at, r.client, r.givenUp())
	}
	return rows
}
