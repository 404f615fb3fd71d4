package worker_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/storage"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
	"github.com/danqing-queue/danqing/worker/journal"
)

// stack is a worker with all services that it needs, in one process and, inside a
// synctest bubble, in simulated time. The simulator and the bucket outlive workers, as
// DashScope and S3 do; the queue and the worker can be killed and restarted.
type stack struct {
	t      testing.TB
	dir    string
	sim    *simulator.Simulator
	files  *bucket.Server
	bucket *storage.Bucket

	queueInterval time.Duration // longer than the worker's default: simulated hours pass

	// model is that of jobs that name none, wanx-v1 if empty.
	model string
	// accounts are the configured ones; their keys are "sk-test" and the name. Nil
	// is one with a lane for wanx-v1.
	accounts map[string][]worker.Lane

	budget int64            // of each account for a day, in micro-yuan
	prices map[string]int64 // per image, if not the catalog's

	bucketTrip time.Duration // of each request to the bucket
	away       atomic.Bool   // the bucket refuses every connection
	hangs      atomic.Bool   // the bucket does not answer when something is written
	noSidecar  atomic.Bool   // the bucket refuses sidecars
	// dial, unless nil, dials DashScope instead of the simulator's dialer.
	dial func(context.Context, string, string) (net.Conn, error)

	// configure, unless nil, changes a worker's configuration.
	configure func(*worker.Config)

	redis  redis.UniversalClient
	queue  *queue.Queue
	data   *journal.DataDir
	worker *worker.Worker
	ended  chan error
	others []func() // stop the other workers
	// shared is set if Redis outlives the worker.
	shared bool
	// leasesEnd selects a queue in which keys expire; in the embedded one they do not.
	leasesEnd bool
}

// tinyPNG is the image in tests that do not check images.
func tinyPNG(p painter.Picture) []byte {
	p.Width, p.Height = 8, 8
	return painter.Paint(p)
}

// bubble runs a test in simulated time.
func bubble(t *testing.T, sim *simulator.Simulator, test func(*testing.T, *stack)) {
	t.Helper()
	bubbleWith(t, sim, nil, test)
}

// bubbleWith is bubble with other accounts.
func bubbleWith(t *testing.T, sim *simulator.Simulator, accounts map[string][]worker.Lane, test func(*testing.T, *stack)) {
	t.Helper()
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, dir, sim)
		s.accounts = accounts
		defer s.close()
		// A test that waits forever must fail: simulated time has no limit.
		defer time.AfterFunc(60*24*time.Hour, func() { panic(t.Name() + ": not over after 60 simulated days") }).Stop()
		s.start()
		test(t, s)
	})
}

// memoryDir is a folder in memory where the system has one: thousands of syncs
// to a disk take minutes.
func memoryDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "danqing-test-*") //nolint:usetesting // tb.TempDir has no directory argument
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() { require.NoError(tb, os.RemoveAll(dir)) })
	return dir
}

func newStack(tb testing.TB, dir string, sim *simulator.Simulator) *stack {
	tb.Helper()
	if sim.Render == nil {
		sim.Render = tinyPNG
	}
	files, err := bucket.Open(bucket.Config{Dir: filepath.Join(dir, "bucket")})
	require.NoError(tb, err)
	s := &stack{t: tb, dir: dir, sim: sim, files: files, queueInterval: 5 * time.Second}
	s.openBucket()
	return s
}

// openBucket opens the bucket as a new process does.
func (s *stack) openBucket() {
	s.t.Helper()
	id, secret := s.files.Credentials()
	var err error
	s.bucket, err = storage.New(storage.Config{
		Bucket: bucket.DefaultBucket, Endpoint: "http://bucket.embedded", AccessKeyID: id, SecretAccessKey: secret,
		HTTPClient: clientFunc(func(r *http.Request) (*http.Response, error) {
			<-time.After(s.bucketTrip)
			if s.away.Load() || s.noSidecar.Load() && r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/_jobs/") {
				return nil, errAway
			}
			if s.hangs.Load() && r.Method == http.MethodPut {
				<-r.Context().Done()
				return nil, context.Cause(r.Context())
			}
			return s.files.HTTPClient().Do(r)
		}),
	})
	require.NoError(s.t, err)
}

type clientFunc func(*http.Request) (*http.Response, error)

func (f clientFunc) Do(r *http.Request) (*http.Response, error) { return f(r) }

// start starts a worker with an empty queue on the existing journal.
func (s *stack) start() {
	s.t.Helper()
	s.prepare()
	s.run()
}

func (s *stack) prepare() {
	s.t.Helper()
	s.ended = nil
	s.queue = queue.Open()
	if s.leasesEnd {
		var err error
		s.queue, err = queue.OpenDir(queue.Config{Dir: filepath.Join(s.dir, "queue")})
		require.NoError(s.t, err)
	}
	s.redis = s.queue.Client()
	hook := &startedOnce{t: s.t}
	hook.started.Store(new(sync.Map))
	s.redis.AddHook(hook)
	s.worker, s.data = s.newWorker("data")
	require.NoError(s.t, s.worker.Prepare(s.t.Context()))
}

