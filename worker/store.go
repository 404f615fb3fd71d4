package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// store copies finished images into the bucket, many jobs at once.
type store struct {
	*Worker
	server *asynq.Server
}

const (
	// storeParkTime is how long copies may go on after the second signal.
	storeParkTime = time.Second
	storeRetry    = time.Second
	storeRetryMax = time.Minute
	// drainCheck is how often a stopping worker looks whether all is stored.
	drainCheck = 50 * time.Millisecond
	drainMost  = 10 * time.Second
)

func (s *store) start() (*store, error) {
	s.server = asynq.NewServerFromRedisClient(s.cfg.Redis, asynq.Config{
		Concurrency:              s.cfg.StoreConcurrency,
		Queues:                   map[string]int{jobs.QueueStore: 1},
		TaskCheckInterval:        s.cfg.QueueInterval,
		DelayedTaskCheckInterval: delayedFactor * s.cfg.QueueInterval,
		ShutdownTimeout:          storeParkTime,
		RetryDelayFunc: func(tried int, err error, _ *asynq.Task) time.Duration {
			if errors.Is(err, asynq.ErrLeaseExpired) {
				return 0
			}
			return min(storeRetry<<min(tried, 10), storeRetryMax)
		},
		Logger:   newAsynqLog(s.log),
		LogLevel: asynq.WarnLevel,
	})
	if err := s.server.Start(asynq.HandlerFunc(s.handle)); err != nil {
		return nil, fmt.Errorf("start store: %w", err)
	}
	return s, nil
}

func (s *store) shutdown() { s.server.Shutdown() }

// drain gives the images that are ready a last try, for drainMost at most. What
// is left waits in the queue and in the journal.
func (s *store) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainMost)
	defer cancel()
	inspector := asynq.NewInspectorFromRedisClient(s.cfg.Redis)
	tick := time.NewTicker(drainCheck)
	defer tick.Stop()
	for {
		queue, err := inspector.GetQueueInfo(jobs.QueueStore)
		if err != nil || queue.Pending+queue.Active == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// handle is the store stage's edge to asynq.
func (s *store) handle(ctx context.Context, message *asynq.Task) error {
	var m jobs.StoreMessage
	err := json.Unmarshal(message.Payload(), &m)
	if err == nil {
		err = jobs.ValidID(m.JobID)
	}
	if err != nil {
		return fmt.Errorf("the payload is no store message of danqing: %w: %w", err, asynq.SkipRetry)
	}
	rec, err := s.jobs.Get(ctx, m.JobID)
	if err != nil {
		return err
	}
	switch {
	case rec.Attempt != m.Attempt:
		return nil
	case rec.State == jobs.StateFailed || rec.State == jobs.StateCanceled:
		return s.writeDown(ctx, rec)
	case rec.State != jobs.StateStoring:
		return nil
	}
	if err := s.settleTask(ctx, rec, rec.TaskID, rec.TaskImages, rec.TaskMicroYuan); err != nil {
		return err
	}
	err = s.store(ctx, rec)
	if errors.Is(err, jobs.ErrConflict) {
		return nil
	}
	if err != nil {
		s.spool(ctx, rec)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("image not stored, trying again", "job_id", rec.ID, "task_id", rec.TaskID, "err", err)
	}
	return err
}

// store copies a job's images and then writes its sidecar: whoever sees that knows
// the job to be over.
func (s *store) store(ctx context.Context, rec *jobs.Record) error {
	over, err := s.Finished(ctx, rec.ID, rec.Digest)
	taken := ""
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, ErrSimulated), errors.Is(err, storage.ErrUnreadable):
		taken = err.Error()
	case err != nil:
		return err
	}
	if over != nil && !wantedAgain(rec, over) {
		return s.adoptFinished(ctx, rec, over)
	}
	next := *rec
	next.Images = make([]jobs.Image, 0, len(rec.Results))
	stored, unproven := 0, ""
	for _, result := range rec.Results {
		image, err := s.image(ctx, rec, result, taken)
		if err != nil {
			return fmt.Errorf("image %d: %w", result.N, err)
		}
		switch image.Code {
		case codeUnproven:
			unproven = image.Message
		case "":
			stored++
		}
		next.Images = append(next.Images, image)
	}
	next.FinishedAt, next.State = time.Now().UTC(), jobs.StateSucceeded
	switch {
	case unproven != "":
		return s.holdUnproven(ctx, rec, &next, unproven)
	case stored == 0:
		next.State, next.Code, next.Message = jobs.StateFailed, next.Images[0].Code, next.Images[0].Message
	}
	return s.over(ctx, rec, &next)
}

