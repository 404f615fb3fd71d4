// Package worker spends the money and keeps the promises: no image is paid for
// twice, none that was paid for is lost, and the slot is never idle while there
// is work.
//
// A [Worker] runs one lane, an account's capacity for one model, and a store
// server. The lane submits a job, polls its task to the end and hands the result
// URLs on; the store server copies many images at once, so that copying never
// holds the slot. Both are asynq servers, and every step of both may be delivered
// any number of times: the job's record decides what is done.
//
// Before a create is sent, the intent is in the record and, synced, in the
// [Journal]. Whatever happens next, a later run finds it: a task that is known is
// polled to its end, and a create whose outcome is unknown is held for a person
// and never sent again.
package worker
