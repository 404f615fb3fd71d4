// Package journal stores, in a worker's data directory, what must survive the loss of its
// process or of the queue: the [Journal] of what it spent, synced before each step, and the
// [SpendLog] of the cost of its tasks.
package journal
