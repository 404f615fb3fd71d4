package jobs

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"time"
)

// Update replaces the record old by next if the record in Redis still has the state,
// attempt and term of old. A nil old means that there must be no record yet. It sets
// next.UpdatedAt and next.StartedAt.
//
// It fails with [ErrConflict] if the record was changed, with a [*TaskOwnedError] if next
// has adopted a task that belongs to another job, or with Redis's own error. After the
// last one the record may or may not be written.
func (s *Store) Update(ctx context.Context, old, next *Record) error {
	return s.UpdateOnce(ctx, rand.Text(), old, next)
}

// UpdateOnce is [Store.Update] with an ID for the write: repeated with the same ID after
// an error that left the outcome open, it writes once.
func (s *Store) UpdateOnce(ctx context.Context, writeID string, old, next *Record) error {
	return s.update(ctx, write{old: old, next: next, id: writeID})
}

// write is the compare-and-set of one record.
type write struct {
	old, next *Record
	// id identifies the write, so that it may be repeated; "" for one that creates a job.
	id string
	// clearCancel removes a cancel request.
	clearCancel bool
	// message is queued with the record; nil for none.
	message *message
}

func (s *Store) update(ctx context.Context, w write) error {
	w.id = cmp.Or(w.id, rand.Text())
	answers, err := s.apply(ctx, []write{w}, Limits{})
	if err == nil {
		err = answers[0].err(w.next, Limits{})
	}
	if err != nil {
		return fmt.Errorf("write record of %s: %w", w.next.ID, err)
	}
	if w.next.hasNotifications() {
		_ = s.notify(ctx, w.next, w.next.UpdatedAt.UnixMilli()) // a worker repeats it after an error
	}
	return nil
}

// answer is what writeScript returned for one write.
type answer struct {
	// code is 1 or writtenBesideMessage if the record was written, else 0 or less.
	code int64
	// owner is the other job that owns the task, "" for none.
	owner string
	// existing are the storedFields of the existing record and the state of its message, if the
	// write had a message.
	existing []string
}

// writtenBesideMessage is the code of a record that was written without its message, since
// there is one with its ID.
const writtenBesideMessage = 2

func newAnswer(result any) answer {
	switch r := result.(type) {
	case int64:
		return answer{code: r}
	case []any:
		existing := make([]string, len(r))
		for i, text := range r {
			existing[i], _ = text.(string) // the script returns nothing else
		}
		return answer{existing: existing}
	}
	return answer{owner: fmt.Sprint(result)}
}

// err returns why the record was not written, or nil.
func (a answer) err(next *Record, limits Limits) error {
	switch {
	case a.owner != "":
		return &TaskOwnedError{TaskID: next.TaskID, JobID: a.owner}
	case a.code <= 0:
		return limits.limitError(a.code)
	}
	return nil
}

// apply writes records as one command, and returns the answer to each write. It fails with
// Redis's own error; then any of them may or may not be written.
func (s *Store) apply(ctx context.Context, writes []write, limits Limits) ([]answer, error) {
	call, err := s.newCall(writes, limits)
	if err != nil {
		return nil, err
	}
	return s.run(ctx, call)
}

// newCall encodes writes for [Store.run].
func (s *Store) newCall(writes []write, limits Limits) (*scriptCall, error) {
	now := time.Now().UTC()
	call := &scriptCall{
		keys: make([]string, 0, usualKeys*len(writes)), args: make([]any, 0, usualArgs*len(writes)+1),
		limits: limits, registered: &s.registered,
	}
	call.args = append(call.args, now.UnixMilli())
	for _, w := range writes {
		w.next.UpdatedAt = now
		w.next.StartedAt = startedAt(w.old, w.next)
		if w.clearCancel {
			w.next.CancelRequestedAt = time.Time{}
		}
		if w.old == nil && w.message != nil {
			w.next.UpdatedAt = w.next.EnqueuedAt
		}
		encoded, err := encodeRecord(w.next)
		if err != nil {
			return nil, err
		}
		w.append(call, encoded)
	}
	return call, nil
}

// run calls writeScript. It fails with Redis's own error.
func (s *Store) run(ctx context.Context, call *scriptCall) ([]answer, error) {
	results, err := writeScript.Run(ctx, s.redis, call.keys, call.args...).Slice()
	if err != nil {
		return nil, err
	}
	for _, queue := range call.added {
		s.registered.Store(queue, true)
	}
	answers := make([]answer, len(results))
	for i, result := range results {
		answers[i] = newAnswer(result)
	}
	return answers, nil
}

// startedAt returns [Job.StartedAt] of next. A client that was told that its job is running is
// never told that it waits. A job that is restored from a journal may have been running.
func startedAt(old, next *Record) time.Time {
	restored := old == nil && (next.TaskID != "" || len(next.PastAttempts) > 0)
	if old == nil {
		old = next
	}
	for _, at := range []time.Time{next.StartedAt, old.StartedAt, old.RunningAt, next.RunningAt} {
		if !at.IsZero() {
			return at
		}
	}
	if restored || next.State == StateStoring || next.State == StateHeld {
		return next.UpdatedAt
	}
	return time.Time{}
}

// expiredBefore is the score below which an ended job has left Redis, in Unix
// milliseconds.
func expiredBefore(now time.Time) int64 { return now.Add(-RecordLifetime).UnixMilli() }