// writeDown gives a job that a person has ended its sidecar.
func (s *store) writeDown(ctx context.Context, rec *jobs.Record) error {
	over, err := s.Finished(ctx, rec.ID, rec.Digest)
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, ErrSimulated), errors.Is(err, storage.ErrUnreadable):
		return nil // what is there is not ours to overwrite
	case err != nil:
		return err
	case over != nil && !wantedAgain(rec, over):
		return nil
	}
	sidecar, err := sidecarOf(rec)
	if err != nil {
		return err
	}
	return s.cfg.Bucket.PutSidecar(ctx, sidecar)
}

// spool downloads what is not stored yet: the links die within a day, and the
// bucket may be away for longer.
func (s *store) spool(ctx context.Context, rec *jobs.Record) {
	for _, result := range rec.Results {
		if result.URL == "" {
			continue
		}
		if _, err := s.fetch(ctx, rec, result); err != nil {
			s.log.Warn("image not spooled", "job_id", rec.ID, "task_id", rec.TaskID, "err", err)
		}
	}
}

// over ends the job: sidecar, journal, record, and only then the spool.
func (s *store) over(ctx context.Context, rec, next *jobs.Record) error {
	sidecar, err := sidecarOf(next)
	if err != nil {
		return err
	}
	if err := s.cfg.Bucket.PutSidecar(ctx, sidecar); err != nil {
		return err
	}
	s.journal(entryOver, next)
	next.Results = nil // signed links have done their duty
	if err := s.advance(ctx, rec, next); err != nil {
		return err
	}
	s.log.Info("job stored", "job_id", next.ID, "task_id", next.TaskID, "images", len(next.Images), "duration", next.FinishedAt.Sub(rec.GeneratedAt))
	for _, result := range rec.Results {
		if err := s.cfg.Spool.Remove(spoolName(rec, result.N)); err != nil {
			s.log.Warn("spool file not removed", "job_id", rec.ID, "err", err)
		}
	}
	return nil
}

// codeUnproven marks an image that is kept aside for a person.
const codeUnproven = "ImageUnproven"

func (s *store) holdUnproven(ctx context.Context, rec, next *jobs.Record, why string) error {
	next.State, next.Code, next.Message, next.FinishedAt = jobs.StateHeld, codeUnproven, why, time.Time{}
	s.journal(entryHeld, next)
	s.log.Error("job held: a person must decide", "job_id", rec.ID, "task_id", rec.TaskID, "attempt", rec.Attempt, "err", why)
	return s.advance(ctx, rec, next)
}

func spoolName(rec *jobs.Record, n int) string {
	return rec.ID + "." + strconv.Itoa(rec.Attempt) + "-" + strconv.Itoa(n)
}

// image brings one image into the bucket, unless it is there already, and says
// where it is or why it is not. An error means that it must be tried again.
// taken, unless empty, says why its place belongs to somebody else.
func (s *store) image(ctx context.Context, rec *jobs.Record, result jobs.Result, taken string) (jobs.Image, error) {
	if result.URL == "" {
		return jobs.Image{N: result.N, Code: result.Code, Message: result.Message}, nil
	}
	// Images are PNG, all of them (text-to-image API reference); what is not is
	// never stored under this key.
	key, err := s.imageKey(rec, result)
	if err != nil {
		taken = err.Error()
	}
	if taken == "" {
		image, task, err := s.lookAt(ctx, result.N, key)
		switch {
		case err != nil || task == rec.TaskID:
			return image, err
		case task == "":
		case madeBefore(rec, task):
			// A held job that was bought again: nothing is overwritten.
			return image, s.setAside(ctx, rec, result)
		default:
			taken = "another object lies under its key " + key
		}
	}
	file, err := s.fetch(ctx, rec, result)
	var failed *storage.FetchError
	switch {
	case err == nil:
	case !errors.As(err, &failed):
		return jobs.Image{}, err
	case failed.Kind == storage.FetchGone && time.Now().After(result.ExpiresAt):
		return jobs.Image{N: result.N, Code: "ResultExpired", Message: "the result URL died before the image could be copied: " + failed.Error()}, nil
	case failed.Kind == storage.FetchUnproven:
		return s.quarantine(ctx, rec, result, failed.Path, failed.Error())
	case failed.Kind == storage.FetchForbidden:
		return s.quarantine(ctx, rec, result, "", failed.Error())
	default:
		return jobs.Image{}, err
	}
	if taken != "" {
		return s.quarantine(ctx, rec, result, file.Path, taken)
	}
	meta := map[string]string{
		metaTask: rec.TaskID, metaWidth: strconv.Itoa(file.Width), metaHeight: strconv.Itoa(file.Height), metaSource: file.SourceName,
	}
	if err := s.cfg.Bucket.PutImage(ctx, key, file, meta); err != nil {
		return jobs.Image{}, err
	}
	return jobs.Image{
		N: result.N, Key: key, Bytes: file.Bytes, SHA256: file.SHA256, Width: file.Width, Height: file.Height,
		ContentType: file.ContentType, SourceName: file.SourceName,
	}, nil
}

