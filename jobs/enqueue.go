package jobs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/hibiken/asynq"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

const (
	// groupJobs and groupBytes limit the jobs and the bytes that one command queues, whichever
	// is reached first: Redis executes nothing else meanwhile. The embedded one takes some
	// 20 ms for a whole group.
	groupJobs  = 100
	groupBytes = 1 << 20
)

// enqueueWithin is [Client.EnqueueWithin].
func (s *Store) enqueueWithin(ctx context.Context, req Request, limits Limits) (*Record, error) {
	checked, invalid, err := s.check(ctx, []Request{req})
	switch {
	case err != nil:
		return nil, err
	case invalid[0] != nil:
		return nil, invalid[0]
	}
	group, _, err := s.newGroup(checked, limits)
	if err != nil {
		return nil, err
	}
	records, _, err := s.enqueueGroup(ctx, group)
	if err != nil {
		return nil, err
	}
	return records[0], nil
}

// enqueueAll is [Client.EnqueueAll].
func (s *Store) enqueueAll(ctx context.Context, reqs []Request) ([]*Record, error) {
	records := make([]*Record, len(reqs))
	checked, invalid, err := s.check(ctx, reqs)
	if err != nil {
		return records, err
	}
	if len(invalid) > 0 {
		return nil, mergeInvalid(invalid)
	}
	ctx, cancel := context.WithCancel(ctx)
	// The next group is encoded while Redis executes one.
	groups, encoded := make(chan group), make(chan error, 1)
	go func() {
		defer close(groups)
		encoded <- s.eachGroup(ctx, checked, groups)
	}()
	done := 0
	for group := range groups {
		got, failed, err := s.enqueueGroup(ctx, group)
		copy(records[done:], got)
		if err != nil {
			cancel()
			<-encoded //nolint:errcheck // it was canceled
			return records, fmt.Errorf("request %d: %w", done+failed, err)
		}
		done += len(group.writes)
	}
	cancel()
	if err := <-encoded; err != nil {
		return records, fmt.Errorf("request %d: %w", done, err)
	}
	return records, nil
}

// group are jobs that one command queues.
type group struct {
	writes []write
	limits Limits
	call   *scriptCall
}

