// Package jobs is for services that want images: enqueue a request, wait for it, and
// find its images in the bucket. It brings in asynq and go-redis and nothing else.
//
//	client := jobs.NewClient(redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"}))
//	job, err := client.Enqueue(ctx, jobs.Request{ID: "sku-17", Prompt: "一只白瓷茶杯", Style: "摄影"})
//	job, err = client.Wait(ctx, "sku-17")
//
// Workers (danqing worker) on the same Redis create the images. When Wait returns, State
// is [StateSucceeded], and Images has a Key in the bucket for each image; or State is
// [StateFailed], [StateCanceled] or [StateHeld], and Code and Message say why. The codes
// are constants, such as [CodeDeadlineExceeded].
//
// # Requests
//
// A [Request] needs a Prompt; the zero value of every other field is its default. It is
// checked before anything is queued: [Client.Enqueue] fails with an [*InvalidError] that
// names every field that the service would refuse, with its value and what is allowed.
// [Models] is the catalog: sizes, prices, limits. [Request.Normalize] checks a request
// without a queue.
//
// NotBefore, Deadline, Priority and Labels say when the job is wanted and what it is
// called.
//
// # Identity
//
// The same ID with the same request is the same job, forever: Enqueue may be repeated
// after a crash or a lost connection, and nothing is paid for twice. The same ID with
// another request fails with [ErrDigestConflict]. Choose the ID from what the image is
// for: a row of a table, a name of a product. [IdempotencyID] makes one of any text,
// [NewID] a random one.
//
// [Request.Digest] decides what is the same request; docs/digest.md has its bytes.
//
// # Many requests
//
// [Client.EnqueueAll] checks all requests before it queues any. [ReadBatch] reads a file
// of JSON lines, as danqing batch does. [Client.EnqueueWithin] keeps a producer within
// [Limits]: jobs that wait, yuan a day.
//
// # Without waiting
//
// A service that does not want to wait has three ways to learn of the end: [Client.Get],
// a [Client.Subscribe] to changes, or an [Event], as a signed POST to Request.Callback or
// as a message in an asynq queue of its own, by Request.FollowUp.
//
// # Operators and workers
//
// [Client.List], [Client.Cancel], [Client.Retry] and [Client.Resolve] are what danqing jobs
package jobs
