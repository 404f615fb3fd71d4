package drill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

const (
	// depth is how many jobs of a model are open at once: there is always work, though
	// some wait half a minute for another try, or a minute for a dead worker's message.
	depth, shortDepth = 20, 5
	// labelJob names each job in the ledger too.
	labelJob = "job"
	// lookAround is how often the jobs are looked at.
	lookAround = 150 * time.Millisecond
	// workersMissed is how long after the death of a worker, or the loss of a reply,
	// asynq v0.26 gives messages that nobody works to others, at a start and then once
	// a minute: a lease of 30 s, and as much for clocks that differ.
	workersMissed = 61 * time.Second
	// promptOf begins every prompt; the job's ID follows.
	promptOf = "prompt of "
	// referenceSide is the least that DashScope takes.
	referenceSide = 256
)

// job is one that the drill has asked for.
type job struct {
	request jobs.Request
	queued  bool      // acknowledged by the queue
	record  *jobs.Job // as last seen, nil before
	lost    bool      // the queue does not know it, though it was acknowledged
	// canceled is set once the drill has asked for that.
	canceled bool
}

func (j *job) state() jobs.State {
	if j.record == nil {
		return jobs.StateQueued
	}
	return j.record.State
}

// over reports whether nothing more will happen to the job by itself.
func (j *job) over() bool { return j.queued && (j.state().Final() || j.state() == jobs.StateHeld) }

// load is the producer: it keeps every lane in work, and looks how its jobs fare.
type load struct {
	*drill
	reference string // the staged name

	mu      sync.Mutex
	jobs    []*job
	most    int // no more than that
	movedAt time.Time
	urgent  bool // the next job of the first model has a reference
}

func newLoad(d *drill) *load {
	return &load{drill: d, most: len(models()), movedAt: time.Now(), reference: jobs.StagedPrefix + referenceSHA256()}
}

// calm lets one job of each model go through undisturbed: from its task a worker
// learns which tasks of the account are its own.
func (l *load) calm(ctx context.Context) error {
	for deadline := time.Now().Add(calmStart); ; {
		l.round(ctx)
		done := 0
		for _, j := range l.all() {
			if j.state() == jobs.StateSucceeded {
				done++
			}
		}
		if done == len(models()) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.most = 1 << 20
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("drill: %d of %d jobs were made in the first %s, before anything was disturbed", done, len(models()), calmStart)
		}
		if !wait(ctx, lookAround) {
			return fmt.Errorf("drill: %w", context.Cause(ctx))
		}
	}
}

// produce goes on until ctx ends.
func (l *load) produce(ctx context.Context) {
	for wait(ctx, lookAround) {
		l.round(ctx)
	}
}

// last says that no more jobs are wanted than were promised.
func (l *load) last() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.most, l.movedAt = max(l.Jobs, len(l.jobs)), time.Now()
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.jobs)
}

// all is a copy of the jobs as they were last seen.
func (l *load) all() []job {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]job, len(l.jobs))
	for i, j := range l.jobs {
		all[i] = *j
	}
	return all
}

// round looks at every open job and asks for new ones. Whatever fails is done in
// the next round: enqueueing is idempotent.
func (l *load) round(ctx context.Context) {
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
		if err := l.look(ctx, client, j); err != nil {
			return
		}
		if !j.over() {
			open[j.request.Model]++
		}
	}
	for _, model := range models() {
		for open[model] < l.depth() || model == models()[0] && l.wanted() {
			j := l.next(model)
			if j == nil {
				break
			}
			if err := l.look(ctx, client, j); err != nil {
				return
			}
			open[model]++
		}
	}
}

// look enqueues a job that is not acknowledged yet, else reads its record.
func (l *load) look(ctx context.Context, client *jobs.Client, j *job) error {
	var rec *jobs.Job
	var err error
	if j.queued {
		rec, err = client.Get(ctx, j.request.ID)
	} else {
		rec, err = client.Enqueue(ctx, j.request)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	j.lost = missing(err)
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

// next makes up another job of a model, nil if there are enough.
func (l *load) next(model string) *job {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := len(l.jobs)
	first := i < len(models())
	if i >= l.most || first && models()[i] != model {
		return nil
	}
	id := fmt.Sprintf("drill-%d", i)
	req := jobs.Request{ID: id, Labels: map[string]string{labelJob: id}, Prompt: promptOf + id, Model: model, Priority: priorities()[i%len(priorities())]}
	if i%5 == 3 {
		req.N = 2
	}
	if model == models()[0] && !first && (l.urgent || i%4 == 1) {
		req.RefImg = l.reference
		if l.urgent {
			req.Priority = jobs.PriorityCritical
		}
		l.urgent = false
	}
	j := &job{request: req}
	l.jobs = append(l.jobs, j)
	return j
}

func priorities() []string {
	return []string{jobs.PriorityDefault, jobs.PriorityCritical, jobs.PriorityDefault, jobs.PriorityBulk}
}

// wantReference makes the next job of the first model one with a reference.
func (l *load) wantReference() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.urgent = true
}

// wanted reports whether a job with a reference is wanted at once.
func (l *load) wanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.urgent
}

