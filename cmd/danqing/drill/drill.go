// Package drill tests the guarantees of Danqing against the program itself. Real
// workers run as child processes on a simulated DashScope; they are killed, stopped and
// disconnected at chosen moments. Afterwards the simulator's accounting is compared
// with the bucket: no image may be charged twice, and no charged image may be lost.
//
// The drill's own process holds what must outlive a worker: the simulator, the bucket
// and the proxies to them. Everything is on loopback, bounded in time, and removed
// afterwards unless a problem was found.
package drill

import (
	"cmp"
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
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// Queue is the kind of queue that the workers use.
type Queue string

// The kinds of queue.
const (
	// QueueEmbedded is the queue of `danqing up`: one process on one data directory.
	// Its log is part of what is tested.
	QueueEmbedded Queue = "embedded"
	// QueueRedis is an existing Redis with two workers.
	QueueRedis Queue = "redis"
	// QueueServer is a redis-server that the drill starts, with two workers. The drill
	// also kills it and restarts it from its append-only file.
	QueueServer Queue = "redis-server"
	// QueueSentinel is a primary and a replica with Sentinels that the drill starts, with two
	// workers. The drill also makes them fail over.
	QueueSentinel Queue = "redis-sentinel"
)

// Config configures a drill. Program and Instance are required.
type Config struct {
	// Program is the binary under test. It is run under the name danqing with the
	// command up or worker.
	Program string
	// Queue is the kind of queue; "" is QueueEmbedded.
	Queue Queue
	// RedisURL is an empty database. Required for QueueRedis.
	RedisURL string
	// Seed makes the faults repeatable; 0 chooses one.
	Seed uint64
	// Faults is the number of faults. 0 means 500, 25 with Short, or three per point
	// with Points. Jobs is the minimum number of jobs; 0 means 1000, or 60 with Short.
	Faults, Jobs int
	// Short selects a drill of about a minute.
	Short bool
	// Points are the names of the points to hit; nil means all. See [Points].
	Points []string
	// Unlisted hides the tasks of the last model from the account's task list. Whether the
	// service's list has them is not documented: a create of that model whose reply is lost
	// must end held then, for a person.
	Unlisted bool
	// Dir holds all files. If "", the drill creates a temporary directory and removes
	// it unless a problem was found.
	Dir string
	// Progress receives progress lines; nil discards them.
	Progress io.Writer
	// Instance returns the process ID and the Redis URL of the `danqing up` that runs
	// on a data directory.
	Instance func(ctx context.Context, dataDir string) (pid int, redisURL string, err error)
	// WrapHandlers replaces the service and the bucket as the workers see them, so that
	// a test can show that the drill detects a problem; nil changes nothing.
	WrapHandlers func(service, bucket http.Handler) (http.Handler, http.Handler)
}

const (
	defaultFaults, defaultJobs = 500, 1000
	shortFaults, shortJobs     = 25, 60
	perPoint                   = 3

	// taskShortest and taskLongest are long enough that two creates a second, the limit
	// of most models, can keep a slot busy, and short enough for a thousand tasks.
	taskShortest, taskLongest = 300 * time.Millisecond, 700 * time.Millisecond
	// listLag is how late a task appears in the list; that of the real service is not
	// documented.
	listLag = 300 * time.Millisecond
	// submitLimit is when the workers may conclude that a lost create made no task. The
	// service's own limit is 300 s. A late create arrives lateCreate after its
	// connection has ended, and a slow service takes slowCreate for one.
	submitLimit = 3 * time.Second
	lateCreate  = time.Second
	slowCreate  = 2 * time.Second

	// lagTime is how long the list lacks the tasks of the last lagTime, and fullTime how
	// long Redis is full.
	lagTime, fullTime = 2 * time.Second, 3 * time.Second

	// warmUpLimit bounds the first jobs, before any fault.
	warmUpLimit = time.Minute
	// stuckAfter is how long nothing may change before open jobs count as stuck. asynq
	// takes a minute to notice that a worker has died, and checks once a minute.
	stuckAfter = 3 * time.Minute
	// settleTime is how long images may take to reach the bucket after the last job has
	// ended: the images of a late task of an ambiguous create are stored there too.
	settleTime, shortSettleTime = 30 * time.Second, 8 * time.Second
	// maxRunTime bounds a drill.
	maxRunTime = 2 * time.Hour
)

// drill is one run.
type drill struct {
	Config
	rng   *rand.Rand
	began time.Time

	sim     *simulator.Simulator
	files   *bucket.Server
	service http.Handler
	store   http.Handler
	workers []*process
	server  *server // of QueueServer
	// replicated is that of QueueSentinel.
	replicated *replicated
	redis      *upstream
	queue      *queue
	load       *load

	thawing  sync.WaitGroup // of frozen workers
	injector injector
	outages  outages
	recovery recovery
	counters counters
	log      *slog.Logger // of the faults, in drill.log
}

// Run runs a drill and returns its report. The error says why the drill could not be
// completed; problems that it found are in the report only.
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
	d.Queue = cmp.Or(d.Queue, QueueEmbedded)
	if d.Seed == 0 {
		d.Seed = uint64(time.Now().UnixMicro()%1e9) + 1 // short enough to type
	}
	faults, jobs := defaultFaults, defaultJobs
	if d.Short {
		faults, jobs = shortFaults, shortJobs
	}
	if len(d.Points) > 0 {
		faults = perPoint * len(d.chosen())
	}
	d.Faults, d.Jobs = cmp.Or(d.Faults, faults), cmp.Or(d.Jobs, jobs)
	if d.Progress == nil {
		d.Progress = io.Discard
	}
	d.rng = rand.New(&lockedSource{source: rand.NewPCG(d.Seed, 0)}) //nolint:gosec // repeatable by the seed
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
	logFile, err := os.Create(filepath.Join(d.Dir, "drill.log"))
	if err != nil {
		return nil, fmt.Errorf("drill: %w", err)
	}
	closing(logFile.Close)
	d.log = slog.New(slog.NewTextHandler(logFile, nil))
	d.recovery.log = d.log
	if err := d.openService(ctx, closing); err != nil {
		return nil, err
	}
	if err := d.openQueue(ctx, closing); err != nil {
		return nil, err
	}
	// The workers end before the services that they use.
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
	produced.Go(func() { d.watchRecovery(producing) })
	d.injectFaults(ctx)
	d.load.stopAtTarget() // no more jobs than configured
	d.progress("%d faults done, %d jobs enqueued; waiting until all have ended", d.counters.total(), d.load.count())
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

// lockedSource is a source for several goroutines.
type lockedSource struct {
	mu     sync.Mutex
	source rand.Source
}

// Uint64 implements [rand.Source].
func (s *lockedSource) Uint64() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.source.Uint64()
}

// progress writes a progress line.
func (d *drill) progress(format string, args ...any) {
	_, _ = fmt.Fprintf(d.Progress, "drill: %5.1fs: "+format+"\n", append([]any{time.Since(d.began).Seconds()}, args...)...)
}

// models are served by every worker, one task at a time each. wanx-v1 reports little
// about its tasks, the second model repeats their prompts, the last has the newer protocol.
func models() []string {
	return []string{"wanx-v1", "wan2.2-t2i-flash", "wan2.5-t2i-preview", editModel}
}

// account is the account of all workers.
const account = "default"

// editModel is the model of [dashscope.ProtocolImageGeneration], which edits images too.
const editModel = "wan2.7-image"

// openService opens what outlives every worker: DashScope and the bucket.
func (d *drill) openService(ctx context.Context, closing func(func() error)) (err error) {
	d.sim = &simulator.Simulator{
		TaskTime: taskTime, Concurrency: 1, ListLag: listLag,
		Seed: d.Seed, Render: render, Outcome: newOutcomes(!d.Short).next,
	}
	if d.Unlisted {
		d.sim.Unlisted = []dashscope.Protocol{dashscope.ProtocolImageGeneration}
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
