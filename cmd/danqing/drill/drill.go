// Package drill proves the promises of Danqing against the program itself: real
// workers run as child processes on a simulated DashScope, are killed, stopped and
// cut off at chosen moments, and afterwards the simulator's own books are compared
// with the bucket: no image was charged twice, none that was charged is lost.
//
// What must outlive a worker lives in the drill's process: the simulator, the bucket
// and the ways to them. Everything is on loopback, bounded in time, and removed
// afterwards unless something was found.
package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// Queue says on which queue the workers run.
type Queue string

// The kinds of queue.
const (
	// QueueEmbedded is that of `danqing up`, one process on one data directory: its
	// log is part of what is proved.
	QueueEmbedded Queue = "embedded"
	// QueueRedis is a given Redis with two workers on it.
	QueueRedis Queue = "redis"
	// QueueServer is a redis-server of the drill's own with two workers on it, which
	// is killed and restarted from its append-only file too.
	QueueServer Queue = "redis-server"
)

// Config says what a drill does. Program and Instance are required.
type Config struct {
	// Program is the binary to prove; it is run under the name danqing with the
	// commands up or worker.
	Program string
	// Queue is the kind of queue; "" is QueueEmbedded.
	Queue Queue
	// RedisURL is the empty database of QueueRedis.
	RedisURL string
	// Seed makes the faults repeatable; 0 picks one.
	Seed uint64
	// Faults is how many there are, 0 being 500, with Short 25, or with Points three
	// for each. Jobs is how many jobs at least, 0 being 1000 and with Short 60.
	Faults, Jobs int
	// Short is a drill of about a minute.
	Short bool
	// Points are the names of the points to hit, nil for all; see [Points].
	Points []string
	// Dir is where everything lies, made by the drill if "" and then removed
	// unless something was found.
	Dir string
	// Progress gets lines for people; nil discards them.
	Progress io.Writer
	// Instance tells which `danqing up` runs on a data directory: its process and
	// its queue's URL.
	Instance func(ctx context.Context, dataDir string) (pid int, redisURL string, err error)
	// Meddle replaces the service and the bucket as the workers see them, so that a
	// test can prove that the drill notices; nil leaves both as they are.
	WrapHandlers func(service, bucket http.Handler) (http.Handler, http.Handler)
}

const (
	defaultFaults, defaultJobs = 500, 1000
	shortFaults, shortJobs     = 25, 60
	perPoint                   = 3

	// taskShortest and taskLongest are long enough that two creates a second, the
	// limit of most models, can keep a slot busy, and short enough for a thousand.
	taskShortest, taskLongest = 300 * time.Millisecond, 700 * time.Millisecond
	// listLag is how late a task appears in the list; the service's is not known.
	listLag = 300 * time.Millisecond
	// submitLimit is when the workers may conclude that a lost create made no task.
	// The service's own limit is 300 s. A late create arrives lateCreate after its
	// connection has ended, and a slow service takes slowCreate over one.
	submitLimit = 3 * time.Second
	lateCreate  = time.Second
	slowCreate  = 2 * time.Second

	// calmStart bounds the first, undisturbed jobs.
	warmUpLimit = time.Minute
	// stuckAfter is how long nothing may move before what is open counts as stuck.
	// asynq takes a minute to see that a worker has died, and looks once a minute.
	stuckAfter = 3 * time.Minute
	// settleTime is how long images may be on their way to the bucket after the last
	// job is over: a late task of an ambiguous create is kept there too.
	settleTime, shortSettleTime = 30 * time.Second, 8 * time.Second
	// longest bounds a drill however it goes.
	maxRunTime = 2 * time.Hour
)

// drill is one run.
type drill struct {
	Config
	rng  *rand.Rand
	began time.Time

	sim     *simulator.Simulator
	files   *bucket.Server
	service http.Handler
	store   http.Handler
	workers    []*process
	server  *server // of QueueServer
	redis   *upstream
	queue   *queue
	load    *load

	injector     injector
	outages  outages
	recovery recovery
	counters    counters
	log    *slog.Logger // of what was done when, beside the workers' logs
}

