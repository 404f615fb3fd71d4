// Package worker spends the money and keeps the promises: no image is paid for
// twice, none that was paid for is lost, and the slot is never idle while there
// is work.
//
// A [Worker] runs the lanes of its accounts, each an account's capacity for one
// model, and a store server. A lane submits a job, polls its task to the end and
// hands the result URLs on; the store server copies many images at once, so that
// copying never holds a slot. All are asynq servers, and every step may be
// delivered any number of times: the job's record decides what is done.
//
// One process at a time holds a lane, by a lease in Redis; the others stand by.
// The lanes of several accounts draw from the same queues, and a job belongs to
// an account from its intent on. What keeps a lane from buying (a refused key, a
// throttle, a bucket that is away) closes it for a while: the message that it had
// drawn goes back to the head of its queue, for whoever can work it.
//
// Before a create is sent, the intent is in the record and, synced, in the
// [Journal], and its money is reserved in the ledger. Whatever happens next, a later
// run finds it: a task that is known is polled to its end, and a create whose outcome
// is unknown is looked for in the account's list. A task that can only be its own is
// adopted; if there is none when none can come any more, the job is bought again; what
// stays unclear is held for a person, and the images of all that it may be are kept.
package worker
