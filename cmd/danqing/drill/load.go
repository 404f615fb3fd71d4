package drill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

const (
	// depth is how many jobs of a model are open at once. It is enough work at all
	// times, although some jobs wait half a minute for a retry, or a minute for a dead
	// worker's message.
	depth, shortDepth = 20, 5
	// labelJob is the label with the job's ID; it makes the ledger's entries
	// identifiable.
	labelJob = "job"
	// pollInterval is how often the jobs are read.
	pollInterval = 150 * time.Millisecond
	// asynq v0.26 requeues messages that nobody handles, after the death of a worker or
	// the loss of a reply, at start and then once a minute: those whose lease of 30 s
	// expired 30 s ago. A short drill does not wait for that: a lease that was not
	// extended for overdue, although its worker does so every 5 s, is set back by
	// expiry.
	overdue = 12 * time.Second
	lease   = 30 * time.Second
	expiry  = 31 * time.Second
	// promptPrefix begins every prompt; the job's ID follows.
	promptPrefix = "prompt of "
	// referenceSide is the smallest side that DashScope accepts, in pixels.
	referenceSide = 256
)

// job is a job that the drill has enqueued.
type job struct {
	request jobs.Request
	queued  bool      // acknowledged by the queue
	record  *jobs.Job // as last read, nil before
	lost    bool      // not in the queue, although it was acknowledged
	// canceled is set once the drill has requested cancellation, paid if it did so because the
	// console shows a task of the job.
	canceled, paid bool
}

func (j *job) state() jobs.State {
	if j.record == nil {
		return jobs.StateQueued
	}
	return j.record.State
}

// over reports whether the job is finished or held, so that it will not change by
// itself.
func (j *job) over() bool { return j.queued && (j.state().Final() || j.state() == jobs.StateHeld) }

// load is the producer: it keeps every lane busy and follows its jobs.
type load struct {
	*drill
	reference string // the staged reference image

	mu              sync.Mutex
	jobs            []*job
	limit           int // maximum number of jobs
	movedAt         time.Time
	referenceWanted bool // give the next job of the first model a reference
}

func newLoad(d *drill) *load {
	return &load{drill: d, limit: len(models()), movedAt: time.Now(), reference: jobs.StagedPrefix + referenceSHA256()}
}

// warmUp completes one job of each model without faults: from its task a worker learns
// its key's ID, which tells its tasks from others' in the account's list.
func (l *load) warmUp(ctx context.Context) error {
	for deadline := time.Now().Add(warmUpLimit); ; {
		l.poll(ctx)
		done := 0
		for _, j := range l.all() {
			if j.state() == jobs.StateSucceeded {
				done++
			}
		}
		if done == len(models()) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.limit = 1 << 20
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("drill: %d of %d jobs succeeded in the first %s, before any fault", done, len(models()), warmUpLimit)
		}
		if !wait(ctx, pollInterval) {
			return fmt.Errorf("drill: %w", context.Cause(ctx))
		}
	}
}

// produce polls until ctx ends.
func (l *load) produce(ctx context.Context) {
	for wait(ctx, pollInterval) {
		l.poll(ctx)
	}
}

// stopAtTarget allows no more jobs than configured.
func (l *load) stopAtTarget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit, l.movedAt = max(l.Jobs, len(l.jobs)), time.Now()
}

// openStates returns the states of each model's open jobs, for people.
func (l *load) openStates() map[string]string {
	counts := map[string]map[jobs.State]int{}
	for _, j := range l.all() {
		if j.over() {
			continue
		}
		if counts[j.request.Model] == nil {
			counts[j.request.Model] = map[jobs.State]int{}
		}
		counts[j.request.Model][j.state()]++
	}
	texts := map[string]string{}
	for model, states := range counts {
		for _, state := range slices.Sorted(maps.Keys(states)) {
			texts[model] += fmt.Sprintf(" %d %s", states[state], state)
		}
	}
	return texts
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.jobs)
}

