package worker_test

import (
	"log/slog"
	"testing"
)

// testLogger writes to the test's log, which is shown if it fails.
func testLogger(tb testing.TB) *slog.Logger {
	tb.Helper()
	return slog.New(slog.NewTextHandler(tb.Output(), nil))
}