// Metadata of an image in the bucket: enough to know it again after a crash
// between its upload and the sidecar, when its URL may be dead.
const (
	metaTask   = "task-id"
	metaWidth  = "width"
	metaHeight = "height"
	metaSource = "source-name"
)

// lookAt returns the image under a key as far as an earlier try has described it,
// and the task that made it: "" if there is nothing.
func (s *store) lookAt(ctx context.Context, n int, key string) (image jobs.Image, task string, err error) {
	info, err := s.cfg.Bucket.Head(ctx, key)
	if errors.Is(err, storage.ErrNotExist) {
		return jobs.Image{}, "", nil
	}
	if err != nil {
		return jobs.Image{}, "", err
	}
	width, _ := strconv.Atoi(info.Metadata[metaWidth])
	height, _ := strconv.Atoi(info.Metadata[metaHeight])
	return jobs.Image{
		N: n, Key: key, Bytes: info.Bytes, SHA256: info.SHA256, Width: width, Height: height,
		ContentType: info.ContentType, SourceName: info.Metadata[metaSource],
	}, cmp.Or(info.Metadata[metaTask], "unknown"), nil
}

// madeBefore reports whether a task was an earlier attempt of the job.
func madeBefore(rec *jobs.Record, task string) bool {
	return slices.ContainsFunc(rec.PastAttempts, func(a jobs.Attempt) bool { return a.TaskID == task })
}

// setAside keeps an image whose place an earlier attempt's has taken.
func (s *store) setAside(ctx context.Context, rec *jobs.Record, result jobs.Result) error {
	file, err := s.fetch(ctx, rec, result)
	if err != nil {
		var failed *storage.FetchError
		if errors.As(err, &failed) && failed.Path != "" || errors.As(err, &failed) && failed.Kind == storage.FetchGone && time.Now().After(result.ExpiresAt) {
			return nil // the job has its image; this one is no loss
		}
		return err
	}
	return s.cfg.Bucket.Hold(ctx, rec.TaskID, spoolName(rec, result.N), file.Path)
}

func (s *store) imageKey(rec *jobs.Record, result jobs.Result) (string, error) {
	name := ""
	if u, err := url.Parse(result.URL); err == nil {
		name = path.Base(u.Path)
	}
	return s.cfg.Bucket.ImageKey(storage.KeyVars{
		JobID: rec.ID, N: result.N, Ext: ".png", Batch: rec.Request.Batch, ID: rec.Request.LineID, Model: rec.Model,
		Date: rec.EnqueuedAt, SourceName: name,
	})
}

// fetch brings an image into the spool. A dead URL is asked for anew once.
func (s *store) fetch(ctx context.Context, rec *jobs.Record, result jobs.Result) (*storage.File, error) {
	file, err := s.cfg.Spool.Fetch(ctx, spoolName(rec, result.N), result.URL)
	var failed *storage.FetchError
	if !errors.As(err, &failed) || failed.Kind != storage.FetchGone {
		return file, err
	}
	owner := s.accountNamed(rec.Account)
	if owner == nil {
		return nil, fmt.Errorf("%w; its account %s is not configured here, so that no other link can be asked for", err, rec.Account)
	}
	task, queryErr := owner.remote.Query(ctx, rec.TaskID)
	if queryErr != nil {
		return nil, queryErr
	}
	if task.Output.TaskStatus == dashscope.StatusSucceeded && len(task.Output.Results) >= result.N {
		return s.cfg.Spool.Fetch(ctx, spoolName(rec, result.N), task.Output.Results[result.N-1].URL)
	}
	return nil, err
}

// quarantine keeps what cannot be stored as the image for a person: no check of
// ours ends an image that was paid for. A path of "" means that there are no bytes.
func (s *store) quarantine(ctx context.Context, rec *jobs.Record, result jobs.Result, path, why string) (jobs.Image, error) {
	image := jobs.Image{N: result.N, Code: codeUnproven, Message: fmt.Sprintf("image %d is paid for and cannot be stored: %s", result.N, why)}
	if path == "" {
		return image, nil
	}
	name := spoolName(rec, result.N)
	if err := s.cfg.Bucket.Hold(ctx, rec.TaskID, name, path); err != nil {
		return image, err
	}
	image.Message += "; its bytes are kept under " + s.cfg.Bucket.HeldKey(rec.TaskID, name)
	return image, nil
}
