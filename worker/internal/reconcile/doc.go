// Package reconcile decides what became of creates whose outcome is unknown, by the
// account's task list. It is pure: the lane takes the snapshots and acts on the decisions.
// The rules are in worker/docs/spending.md.
package reconcile
