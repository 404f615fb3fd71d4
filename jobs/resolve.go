package jobs

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// Resolution is an operator's decision about a held job. Exactly one field must be set.
type Resolution struct {
	// Adopt is the ID of a DashScope task, in the account of the last submit, that
	// belongs to the job: it is polled like any other, and its images are stored as the
	// job's. For a job that is held with images that could not be verified it may be the
	// job's own task: the images are fetched, or taken from the spool, and stored again.
	// Objects under _held/ stay there.
	Adopt string
	// BuyAgain queues the job again, for the images that are not in the bucket. If the
	// hold was about a task that does exist, that task is paid for too, and so are images
	// under _held/. They stay there.
	BuyAgain bool
	// GiveUp ends the job as failed, or as succeeded with what it had if it was bought
	// again for missing images. If it has a task or images, they are paid for. Objects
	// under _held/ stay there.
	GiveUp bool
}

func (r Resolution) validate() error {
	decisions := 0
	for _, set := range []bool{r.Adopt != "", r.BuyAgain, r.GiveUp} {
		if set {
			decisions++
		}
	}
	if decisions != 1 {
		return FieldError{Field: "resolution", Value: fmt.Sprintf("%d decisions", decisions), Allowed: "one of: adopt a task, buy again, give up"}
	}
	if r.Adopt != "" && !taskPattern.MatchString(r.Adopt) {
		return FieldError{Field: "adopt", Value: show(r.Adopt), Allowed: "the ID of a task at DashScope, as in 86ecf553-d340-4e21-af6e-a0c6a421c010"}
	}
	return nil
}

// action returns the decision's [Decision.Action].
func (r Resolution) action() string {
	switch {
	case r.Adopt != "":
		return ActionAdopt
	case r.BuyAgain:
		return ActionBuyAgain
	}
	return ActionGiveUp
}

// Decide returns the decision that somebody makes now. It fails with a [FieldError] unless
// exactly one thing was decided, and the decider is valid.
func (r Resolution) Decide(by Decider) (Decision, error) {
	if err := r.validate(); err != nil {
		return Decision{}, err
	}
	return by.decision(r.action())
}

// taskPattern matches DashScope's task IDs, which are UUIDs (create's reference). Polling
// anything else would occupy a slot for nothing.
var taskPattern = regexp.MustCompile(`(?i)^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// resolve is [Inspector.Resolve].
func (s *Store) resolve(ctx context.Context, id string, decision Resolution, by Decider) (*Record, error) {
	made, err := decision.Decide(by)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", id, err)
	}
	for {
		rec, err := s.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		unseen := by.checkSeen(&rec.Job)
		switch done, repairErr := s.alreadyResolved(ctx, rec, decision); {
		case done:
			err = repairErr
		case rec.State != StateHeld:
			err = fmt.Errorf("resolve %s: %w: it is not held (%s)", id, ErrInvalidState, rec.State)
		case unseen != nil:
			err = fmt.Errorf("resolve %s: %w", id, unseen)
		case decision.GiveUp:
			rec, err = s.abandon(ctx, rec, made)
		case decision.BuyAgain:
			next := *rec
			next.ResolvedAt = time.Now().UTC()
			rec, err = s.restart(ctx, rec, &next, made)
		default:
			rec, err = s.adopt(ctx, rec, decision.Adopt, made)
		}
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
}

// alreadyResolved reports whether the decision was made by an earlier call, which it
// completes if it was interrupted.
func (s *Store) alreadyResolved(ctx context.Context, rec *Record, decision Resolution) (bool, error) {
	switch {
	case rec.ResolvedAt.IsZero():
		return false, nil
	case decision.GiveUp && rec.State.Final() && rec.wasAbandoned():
		return true, s.finishEnded(ctx, rec)
	case decision.BuyAgain && rec.State.Waiting():
		return true, s.enqueueMessage(ctx, rec)
	case decision.Adopt == "" || decision.Adopt != rec.TaskID:
		return false, nil
	case rec.State == StateGenerating:
		return true, s.enqueueMessage(ctx, rec)
	case rec.State == StateStoring:
		return true, s.EnqueueStore(ctx, rec)
	}
	return false, nil
}

func (s *Store) abandon(ctx context.Context, rec *Record, made Decision) (*Record, error) {
	next := *rec
	next.Decide(made)
	if req, err := s.requestOf(&rec.Job); err == nil && rec.Request == nil {
		next.Request = &req
	} else if err != nil && !errors.Is(err, ErrRequestLost) {
		return rec, err
	}
	next.End(StateFailed, CodeAbandoned, fmt.Sprintf("given up on request; it was held: %s: %s", rec.Code, rec.Message), time.Now().UTC())
	next.ResolvedAt, next.BuyAgainAt, next.Results = next.FinishedAt, time.Time{}, nil // signed links are not needed any more
	if err := s.releaseReservation(ctx, rec); err != nil {
		return rec, err
	}
	if err := s.Update(ctx, rec, &next); err != nil {
		return rec, err
	}
	return &next, s.finishEnded(ctx, &next)
}

func (s *Store) adopt(ctx context.Context, rec *Record, task string, made Decision) (*Record, error) {
	if rec.Account == "" {
		return rec, fmt.Errorf("adopt task %s for %s: %w: it was never submitted, so the task's account is unknown", task, rec.ID, ErrInvalidState)
	}
	req, err := s.requestOf(&rec.Job)
	if err != nil {
		return rec, err
	}
	if err := s.ClaimTask(ctx, task, rec.ID); err != nil {
		return rec, fmt.Errorf("adopt task %s for %s: %w", task, rec.ID, err)
	}
	next := *rec
	next.Decide(made)
	if rec.TaskID != "" && rec.TaskID != task {
		if err := s.releaseReservation(ctx, rec); err != nil {
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
	next.Candidates, next.Rejected, next.AmbiguousAt, next.BuyAgainAt = nil, nil, time.Time{}, time.Time{}
	if next.SubmittedAt.IsZero() {
		next.SubmittedAt = next.ResolvedAt
	}
	// The cost of a task whose results are known was recorded already.
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
	if err := s.update(ctx, write{old: rec, next: &next, clearCancel: true}); err != nil {
		return rec, err
	}
	if known {
		return &next, s.EnqueueStore(ctx, &next)
	}
	return &next, s.enqueueMessage(ctx, &next)
}
