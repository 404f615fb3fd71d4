// Package jobs puts image-generation jobs on a Redis queue, waits for them, and says where
// their images are. It needs asynq and go-redis, and nothing else.
//
//	client := jobs.NewClient(redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"}))
//	job, err := client.Enqueue(ctx, jobs.Request{ID: "sku-17", Prompt: "一只白瓷茶杯", Style: "摄影"})
//	job, err = client.Wait(ctx, "sku-17")
//	for _, image := range job.Images {
//		fmt.Println(job.Bucket, image.Key, image.Link, image.Code)
//	}
//
// Workers (danqing worker) on the same Redis create the images. After Wait the job's State
// is [StateSucceeded], and each image is at Key in Bucket, with a Link if there is a permanent
// one, or has a Code that says why it is missing. Or State is [StateFailed], [StateCanceled] or
// [StateHeld], and Code and Message of the job say why. Codes are constants, such as
// [CodeDeadlineExceeded].
//
// # Requests
//
// A [Request] needs a Prompt; the zero value of every other field is its default. It is
// checked before anything is queued: [Client.Enqueue] fails with an [*InvalidError] that lists
// every field that DashScope would refuse, with its value and what is allowed. [Models] is the
// catalog: sizes, prices, limits. [Request.Normalize] checks a request without a queue.
//
// # Identity
//
// The same ID with the same request is the same job, forever: Enqueue may be repeated after a
// crash or a lost connection, and nothing is paid for twice. The same ID with another request
// fails with [ErrDigestConflict]. Derive the ID from what the image is for, such as a row of a
// table. [IdempotencyID] derives one from any text; [NewID] returns a random one.
// [Request.Digest] decides which requests are the same; docs/digest.md has its bytes.
//
// # Many requests
//
// [Client.EnqueueAll] checks all requests before it queues any. [ReadBatch] reads a file of
// JSON lines, as danqing batch does. [Client.EnqueueWithin] keeps a producer within [Limits]:
// waiting jobs, yuan per day.
//
// # Without waiting
//
// There are three other ways to learn of a job's end: [Client.Get]; [Client.Subscribe]; or an
// [Event], as a signed POST to Request.Callback, which package webhook verifies, or as a message
// in an asynq queue of your own, with Request.FollowUp.
//
// # Operators and workers
//
// An [Inspector] is for operators, a [Store] for workers. Package ledger has budgets and
// spending, package redishealth what puts the jobs in a Redis at risk.
package jobs