// newWorker returns a worker on the stack's queue with another data directory.
func (s *stack) newWorker(dir string) (*worker.Worker, *journal.DataDir) {
	s.t.Helper()
	data, err := journal.OpenDataDir(filepath.Join(s.dir, dir))
	require.NoError(s.t, err)
	w, err := worker.New(s.config(data))
	require.NoError(s.t, err)
	return w, data
}

// client returns a client of the service with a key.
func (s *stack) client(key string) *dashscope.Client {
	s.t.Helper()
	client, err := dashscope.New(dashscope.Config{BaseURL: simulatedBase, APIKey: key, DialContext: s.dialer()})
	require.NoError(s.t, err)
	s.t.Cleanup(client.CloseIdleConnections)
	return client
}

func (s *stack) dialer() func(context.Context, string, string) (net.Conn, error) {
	if s.dial != nil {
		return s.dial
	}
	return s.sim.DialContext
}

const simulatedBase = "http://dashscope.simulated/api/v1"

// config returns the configuration of a worker on the stack.
func (s *stack) config(data *journal.DataDir) worker.Config {
	s.t.Helper()
	spool, err := storage.OpenSpool(data.SpoolPath(), storage.SpoolConfig{
		Sources: []string{simulatedBase}, DialContext: s.dialer(), DialPublic: s.sim.DialContext,
	})
	require.NoError(s.t, err)
	cfg := worker.Config{
		Redis: s.redis, ExclusiveQueue: !s.shared && !s.leasesEnd, Bucket: s.bucket, Spool: spool, DataDir: data,
		QueueInterval: s.queueInterval, Logger: testLogger(s.t),
	}
	if s.accounts == nil {
		s.accounts = map[string][]worker.Lane{"": {{}}}
	}
	for name, lanes := range s.accounts {
		cfg.Accounts = append(cfg.Accounts, worker.Account{
			Name: name, DashScope: s.client("sk-test" + name), Lanes: lanes,
			DailyBudgetMicroYuan: s.budget, PricesMicroYuan: s.prices,
		})
	}
	if s.configure != nil {
		s.configure(&cfg)
	}
	return cfg
}

// foreignTask submits a task on the account as another program does.
func (s *stack) foreignTask() {
	s.t.Helper()
	_, err := s.client("sk-test").Create(s.t.Context(), dashscope.CreateRequest{Model: "wanx-v1", Input: dashscope.Input{Prompt: "foreign"}})
	require.NoError(s.t, err)
}

// foreignOf is foreignTask for a model.
func (s *stack) foreignOf(model string) {
	s.t.Helper()
	_, err := s.client("sk-test").Create(s.t.Context(), dashscope.CreateRequest{Model: model, Input: dashscope.Input{Prompt: "foreign"}})
	require.NoError(s.t, err)
}

// secondWorker starts another worker on the same Redis.
func (s *stack) secondWorker() *worker.Worker {
	s.t.Helper()
	w, data := s.newWorker("data-2")
	s.t.Cleanup(func() { require.NoError(s.t, data.Close()) })
	return w
}

func (s *stack) run() {
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.worker.Run(context.Background()) }()
}

// stop stops the worker gracefully, and its queue.
func (s *stack) stop() {
	s.t.Helper()
	if s.worker == nil {
		return
	}
	if s.ended != nil { // nil if the start failed
		s.worker.Stop()
		require.NoError(s.t, <-s.ended)
	}
	require.NoError(s.t, s.data.Close())
	require.NoError(s.t, s.queue.Close())
	s.worker = nil
}

func (s *stack) close() {
	for _, end := range s.others {
		end()
	}
	s.stop()
	require.NoError(s.t, s.sim.Close())
	require.NoError(s.t, s.files.Close())
}

func (s *stack) enqueue(req jobs.Request) *jobs.Job {
	s.t.Helper()
	req.Model = cmp.Or(req.Model, s.model)
	if m, err := jobs.LookupModel(req.Model); err == nil && m.Inputs.Min > 0 && len(req.References()) == 0 {
		req.RefImages = []string{"https://example.com/input.png"}
		if len(m.Functions) > 0 {
			req.Function = m.Functions[0].Name
		}
	}
	rec, err := jobs.NewClient(s.redis).Enqueue(s.t.Context(), req)
	require.NoError(s.t, err)
	return rec
}

// enqueueMany enqueues n jobs with the IDs job-1, job-2 and so on.
func (s *stack) enqueueMany(n int) []string {
	s.t.Helper()
	var ids []string
	for i := 1; i <= n; i++ {
		id := fmt.Sprintf("job-%d", i)
		s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id})
		ids = append(ids, id)
	}
	return ids
}

