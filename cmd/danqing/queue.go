package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
)

// jobQueue is the queue of other processes' workers, for commands that enqueue and manage
// jobs. It needs neither an API key nor a data directory of its own.
type jobQueue struct {
	cfg      *config.Config
	rdb      *redis.Client
	jobs     *jobs.Client
	operator *jobs.Inspector
	// simulate is set if the queue of a simulated instance on this machine is used, and
	// simulated if the queue is simulated.
	simulate, simulated bool
	// configured is the configured bucket, nil if there is none. It is read by bucket.
	configured *storage.Bucket
	// bucketAgrees is set once the bucket's mode is not the other than the queue's.
	bucketAgrees atomic.Bool
	// localBucket is the embedded bucket of a running instance on this machine, nil if
	// the queue is not an instance's, or the instance has another bucket.
	localBucket *localBucket
	// starting are the models of a running instance on this machine, whose lanes open within
	// seconds of its start.
	starting []string
}

// onQueue calls work with the queue at REDIS_URL, or else with that of the instance that
// runs on the data directory. A signal ends work's context; the error is errInterrupted
// then.
func (p *program) onQueue(ctx context.Context, simulate bool, work func(context.Context, *jobQueue) error) error {
	return p.untilSignal(ctx, nil, func(ctx context.Context) error {
		q, err := p.openQueue(ctx, simulate)
		if err != nil {
			return err
		}
		return errors.Join(work(ctx, q), q.rdb.Close())
	})
}

func (p *program) openQueue(ctx context.Context, simulate bool) (*jobQueue, error) {
	cfg, err := p.config()
	if err != nil {
		return nil, err
	}
	return p.openConfiguredQueue(ctx, cfg, simulate)
}

func (p *program) openConfiguredQueue(ctx context.Context, cfg *config.Config, simulate bool) (*jobQueue, error) {
	q := &jobQueue{cfg: cfg, simulate: simulate}
	at, err := q.locate(ctx)
	if err != nil {
		return nil, err
	}
	q.rdb = at.Client(0)
	q.jobs, q.operator = jobs.NewClient(q.rdb), jobs.NewInspector(q.rdb)
	if err := ping(ctx, q.rdb, at.Address); err != nil {
		return nil, errors.Join(err, q.rdb.Close())
	}
	if err := p.checkQueueMode(ctx, q); err != nil {
		return nil, errors.Join(err, q.rdb.Close())
	}
	return q, nil
}

// locate returns how the queue's Redis is reached.
func (q *jobQueue) locate(ctx context.Context) (*config.Redis, error) {
	dir := q.cfg.DataDir
	if q.simulate {
		dir = simulatedDir(dir)
		if err := q.cfg.CheckSimulate(); err != nil {
			return nil, err
		}
	}
	if q.cfg.RedisURL.IsSet() {
		return q.cfg.Redis()
	}
	at, err := readInstance(ctx, dir)
	if errors.Is(err, errNoInstance) {
		hint := "set REDIS_URL to the queue's Redis, as in redis://127.0.0.1:6379/0, or start one here: danqing up"
		if q.simulate {
			hint = "start one here: danqing up --simulate"
		} else if _, err := readInstance(ctx, simulatedDir(q.cfg.DataDir)); err == nil {
			hint = "set REDIS_URL to the queue's Redis; a simulated instance runs here: say --simulate if you mean that"
		}
		return nil, usageErrorf(hint, "REDIS_URL is not set, and no danqing runs on %s", dir)
	}
	if err != nil {
		return nil, err
	}
	q.localBucket, q.starting = openLocalBucket(dir), at.Models
	return at.redis(dir)
}

// simulatedDir is the data directory of simulated runs, which real runs never read.
func simulatedDir(dataDir string) string { return filepath.Join(dataDir, "simulated") }

// bucket returns the configured bucket, or nil if there is none. It fails if the bucket is
// real and the queue is simulated, or the other way round.
func (q *jobQueue) bucket(ctx context.Context) (*storage.Bucket, error) {
	if q.configured == nil || q.bucketAgrees.Load() {
		return q.configured, nil
	}
	if _, err := modeOf(ctx, q.operator, q.configured); err != nil {
		return nil, err
	}
	q.bucketAgrees.Store(true)
	return q.configured, nil
}

// errNoBucket means that the bucket of the jobs' images and sidecars is not configured.
var errNoBucket = errors.New("DANQING_S3_BUCKET is not set")

// finishedJob reads a job from its sidecar in this queue's bucket.
func (q *jobQueue) finishedJob(ctx context.Context, id string) (*jobs.Job, error) {
	from, err := q.bucket(ctx)
	switch {
	case err != nil:
		return nil, err
	case from != nil:
		return finishedJob(ctx, from, q.cfg.Serve.URL, id)
	case q.localBucket != nil:
		return finishedJob(ctx, q.localBucket, q.cfg.Serve.URL, id)
	}
	return nil, errNoBucket
}

// sidecarBucket is a bucket from which finishedJob reads.
type sidecarBucket interface {
	jobs.Bucket
	Sidecar(ctx context.Context, jobID string) (*storage.Sidecar, error)
	SidecarIDs(ctx context.Context, prefix string, visit func(jobID string, modified time.Time)) error
}

// finishedJob reads a job from its sidecar, with the location of its images. It fails with
// [storage.ErrNotExist] if the bucket has no sidecar of the job.
func finishedJob(ctx context.Context, from sidecarBucket, serveURL, id string) (*jobs.Job, error) {
	sidecar, err := from.Sidecar(ctx, id)
	if err != nil {
		return nil, err
	}
	job, err := jobOf(worker.RecordOf(sidecar))
	if err != nil {
		return nil, err
	}
	job.SetLocation(ctx, from, serveURL)
	return job, nil
}