func (l *load) depth() int {
	if l.Short {
		return shortDepth
	}
	return depth
}

// cancelOne asks to cancel a job whose task waits for another program's.
func (l *load) cancelOne(ctx context.Context) {
	client, err := l.queue.client(ctx)
	if err != nil {
		return
	}
	l.mu.Lock()
	var chosen *job
	for _, j := range l.jobs {
		if j.request.Model == foreignModel() && j.state() == jobs.StateGenerating && !j.canceled {
			chosen = j
		}
	}
	l.mu.Unlock()
	if chosen == nil {
		return
	}
	if _, err := client.Cancel(ctx, chosen.request.ID); err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		chosen.canceled = true
	}
}

// settle waits until every job is over or held and its images are where they
// belong, or nothing moves any more.
func (l *load) settle(ctx context.Context) {
	var since time.Time // all were over
	relieved := false
	for wait(ctx, lookAround) {
		l.mu.Lock()
		open, idle := l.most-len(l.jobs), time.Since(l.movedAt)
		for _, j := range l.jobs {
			if !j.over() {
				open++
			}
		}
		l.mu.Unlock()
		if open > 0 && l.Short && !relieved && l.recovery.quiet() > workersMissed {
			relieved = true
			l.relieve()
		}
		switch {
		case idle > stuckAfter:
			return
		case open > 0:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > l.settling(), time.Since(since) > submitLimit && l.settled():
			return
		}
	}
}

func (l *load) settling() time.Duration {
	if l.Short {
		return shortSettleTime
	}
	return settleTime
}

// settled reports whether no task is open and no image is missing.
func (l *load) settled() bool {
	books, err := l.books()
	return err == nil && books.open == 0 && len(books.lost) == 0
}

// fates decide how tasks end: by the job, and whether it is its first task.
type fates struct {
	// again lets some first tasks fail so that they are tried again, half a minute
	// later.
	again bool

	mu   sync.Mutex
	seen map[string]bool
}

func newFates(again bool) *fates { return &fates{again: again, seen: map[string]bool{}} }

// refused reports whether the service refuses a job for what it asks.
func refused(number int) bool { return number%23 == 19 }

func (f *fates) outcome(req dashscope.CreateRequest) simulator.Outcome {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := !f.seen[req.Input.Prompt]
	f.seen[req.Input.Prompt] = true
	number := 0
	if _, err := fmt.Sscanf(strings.TrimPrefix(req.Input.Prompt, promptOf), "drill-%d", &number); err != nil {
		return simulator.Outcome{}
	}
	moderated := simulator.Failure{Code: "DataInspectionFailed", Message: "Output data may contain inappropriate content."}
	switch {
	case refused(number):
		return simulator.Outcome{Code: moderated.Code, Message: moderated.Message}
	case number%17 == 6 && first && f.again:
		return simulator.Outcome{Code: "InternalError", Message: "An internal error has occurred."}
	case number%15 == 8: // of two images
		return simulator.Outcome{Images: map[int]simulator.Failure{1: moderated}}
	}
	return simulator.Outcome{}
}

// foreignPrompt is that of the tasks of another program, which take long.
const foreignPrompt, foreignTime = "of another program", 1500 * time.Millisecond

// foreignModel is the one with the most creates a second.
func foreignModel() string { return models()[len(models())-1] }

// taskTime is how long a task takes.
func taskTime(dice *rand.Rand, req dashscope.CreateRequest) time.Duration {
	if req.Input.Prompt == foreignPrompt {
		return foreignTime
	}
	return simulator.Between(taskShortest, taskLongest)(dice, req)
}

// render paints pictures that are small and, by job, seed and index, all different.
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
		panic(err) // a picture in memory
	}
	return out.Bytes()
}

func referencePicture() []byte {
	return encoded(image.NewNRGBA(image.Rect(0, 0, referenceSide, referenceSide)))
}

func referenceSHA256() string { return fmt.Sprintf("%x", sha256.Sum256(referencePicture())) }

// stageReference puts the picture that some jobs refer to into the bucket.
func (d *drill) stageReference(ctx context.Context) error {
	path := filepath.Join(d.Dir, "reference.png")
	if err := os.WriteFile(path, referencePicture(), 0o600); err != nil {
		return fmt.Errorf("drill: %w", err)
	}
	ref, err := storage.InspectReference(path)
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
