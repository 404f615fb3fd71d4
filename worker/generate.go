package worker

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// createGrace is what a create that is on its way gets after the second
	// signal: its reply names a task that costs money.
	createGrace = 2 * time.Second
	// diskReserve is the free room below which nothing is submitted: images
	// that are on their way must find a place.
	diskReserve = 256 << 20
)

// generate takes a job as far as the lane can: until its images are being stored,
// or it is over, held, or to be tried again later. Each step moves the record on
// or fails; a record that somebody else moved is looked at again.
func (l *lane) generate(ctx context.Context, m jobs.GenerateMessage) error {
	for {
		rec, err := l.jobs.Get(ctx, m.JobID)
		if errors.Is(err, jobs.ErrNotFound) {
			// Redis lost the record but kept the message, or never had it.
			rec, err = l.remember(ctx, m)
		}
		if err == nil {
			switch rec.State {
			case jobs.StateQueued, jobs.StateRetrying, jobs.StateScheduled:
				err = l.submit(ctx, rec, m.Request)
			case jobs.StateSubmitting:
				err = l.holdAmbiguous(ctx, rec, "the program died while it was submitting the job")
			case jobs.StateGenerating:
				err = l.poll(ctx, rec)
			case jobs.StateStoring:
				return l.jobs.EnqueueStore(ctx, rec)
			default:
				return nil
			}
		}
		if err != nil && !errors.Is(err, jobs.ErrConflict) {
			return err
		}
	}
}

func (l *lane) remember(ctx context.Context, m jobs.GenerateMessage) (*jobs.Record, error) {
	rec := &jobs.Record{
		ID: m.JobID, State: jobs.StateQueued, Digest: m.Digest, Model: m.Request.Model, Priority: m.Request.Priority,
		EnqueuedAt: time.Now().UTC(),
	}
	return rec, l.swap(ctx, nil, rec)
}

// submit sends the job's create once, or waits because it may not be sent now.
// The order of its steps is the promise: each is on record before the next.
func (l *lane) submit(ctx context.Context, rec *jobs.Record, req jobs.Request) error {
	ready, err := l.ready(ctx, rec)
	if err != nil || !ready {
		return err
	}
	req = req.WithSeed(rec.ID)
	body, err := l.createBody(ctx, rec, req)
	if err != nil || body == nil {
		return err
	}
	if err := l.waitPace(ctx); err != nil {
		return err
	}
	intent := *rec
	intent.State, intent.Attempt, intent.Term = jobs.StateSubmitting, rec.Attempt+1, l.term
	intent.Account, intent.Request, intent.TaskID = l.cfg.Account, &req, ""
	intent.SubmittedAt, intent.Code, intent.Message = time.Now().UTC(), "", ""
	if err := l.swap(ctx, rec, &intent); err != nil {
		return err
	}
	l.note(ctx, &intent)
	if err := l.cfg.DataDir.Journal.append(entryIntent, &intent); err != nil {
		return l.takeBack(ctx, &intent, rec, &l.unreachable, 0, err)
	}
	if !l.lease.valid() {
		return l.takeBack(ctx, &intent, rec, &l.unreachable, 0, errors.New("the lease of the lane ran out"))
	}
	created, err := l.create(ctx, *body)
	if err != nil {
		return l.createFailed(ctx, rec, &intent, err)
	}
	return l.created(ctx, &intent, created)
}

// ready reports whether the job may be submitted now: it is not over already, the
// bucket answers, and the disk has room. If not, it has waited or ended the job.
func (l *lane) ready(ctx context.Context, rec *jobs.Record) (bool, error) {
	over, err := l.Finished(ctx, rec.ID, rec.Digest)
	switch {
	case errors.Is(err, jobs.ErrDigestConflict), errors.Is(err, ErrSimulated):
		// The sidecar is another job's: it stays as it is.
		return false, l.end(ctx, rec, jobs.StateFailed, "JobIDTaken", err.Error())
	case err != nil:
		return false, l.wait(ctx, &l.unreachable, 0, "the bucket does not answer", err)
	case over != nil:
		return false, l.adoptFinished(ctx, rec, over)
	}
	free, err := l.cfg.Spool.FreeBytes()
	if err == nil && free < diskReserve {
		err = fmt.Errorf("%d MiB free, %d MiB wanted: free some space", free>>20, diskReserve>>20)
	}
	if err != nil {
		return false, l.wait(ctx, &l.unreachable, 0, "the data directory has no room", err)
	}
	return true, nil
}

// create sends the POST, which is never cut short by a graceful stop.
func (l *lane) create(ctx context.Context, body dashscope.CreateRequest) (*dashscope.Created, error) {
	sending, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(createGrace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cut()
		case <-sending.Done():
		}
	})
	defer stop()
	return l.cfg.DashScope.Create(sending, body)
}

