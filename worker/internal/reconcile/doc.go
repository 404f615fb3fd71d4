// Package reconcile determines the outcome of ambiguous creates from the account's task
// list. [Decide] is pure: the lane takes the snapshots and applies the decisions. [Intents]
// is a lane's index of settled intents, in Redis. The rules are in worker/docs/spending.md.
package reconcile
