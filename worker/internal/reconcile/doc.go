// Package reconcile determines the outcome of ambiguous creates from the account's task
// list. It is pure: the lane takes the snapshots and applies the decisions. The rules are
// in worker/docs/spending.md.
package reconcile