// all returns a copy of the jobs as last read.
func (l *load) all() []job {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]job, len(l.jobs))
	for i, j := range l.jobs {
		all[i] = *j
	}
	return all
}

// poll refreshes every open job and enqueues new ones. What fails is repeated by the
// next poll: enqueueing is idempotent.
func (l *load) poll(ctx context.Context) {
	client, err := l.queue.client(ctx)
	if err != nil {
		return
	}
	open := map[string]int{}
	l.mu.Lock()
	known := append([]*job{}, l.jobs...)
	l.mu.Unlock()
	for _, j := range known {
		if j.queued && j.state().Final() {
			continue
		}
		if err := l.refresh(ctx, client, j); err != nil {
			return
		}
		if !j.over() {
			open[j.request.Model]++
		}
	}
	if l.Unlisted {
		l.operate(ctx)
	}
	for _, model := range models() {
		for open[model] < l.depth() || model == models()[0] && l.needsReference() {
			j := l.nextJob(model)
			if j == nil {
				break
			}
			if err := l.refresh(ctx, client, j); err != nil {
				return
			}
			open[model]++
		}
	}
}

// refresh enqueues a job that is not acknowledged yet, otherwise it reads its record.
func (l *load) refresh(ctx context.Context, client *jobs.Client, j *job) error {
	var rec *jobs.Job
	var err error
	if j.queued {
		rec, err = client.Get(ctx, j.request.ID)
	} else {
		rec, err = client.Enqueue(ctx, j.request)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	j.lost = isNotFound(err)
	if j.lost && l.Queue == QueueSentinel { // the failover has lost it: as a producer would
		j.lost, j.queued, j.record = false, false, nil
	}
	if j.lost {
		return nil
	}
	if err != nil {
		return err
	}
	if j.record == nil || j.record.State != rec.State || j.record.Attempt != rec.Attempt {
		l.movedAt = time.Now()
	}
	j.queued, j.record = true, rec
	return nil
}

// nextJob creates another job of a model, nil if there are enough.
func (l *load) nextJob(model string) *job {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := len(l.jobs)
	first := i < len(models())
	if i >= l.limit || first && models()[i] != model {
		return nil
	}
	id := fmt.Sprintf("drill-%d", i)
	req := jobs.Request{ID: id, Labels: map[string]string{labelJob: id}, Prompt: promptPrefix + id, Model: model, Priority: priorities()[i%len(priorities())]}
	if i%5 == 3 {
		req.N = 2
	}
	if model == editModel && i%2 == 1 {
		req.RefImages = []string{l.reference}
	}
	if model == models()[0] && !first && (l.referenceWanted || i%4 == 1) {
		req.RefImg = l.reference
		if l.referenceWanted {
			req.Priority = jobs.PriorityCritical
		}
		l.referenceWanted = false
	}
	j := &job{request: req}
	l.jobs = append(l.jobs, j)
	return j
}

func priorities() []string {
	return []string{jobs.PriorityDefault, jobs.PriorityCritical, jobs.PriorityDefault, jobs.PriorityBulk}
}

// wantReference gives the next job of the first model a reference.
func (l *load) wantReference() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.referenceWanted = true
}

// needsReference reports whether a job with a reference is wanted at once.
func (l *load) needsReference() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.referenceWanted
}

func (l *load) depth() int {
	if l.Short {
		return shortDepth
	}
	return depth
}

// cancelOne requests cancellation of a job whose task may be queued behind another
// program's.
func (l *load) cancelOne(ctx context.Context) {
	client, err := l.queue.client(ctx)
	if err != nil {
		return
	}
	l.mu.Lock()
	var chosen *job
	for _, j := range l.jobs {
		if j.request.Model == foreignModel && j.state() == jobs.StateGenerating && !j.canceled {
			chosen = j
		}
	}
	l.mu.Unlock()
	if chosen == nil {
		return
	}
	if _, err := client.Cancel(ctx, chosen.request.ID, jobs.Decider{By: "drill"}); err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		chosen.canceled = true
	}
}

