package jobs

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// Inspector is for operators: it retries jobs, resolves held ones, and pauses accounts and
// models. It is safe for concurrent use. A [Client] lists and cancels jobs. Who decided, when
// and why is kept: see [Job.Decisions] and [Inspector.PauseHistory].
type Inspector struct{ store *Store }

// NewInspector returns an inspector on a Redis connection, which the caller closes. It sends
// nothing.
func NewInspector(rdb redis.UniversalClient) *Inspector { return &Inspector{store: NewStore(rdb)} }

// Retry queues a job that failed or was canceled again, as it was enqueued, and returns it.
// Tasks that failed cost nothing. Images that were charged for and are not in the bucket,
// because their links expired, are bought a second time.
//
// For a job that has succeeded without some of its images, it buys the missing ones: see
// [Job.Missing]. The other images stay. New images take the seeds from that of the first
// missing one on. If none can be created, the job succeeds with the images that it has.
//
// It fails with [ErrNotFound] (see [Inspector.RetryJob]), [ErrRequestLost],
// [ErrInvalidState] if the job has not ended, [ErrFinished] if it has all its images, a
// [FieldError] if by is invalid, or Redis's own error. It may be repeated while the job waits.
func (i *Inspector) Retry(ctx context.Context, id string, by Decider) (*Job, error) {
	return jobOf(i.store.Retry(ctx, id, by))
}

// RetryJob is [Inspector.Retry] for a job that may have left Redis: job is read from its
// sidecar, with the request. If Redis has the job, its record there decides. It fails with
// [ErrDigestConflict] if the request does not match the digest, or as Retry does.
func (i *Inspector) RetryJob(ctx context.Context, job *Job, by Decider) (*Job, error) {
	return jobOf(i.store.retryRecord(ctx, &Record{Job: *job}, by))
}

// Resolve ends a hold as an operator decided, and returns the job.
//
// It fails with a [FieldError] unless exactly one thing was decided and by is valid, with
// [ErrNotFound], with [ErrInvalidState] beside the job if it is not held, with a
// [*TaskOwnedError] if the task to adopt is another job's, or with Redis's own error. The same
// decision may be repeated: it is acted on once.
func (i *Inspector) Resolve(ctx context.Context, id string, decision Resolution, by Decider) (*Job, error) {
	return jobOf(i.store.resolve(ctx, id, decision, by))
}

// RequeueOrphan gives a waiting job a message if it has none, or cancels it if its message
// was archived: see [Store.RequeueOrphan]. It returns the job if it changed it, else nil. It
// fails with [ErrNotFound], [ErrConflict] if the job changed at the same time, or Redis's own
// error.
func (i *Inspector) RequeueOrphan(ctx context.Context, id string) (*Job, error) {
	rec, err := i.store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	return jobOf(i.store.RequeueOrphan(ctx, rec))
}

// TaskOwners returns the owners of those tasks that have one: see [Store.TaskOwners].
func (i *Inspector) TaskOwners(ctx context.Context, tasks []string) (map[string]TaskOwner, error) {
	return i.store.TaskOwners(ctx, tasks)
}

// KeyID returns the api_key_id of the API key with a fingerprint: see [Store.KeyID].
func (i *Inspector) KeyID(ctx context.Context, fingerprint string) (string, error) {
	return i.store.KeyID(ctx, fingerprint)
}
