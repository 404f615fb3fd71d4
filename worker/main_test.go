package worker_test

import (
	"runtime/debug"
	"testing"
)

// The queue in memory makes a Lua state for each script: to collect that garbage less often
// takes a quarter off the tests' CPU time.
func TestMain(m *testing.M) {
	debug.SetGCPercent(800)
	m.Run()
}