// stage stores a reference image in this queue's bucket.
func (q *jobQueue) stage(ctx context.Context, ref *storage.Reference) error {
	to, err := q.bucket(ctx)
	switch {
	case err != nil:
	case to != nil:
		err = to.StageReference(ctx, ref)
	case q.localBucket != nil:
		err = q.localBucket.stage(ref)
	default:
		err = errNoBucket
	}
	if err != nil {
		return fmt.Errorf("stage reference image %s: %w", ref.Path, err)
	}
	return nil
}

// jobOf is the job of a record, nil if there is none.
func jobOf(rec *jobs.Record, err error) (*jobs.Job, error) {
	if rec == nil {
		return nil, err
	}
	return &rec.Job, err
}

// get returns a job from Redis, or if it has expired there, from its sidecar.
func (q *jobQueue) get(ctx context.Context, id string) (*jobs.Job, error) {
	if err := jobs.ValidID(id); err != nil {
		return nil, usageErrorf("take the ID that danqing enqueue or danqing jobs list prints", "%w", err)
	}
	rec, err := q.jobs.Get(ctx, id)
	if !errors.Is(err, jobs.ErrNotFound) {
		return rec, err
	}
	finished, sidecarErr := q.finishedJob(ctx, id)
	switch {
	case errors.Is(sidecarErr, errNoBucket):
		return nil, err
	case errors.Is(sidecarErr, storage.ErrNotExist):
		return nil, fmt.Errorf("%w, nor is its sidecar in the bucket", err)
	}
	return finished, sidecarErr
}

// imagesWithLinks returns the images of a job with their links, or with their files in the local
// bucket.
func (q *jobQueue) imagesWithLinks(ctx context.Context, from *storage.Bucket, job *jobs.Job) (images []resultImage, err error) {
	for _, image := range job.Images {
		shown := imageOf(job, image)
		switch {
		case image.Key == "":
		case from != nil:
			if shown.URL, shown.URLExpiresAt, err = from.Link(ctx, image.Key); err != nil {
				return nil, fmt.Errorf("link to image %d of %s: %w", image.N, job.ID, err)
			}
		case q.localBucket != nil:
			shown.File = q.localBucket.path(image.Key)
		}
		images = append(images, shown)
	}
	return images, nil
}

// lane is the status of a lane for operators.
type lane struct {
	jobs.LaneStatus
	// Resumed is the end of its last pause, nil if there was none.
	Resumed *jobs.Pause `json:"resumed,omitempty"`
}

// lanes returns all lanes that a worker ever opened, by account and model.
func (q *jobQueue) lanes(ctx context.Context) ([]lane, error) {
	statuses, err := q.operator.Lanes(ctx)
	if err != nil {
		return nil, err
	}
	history, err := q.operator.PauseHistory(ctx)
	if err != nil {
		return nil, err
	}
	lanes := make([]lane, len(statuses))
	for i, status := range statuses {
		lanes[i].LaneStatus = status
		at := slices.IndexFunc(history, func(p jobs.Pause) bool { return p.Account == status.Account || p.Model == status.Model })
		if at >= 0 && status.Pause == nil && history[at].Action == jobs.ActionResume {
			lanes[i].Resumed = &history[at]
		}
	}
	return lanes, nil
}

// pauseReason returns why a lane takes no jobs, or "" if it does.
func (l lane) pauseReason() string {
	switch {
	case !l.Held:
		return "no worker"
	case l.Pause != nil:
		what := "account " + l.Pause.Account
		if l.Pause.Model != "" {
			what = "model " + l.Pause.Model
		}
		return fmt.Sprintf("%s paused by %s since %s: %s", what, cmp.Or(l.Pause.By, "an operator"), formatTime(l.Pause.At), cmp.Or(l.Pause.Why, "no reason was given"))
	case l.State == jobs.LanePaused:
		why := cmp.Or(l.Message, string(l.Reason), "no reason was given")
		switch {
		case !l.Until.IsZero():
			why += "; until " + formatTime(l.Until)
		case !l.RetryAt.IsZero():
			why += "; next try at " + formatTime(l.RetryAt)
		}
		return why
	}
	return ""
}

// whyIdle returns why no worker makes a model's jobs at present, or "" if one does.
func (q *jobQueue) whyIdle(lanes []lane, model string) string {
	var paused []string
	for _, l := range lanes {
		if l.Model != model || !l.Held {
			continue
		}
		why := l.pauseReason()
		if why == "" {
			return ""
		}
		paused = append(paused, fmt.Sprintf("the lane of account %s is paused: %s", l.Account, why))
	}
	switch {
	case len(paused) > 0:
		return strings.Join(paused, "; ")
	case slices.Contains(q.starting, model):
		return ""
	case !q.cfg.RedisURL.IsSet(): // an instance's queue, which has only one worker
		return fmt.Sprintf("danqing up has no lane for %s: its jobs wait; add the model to its DANQING_MODELS", model)
	}
	return fmt.Sprintf("no worker for %s: its jobs wait; start one: DANQING_MODELS=%s danqing worker", model, model)
}

// formatTime formats a time in the local time zone, with the zone.
func formatTime(at time.Time) string { return at.Local().Format("2006-01-02 15:04:05 -07:00") }

// ageText returns how long ago a time was, as in "3 min ago".
func ageText(at, now time.Time) string {
	switch d := max(now.Sub(at), 0); { // the clock of another machine may be ahead
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", d/time.Hour)
	default:
		return fmt.Sprintf("%d days ago", d/(24*time.Hour))
	}
}