// eachGroup sends the requests in groups.
func (s *Store) eachGroup(ctx context.Context, reqs []checkedRequest, groups chan<- group) error {
	for len(reqs) > 0 {
		next, rest, err := s.newGroup(reqs, Limits{})
		if err != nil {
			return err
		}
		reqs = rest
		select {
		case groups <- next:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// newGroup encodes the first requests, at least one, and returns the others.
func (s *Store) newGroup(reqs []checkedRequest, limits Limits) (g group, rest []checkedRequest, err error) {
	g.limits = limits
	size := 0
	for len(reqs) > 0 && len(g.writes) < groupJobs && size < groupBytes {
		next := NewRecord(reqs[0].req, reqs[0].warnings)
		next.PriceMicroYuan = limits.PriceMicroYuan
		message, err := newGenerateMessage(next, &reqs[0].req)
		if err != nil {
			return g, nil, err
		}
		size += len(message.encoded)
		g.writes, reqs = append(g.writes, write{next: next, message: message}), reqs[1:]
	}
	g.call, err = s.newCall(g.writes, limits)
	return g, reqs, err
}

// enqueueGroup queues the jobs of a group, and returns their records; those that were not
// queued are nil. failed is the index of the first one that err is about.
func (s *Store) enqueueGroup(ctx context.Context, g group) (records []*Record, failed int, err error) {
	records = make([]*Record, len(g.writes))
	answers, err := s.run(ctx, g.call)
	if err != nil {
		return records, 0, fmt.Errorf("write record of %s: %w", g.writes[0].next.ID, err)
	}
	for i, answer := range answers {
		rec, oneErr := s.enqueued(ctx, g.writes[i], answer, g.limits)
		switch {
		case oneErr == nil:
			records[i] = rec
		case err == nil:
			failed, err = i, oneErr
		}
	}
	return records, failed, err
}

// enqueued returns the record of a job whose write was answered. If it existed, it ensures that
// it has a message: an operator may have deleted it. It restores a job that was canceled
// because its message was lost.
func (s *Store) enqueued(ctx context.Context, w write, a answer, limits Limits) (*Record, error) {
	for a.existing != nil {
		rec, err := decodeRecord(w.next.ID, a.existing)
		switch {
		case err != nil:
			return nil, err
		case rec.Digest != w.next.Digest:
			return nil, fmt.Errorf("job %s: %w (its digest is %.12s…, this one's %.12s…): choose another ID", rec.ID, ErrDigestConflict, rec.Digest, w.next.Digest)
		case rec.State.Waiting() && !messageWaits(a.existing[len(a.existing)-1]):
			return rec, s.EnqueueGenerate(ctx, rec, *w.message.request)
		case rec.State != StateCanceled || rec.Code != CodeMessageLost:
			return rec, nil
		}
		restored := *w.next
		restored.Attempt, restored.Term, restored.PastAttempts = rec.Attempt, rec.Term, rec.PastAttempts
		w.old, w.next, w.clearCancel = rec, &restored, true
		answers, err := s.apply(ctx, []write{w}, limits)
		if err != nil {
			return nil, fmt.Errorf("write record of %s: %w", rec.ID, err)
		}
		a = answers[0]
	}
	if err := a.err(w.next, limits); err != nil {
		return nil, fmt.Errorf("write record of %s: %w", w.next.ID, err)
	}
	if a.code == writtenBesideMessage { // it has ended, or is of an earlier job with this ID
		return w.next, s.EnqueueGenerate(ctx, w.next, *w.message.request)
	}
	return w.next, nil
}

// checkedRequest is a normalized request with an ID, and its warnings.
type checkedRequest struct {
	req      Request
	warnings []string
}

// check normalizes requests and gives them IDs, and returns what is wrong with them by their
// index. A request whose deadline has passed is refused unless its job exists. It fails with
// Redis's own error.
func (s *Store) check(ctx context.Context, reqs []Request) (checked []checkedRequest, invalid map[int]*InvalidError, err error) {
	checked, invalid = make([]checkedRequest, len(reqs)), map[int]*InvalidError{}
	var late []int
	now := time.Now()
	for i, req := range reqs {
		req, warnings, problems := req.normalize()
		toStage := func(name string) bool { return !stagedPattern.MatchString(name) }
		if req.Stage && slices.ContainsFunc(req.References(), toStage) {
			problems = append(problems, FieldError{
				Field: stageName, Value: "true", Allowed: "where the bucket is at hand: danqing enqueue, batch or serve",
				Remedy: `copy the image there yourself and name it "sha256:" and its hash, or leave "stage" out`,
			})
		}
		if req.Stage = false; req.ID == "" {
			req.ID = NewID()
		}
		checked[i] = checkedRequest{req, warnings}
		switch {
		case len(problems) > 0:
			invalid[i] = &InvalidError{Fields: problems}
		case req.overdue(now) != nil:
			late = append(late, i)
		}
	}
	for part := range slices.Chunk(late, groupJobs) {
		keys := make([]string, len(part))
		for n, i := range part {
			keys[n] = rediskey.Record(checked[i].req.ID)
		}
		states, err := statesScript.Run(ctx, s.redis, keys).StringSlice()
		if err != nil {
			return nil, nil, fmt.Errorf("read records: %w", err)
		}
		for n, i := range part {
			if states[n] == "" {
				invalid[i] = checked[i].req.overdue(now)
			}
		}
	}
	return checked, invalid, nil
}

// mergeInvalid returns one error whose fields begin with the index of their request.
func mergeInvalid(invalid map[int]*InvalidError) *InvalidError {
	var all InvalidError
	for _, i := range slices.Sorted(maps.Keys(invalid)) {
		for _, f := range invalid[i].Fields {
			f.Field = fmt.Sprintf("[%d].%s", i, f.Field)
			all.Fields = append(all.Fields, f)
		}
	}
	return &all
}

// CheckDeadline fails with an [*InvalidError] if the deadline has passed at a time. A
// request that is not queued yet is refused then.
func (r Request) CheckDeadline(now time.Time) error {
	if invalid := r.overdue(now); invalid != nil {
		return invalid
	}
	return nil
}

func (r Request) overdue(now time.Time) *InvalidError {
	if r.Deadline.IsZero() || now.Before(r.Deadline) {
		return nil
	}
	return &InvalidError{Fields: []FieldError{{
		Field: "deadline", Value: show(r.Deadline.Format(time.RFC3339)), Allowed: "a future time", Remedy: "nothing was queued",
	}}}
}

// EnqueueGenerate ensures that a waiting job has a message for a lane. The request must
// be the job's own, normalized.
func (s *Store) EnqueueGenerate(ctx context.Context, rec *Record, req Request) error {
	return s.enqueue(ctx, TypeGenerate, Queue(rec.Model, rec.Priority), rec.ID, newPayload(rec, req), asynq.ProcessAt(req.NotBefore))
}

// EnqueueStore ensures that a job has a message for the delivery server, which stores its
// images or writes its sidecar.
func (s *Store) EnqueueStore(ctx context.Context, rec *Record) error {
	id := rec.ID + "." + strconv.Itoa(rec.Attempt)
	return s.enqueue(ctx, TypeStore, QueueStore, id, StoreMessage{JobID: rec.ID, Attempt: rec.Attempt})
}

func (s *Store) enqueue(ctx context.Context, kind, queue, id string, payload any, opts ...asynq.Option) error {
	message, err := newMessage(kind, queue, id, payload, opts...)
	if err != nil {
		return err
	}
	_, err = s.asynq.EnqueueContext(ctx, message)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		// The job waits, so a message with its ID that has ended, or that asynq has left behind,
		// blocks the new one.
		dropped, dropErr := s.drop(ctx, queue, id, false)
		if dropErr != nil || !dropped {
			return dropErr
		}
		_, err = s.asynq.EnqueueContext(ctx, message)
	}
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fmt.Errorf("enqueue %s in %s: %w", id, queue, err)
	}
	s.announceMessage(ctx, queue)
	return nil
}