// settle waits until every job is finished or held and its images are delivered, or
// until nothing changes any more.
func (l *load) settle(ctx context.Context) {
	var since time.Time // when all jobs had ended
	replaced := false
	for wait(ctx, pollInterval) {
		l.mu.Lock()
		open, idle := l.limit-len(l.jobs), time.Since(l.movedAt)
		for _, j := range l.jobs {
			if !j.over() {
				open++
			}
		}
		l.mu.Unlock()
		if open > 0 && l.Short && !replaced && l.recovery.sinceLastFault() > overdue {
			replaced = true
			l.expireLeases(ctx)
			l.replaceWorkers()
		}
		switch {
		case idle > stuckAfter:
			return
		case open > 0:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > l.settleLimit(), time.Since(since) > submitLimit && l.allDelivered():
			return
		}
	}
}

// expireLeases lets the leases of messages that nobody handles expire at once.
func (l *load) expireLeases(ctx context.Context) {
	rdb, err := l.queue.connection(ctx)
	if err != nil {
		l.log.Warn("leases not expired", "err", err)
		return
	}
	now := time.Now()
	extendedBefore := strconv.FormatInt(now.Add(lease-overdue).Unix(), 10)
	keys := rdb.Scan(ctx, 0, "asynq:{danqing:*}:lease", 1000).Iterator()
	for keys.Next(ctx) {
		for _, message := range rdb.ZRangeArgs(ctx, redis.ZRangeArgs{Key: keys.Val(), Start: "-inf", Stop: extendedBefore, ByScore: true}).Val() {
			rdb.ZAddXX(ctx, keys.Val(), redis.Z{Score: float64(now.Add(-expiry).Unix()), Member: message})
			l.log.Info("lease expired", "message", message)
		}
	}
}

func (l *load) settleLimit() time.Duration {
	if l.Short {
		return shortSettleTime
	}
	return settleTime
}

// allDelivered reports whether no task is open and no image is missing.
func (l *load) allDelivered() bool {
	a, err := l.audit()
	return err == nil && a.open == 0 && len(a.lost) == 0
}

// render paints small pictures that differ by job, seed and index.
func render(p painter.Picture) []byte {
	const side = 8
	picture := image.NewNRGBA(image.Rect(0, 0, side, side))
	for y := range side {
		line := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %d %d", p.Model, p.Prompt, p.Seed, p.Index, y))
		for x := range side {
			picture.SetNRGBA(x, y, color.NRGBA{R: line[3*x], G: line[3*x+1], B: line[3*x+2], A: 255})
		}
	}
	return encoded(picture)
}

func encoded(picture image.Image) []byte {
	var out bytes.Buffer
	if err := png.Encode(&out, picture); err != nil {
		panic(err) // unreachable: encodes to memory
	}
	return out.Bytes()
}

func referencePicture() []byte {
	return encoded(image.NewNRGBA(image.Rect(0, 0, referenceSide, referenceSide)))
}

func referenceSHA256() string { return fmt.Sprintf("%x", sha256.Sum256(referencePicture())) }

// stageReference stages the reference image that some jobs use.
func (d *drill) stageReference(ctx context.Context) error {
	path := filepath.Join(d.Dir, "reference.png")
	if err := os.WriteFile(path, referencePicture(), 0o600); err != nil {
		return fmt.Errorf("drill: %w", err)
	}
	ref, err := storage.ReferenceLimits{}.Inspect(path)
	if err != nil {
		return err
	}
	to, err := storage.New(storage.Config{
		Bucket: bucket.DefaultBucket, Endpoint: "http://bucket.drill", AccessKeyID: accessKeyID, SecretAccessKey: secretAccessKey,
		HTTPClient: d.files.HTTPClient(),
	})
	if err != nil {
		return err
	}
	return to.StageReference(ctx, ref)
}
