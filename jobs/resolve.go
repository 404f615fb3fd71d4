package jobs

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// Resolution is a person's decision about a held job. Exactly one must be given.
type Resolution struct {
	// Adopt is the ID of a task at DashScope, in the account of the job's intent,
	// which is found to be this job's: it is polled like any other, and its images
	// are stored as the job's. For a job that is held with images that could not be
	// proven it may be the job's own task: they are fetched, or taken from the
	// spool, and stored once more. What lies under _held/ stays there.
	Adopt string
	// BuyAgain puts the job on the queue once more, for the images that it has not
	// in the bucket. If the hold was about a task that does exist, that one is paid
	// for too; and so are images that lie under _held/. They stay there.
	BuyAgain bool
	// GiveUp ends the job as failed, or, if it was bought again for what it lacked,
	// as succeeded with what it had. If it has a task or images, they are paid for;
	// what lies under _held/ stays there.
	GiveUp bool
}

func (r Resolution) validate() error {
	given := 0
	for _, is := range []bool{r.Adopt != "", r.BuyAgain, r.GiveUp} {
		if is {
			given++
		}
	}
	if given != 1 {
		return FieldError{Field: "resolution", Value: fmt.Sprintf("%d decisions", given), Allowed: "one of: adopt a task, buy again, give up"}
	}
	if r.Adopt != "" && !taskPattern.MatchString(r.Adopt) {
		return FieldError{Field: "adopt", Value: show(r.Adopt), Allowed: "the ID of a task at DashScope, as in 86ecf553-d340-4e21-af6e-a0c6a421c010"}
	}
	return nil
}

// taskPattern matches DashScope's task IDs, which are UUIDs (create's reference):
// what is none would keep a slot busy with a task that nobody knows.
var taskPattern = regexp.MustCompile(`(?i)^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Resolve ends a hold as a person decided, and returns the record.
//
// It fails with a [FieldError] if not exactly one thing was decided, with
// [ErrNotFound], with [ErrInvalidState] beside the record if the job is not held, with
// [*TaskOwnedError] if the task to adopt is another job's, or with Redis's own
// error. The same decision may be made again: it is acted on once.
func (c *Client) Resolve(ctx context.Context, id string, decision Resolution) (*Record, error) {
	if err := decision.validate(); err != nil {
		return nil, fmt.Errorf("resolve %s: %w", id, err)
	}
	for {
		rec, err := c.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		switch done, repairErr := c.alreadyResolved(ctx, rec, decision); {
		case done:
			err = repairErr
		case rec.State != StateHeld:
			err = fmt.Errorf("resolve %s: %w: it is not held (%s)", id, ErrInvalidState, rec.State)
		case decision.GiveUp:
			rec, err = c.abandon(ctx, rec)
		case decision.BuyAgain:
			next := *rec
			next.ResolvedAt = time.Now().UTC()
			rec, err = c.restart(ctx, rec, &next)
		default:
			rec, err = c.adopt(ctx, rec, decision.Adopt)
		}
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
}

// alreadyResolved reports whether the decision has been acted on already. It does what an
// earlier call, if that died half way, has left to do.
func (c *Client) alreadyResolved(ctx context.Context, rec *Record, decision Resolution) (bool, error) {
	switch {
	case rec.ResolvedAt.IsZero():
		return false, nil
	case decision.GiveUp && rec.State.Final() && rec.wasAbandoned():
		return true, c.finishEnded(ctx, rec)
	case decision.BuyAgain && rec.State.Waiting():
		return true, c.enqueueMessage(ctx, rec)
	case decision.Adopt == "" || decision.Adopt != rec.TaskID:
		return false, nil
	case rec.State == StateGenerating:
		return true, c.enqueueMessage(ctx, rec)
	case rec.State == StateStoring:
		return true, c.EnqueueStore(ctx, rec)
	}
	return false, nil
}

// wasAbandoned reports whether a person gave the job up, or the images that it lacks.
func (r *Record) wasAbandoned() bool {
	return r.Code == CodeAbandoned || slices.ContainsFunc(r.Images, func(image Image) bool { return image.Code == CodeAbandoned })
}

func (c *Client) abandon(ctx context.Context, rec *Record) (*Record, error) {
	next := *rec
	if req, err := c.RequestOf(ctx, rec); err == nil && rec.Request == nil {
		next.Request = &req
	} else if err != nil && !errors.Is(err, ErrRequestLost) {
		return rec, err
	}
	next.End(StateFailed, CodeAbandoned, fmt.Sprintf("given up on request; it was held: %s: %s", rec.Code, rec.Message), time.Now().UTC())
	next.ResolvedAt, next.Results = next.FinishedAt, nil // signed links have done their duty
	if err := c.releaseReservation(ctx, rec); err != nil {
		return rec, err
	}
	if err := c.Update(ctx, rec, &next); err != nil {
		return rec, err
	}
	return &next, c.finishEnded(ctx, &next)
}

func (c *Client) adopt(ctx context.Context, rec *Record, task string) (*Record, error) {
	if rec.Account == "" {
		return rec, fmt.Errorf("adopt task %s for %s: %w: it was never submitted, so the task's account is unknown", task, rec.ID, ErrInvalidState)
	}
	req, err := c.RequestOf(ctx, rec)
	if err != nil {
		return rec, err
	}
	if err := c.ClaimTask(ctx, task, rec.ID); err != nil {
		return rec, fmt.Errorf("adopt task %s for %s: %w", task, rec.ID, err)
	}
	next := *rec
	if rec.TaskID != "" && rec.TaskID != task {
		if err := c.releaseReservation(ctx, rec); err != nil {
			return rec, err
		}
		next.archiveAttempt()
	}
	if next.isPastAttempt(next.Attempt) {
		next.Attempt++
	}
	if next.Request == nil {
		req = req.WithSeed(rec.ID)
		next.Request = &req
	}
	next.State, next.Code, next.Message, next.ResolvedAt = StateGenerating, "", "", time.Now().UTC()
	next.Candidates, next.Rejected, next.AmbiguousAt = nil, nil, time.Time{}
	if next.SubmittedAt.IsZero() {
		next.SubmittedAt = next.ResolvedAt
	}
	// A task whose images are known was charged to the job already.
	known := rec.TaskID == task && len(rec.Results) > 0
	if known {
		next.State = StateStoring
	} else {
		next.Results, next.RunningAt, next.GeneratedAt = nil, time.Time{}, time.Time{}
		next.SpoolOwner, next.SpoolLocation = "", ""
	}
	if next.TaskID = task; next.storedImages() == 0 {
		next.Images = nil
	}
	if err := c.update(ctx, rec, &next, updateOptions{clearCancel: true}); err != nil {
		return rec, err
	}
	if known {
		return &next, c.EnqueueStore(ctx, &next)
	}
	return &next, c.enqueueMessage(ctx, &next)
}