// wait returns the job once it has ended or is held.
func (s *stack) wait(id string) *jobs.Record {
	s.t.Helper()
	_, err := jobs.NewClient(s.redis).Wait(s.t.Context(), id)
	require.NoError(s.t, err)
	rec, err := jobs.NewStore(s.redis).Get(s.t.Context(), id)
	require.NoError(s.t, err)
	return rec
}

// state waits until the job is in the state.
func (s *stack) state(id string, want jobs.State) *jobs.Record {
	s.t.Helper()
	changes, err := jobs.NewClient(s.redis).Subscribe(s.t.Context())
	require.NoError(s.t, err)
	defer changes.Close() //nolint:errcheck // no listener is left
	for {
		rec, err := jobs.NewStore(s.redis).Get(s.t.Context(), id)
		require.NoError(s.t, err)
		if rec.State == want {
			return rec
		}
		require.False(s.t, rec.State.Final(), "job %s became %s (%s) instead of %s", id, rec.State, rec.Message, want)
		<-changes.IDs()
	}
}

// made waits until the job has a task.
func (s *stack) made(id string) {
	s.t.Helper()
	for range 24 * 60 {
		if s.tasksOf("prompt of "+id) > 0 {
			return
		}
		<-time.After(time.Minute)
	}
	require.Fail(s.t, "no task was made within a day", id)
}

// requireStored checks that a job's images are complete in the bucket, and that its
// sidecar has them.
func (s *stack) requireStored(id string, images int) *storage.Sidecar {
	s.t.Helper()
	sidecar, err := s.bucket.Sidecar(s.t.Context(), id)
	require.NoError(s.t, err)
	require.Equal(s.t, "succeeded", sidecar.State)
	require.True(s.t, sidecar.Simulated)
	stored := 0
	for _, image := range sidecar.Images {
		if image.State != storage.ImageStored {
			continue
		}
		stored++
		info, err := s.bucket.Head(s.t.Context(), image.Key)
		require.NoError(s.t, err)
		require.Equal(s.t, image.SHA256, info.SHA256)
		require.Equal(s.t, image.Bytes, info.Bytes)
	}
	require.Equal(s.t, images, stored)
	return sidecar
}

// tasksOf returns the number of the simulator's tasks with a prompt.
func (s *stack) tasksOf(prompt string) int {
	n := 0
	for _, task := range s.sim.Tasks() {
		if task.Request.Input.Prompt == prompt {
			n++
		}
	}
	return n
}

// requireChargedOnce checks that no prompt was paid for twice.
func (s *stack) requireChargedOnce() {
	s.t.Helper()
	charged := map[string]int{}
	for _, task := range s.sim.Tasks() {
		if task.ChargedMicroYuan > 0 {
			charged[task.Request.Input.Prompt]++
		}
	}
	for prompt, n := range charged {
		require.Equal(s.t, 1, n, "tasks charged for %q", prompt)
	}
}

// journal and rewriteJournal read and write the journal of a data directory that is not
// open, or whose worker will be killed.
func (s *stack) journal(dir string) []byte {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, dir, "journal.jsonl"))
	require.NoError(s.t, err)
	return text
}

func (s *stack) rewriteJournal(dir string, text []byte) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(filepath.Join(s.dir, dir, "journal.jsonl"), text, 0o600))
}

// unlessRaced returns the full size of a test, or the smaller one with -short, which the
// race detector's run uses.
func unlessRaced[T any](whole, raced T) T {
	if testing.Short() {
		return raced
	}
	return whole
}

// startedOnce checks in every test that a job whose task was seen running is never written
// as one that waits for it, unless Redis has lost all its data.
type startedOnce struct {
	t testing.TB
	// started are the jobs by ID, since the last loss. Writes in progress then keep theirs.
	started atomic.Pointer[sync.Map]
}

var _ redis.Hook = (*startedOnce)(nil)

func (h *startedOnce) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *startedOnce) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "flushall" {
			h.started.Store(new(sync.Map))
		}
		started := h.started.Load()
		err := next(ctx, cmd)
		if n, ok := cmd.(*redis.Cmd); ok && err == nil && n.Val() == int64(1) {
			for _, arg := range cmd.Args() {
				h.check(started, arg)
			}
		}
		return err
	}
}

func (h *startedOnce) check(jobsStarted *sync.Map, arg any) {
	var rec jobs.Record
	encoded, ok := arg.([]byte)
	if !ok || json.Unmarshal(encoded, &rec) != nil || rec.ID == "" {
		return
	}
	if !rec.StartedAt.IsZero() {
		jobsStarted.Store(rec.ID, true)
	}
	_, started := jobsStarted.Load(rec.ID)
	if started != !rec.StartedAt.IsZero() || rec.StartedAt.IsZero() && !rec.RunningAt.IsZero() {
		h.t.Errorf("job %s was running and is %s again", rec.ID, rec.State)
	}
}

func (h *startedOnce) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