// created puts the task's name where it cannot be lost, the journal first.
func (l *lane) created(ctx context.Context, intent *jobs.Record, created *dashscope.Created) error {
	next := *intent
	next.State, next.TaskID, next.Simulated = jobs.StateGenerating, created.TaskID, created.Simulated
	l.journal(entryTask, &next)
	l.unreachable.reset()
	l.throttled.reset()
	l.account.reset()
	l.log.Info("task submitted", "job_id", next.ID, "task_id", next.TaskID, "attempt", next.Attempt, "request_id", created.RequestID)
	return l.advance(ctx, intent, &next)
}

// createFailed acts on a create without a task: ambiguous ones are held, never
// sent again; after a certain refusal the intent is taken back.
func (l *lane) createFailed(ctx context.Context, rec, intent *jobs.Record, err error) error {
	var refusal *dashscope.Error
	if !errors.As(err, &refusal) {
		return l.holdAmbiguous(ctx, intent, err.Error())
	}
	switch refusal.Kind {
	case dashscope.KindThrottled:
		return l.takeBack(ctx, intent, rec, &l.throttled, refusal.RetryAfter, err)
	case dashscope.KindRefused:
		return l.takeBack(ctx, intent, rec, &l.unreachable, refusal.RetryAfter, err)
	case dashscope.KindAccount:
		return l.takeBack(ctx, intent, rec, &l.account, refusal.RetryAfter, err)
	case dashscope.KindTerminal:
		l.journal(entryRefused, intent)
		return l.fail(ctx, intent, refusal.Code, sentence(refusal.Message, refusal.Hint()))
	default:
		return l.holdAmbiguous(ctx, intent, err.Error())
	}
}

// takeBack undoes an intent of which nothing came, and waits. The job keeps its
// place: it is the next to be submitted.
func (l *lane) takeBack(ctx context.Context, intent, rec *jobs.Record, trouble *backoff, atLeast time.Duration, why error) error {
	l.journal(entryRefused, intent)
	next := *rec
	if err := l.advance(ctx, intent, &next); err != nil {
		return err
	}
	l.clearNote(ctx, &next)
	message := "dashscope refused for now"
	if trouble == &l.account {
		message = "lane paused: the account needs attention"
	}
	return l.wait(ctx, trouble, atLeast, message, why)
}

// wait holds the lane back, says why, and returns nil when it may try again.
func (l *lane) wait(ctx context.Context, trouble *backoff, atLeast time.Duration, message string, why error) error {
	d := max(trouble.next(), atLeast)
	l.log.Warn(message, "err", why, "wait", d, "hint", hint(why)) //nolint:sloglint // every caller gives a constant
	return l.sleep(ctx, d)
}

// waitPace waits until the documented rate allows the next create.
func (l *lane) waitPace(ctx context.Context) error {
	if d := l.pace.Reserve().Delay(); d > 0 {
		return l.sleep(ctx, d)
	}
	return nil
}

// createBody translates the request, uploading a staged reference image to
// DashScope's temporary store. A nil body means that it waited or ended the job.
func (l *lane) createBody(ctx context.Context, rec *jobs.Record, req jobs.Request) (*dashscope.CreateRequest, error) {
	body := &dashscope.CreateRequest{
		Model: req.Model,
		Input: dashscope.Input{Prompt: req.Prompt, NegativePrompt: req.NegativePrompt, RefImg: req.RefImg},
		Parameters: dashscope.Parameters{
			Style: req.Style, Size: req.Size, N: &req.N, Seed: req.Seed, RefStrength: req.RefStrength, RefMode: req.RefMode,
		},
	}
	sum, staged := strings.CutPrefix(req.RefImg, jobs.StagedPrefix)
	if !staged {
		return body, nil
	}
	name, err := l.uploadReference(ctx, req.Model, sum)
	var refused *dashscope.Error
	switch {
	case err == nil:
		body.Input.RefImg = name
		return body, nil
	case errors.Is(err, storage.ErrNotExist):
		return nil, l.fail(ctx, rec, "ReferenceMissing", "the staged reference image "+req.RefImg+" is not in the bucket: stage it again and enqueue the job under a new ID")
	case errors.As(err, &refused) && refused.Kind == dashscope.KindTerminal:
		return nil, l.fail(ctx, rec, refused.Code, sentence("the reference image was refused", refused.Message))
	case errors.As(err, &refused) && refused.Kind == dashscope.KindAccount:
		return nil, l.wait(ctx, &l.account, refused.RetryAfter, "lane paused: the account needs attention", err)
	default:
		return nil, l.wait(ctx, &l.unreachable, 0, "reference image not uploaded", err)
	}
}

func (l *lane) uploadReference(ctx context.Context, model, sum string) (string, error) {
	content, info, err := l.cfg.Bucket.OpenReference(ctx, sum)
	if err != nil {
		return "", err
	}
	defer content.Close() //nolint:errcheck // read only
	return l.cfg.DashScope.Upload(ctx, model, sum+"."+path.Base(info.ContentType), info.ContentType, info.Bytes, content)
}

// hint says what a person can do about an error of the service.
func hint(err error) string {
	var failure *dashscope.Error
	if errors.As(err, &failure) {
		return failure.Hint()
	}
	return ""
}
