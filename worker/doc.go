// Package worker submits jobs, polls their tasks and stores their images. It guarantees
// that no image is paid for twice and that no paid image is lost, and it keeps the slots
// busy while there is work.
//
// A [Worker] runs the lanes of its accounts, a store server and a notification server. A
// lane is one account's capacity for one model: it submits a job, polls its task to the
// end and passes on the result URLs. While all of its slots have tasks, it prepares a job
// for each, so that the next create is sent as soon as a slot is free. The store server
// copies the images of several jobs concurrently, so that copying never occupies a slot.
// The notification server sends callbacks, follow-ups and alerts. All of them are asynq
// servers, and every message may be delivered any number of times: the job's record
// decides what is done.
//
// Before its lanes start, and once Redis has lost data, a worker replays its data
// directory to Redis (recovery.go). Every five minutes one of all workers repairs what no
// message leads to, as a job whose message was lost (janitor.go).
//
// One process at a time holds a lane, by a lease in Redis; the others are on standby. The
// lanes of several accounts draw from the same queues, and a job belongs to an account
// from its intent on. When a lane cannot submit (the key is refused, the service
// throttles, the bucket is unavailable), it pauses: the message that it had drawn returns
// to the head of its queue, where any other lane may draw it.
//
// Before a create is sent, its cost is reserved in the ledger and its intent is written
// to the record and to the [journal.Journal], which is synced. Whatever happens next, a
// later run can continue: a known task is polled to its end; a create whose outcome is
// unknown is reconciled with the account's task list. A task that only this create can
// have created is adopted. If there is no task, and none can appear any more, the job is
// submitted again. Any other case is held for an operator, and the images of all
// candidate tasks are quarantined.
//
// The rules, each with its tests, are in worker/docs/spending.md.
package worker