// Run does a drill and returns what it found. The error says why it could not be
// done to its end; what it found wrong is in the report alone.
func Run(ctx context.Context, cfg Config) (report *Report, err error) {
	d := &drill{Config: cfg, began: time.Now()}
	if err := d.defaults(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, maxRunTime)
	defer cancel()
	temporary := d.Dir == ""
	if temporary {
		if d.Dir, err = os.MkdirTemp("", "danqing-drill-"); err != nil {
			return nil, fmt.Errorf("drill: %w", err)
		}
	}
	defer func() {
		if temporary && (err == nil && report.Passed || errors.Is(ctx.Err(), context.Canceled)) {
			err = errors.Join(err, os.RemoveAll(d.Dir))
		} else if err != nil {
			err = fmt.Errorf("%w (the logs of the workers are in %s)", err, d.Dir)
		}
	}()
	return d.run(ctx)
}

func (d *drill) defaults() error {
	if d.Queue == "" {
		d.Queue = QueueEmbedded
	}
	if d.Seed == 0 {
		d.Seed = uint64(time.Now().UnixMicro()%1e9) + 1 // short enough to be typed
	}
	faults, jobs := defaultFaults, defaultJobs
	if d.Short {
		faults, jobs = shortFaults, shortJobs
	}
	if len(d.Points) > 0 {
		faults = perPoint * len(d.chosen())
	}
	if d.Faults == 0 {
		d.Faults = faults
	}
	if d.Jobs == 0 {
		d.Jobs = jobs
	}
	if d.Progress == nil {
		d.Progress = io.Discard
	}
	d.rng = rand.New(rand.NewPCG(d.Seed, 0)) //nolint:gosec // repeatable by the seed
	return checkPoints(d.Queue, d.Points)
}

func (d *drill) run(ctx context.Context) (report *Report, err error) {
	var closers []func() error
	defer func() {
		for i := len(closers) - 1; i >= 0; i-- {
			err = errors.Join(err, closers[i]())
		}
	}()
	closing := func(f func() error) { closers = append(closers, f) }
	diary, err := os.Create(filepath.Join(d.Dir, "drill.log"))
	if err != nil {
		return nil, fmt.Errorf("drill: %w", err)
	}
	closing(diary.Close)
	d.log = slog.New(slog.NewTextHandler(diary, nil))
	d.recovery.log = d.log
	if err := d.openService(ctx, closing); err != nil {
		return nil, err
	}
	if err := d.openQueue(ctx, closing); err != nil {
		return nil, err
	}
	// The children end before what they stand on.
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		return d.stopAll()
	}
	closing(stop)
	if err := d.startWorkers(ctx, closing); err != nil {
		return nil, err
	}
	d.progress("seed %d, queue %s, folder %s", d.Seed, d.Queue, d.Dir)
	d.load = newLoad(d)
	if err := d.load.warmUp(ctx); err != nil {
		return nil, err
	}
	producing, enough := context.WithCancel(ctx)
	var produced sync.WaitGroup
	produced.Go(func() { d.load.produce(producing) })
	d.injectFaults(ctx)
	d.load.stopAtTarget() // no more than what was promised
	d.progress("%d faults done, %d jobs enqueued; waiting until all are over", d.counters.total(), d.load.count())
	d.load.settle(ctx)
	enough()
	produced.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("drill: %w", context.Cause(ctx))
	}
	report = d.report(ctx)
	if err := stop(); err != nil {
		return nil, err
	}
	return report, nil
}

// say tells people how far the drill is.
func (d *drill) progress(format string, args ...any) {
	_, _ = fmt.Fprintf(d.Progress, "drill: %5.1fs: "+format+"\n", append([]any{time.Since(d.began).Seconds()}, args...)...)
}

// models are worked by every child, one task at a time each: the first one tells
// little of its tasks, the second repeats their prompts.
func models() []string { return []string{"wanx-v1", "wan2.2-t2i-flash", "wan2.5-t2i-preview"} }

// openService opens what outlives every worker: DashScope and the bucket.
func (d *drill) openService(ctx context.Context, closing func(func() error)) (err error) {
	d.sim = &simulator.Simulator{
		TaskTime: taskTime, Concurrency: 1, ListLag: listLag,
		Seed: d.Seed, Render: render, Outcome: newOutcomes(!d.Short).next,
	}
	closing(d.sim.Close)
	d.files, err = bucket.Open(bucket.Config{Dir: filepath.Join(d.Dir, "bucket"), AccessKeyID: accessKeyID, SecretAccessKey: secretAccessKey})
	if err != nil {
		return err
	}
	closing(d.files.Close)
	d.service, d.store = d.sim, d.files
	if err := d.stageReference(ctx); err != nil {
		return err
	}
	if d.WrapHandlers != nil {
		d.service, d.store = d.WrapHandlers(d.sim, d.files)
	}
	return nil
}
