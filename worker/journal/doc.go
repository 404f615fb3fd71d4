// Package journal keeps what a worker must not forget when its process, or the queue,
// dies: in its data directory, the [Journal] of what it spent, synced before each step,
// and the [SpendLog] of what its tasks have cost.
package journal
