package worker_test

import (
	"log/slog"
	"testing"
)

// testLogger writes to the test's log, which is shown if it fails.
func testLogger(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}
